"""Who labels what students see, where a receiver holds a teacher instead of stored labels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
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
from potstill.experts.pool import train_pool
from potstill.nets import Network, create_for
from potstill.run import InputError, Run
from potstill.synthetic import SyntheticSet
from potstill.synthetic.tensors import checksum

__all__ = ["Teaching", "teaching", "trained_teacher"]


@dataclass(frozen=True, eq=False)
class Teaching:
    """A teacher of views, and what a receiver holds for it."""

    logits: Callable[[Tensor], Tensor]  # images behind the artifact's transform to logits (b, K)
    tier: str  # "online" or "projected"
    held: int  # bytes of networks that a receiver has to have
    facts: dict[str, Any]  # JSON-like: which teacher; part of the key of every score under it


def teaching(
    syn: SyntheticSet, real: ImageSet, protocol: Protocol, run: Run, sender: str | None = None
) -> Teaching | None:
    """Return who labels views for students of ``syn``; None where labels are stored.

    Args:
        real: what a protocol's teacher is trained on (cached), as the ceiling on it is.
        sender: where the backbone of a projection is, if its name leads nowhere any more.

    Raises:
        InputError: the projection's backbone cannot be had, or is another one now.
    """
    tier = tier_of(syn, protocol.labels)
    if tier == "projected":
        return _projection(syn, real, run, sender)
    name = protocol.teacher  # of labels "online" alone, see Protocol
    return None if name is None else _network(name, syn, real, protocol, run)


def trained_teacher(
    name: str, prior: str, beside: Protocol, real: ImageSet, transform: Transform, run: Run
) -> tuple[Network, dict[str, Any]]:
    """Return a network trained on all of ``real`` (or read from the cache), and facts about it.

    Args:
        name: of the network. prior: of :data:`potstill.losses.REMEDIES`.
        beside: the students' protocol; a teacher is trained as the ceiling beside them is, see
            :mod:`potstill.evaluation.references`.
    """
    training = reference("ceiling", beside, len(real)).training
    pool = train_pool(real, transform, name, 1, training, run, prior=prior)
    net = create_for(real, name, torch.Generator().manual_seed(0))  # overwritten at once
    net.load_state_dict(pool.trained[0])
    facts = {"network": name, "prior": prior, "epochs": training.epochs, "key": pool.key}
    return net.to(run.device).eval(), facts


def _network(
    name: str, syn: SyntheticSet, real: ImageSet, protocol: Protocol, run: Run
) -> Teaching:
    net, facts = trained_teacher(name, protocol.teacher_prior, protocol, real, syn.transform, run)
    held = sum(value.nbytes for value in net.state_dict().values())

    @torch.no_grad()
    def logits(x: Tensor) -> Tensor:
        return net(x)

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
