"""The step that DM, M3D, NCFM, SDM and CSDM share.

One network looks at all synthetic images of a chunk of classes and the result is compared, class
by class, with the cached real side; a second term keeps the images where a trained classifier
expects them (calibration, DANCE). A method says how features become a class statistic (``embed``)
and how two statistics differ (``gap``).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor

from potstill.canvas import Canvas
from potstill.data import DSA, ImageSet
from potstill.data.augment import Rule
from potstill.experts.pool import Prior, train_pool
from potstill.experts.real_statistics import Entry, Eye, Policy, RealSide
from potstill.losses import REMEDIES, adjust, cross_entropy
from potstill.match.spectral import segment_mean
from potstill.methods.base import chunks
from potstill.methods.pixels import PixelMatcher
from potstill.nets import create_for, parse
from potstill.nets.many import Training
from potstill.run import InputError, Run
from potstill.run.fields import (
    Count,
    Epoch,
    Every,
    NotNegative,
    OneOf,
    Part,
    Positive,
    Range,
    Share,
)
from potstill.run.loop import Term

__all__ = ["DistributionMatcher"]

Networks = Annotated[int, Range(0, 10**4)]
Removed = Annotated[str, OneOf("adjusted", "none")]


@dataclass(kw_only=True)
class DistributionMatcher(PixelMatcher):
    """Match a statistic of every class under networks that never see the synthetic images."""

    network: str = "convnet-w128-in"  # feature network; depth from the image size unless given
    networks: Networks = 20  # trained networks in the pool; 0 = a fresh random network per entry
    pool_epochs: Epoch = 60  # training epochs of each pool network
    pool_lr: Positive = 0.01  # their step size (SGD, momentum 0.9, x0.2 at 2/3 and 5/6)
    pool_cutmix: Share = 0.5  # probability of CutMix in their training
    pool_prior: Prior = "plain"  # "plain", "balanced", "logit_adjusted", ...: the long-tail table
    normalize: bool = True  # features to unit length before they are compared
    augment: str = "color_crop_cutout"  # Siamese augmentation while matching; "none" = off
    augment_rule: Rule = "idc"  # "idc": colour and cutout always; "dc": one operation per draw
    real_side: Policy = "rolling"  # cache: "rolling", "fixed", "features" or "fresh" (as published)
    entries: Count = 200  # cached views of the real data
    refresh: Every = 10  # rolling: steps until a new view replaces the oldest
    batch_real: Part = 0  # real images per class in a view; 0 = all of them
    match_weight: Positive = 300.0  # NCFM's constant; matters only relative to the calibration
    calibration: NotNegative = 1.0  # weight of the cross-entropy under a trained network; 0 = off
    calibration_prior: Removed = "adjusted"  # logits minus log class prior, or "none" as published

    def embed(self, features: Tensor, entry: Entry) -> Tensor:
        """Features (n, d) -> (n, q) whose class means are compared."""
        return features

    def gap(self, entry: Entry, features: Tensor, labels: Tensor, first: int, last: int) -> Term:
        """Distance of each class in [first, last); ``labels`` (n,) count from 0 = ``first``."""
        raise NotImplementedError

    @property
    def keeps_features(self) -> bool:
        """Whether the distance needs the real features themselves instead of their class means."""
        return False

    def frequencies_at(self, number: int, dim: int) -> Tensor | None:
        """Frequencies (T, d) of an entry; none by default."""
        return None

    def embedding_facts(self) -> dict[str, Any]:
        """JSON-like facts that determine ``embed``, for the cache of the real side."""
        return {"embed": self.info.name}

    def prepare(self, real: ImageSet, canvas: Canvas, run: Run) -> None:
        """Hook between the networks and the real side (kernel lengths)."""

    def check(self, real: ImageSet | None = None) -> None:
        """Check what would otherwise show only after the pool has been trained."""
        super().check(real)
        if self.calibration and not self.networks:
            raise InputError(
                f"calibration is {self.calibration} and networks is 0, but it needs trained "
                "networks; use calibration=0"
            )
        self._augmentation()
        spec = parse(self.network)
        if real is not None:  # the network is built once to see that the images are large enough
            draw = torch.Generator().manual_seed(0)
            create_for(real, spec, draw)

    def _augmentation(self) -> DSA | None:
        return None if self.augment == "none" else DSA.parse(self.augment, rule=self.augment_rule)

    def setup(self, real: ImageSet, canvas: Canvas, run: Run) -> None:
        """Train or read the pool, open the real side."""
        transform = self.transform(real)
        if run.on_gpu and real.images.nbytes < 1e9 * run.memory_gb:
            real = real.to(run.device)
        pool = None
        if self.networks:
            pool = train_pool(
                real,
                transform,
                self.network,
                self.networks,
                self._pool_training(),
                run,
                prior=self.pool_prior,
            )
        dsa = self._augmentation()
        self.run_, self.dsa_, self.counts_, self.classes_ = run, dsa, real.counts, real.num_classes
        self.eye_ = Eye(real, transform, self.network, pool, run, normalize=self.normalize)
        self.calibration_net = (
            Eye(real, transform, self.network, pool, run, normalize=False)
            if self.calibration
            else None
        )
        self.prepare(real, canvas, run)
        self.real_side_ = RealSide(
            real,
            self.eye_,
            run,
            policy=self.real_side,
            entries=self.entries,
            refresh=self.refresh,
            batch_real=self.batch_real,
            dsa=dsa,
            facts=self.embedding_facts(),
            embed=None if self.keeps_features else self.embed,
            frequencies=self.frequencies_at,
        )

    def _pool_training(self) -> Training:
        return Training(
            epochs=self.pool_epochs,
            batch=128,
            optimizer="sgd",
            lr=self.pool_lr,
            momentum=0.9,
            weight_decay=5e-4,
            schedule="step",
            milestones=(2 / 3, 5 / 6),
            gamma=0.2,
            augment=DSA.parse("color_crop", rule="idc"),
            cutmix=self.pool_cutmix,
        )

    def image_bytes(self, canvas: Canvas) -> int:
        """Measured with one image."""
        return self.eye_.image_bytes(canvas.images[:1])

    def seconds_saved(self) -> float:
        """Training of the pool and tables of the real side that an earlier run had left behind."""
        pool = self.eye_.pool
        return (pool.seconds_saved if pool else 0.0) + self.real_side_.seconds_saved

    def terms(self, step: int, canvas: Canvas, chunk: int) -> Iterator[Term]:
        """Matching, then calibration (NCFM sec. 4.3; DANCE sec. 3.3)."""
        entry = self.real_side_.at(step)
        for first, last in chunks(canvas.classes, chunk):
            images, labels = canvas.decode(first, last)
            features = self.eye_.see(images, self.real_side_.dsa, entry.augment)
            term = self.gap(entry, features, labels - first, first, last)
            term.values = term.values * (self.match_weight / canvas.classes)
            yield term
        if self.calibration_net is not None:
            yield from self._calibrate(step, entry, canvas, chunk)

    def _calibrate(self, step: int, entry: Entry, canvas: Canvas, chunk: int) -> Iterator[Term]:
        """Cross-entropy of a trained network on the augmented images, averaged per class."""
        judge = self.calibration_net
        assert judge is not None
        judge.focus(Entry(entry.number, entry.member, 0.0, {}))
        augment: dict[str, Tensor] = {}
        if self.dsa_ is not None:
            draw = self.run_.generator("calibration", step)
            size = (canvas.images.shape[-2], canvas.images.shape[-1])
            augment = self.dsa_.draw(1, size, draw, siamese=True, device=self.run_.device)
        for first, last in chunks(canvas.classes, chunk):
            images, labels = canvas.decode(first, last)
            logits = judge.net.classifier(judge.see(images, self.dsa_, augment))
            if self.calibration_prior == "adjusted" and (left := REMEDIES[self.pool_prior].left):
                logits = adjust(logits, self.counts_, left)
            losses = segment_mean(
                cross_entropy(logits, labels)[:, None], labels - first, last - first
            )[:, 0]
            facts = {"calibration": losses}
            yield Term("calibration", losses * (self.calibration / canvas.classes), first, facts)
