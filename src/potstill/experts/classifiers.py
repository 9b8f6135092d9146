"""Classifier experts: the classifiers of finished experts, trained on while their bodies rest.

LAD (long-tailed aware distillation) decouples experts: representations come from training on the
data as they are, classifiers from a second stage on a class-balanced stream. Only the classifiers
are stored; the body is the first stage's snapshot.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch

from potstill.data import ImageSet
from potstill.data.transform import Transform
from potstill.experts.rows import Rows
from potstill.experts.trainer import Trainer, training_facts
from potstill.experts.trajectories import Params, Trajectories
from potstill.losses import cross_entropy
from potstill.nets import Network, Training, create_for
from potstill.run import Run
from potstill.run.cache import Cached, key_facts

__all__ = ["ClassifierTrajectories", "train_classifiers"]

_HEAD = "classifier."


@dataclass(frozen=True, eq=False, kw_only=True)
class ClassifierTrajectories(Trajectories):
    """Snapshots of the classifiers on the bodies that ``experts`` had at ``start_epoch``.

    Their parameters are "classifier.weight" and "classifier.bias", epochs those of this stage.
    """

    experts: Trajectories
    start_epoch: int

    def backbone(self, member: int, device: torch.device | str = "cpu") -> Params:
        """Return everything but the classifier of one expert."""
        whole = self.experts.at(member, self.start_epoch, device)
        return {name: value for name, value in whole.items() if not name.startswith(_HEAD)}

    def whole(self, member: int, epoch: int) -> Params:
        """Return backbone and classifier of one expert."""
        return {**self.backbone(member), **self.at(member, epoch)}


def train_classifiers(
    real: ImageSet,
    transform: Transform,
    experts: Trajectories,
    start_epoch: int,
    training: Training,
    run: Run,
    *,
    epochs: Collection[int],
) -> ClassifierTrajectories:
    """Train the classifier of each expert on from ``start_epoch`` (or read it from the cache).

    Args:
        start_epoch: the experts' epoch from which bodies and first classifiers come.
        training: of this stage; LAD samples it "cyclic" (class-balanced).
        epochs: the snapshots that must exist afterwards; 0 = the experts' own classifiers.

    Raises:
        InputError: the experts are of another data set, class order or transform, or did not keep
            ``start_epoch``.
        StorageError: the disk is too small; said before training begins.
    """
    experts.check(real, transform)

    def new(member: int) -> Network:
        network = create_for(real, experts.network, run.generator("classifiers/weights", member))
        network.load_state_dict(experts.at(member, start_epoch))
        network.body.requires_grad_(False)
        return network

    facts = key_facts(
        "classifiers-1",  # raise it when training or augmentation change
        run,
        real.checksum,
        threads=False,
        experts=experts.key,
        start_epoch=start_epoch,
        **{name: experts.facts[name] for name in ("network", "classes", "transform")},
        training=training_facts(training),
        precision=run.precision if run.on_gpu else "fp32",
    )
    what = f"classifiers of {experts.facts['network']} on {real.source}"
    entry = Cached(run.cache, "experts", facts, what)
    layout = {name: s for name, s in experts.rows.layout.items() if name.startswith(_HEAD)}
    rows = Rows(entry, layout)
    trainer = Trainer(real, transform, training, cross_entropy, run, rows, new, "classifiers")
    return ClassifierTrajectories(
        key=entry.key,
        network=experts.network,
        members=experts.members,
        rows=rows,
        seconds_saved=trainer.ensure(experts.members, epochs),
        experts=experts,
        start_epoch=start_epoch,
    )
