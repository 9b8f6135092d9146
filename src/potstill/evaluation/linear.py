"""Scores of linear heads on frozen backbones, and what a classifier inherited from the sender adds.

For every backbone: heads on the artifact, on its 8-bit view, on a random real subset and on all
real images, all repeats at once on cached features. Beside these, as other budgets of information
and never mixed with them: the sender's own head, reached through a linear map between the two
backbones (classifier inheritance), and distillation from that head (KD).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from potstill import __version__
from potstill.data import ImageSet
from potstill.evaluation.cached import remembered
from potstill.evaluation.labels import receiver_bytes
from potstill.evaluation.metrics import class_accuracy, summary
from potstill.evaluation.probe import Probe
from potstill.evaluation.student import random_rows
from potstill.experts.backbones import backbone_for
from potstill.experts.features import collect_features, image_features
from potstill.experts.heads import HEAD_PRIORS, Head, train_head
from potstill.nets.backbone import Backbone
from potstill.nets.heads import (
    HeadTraining,
    Projector,
    adam_projector,
    ridge_projector,
    train_heads,
)
from potstill.run import InputError, Run, nearest
from potstill.synthetic import SyntheticSet

__all__ = ["PROJECTORS", "Inheritance", "LinearBench", "inheritance"]

PROJECTORS = ("ridge", "adam")
Result = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Inheritance:
    """What a receiver gets besides the images, and what it does with it.

    Raises:
        InputError: unknown projector.
    """

    projector: str = "ridge"  # closed form, or "adam" as published
    prior: str = "logit_adjusted"  # how the head was debiased, see HEAD_PRIORS
    kd: bool = False  # distil the head into one of the receiver's own as well
    head: Head | None = None  # the shipped head; None = train it on the real set

    def __post_init__(self) -> None:
        if self.projector not in PROJECTORS:
            raise InputError(f"inherit is {self.projector!r}{nearest(self.projector, PROJECTORS)}")
        if self.prior not in HEAD_PRIORS:
            raise InputError(f"head_prior is {self.prior!r}{nearest(self.prior, HEAD_PRIORS)}")


def inheritance(inherit: str | None, head_prior: str | None, kd: bool | None) -> Inheritance | None:
    """Return what flags or a recipe ask for; None without a projector or KD.

    Raises:
        InputError: a prior without a classifier.
    """
    if inherit in (None, "none") and not kd:
        if head_prior is not None:
            raise InputError(f"head_prior is {head_prior!r} without inherit; use inherit = 'ridge'")
        return None
    return Inheritance(
        projector="ridge" if inherit in (None, "none") else str(inherit),
        prior=head_prior or "logit_adjusted",
        kd=bool(kd),
    )


@dataclass(frozen=True, eq=False)
class LinearBench:
    """What all backbones of one evaluation share."""

    syn: SyntheticSet
    train: ImageSet
    test: ImageSet
    probe: Probe
    run: Run
    sender: str | None = None  # backbone that distilled, if the artifact does not tell its place

    def open(self, name: str) -> tuple[Backbone, str]:
        """Return the backbone of a name and the name; "same" is the one that distilled.

        Raises:
            InputError: the artifact names none, or this name leads to another now.
        """
        made = self.syn.provenance.get("method", {}).get("fields", {})
        known = self.syn.provenance.get("backbone", {})
        same = name == "same"
        if same:
            name = self.sender or str(made.get("backbone", ""))
            if not name:
                raise InputError(
                    "network is 'same', but no backbone distilled the artifact; name one"
                )
        mine = name in (made.get("backbone"), self.sender)
        backbone = backbone_for(
            name,
            self.train,
            self.run,
            epochs=int(made.get("backbone_epochs", 30)) if mine else 30,
            flip=float(made.get("flip", 0.5)) if mine else self.probe.views.flip,
        )
        if same and backbone.key != known.get("key"):
            raise InputError(
                f"backbone is {name!r} with key {backbone.key}, but the artifact was distilled "
                f"with {known.get('key')}; name the backbone's folder"
            )
        return backbone, name

    def table(self, images: Tensor, backbone: Backbone, heads: int = 1) -> Any:
        """Features of random views of ``images``: stored (V, n, d), or a function of the epoch."""

        def seen(*index: int) -> Tensor:
            draw = self.run.generator("probe/views", *index)
            drawn = self.probe.views.draw(len(images), draw)
            return image_features(images, backbone, self.probe.views, drawn).half()

        if self.probe.stored_views:
            return torch.stack([seen(view) for view in range(self.probe.stored_views)])
        return lambda epoch: torch.stack([seen(epoch, head) for head in range(heads)])

    def measure(
        self,
        backbone: Backbone,
        table: Any,
        targets: Tensor,
        training: HeadTraining,
        runs: int,
        weights: Tensor | None = None,
        teacher: Tensor | None = None,
    ) -> Result:
        """Train ``runs`` heads and test each once."""
        weight, bias = train_heads(
            table,
            targets,
            self.test.num_classes,
            training,
            heads=runs,
            generators=lambda purpose, k, index: self.run.generator(f"probe/{purpose}", k, index),
            weights=weights,
            teacher=teacher,
        )
        return self.tested(
            backbone, lambda z: torch.einsum("nd,rcd->rnc", z, weight) + bias[:, None]
        )

    def tested(self, backbone: Backbone, logits: Callable[[Tensor], Tensor]) -> Result:
        """Test ``logits``, features (n, d) -> (R, n, C), on clean views of the test set."""
        seen = collect_features(self.test, backbone, self.run, bank=True)
        assert seen.bank is not None
        found = [
            logits(part.to(backbone.device).float()).argmax(-1) for part in seen.bank[0].split(4096)
        ]
        rows = [
            class_accuracy(row, self.test.labels, self.test.num_classes)
            for row in torch.cat(found, 1)
        ]
        return summary(torch.stack(rows), self.test.counts, self.train.groups)

    def artifact(self, syn: SyntheticSet, backbone: Backbone, runs: int) -> Result:
        """Score the artifact, or a view of it."""
        images, hard, soft, weights = syn.decoded()
        if self.probe.labels == "soft" and soft is None:
            raise InputError("labels is 'soft' but the artifact has none; use 'auto' or 'hard'")
        targets = hard if soft is None or self.probe.labels == "hard" else soft
        table = self.table(images, backbone, runs)
        return self.measure(backbone, table, targets, self.probe.training, runs, weights)

    def random(self, backbone: Backbone, runs: int) -> Result:
        """Score one random real subset (per seed) of the same counts."""
        rows = random_rows(self.train, self.syn.counts, self.run)

        def compute() -> Result:
            table = self.table(self.train.batch(rows), backbone, runs)
            labels = self.train.labels[rows]
            return self.measure(backbone, table, labels, self.probe.training, runs)

        facts = {"what": "random", "counts": self.syn.counts}
        return self._remembered(facts, backbone, runs, compute)

    def full(self, backbone: Backbone, runs: int) -> Result:
        """Score all real images, as unevenly as they come."""

        def compute() -> Result:
            stats = collect_features(
                self.train,
                backbone,
                self.run,
                views=self.probe.views,
                count=self.probe.full_views,
                bank=True,
            )
            assert stats.bank is not None
            table = stats.bank.to(backbone.device)
            training = self.probe.full_training(len(self.train))
            return self.measure(backbone, table, self.train.labels, training, runs)

        return self._remembered({"what": "full"}, backbone, runs, compute)

    def inherited(self, name: str, backbone: Backbone, how: Inheritance, runs: int) -> Result:
        """Score the sender's head behind a linear map from this backbone to the sender's.

        The map is fitted on views of the synthetic images alone. If both backbones are one, it is
        the identity and the images play no part.
        """
        began = time.perf_counter()
        sender, _ = self.open("same")
        head = self.head(sender, how)
        same = sender.key == backbone.key
        projectors: list[Projector | None] = [None]
        if not same:
            projectors = list(self.projectors(backbone, sender, how, runs))

        def logits(z: Tensor) -> Tensor:
            return torch.stack([head(z if p is None else p(z)) for p in projectors])

        result = self.tested(backbone, logits)
        sent = head.nbytes
        return result | {
            "label_tier": "inherited",
            "runs": len(projectors),
            "same_backbone": same,
            "head": {"bytes": sent, **head.facts},
            "projector": None
            if projectors[0] is None
            else {"bytes_if_sent": projectors[0].nbytes, **projectors[0].about},
            "receiver_bytes": receiver_bytes(self.syn, "inherited", held=sent),
            "sender_backbone": {"label": sender.label, "key": sender.key, "bytes": sender.nbytes},
            "seconds": time.perf_counter() - began,
        }

    def head(self, sender: Backbone, how: Inheritance) -> Head:
        """The head that was shipped, or one trained on the real set."""
        head = how.head or train_head(
            self.train, sender, self.run, prior=how.prior, views=self.probe.views
        )
        head.check(sender, self.syn.classes)
        return head

    def with_head(self, how: Inheritance, path: Path) -> Inheritance:
        """Return ``how`` with the head at ``path``, trained and written if there is another."""
        sender, _ = self.open("same")
        wanted = (how.prior, self.train.checksum, sender.key)
        if how.head is None and path.is_file():
            head = Head.load(path)
            if (head.facts.get("prior"), head.facts.get("data"), head.backbone) == wanted:
                return replace(how, head=head)
        head = self.head(sender, how)
        head.save(path)
        return replace(how, head=head)

    def projectors(
        self, backbone: Backbone, sender: Backbone, how: Inheritance, runs: int
    ) -> list[Projector]:
        """Maps from ``backbone`` to ``sender``: one closed form, or ``runs`` by Adam."""
        source, goal = self._paired(backbone, sender)
        if how.projector == "ridge":
            return [ridge_projector(source, goal)]
        return [
            adam_projector(
                source,
                goal,
                lambda purpose, _, index, run=number: self.run.generator(  # type: ignore[misc]
                    f"projector/{purpose}", run, index
                ),
                epochs=self.probe.training.epochs,
            )
            for number in range(runs)
        ]

    def _paired(self, backbone: Backbone, sender: Backbone) -> tuple[Tensor, Tensor]:
        """Features of the same stored views as seen by both."""
        images = self.syn.decoded()[0]
        bench = self
        if not self.probe.stored_views:
            stored = self.probe.with_(stored_views=64, name=self.probe.name)
            bench = replace(self, probe=stored)
        return bench.table(images, backbone), bench.table(images, sender)

    def kd(self, backbone: Backbone, how: Inheritance, runs: int) -> Result:
        """Score heads of this backbone that learn from the sender's head on the same views.

        α T² KL + (1 - α) cross-entropy with T = 4 and α = 0.5 (SFM's released code).
        """
        began = time.perf_counter()
        sender, _ = self.open("same")
        head = self.head(sender, how)
        source, goal = self._paired(backbone, sender)
        result = self.measure(
            backbone,
            source,
            self.syn.decoded()[1],
            self.probe.training,
            runs,
            teacher=torch.stack([head(view) for view in goal]),
        )
        held = head.nbytes + sender.nbytes
        return result | {
            "label_tier": "online",
            "runs": runs,
            "head": {"bytes": head.nbytes, **head.facts},
            "receiver_bytes": receiver_bytes(self.syn, "inherited", held=held),
            "seconds": time.perf_counter() - began,
        }

    def _remembered(
        self, facts: dict[str, Any], backbone: Backbone, runs: int, compute: Callable[[], Result]
    ) -> Result:
        facts |= {
            "kind": "probe-1",
            "version": __version__,
            "torch": torch.__version__,
            "train": self.train.checksum,
            "test": self.test.checksum,
            "protocol": self.probe.hash,
            "backbone": backbone.key,
            "runs": runs,
            "seed": self.run.seed,
            "device": torch.device(self.run.device).type,
            "precision": backbone.precision,
        }
        return remembered(self.run, facts, compute)
