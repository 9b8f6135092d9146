"""Classifier inheritance: what the sender's own classifier adds to the distilled images.

SFM (arXiv 2602.05391, released code): the sender ships a linear head that was trained on all real
images. A receiver with another backbone fits a linear map from its features to the sender's on the
distilled images and classifies there (inheritance), or lets the head teach one of its own (KD).
Either is another budget of information than images alone, so it stands in columns of its own.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import Tensor

from potstill.evaluation.examples import random_rows
from potstill.evaluation.labels import receiver_bytes
from potstill.evaluation.linear_bench import LinearBench
from potstill.evaluation.record import Result, part
from potstill.experts.features import collect_features
from potstill.experts.heads import Head, HeadPrior, train_head
from potstill.nets.backbone import Backbone
from potstill.nets.head_training import Projector, adam_projector, ridge_projector
from potstill.run import InputError, logger
from potstill.run.fields import OneOf, check_value

__all__ = ["InheritedClassifier", "Inheritance", "fits", "inheritance"]

Projection = Annotated[str, OneOf("ridge", "adam")]


@dataclass(frozen=True, kw_only=True)
class Inheritance:
    """What a receiver gets besides the images, and what it does with it.

    Raises:
        InputError: unknown projector.
    """

    projector: str = "ridge"  # closed form, or "adam" as published
    prior: str = "logit_adjusted"  # how the head was debiased, of losses.REMEDIES
    kd: bool = False  # distil the head into one of the receiver's own as well
    head: Head | None = None  # the shipped head; None = train it on the real set

    def __post_init__(self) -> None:
        check_value("inherit", self.projector, Projection)
        check_value("head_prior", self.prior, HeadPrior)


def inheritance(inherit: str | None, head_prior: str | None, kd: bool | None) -> Inheritance | None:
    """Return what flags or a recipe ask for; None without a projector or KD.

    Raises:
        InputError: a prior without a classifier.
    """
    if inherit in (None, "none") and not kd:
        if head_prior is not None:
            raise InputError(f"head_prior is {head_prior!r} without inherit; use inherit=ridge")
        return None
    return Inheritance(
        projector="ridge" if inherit in (None, "none") else str(inherit),
        prior=head_prior or "logit_adjusted",
        kd=bool(kd),
    )


def fits(how: Inheritance | None, inherited: Any, kd: Any) -> bool:
    """Whether parts of a score are what ``how`` asks for."""
    if how is None:
        return True
    kind = part(inherited, "projector").get("kind")
    right = kind == how.projector or bool(part({"_": inherited}, "_").get("same_backbone"))
    known = part(inherited, "head").get("prior") == how.prior
    return right and known and (kd is not None or not how.kd)


@dataclass(frozen=True, eq=False)
class InheritedClassifier:
    """A receiver that also gets the sender's head."""

    bench: LinearBench
    how: Inheritance

    @cached_property
    def sender(self) -> Backbone:
        """The backbone that distilled, on which the head was trained."""
        return self.bench.open("same")[0]

    @cached_property
    def head(self) -> Head:
        """The head that was shipped, or one trained on the real set."""
        bench, head = self.bench, self.how.head
        if head is None:
            self._refuse_other_data()
            head = train_head(
                bench.train,
                self.sender,
                bench.run,
                prior=self.how.prior,
                views=bench.protocol.views,
                least_steps=bench.protocol.full_steps,
            )
        head.check(self.sender, bench.syn.classes)
        return head

    def _refuse_other_data(self) -> None:
        """A head of the receiver's own data would be nothing that was inherited."""
        made = part(self.bench.syn.provenance, "data").get("checksum")
        if made not in (None, self.bench.train.checksum):
            raise InputError(
                "inherit needs the sender's classifier, and these are not the data that the "
                "artifact was made from; put the sender's head.safetensors beside the artifact"
            )

    def kept(self, path: Path, own: bool) -> Inheritance:
        """Return what is inherited with the head at ``path``.

        Args:
            own: the folder is that of the sender's run; the head is trained (or taken from the
                cache) and written there. Otherwise a head that is there came with the artifact, is
                used as it is and never written over.
        """
        if self.how.head is None and path.is_file() and not own:
            head = Head.load(path)
            if head.facts.get("prior") != self.how.prior:
                logger.warning("the head that came along is %r", head.facts.get("prior"))
            return replace(self.how, head=head)
        if own:
            self.head.save(path)
        return replace(self.how, head=self.head)

    def inherited(
        self, backbone: Backbone, runs: int, *, random: bool = False, whole: bool = False
    ) -> Result:
        """Score the sender's head behind a linear map from this backbone to the sender's.

        The map is fitted on views of the synthetic images alone. If both backbones are one, it is
        the identity and the images play no part.

        Args:
            random: also fit it on as many random real images, under "random" of the result.
            whole: also fit it on all real images, under "whole": what no few images can exceed by
                much.
        """
        began = time.perf_counter()
        same = self.sender.key == backbone.key
        maps = [] if same else self.projectors(backbone, runs)
        result = self._through(backbone, maps) | {
            "label_tier": "inherited",
            "runs": max(1, len(maps)),
            "same_backbone": same,
            "projector": {"bytes_if_sent": maps[0].nbytes, **maps[0].about} if maps else None,
        }
        result |= self._shipped(began)
        if random and not same:
            result["random"] = self._beside(backbone, runs, self._random_pairs(backbone))
        if whole and not same:
            result["whole"] = self._beside(backbone, runs, self._whole_pairs(backbone))
        return result

    def _through(self, backbone: Backbone, maps: list[Projector]) -> Result:
        """Test the head behind maps; without any, as it is."""

        def logits(z: Tensor) -> Tensor:
            return torch.stack([self.head(move(z)) for move in maps] or [self.head(z)])

        return self.bench.tested(backbone, logits)

    def _beside(self, backbone: Backbone, runs: int, pairs: tuple[Tensor, Tensor]) -> Result:
        maps = self.fitted(pairs, runs)
        return self._through(backbone, maps) | {"projector": maps[0].about}

    def _random_pairs(self, backbone: Backbone) -> tuple[Tensor, Tensor]:
        bench = self.bench
        return self._paired(
            backbone, bench.train.batch(random_rows(bench.train, bench.syn.counts, bench.run))
        )

    def _whole_pairs(self, backbone: Backbone) -> tuple[Tensor, Tensor]:
        """Features of all real images as seen by both; views are drawn by their number alone."""
        views, count = self.bench.protocol.views, self.bench.protocol.full_views
        how: dict[str, Any] = {"views": views, "count": count, "bank": True}
        seen = [
            collect_features(self.bench.train, eye, self.bench.run, **how).bank
            for eye in (backbone, self.sender)
        ]
        return seen[0].to(backbone.device), seen[1].to(backbone.device)

    def _shipped(self, began: float) -> dict[str, Any]:
        """What a receiver had besides the images, and how long it took."""
        sender = self.sender
        return {
            "head": {"bytes": self.head.nbytes, **self.head.facts},
            "receiver_bytes": receiver_bytes(self.bench.syn, "inherited", held=self.head.nbytes),
            "sender_backbone": {"label": sender.label, "key": sender.key, "bytes": sender.nbytes},
            "seconds": time.perf_counter() - began,
        }

    def projectors(self, backbone: Backbone, runs: int) -> list[Projector]:
        """Maps from ``backbone`` to the sender's: one in closed form, or ``runs`` by Adam."""
        return self.fitted(self._paired(backbone), runs)

    def fitted(self, pairs: tuple[Tensor, Tensor], runs: int) -> list[Projector]:
        """Maps from (V, n, d_e) to (V, n, d_d), features of the same views of n images."""
        source, goal = pairs
        if self.how.projector == "ridge":
            return [ridge_projector(source, goal)]
        run, epochs = self.bench.run, self.bench.protocol.training.epochs

        def draws(number: int) -> Callable[[str, int, int], torch.Generator]:
            return lambda purpose, _, index: run.generator(f"projector/{purpose}", number, index)

        return [adam_projector(source, goal, draws(k), epochs=epochs) for k in range(runs)]

    def _paired(self, backbone: Backbone, real: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Features of the same stored views as seen by both, of the set or of real images."""
        bench = self.bench
        images = bench.syn.decoded()[0] if real is None else real
        if not bench.protocol.stored_views:
            bench = replace(bench, protocol=replace(bench.protocol, stored_views=64))
        return bench.table(images, backbone), bench.table(images, self.sender)

    def kd(self, backbone: Backbone, runs: int) -> Result:
        """Score heads of this backbone that learn from the sender's head on the same views.

        α T² KL + (1 - α) cross-entropy with T = 4 and α = 0.5 (SFM's released code).
        """
        began = time.perf_counter()
        source, goal = self._paired(backbone)
        result = self.bench.measure(
            backbone,
            source,
            self.bench.syn.decoded()[1],
            self.bench.protocol.training,
            runs,
            teacher=torch.stack([self.head(view) for view in goal]),
        )
        return result | {"label_tier": "online", "runs": runs, **self._shipped(began)}
