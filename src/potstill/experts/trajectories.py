"""Experts: networks trained on the real set, and what they were after each epoch.

Trajectory matching (MTT, Cazenavette et al., CVPR 2022, and its descendants) asks a student on
synthetic images to go where such an expert went on real ones. Experts are cached on disk by
content, one row of parameters per member and epoch; a killed training goes on from the last row,
and epochs asked for later are trained from the nearest earlier one, to the same bytes.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Annotated, Any

import torch
from torch import Tensor

from potstill.data import ImageSet
from potstill.data.transform import Transform
from potstill.experts.pool import fingerprint
from potstill.experts.rows import Rows, in_short
from potstill.experts.trainer import Trainer, training_facts
from potstill.losses import REMEDIES, priors
from potstill.nets import Network, Training, create_for, parse
from potstill.run import InputError, Run
from potstill.run.cache import Cached, key_facts
from potstill.run.fields import OneOf, check_value

__all__ = ["ExpertPrior", "Params", "Trajectories", "train_experts"]

Params = dict[str, Tensor]  # by name, as in Network.named_parameters()
ExpertPrior = Annotated[str, OneOf(*priors(post_hoc=False, stages=False))]  # one training


@dataclass(frozen=True, eq=False)
class Trajectories:
    """Snapshots of ``members`` experts of one architecture, on disk."""

    key: str  # identifies data, recipe and seed; part of every cache built on the experts
    network: str
    members: int
    rows: Rows
    seconds_saved: float = 0.0  # what training the snapshots read from the cache once took

    def at(self, member: int, epoch: int, device: torch.device | str = "cpu") -> Params:
        """Return the parameters of one expert before training (0) or after ``epoch`` epochs.

        Only they are read from the disk; where they are damaged there, they are trained again.

        Raises:
            InputError: there is no such expert, or that epoch was not kept.
        """
        if not 0 <= member < self.members:
            raise InputError(f"member is {member}; use 0 to {self.members - 1}")
        return self.rows.unpack(self.rows.read(member, epoch).to(device))

    @property
    def facts(self) -> dict[str, Any]:
        """What the experts are of: network, data, classes, training, transform, seed, device."""
        return self.rows.facts

    def check(self, real: ImageSet, transform: Transform) -> None:
        """Raise InputError unless the experts were trained on this set, seen in this way."""
        for name, own, value in (
            ("classes", self.facts["classes"], list(real.classes)),
            ("data", self.facts["data"], real.checksum),
            ("transform", self.facts["transform"], fingerprint(transform)),
        ):
            if own != value:
                raise InputError(
                    f"experts {self.key} were trained on other {name} ({in_short(own)}, not "
                    f"{in_short(value)}); train experts on this data set"
                )


def train_experts(
    real: ImageSet,
    transform: Transform,
    network: str,
    members: int,
    training: Training,
    run: Run,
    *,
    epochs: Collection[int],
    prior: str = "plain",
    reserve: int = 0,
) -> Trajectories:
    """Train ``members`` networks on ``real`` (or read them from the cache) as far as needed.

    Args:
        training: with a constant lr its number of epochs changes nothing, and is in no key.
        epochs: the snapshots that must exist afterwards, e.g. ``range(23)``; 0 = before training.
        prior: what is done about uneven classes, of :data:`potstill.losses.REMEDIES`.
        reserve: bytes that will be needed beside them, for the check of free space.

    Raises:
        InputError: an argument that cannot be used, e.g. a network with batch norm.
        StorageError: the disk is too small; said before training begins.
        DivergedError: an expert's loss became NaN or infinite.
    """
    check_value("prior", prior, ExpertPrior)
    row, training = REMEDIES[prior], training.under(prior)
    loss = row.loss_for(real.counts)
    _, height, width = real.shape
    spec = parse(network).at((height, width))

    def new(member: int) -> Network:
        return create_for(real, spec, run.generator("experts/weights", member))

    skeleton = new(0)
    if any(True for _ in skeleton.buffers()):
        raise InputError(
            f"network is {network!r}, whose batch norm keeps statistics outside its parameters; "
            f"use {str(replace(spec, norm='in'))!r}"
        )
    facts = key_facts(
        "trajectories-1",  # raise it when networks, training or augmentation change
        run,
        real.checksum,
        threads=False,
        network=str(spec),
        classes=list(real.classes),
        transform=fingerprint(transform),
        loss=row.loss,
        training=training_facts(training, loss),
        precision=run.precision if run.on_gpu else "fp32",
    )
    entry = Cached(run.cache, "experts", facts, f"{spec} on {real.source}")
    layout = {name: p.shape for name, p in skeleton.named_parameters()}
    rows = Rows(entry, layout)
    trainer = Trainer(real, transform, training, loss, run, rows, new, "experts", reserve)
    return Trajectories(entry.key, network, members, rows, trainer.ensure(members, epochs))
