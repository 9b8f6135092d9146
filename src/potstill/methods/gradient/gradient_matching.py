"""The step that DC and DSA share: the gradients of one network on real and on synthetic images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.func import functional_call

from potstill.canvas import Canvas
from potstill.data import DSA, ImageSet
from potstill.match.gradients import GradientMatching, Metric, Side
from potstill.methods.base import Objective
from potstill.networks import Networks
from potstill.run import Run
from potstill.run.checkpoint import under
from potstill.run.fields import Batch
from potstill.run.objective import Term
from potstill.run.parts import Part

__all__ = ["Gradients", "GradientObjective", "MatchesGradients"]


@dataclass(frozen=True, kw_only=True)
class Gradients(Part):
    """How gradients are taken and compared."""

    batch_real: Batch = 256  # real images of a class in a step; a small class gives all it has
    metric: Metric = "rows"  # cosines of output units summed, "cosine" of all values, or "mse"


class MatchesGradients:
    """What the methods of this family share; to be mixed into a :class:`Matcher`."""

    sizes: ClassVar[dict[str, dict[str, Any]]] = {
        "quick": {
            "steps": 200,
            "network": "convnet-w32-in",
            "batch_real": 64,
            "inner_epochs": 10,
            "members": 4,
            "pool_epochs": 6,
            "pool_lr": 0.05,
            "pool_cutmix": 0.0,
        },
        "standard": {"steps": 2_000},
    }
    pairs: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "canvas": ("pixels", "tiled", "multi-formation", "frequency"),
        "labels": ("hard", "soft"),
        "networks": ("evolving", "random", "pool"),
    }

    def dsa(self) -> DSA | None:
        """Return the augmentation of both sides, or None."""
        return None

    def prepare(self, real: ImageSet, canvas: Canvas, networks: Networks, run: Run) -> Objective:
        """Nothing is computed before step 0."""
        return GradientObjective(self, real, canvas, networks, run)


class GradientObjective(Objective):
    """L = sum_c d(grad CE(real_c), grad CE(syn_c)), class by class under one network."""

    def __init__(
        self, method: Any, real: ImageSet, canvas: Canvas, networks: Networks, run: Run
    ) -> None:
        self.real, self.networks, self.run, self.dsa = real, networks, run, method.dsa()
        self.transform, self.batch = networks.transform, method.gradients.batch_real
        self.labels, self.rates = method.labels.make(canvas), method.labels.rates
        if canvas.plain:
            self.canvas = canvas.moved_behind(self.transform)
        else:  # the published step size is one of what networks see
            self.canvas = canvas
            self.lr = method.descent.scaled(self.transform.step_share)
        body = networks.at(0).net.body  # of every step's network, whose buffers it holds

        def features(theta: Mapping[str, Tensor], x: Tensor) -> Tensor:
            return functional_call(body, under("body.", theta), (x,)).flatten(1)

        self.matching = GradientMatching(features=features, metric=method.gradients.metric)

    def leaves(self) -> dict[str, Tensor]:
        """The labels, where they are soft."""
        return self.labels.leaves()

    def real_batch(self, step: int, label: int) -> Tensor:
        """Return the positions of the real images of a class in a step."""
        own, draw = self.real.of_class(label), self.run.generator("real", step, label)
        return own[torch.randperm(len(own), generator=draw)[: self.batch]]

    def terms(self, step: int, canvas: Canvas, piece: int) -> Iterator[Term]:
        """One distance for each class; its graph is freed before the next one is built."""
        theta = dict(self.networks.at(step).net.named_parameters())
        for label in range(canvas.classes):
            own = self.labels.targets(canvas.rows(label, label + 1))
            seen = canvas.seen(self.transform, label, label + 1)
            real = self._real(step, label)
            synthetic = self._augmented((seen, own), step, label)
            (distance,) = self.matching.distances(theta, [real], [synthetic])
            yield Term("match", distance[None], label, {"distance": distance.detach()[None]})

    @torch.no_grad()
    def _real(self, step: int, label: int) -> Side:
        rows = self.real_batch(step, label)
        images = self.transform.forward(self.real.batch(rows, self.run.device))
        return self._augmented((images, self.real.labels[rows].to(images.device)), step, label)

    def _augmented(self, side: Side, step: int, label: int) -> Side:
        """Both sides of a class get the same augmentation (DSA eq. 4)."""
        if self.dsa is None:
            return side
        images, targets = side
        draw, size = self.run.generator("augment", step, label), images.shape[-2:]
        drawn = self.dsa.draw(1, (size[0], size[1]), draw, siamese=True, device=self.run.device)
        return self.dsa.apply(images, drawn), targets

    def after(self, step: int, canvas: Canvas) -> None:
        """Let the network learn from the canvas, augmented as in the match."""
        self.networks.after(step, canvas, self.labels.targets(), self.dsa)

    def pieces(self, run: Run) -> int:
        """Classes are taken one by one."""
        return 1

    def outcome(self, canvas: Canvas) -> dict[str, Any]:
        """Images, and labels that were learned."""
        return super().outcome(canvas) | self.labels.outcome()
