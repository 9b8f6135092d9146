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
from potstill.labels import adsa_tau
from potstill.losses import adjust
from potstill.nets import Network, Training, create_for, predict
from potstill.run import InputError, Run
from potstill.run.fields import Epochs, OneOf, Range, check_value

__all__ = [
    "HardShare",
    "Rule",
    "calibrated",
    "logits_of",
    "mixed",
    "residual_training",
    "soft_labels",
    "softened",
    "train_teachers",
]

HardShare = Annotated[float, Range(0, 1, below=True)]
Rule = Annotated[str, OneOf("adsa")]
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
    facts = {"network": name, "prior": prior, "epochs": training.epochs, "key": pool.key}
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
    return softened(logits_of(teachers, images, transform, device), temperature, counts, tau)


def logits_of(
    teachers: Sequence[Network], images: Tensor, transform: Transform, device: str
) -> list[Tensor]:
    """What each teacher says of images, (n, K) on the CPU."""
    if not teachers:
        raise InputError("teachers is empty; give at least one network")
    return [predict(teacher, images, transform, device=device).cpu() for teacher in teachers]


def softened(
    said: Sequence[Tensor], temperature: float, counts: Sequence[int] | None, tau: float
) -> Tensor:
    """See :func:`soft_labels`."""
    if not temperature > 0:
        raise InputError(f"temperature is {temperature}; use a positive number")
    total = torch.zeros(said[0].shape)
    for logits in said:
        logits = logits if counts is None else adjust(logits, counts, tau)
        total += (logits.float() / temperature).softmax(1)
    return total / total.sum(1, keepdim=True)


def calibrated(
    tau: float | str, said: Sequence[Tensor], labels: Tensor, counts: Sequence[int] | None
) -> float:
    """The number that ``tau`` stands for."""
    if not isinstance(tau, str):
        return tau
    check_value("tau", tau, Rule)
    if counts is None:
        raise InputError("tau is 'adsa' without counts; give the real images per class")
    return adsa_tau(torch.stack([*said]), labels, counts)


def mixed(soft: Tensor, labels: Tensor, hard_share: float) -> Tensor:
    """Return ``hard_share`` of the class plus the rest of the soft label, (n, K)."""
    if not hard_share:
        return soft
    return hard_share * one_hot(labels.cpu(), soft.shape[1]) + (1 - hard_share) * soft
