"""LGM: linear gradient matching for pre-trained backbones.

Cazenavette, Torralba and Sitzmann, "Dataset Distillation for Pre-Trained Self-Supervised Vision
Models", NeurIPS 2025, arXiv 2511.16674.

    L = 1 - cos(g_real, g_syn),    g = d/d(W, b) mean CE(W f(A(x)) + b, y),    W ~ N(0, 0.01^2)

f is a frozen backbone, A a random view, W a new random linear head at every step, and the cosine
is one over all rows together. A step draws as many real images as there are views of synthetic
ones, takes both gradients in closed form (:func:`potstill.match.linear.linear_gradient`) and sends
the loss through the backbone once. Nothing is trained but the images.

On a long tail the real gradient of a natural batch is nearly all head: row k is (m / C - π_k μ_k)
for a head near zero. ``balance`` draws classes equally often ("sampling") or weighs images by
1 / π ("weights"); "none" is as published.

Deviations: bias-free start of W from the code, not N(0, 1) as a summary has it; the batch wraps
around where a set is smaller than it (the released loader would stop); bf16 on GPUs without the
loss scale that fp16 needed. ``real_side`` "bank" takes real features from ``bank_views`` stored
views per image, "analytic" the first-order limit from class means and second moments; both are
ours. Recipe: recipes/lgm/.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor

from potstill.canvas import Canvas, CanvasSpec, Pyramid
from potstill.data import ImageSet
from potstill.experts.features import StoredFeatures, collect_features, image_features
from potstill.match.linear import analytic_gradient, cosine_distance, linear_gradient, row_cosines
from potstill.methods.base import Matcher, MethodInfo
from potstill.methods.pretrained.backbone_matching import (
    CANVASES,
    BackboneObjective,
    RandomViews,
)
from potstill.nets.sampling import balanced_order
from potstill.networks import BackboneNetworks, FrozenBackbone
from potstill.run import Run
from potstill.run.descent import Descent
from potstill.run.fields import BatchOrAll, Copies, OneOf, Positive

__all__ = ["LGM"]

Balance = Annotated[str, OneOf("none", "sampling", "weights")]
RealViews = Annotated[str, OneOf("images", "bank", "analytic")]


@dataclass(frozen=True, kw_only=True)
class LGM(Matcher):
    """Match the gradients of a random linear head, new at every step."""

    info = MethodInfo(
        name="lgm",
        title="Linear Gradient Matching",
        paper="Cazenavette et al., NeurIPS 2025",
        year=2025,
        arxiv="2511.16674",
        family="pre-trained backbone",
        labels="hard",
        long_tail="nothing as published; balance draws classes equally or weighs them",
        cost="one pass of as many real as synthetic views per step, and a backward pass of these",
    )
    sizes = {
        "quick": {
            "backbone": "self:convnet-w32-bn",
            "steps": 500,
            "grow_every": 40,
            "lr_images": 1e-2,
            "augmentations": 3,
            "real_side": "bank",
        },
        "standard": {"real_side": "bank", "balance": "sampling"},
    }

    pairs = {"canvas": CANVASES, "labels": ("hard",), "networks": ("backbone",)}

    canvas: CanvasSpec = Pyramid()
    networks: FrozenBackbone = FrozenBackbone()
    views: RandomViews = RandomViews()
    descent: Descent = Descent(steps=5001, lr_images=2e-3)  # released: 0 to 5000 inclusive; Adam
    head_std: Positive = 0.01  # standard deviation of W; released code
    batch_real: BatchOrAll = 0  # real images per step; 0 = one for each synthetic view, as released
    balance: Balance = "none"  # long tails: "none" as published, "sampling" or "weights"
    real_side: RealViews = "images"  # fresh views of real images, "bank" or "analytic"
    bank_views: Copies = 8  # bank: stored random views per real image

    def prepare(
        self, real: ImageSet, canvas: Canvas, networks: BackboneNetworks, run: Run
    ) -> BackboneObjective:
        """Store views of the real images, or their moments, where they are asked for."""
        return _HeadGradient(self, real, canvas, networks, run)


class _HeadGradient(BackboneObjective):
    """1 - cos of the gradients of a random head (eq. 3)."""

    how: LGM
    stats: StoredFeatures  # under real_side "bank"

    def prepare(self) -> None:
        """Store views of the real images, or their moments, where they are asked for."""
        how, real, device = self.how, self.real, self.run.device
        counts = torch.tensor(real.counts, dtype=torch.float32, device=device)
        self.inverse = 1 / torch.tensor(real.counts, dtype=torch.float64)  # read on the CPU
        self.groups = [real.of_class(label) for label in range(real.num_classes)]
        self.batch = how.batch_real or len(self.labels) * self.count
        taken = (real, self.backbone, self.run)
        seen: dict[str, Any] = {"views": self.views, "count": how.bank_views}
        if how.real_side == "bank":
            self.stats = collect_features(*taken, **seen, bank=True)
            self.seconds_saved = self.stats.seconds_saved
        elif how.real_side == "analytic":
            plain = how.balance == "none"
            stats = collect_features(*taken, **seen, moment="natural" if plain else "balanced")
            self.seconds_saved, self.centres = stats.seconds_saved, stats.centres.to(device)
            self.second = stats.moment.float().to(device)
            even = torch.full_like(counts, 1 / len(counts))
            self.priors = counts / counts.sum() if plain else even

    def begin(self, step: int) -> None:
        """Draw the head and take its gradient on real images."""
        draw = self.run.generator("head", step)
        shape = (self.classes, self.backbone.dim)
        self.head = (torch.randn(shape, generator=draw) * self.how.head_std).to(self.run.device)
        with torch.no_grad():
            if self.how.real_side == "analytic":
                self.goal = analytic_gradient(self.centres, self.priors, self.second, self.head)
            else:
                self.goal = self._real_gradient(step)

    def _real_gradient(self, step: int) -> Tensor:
        """Gradient on this step's batch, summed up block by block."""
        rows = self.positions(step)
        labels = self.real.labels[rows]
        weights = self.inverse[labels] if self.how.balance == "weights" else None
        total = self.head.new_zeros(self.classes, self.backbone.dim + 1)
        size = 64 if self.how.real_side == "images" else 1024  # images are held at full size
        parts = torch.arange(len(rows)).split(size)
        whole = len(rows) if weights is None else float(weights.sum())
        for part, z in zip(parts, self._real_features(step, rows, parts), strict=True):
            own = None if weights is None else weights[part]
            share = (len(part) if own is None else float(own.sum())) / whole
            there = labels[part].to(z.device)
            total += share * linear_gradient(z, there, self.head, image_weights=own)
        return total

    def _real_features(
        self, step: int, rows: Tensor, parts: tuple[Tensor, ...]
    ) -> Iterator[Tensor]:
        """Features of a random view of each image."""
        draw, views = self.run.generator("real-views", step), self.views
        if self.how.real_side == "bank":
            view = torch.randint(self.how.bank_views, (len(rows),), generator=draw)
            for part in parts:
                yield self.stats.bank[view[part], rows[part]].to(self.run.device).float()
            return
        drawn = views.draw(len(rows), draw)
        for part in parts:
            images = self.real.batch(rows[part])
            own = {name: values[part] for name, values in drawn.items()}
            yield image_features(images, self.backbone, views, own)

    def positions(self, step: int) -> Tensor:
        """Return which real images (batch,) a step sees.

        As published: shuffled rounds over the whole set without replacement, what is left of a
        round dropped. "sampling": every class equally often.
        """
        n, size = len(self.real), self.batch
        if self.how.balance == "sampling":
            return balanced_order(self.groups, size, self.run.generator("real", step))
        if size <= n:
            per_round = n // size
            order = torch.randperm(n, generator=self.run.generator("real", step // per_round))
            return order[(step % per_round) * size :][:size]
        rounds = [
            torch.randperm(n, generator=self.run.generator("real", step, number))
            for number in range(-(-size // n))
        ]
        return torch.cat(rounds)[:size]

    def loss(self, z: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """One cosine over all rows of both gradients (eq. 3)."""
        labels = self.labels.to(z.device).repeat(len(z))
        found = linear_gradient(z.flatten(0, 1), labels, self.head)
        return cosine_distance(self.goal, found), {"cosine": row_cosines(self.goal, found)}
