"""Who labels what students see, where a receiver holds a teacher instead of stored labels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from potstill.data import ImageSet
from potstill.data.transform import Transform
from potstill.data.views import clean_view
from potstill.evaluation.labels import tier_of
from potstill.evaluation.protocol import Protocol
from potstill.evaluation.references import reference
from potstill.experts.backbones import backbone_for
from potstill.experts.labelling import residual_training, train_teachers
from potstill.experts.looks import blurring
from potstill.nets import RESIDUAL, Network, Training, parse
from potstill.run import InputError, Run
from potstill.run.fields import Epochs, check_value
from potstill.synthetic import SyntheticSet
from potstill.synthetic.tensors import checksum

__all__ = ["Teaching", "teacher_training", "teaching", "trained_teachers"]


@dataclass(frozen=True, eq=False)
class Teaching:
    """A teacher of views, and what a receiver holds for it."""

    logits: Callable[[Tensor], Tensor]  # images behind the artifact's transform to logits (b, K)
    tier: str  # "online" or "projected"
    held: int  # bytes of networks that a receiver has to have
    facts: dict[str, Any]  # JSON-like: which teacher; part of the key of every score under it


def teaching(
    syn: SyntheticSet,
    real: ImageSet,
    protocol: Protocol,
    run: Run,
    sender: str | None = None,
    *,
    whole: bool = False,
) -> Teaching | None:
    """Return who labels views for students of ``syn``; None where labels are stored.

    Args:
        real: what a protocol's teacher is trained on (cached), see :func:`teacher_training`.
        whole: a teacher of whole images, also where the set decodes to tiles; None where that
            makes no difference.
        sender: where the backbone of a projection is, if its name leads nowhere any more.

    Raises:
        InputError: the projection's backbone cannot be had, or is another one now.
    """
    tier = tier_of(syn, protocol.labels)
    if tier == "projected":
        return None if whole else _projection(syn, real, run, sender)
    name, look = protocol.teacher, blurring(syn.transform, syn.decode)  # name: of "online" alone
    if name is None or (whole and look is syn.transform):
        return None
    return _network(name, syn.transform if whole else look, real, protocol, run)


def teacher_training(
    name: str, beside: Protocol, images: int, epochs: int | None = None
) -> Training:
    """Return how a teacher is trained on so many real images.

    Residual networks have SGD for 40 epochs (and at least 5000 steps), crops, flips and CutMix; all
    others are trained as the ceiling is, see :mod:`potstill.evaluation.references`.

    Args:
        name: of the network. beside: the students' protocol, which says whether images are
            mirrored. epochs: instead of the recipe's.

    Raises:
        InputError: ``epochs`` is out of range.
    """
    ceiling = reference("ceiling", beside, images).training
    if parse(name).family in RESIDUAL:
        mirror = ceiling.augment is None or "flip" in ceiling.augment.ops
        return residual_training(images, epochs, mirror=mirror)
    if epochs is None:
        return ceiling
    check_value("teacher_epochs", epochs, Epochs)
    return replace(ceiling, epochs=epochs)


def trained_teachers(
    name: str,
    prior: str,
    beside: Protocol,
    real: ImageSet,
    transform: Transform,
    run: Run,
    *,
    epochs: int | None = None,
    members: int = 1,
) -> tuple[list[Network], dict[str, Any]]:
    """Return networks trained on all of ``real`` (or read from the cache), and facts about them.

    Args:
        transform: what stands before them; see :func:`potstill.experts.looks.blurring` for tiles.
        name: of the network. prior: of :data:`potstill.losses.REMEDIES`.
        beside, epochs: see :func:`teacher_training`.
        members: how many; a CPU trains one per core at a time.
    """
    training = teacher_training(name, beside, len(real), epochs)
    return train_teachers(name, training, prior, members, real, transform, run)[:2]


def _network(name: str, look: Transform, real: ImageSet, protocol: Protocol, run: Run) -> Teaching:
    nets, told, prior = list[Network](), list[dict[str, Any]](), protocol.teacher_prior
    for one in name.split("+"):
        found, about = trained_teachers(one, prior, protocol, real, look, run)
        nets, told = [*nets, *found], [*told, about]
    facts = told[0] if len(told) == 1 else {"network": name, "prior": prior, "teachers": told}
    held = sum(value.nbytes for net in nets for value in net.state_dict().values())

    @torch.no_grad()
    def logits(x: Tensor) -> Tensor:
        if len(nets) == 1:
            return nets[0](x)
        return torch.stack([net(x) for net in nets]).mean(0)

    return Teaching(logits, "online", held, facts | {"bytes": held})


def _projection(syn: SyntheticSet, real: ImageSet, run: Run, sender: str | None) -> Teaching:
    own = syn.projection
    if own is None:
        raise InputError("labels is 'projected' but the artifact has no projection; use 'auto'")
    name = sender or own.backbone
    try:
        backbone = backbone_for(name, real, run)
    except InputError as error:
        raise InputError(
            f"the backbone of the projection cannot be opened; name it as sender ({error})"
        ) from error
    if backbone.key != own.key:
        raise InputError(
            f"the projection is of a backbone with key {own.key}, but {name!r} has key "
            f"{backbone.key}; give the folder or name of that one as sender"
        )
    known = checksum({"weight": own.weight, "bias": own.bias}, own.facts)
    facts = {"backbone": backbone.label, "key": backbone.key, "projection": known}

    @torch.no_grad()
    def logits(x: Tensor) -> Tensor:
        images = syn.transform.inverse(x.float())
        return own(backbone.features(clean_view(images, backbone.size)))

    return Teaching(logits, "projected", backbone.nbytes, facts | {"bytes": backbone.nbytes})
