"""Teachers of soft labels: how residual ones are trained, and what they say of training images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from potstill.data import DSA, ImageSet
from potstill.data.transform import Transform
from potstill.experts.pool import train_pool
from potstill.labels import adsa_tau, even_shift
from potstill.losses import adjust
from potstill.nets import Network, Training, create_for, predict
from potstill.run import InputError, Run
from potstill.run.fields import Epochs, OneOf, Range, check_value

__all__ = [
    "HardShare",
    "Rule",
    "logits_of",
    "mixed",
    "residual_training",
    "shift_for",
    "soft_labels",
    "softened",
    "train_teachers",
]

HardShare = Annotated[float, Range(0, 1, below=True)]
Rule = Annotated[str, OneOf("adsa", "even")]
# Ours, after Zagoruyko & Komodakis (BMVC 2016) and CutMix: half of their batch and step size, which
# at an epoch of 175 steps is worth the noise; no label smoothing, which takes from a teacher's
# labels what students learn by them (Mueller et al., NeurIPS 2019).
_RESIDUAL = Training(
    epochs=40, batch=64, drop_last=True, optimizer="sgd", lr=0.05, momentum=0.9, nesterov=True,
    weight_decay=5e-4, schedule="cosine", warmup=0.1,
    augment=DSA.parse("crop_flip", rule="idc"), cutmix=0.5,
)  # fmt: skip
_STEPS = 5000  # at least so many, of small sets


def residual_training(images: int, epochs: int | None = None, *, mirror: bool = True) -> Training:
    """Return how a residual teacher is trained on so many real images.

    SGD for 40 epochs (and at least 5000 steps), crops, flips and CutMix.

    Args:
        epochs: instead of the recipe's. mirror: whether images are flipped.

    Raises:
        InputError: ``epochs`` is out of range.
    """
    least = max(_RESIDUAL.epochs, -(-_STEPS // _RESIDUAL.steps(images)))
    if epochs is not None:
        check_value("teacher_epochs", epochs, Epochs)
        least = epochs
    training = replace(_RESIDUAL, epochs=least)
    return training if mirror else replace(training, augment=DSA(("crop",), rule="idc"))


def train_teachers(
    name: str,
    training: Training,
    prior: str,
    members: int,
    real: ImageSet,
    transform: Transform,
    run: Run,
) -> tuple[list[Network], dict[str, Any], float]:
    """Return networks trained on all of ``real`` (or read from the cache), and facts about them.

    Args:
        name: of the network. prior: of :data:`potstill.losses.REMEDIES`.
        members: how many; a CPU trains one per core at a time.

    Returns:
        The networks, JSON-like facts, and the seconds that making what was read once took.
    """
    pool = train_pool(real, transform, name, members, training, run, prior=prior)
    nets = []
    for state in pool.trained:
        net = create_for(real, name, torch.Generator().manual_seed(0))  # overwritten at once
        net.load_state_dict(state)
        nets.append(net.to(run.device).eval())
    size = f"{real.shape[1]}x{real.shape[2]}, {transform.kind}"  # tells a teacher of tiles, too
    facts = {"network": name, "prior": prior, "epochs": training.epochs, "key": pool.key}
    facts["sees"] = size
    return nets, facts, pool.seconds_saved


def soft_labels(
    teachers: Sequence[Network],
    images: Tensor,
    transform: Transform,
    *,
    temperature: float = 1.0,
    counts: Sequence[int] | None = None,
    tau: float = 1.0,
    device: str = "cpu",
) -> Tensor:
    """Return softmax((z - τ log π) / T), the mean over teachers, float32 (n, K) on the CPU.

    Args:
        teachers: networks trained on the real set. images: (n, c, h, w), RGB 0-1.
        transform: what the teachers were trained behind.
        temperature: T; above 1 flattens.
        counts: real training images per class, to take a long tail's prior π out of plainly trained
            teachers (Menon et al., ICLR 2021, eq. 9); None leaves the logits as they are.
        tau: τ, how much of the prior.

    Raises:
        InputError: no teacher, or a temperature that is not positive.
    """
    said = logits_of(teachers, images, transform, device)
    return softened(said, temperature, None if counts is None else _less_prior(counts, tau))


def logits_of(
    teachers: Sequence[Network], images: Tensor, transform: Transform, device: str
) -> list[Tensor]:
    """What each teacher says of images, (n, K) on the CPU."""
    if not teachers:
        raise InputError("teachers is empty; give at least one network")
    return [predict(teacher, images, transform, device=device).cpu() for teacher in teachers]


def softened(said: Sequence[Tensor], temperature: float, shift: Tensor | None) -> Tensor:
    """Return softmax((z + shift) / T), the mean over teachers; ``shift`` (K,) of :func:`shift_for`.

    Raises:
        InputError: a temperature that is not positive.
    """
    if not temperature > 0:
        raise InputError(f"temperature is {temperature}; use a positive number")
    total = torch.zeros(said[0].shape)
    for logits in said:
        logits = logits if shift is None else logits + shift.to(logits)
        total += (logits.float() / temperature).softmax(1)
    return total / total.sum(1, keepdim=True)


def _less_prior(counts: Sequence[int], tau: float) -> Tensor:
    return adjust(torch.zeros(len(counts), dtype=torch.float64), counts, tau)


def shift_for(
    tau: float | str,
    said: Sequence[Tensor],
    labels: Tensor,
    counts: Sequence[int] | None,
    temperature: float = 1.0,
) -> tuple[Tensor | None, dict[str, Any]]:
    """Return what to add to logits before the temperature, (K,) or None, and facts about it.

    Args:
        tau: how much of the log prior of ``counts`` to take out, none where there are none;
            "adsa": the rule for that number; "even": what gives each class its share of all labels.
        said, labels: of the images by which a rule decides.

    Raises:
        InputError: an unknown rule, or "adsa" without counts.
    """
    if not isinstance(tau, str):
        shift = None if counts is None else _less_prior(counts, tau)
        return shift, {"adjusted": counts is not None, "tau": None if counts is None else tau}
    check_value("tau", tau, Rule)
    if tau == "even":
        shift = even_shift(torch.stack([*said]), labels, temperature)
        told = [round(value, 4) for value in shift.tolist()]
        return shift, {"adjusted": False, "tau": None, "calibration": tau, "shift": told}
    if counts is None:
        raise InputError("tau is 'adsa' without counts; give the real images per class")
    number = adsa_tau(torch.stack([*said]), labels, counts)
    return _less_prior(counts, number), {"adjusted": True, "tau": number, "calibration": tau}


def mixed(soft: Tensor, labels: Tensor, hard_share: float) -> Tensor:
    """Return ``hard_share`` of the class plus the rest of the soft label, (n, K)."""
    if not hard_share:
        return soft
    return hard_share * one_hot(labels.cpu(), soft.shape[1]) + (1 - hard_share) * soft
