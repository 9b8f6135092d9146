"""DSDM: Diversified Semantic Distribution Matching (Li et al., ACM MM 2024).

    L = sum_c | m_c - n_c |^2 + (w / d) | Cov_c(real) - Cov_c(syn) |_F^2 + (v / d) | n_c - h_c |^2

m and n are class means of the features f(A(x)) of real and synthetic images, Cov their covariances
over all d features. f is one of ten networks trained on the real set, A a Siamese augmentation. The
covariance keeps the images of a class apart as real ones are (diversity); h_c, the historical
prototype, is a running mean of n_c behind all networks, h <- 0.99 h + 0.01 n, and keeps the
images from following the newest network alone. It takes part after ``history_after`` steps.

Deviations: h_c begins with the first n_c (after the published 2000 steps no beginning is left in
it); n_c is taken where the step begins; the networks take turns instead of being drawn; the images
live in RGB 0-1 with the step size of normalised pixels, all classes in one step, as IDM's.
Ours: ``shrinkage`` for classes of few images. Recipe: recipes/dsdm/.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from potstill.canvas import Canvas, CanvasSpec, Tiled
from potstill.data import ImageSet
from potstill.match.mmd import by_class
from potstill.match.moments import covariance_distance, mean_distance, scatter_rows
from potstill.methods.base import Matcher, MethodInfo
from potstill.methods.distribution.class_matching import (
    CANVASES,
    LABELS,
    TRAINED,
    ClassMatching,
    Comparison,
)
from potstill.networks import Networks, NetworkSpec, PoolNets
from potstill.networks.real_views import ClassFeatures
from potstill.networks.view_draws import RealStatistics, SiameseViews
from potstill.run import Run
from potstill.run.descent import Descent
from potstill.run.fields import NotNegative, PositiveShare, Steps
from potstill.run.objective import Term

__all__ = ["DSDM", "Moments"]


@dataclass(frozen=True, kw_only=True)
class DSDM(Matcher):
    """Match means and covariances of classes; their means change slowly from network to network."""

    info = MethodInfo(
        name="dsdm",
        title="Diversified Semantic Distribution Matching",
        paper="Li et al., ACM MM 2024",
        year=2024,
        arxiv="",
        family="distribution matching",
        labels="hard",
        long_tail="per-class moments; shrinkage lends small classes the covariance of all",
        cost="a pool trained before the first step; a pass of real batches per step",
    )
    sizes = {
        "quick": {
            "steps": 600,
            "network": "convnet-w32-in",
            "members": 3,
            "pool_epochs": 10,
            "batch_real": 64,
            "history_after": 120,
        },
        "standard": {"steps": 5000, "history_after": 1000},
    }
    pairs = {"canvas": CANVASES, "labels": LABELS, "networks": (*TRAINED, "random")}

    canvas: CanvasSpec = Tiled()
    networks: NetworkSpec = PoolNets(members=10, pool_epochs=20, blend="trained")
    views: SiameseViews = SiameseViews(augment="color_crop_cutout", augment_rule="idc")
    statistics: RealStatistics = RealStatistics(
        real_side="fresh", batch_real=256, augment_per="class"
    )
    descent: Descent = Descent(  # per normalised pixel
        steps=10_000, lr_images=0.1, optimizer="sgd"
    )
    covariance: NotNegative = 50.0  # of covariances, over the number of features; 0 = off
    shrinkage: NotNegative = 0.0  # images that the covariance of all is worth; 0 = off
    history_weight: NotNegative = 0.2  # of historical prototypes, over the features; 0 = off
    history_after: Steps = 2000  # steps before prototypes take part
    history_rate: PositiveShare = 0.01  # share of the newest means in a prototype

    def prepare(
        self, real: ImageSet, canvas: Canvas, networks: Networks, run: Run
    ) -> ClassMatching:
        """Open the real side; the published step size acts on normalised pixels."""
        history = torch.zeros(real.num_classes, networks.dim, device=run.device)
        objective = _Remembering.of(self, real, canvas, networks, run, Moments(self, history))
        objective.lr = self.descent.scaled(networks.transform.step_share)
        return objective


class Moments(Comparison):
    """Distances of means, of covariances and, once there are, from historical prototypes.

    Attributes:
        history: prototypes h (C, d). remembers: whether they take part.
        means: newest synthetic class means (C, d).
    """

    keeps_features = True
    remembers = False

    def __init__(self, how: DSDM, history: Tensor) -> None:
        self.how, self.history, self.means = how, history, torch.zeros_like(history)
        self._pooled: tuple[Any, Tensor | None] = None, None  # of the newest view

    def class_distance(
        self, view: ClassFeatures, features: Tensor, labels: Tensor, first: int, last: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the three distances of each class together."""
        own, there = by_class(features, labels, last - first)
        mask, how, dim = view.mask[first:last], self.how, features.shape[1]
        real, syn = (
            (rows * m[..., None]).sum(1) / m.sum(1, keepdim=True)
            for rows, m in ((view.features[first:last], mask), (own, there))
        )
        self.means[first:last] = syn.detach()
        facts = {"distance": mean_distance(real, syn)}
        total = facts["distance"]
        if how.covariance:
            rows = scatter_rows(view.features[first:last], mask)
            strength, pooled = how.shrinkage, self._covariance_of_all(view)
            share = strength / (strength + mask.sum(1).to(rows)) if strength else None
            apart = covariance_distance(rows, scatter_rows(own, there), pooled, share)
            facts["covariance"] = apart
            total = total + how.covariance / dim * apart
        if how.history_weight and self.remembers:
            facts["history"] = mean_distance(self.history[first:last], syn)
            total = total + how.history_weight / dim * facts["history"]
        return total, facts

    @torch.no_grad()
    def _covariance_of_all(self, view: ClassFeatures) -> Tensor | None:
        """Mean covariance of the classes (d, d), where small ones are drawn to it."""
        if not self.how.shrinkage:
            return None
        if self._pooled[0] is not view:
            rows = scatter_rows(view.features, view.mask).flatten(0, 1)
            self._pooled = view, rows.T @ rows / len(view.features)
        return self._pooled[1]


class _Remembering(ClassMatching):
    """Matching that keeps the running means of what classes looked like."""

    comparison: Moments

    def terms(self, step: int, canvas: Canvas, piece: int) -> Iterator[Term]:
        """Match; prototypes take part once there were enough steps."""
        self.comparison.remembers = step >= max(1, self.comparison.how.history_after)
        yield from super().terms(step, canvas, piece)

    def after(self, step: int, canvas: Canvas) -> None:
        """Take the means of this step into the prototypes."""
        super().after(step, canvas)
        newest, rate = self.comparison.means, self.comparison.how.history_rate if step else 1.0
        self.comparison.history.lerp_(newest, rate)

    def state(self) -> dict[str, Tensor]:
        """Return the prototypes, beside networks that move."""
        return super().state() | {"history": self.comparison.history.clone()}

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Put back what :meth:`state` returned."""
        self.comparison.history.copy_(tensors["history"])
        super().load_state({n: v for n, v in tensors.items() if n != "history"})
