"""The step of this family: the gradients of one network on real and on synthetic images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor
from torch.func import functional_call

from potstill.canvas import Canvas
from potstill.data import DSA, ImageSet
from potstill.data.transform import Transform
from potstill.match.gradients import GradientMatching, Layers, Metric, Side
from potstill.methods.base import Objective
from potstill.methods.gradient.representatives import representatives
from potstill.networks import Networks
from potstill.run import Run
from potstill.run.checkpoint import under
from potstill.run.descent import Descent
from potstill.run.fields import Batch, BatchOrAll, Range
from potstill.run.objective import Term
from potstill.run.parts import Part

__all__ = ["Gradients", "GradientObjective", "MatchesGradients"]

Pause = Annotated[int, Range(0, 10**9)]


@dataclass(frozen=True, kw_only=True)
class Gradients(Part):
    """How gradients are taken and compared."""

    batch_real: Batch = 256  # real images of a class in a step; a small class gives all it has
    # cosines of output units summed, "cosine" of all values, "mse", or of weights without biases
    # and norms squared ("kernels") or absolute ("kernels_l1") differences
    metric: Metric = "rows"
    layers: Layers = "all"  # whose gradients: "all", the "body", or the classifier ("head")
    batch_syn: BatchOrAll = 0  # training images of a class of the canvas in a step; 0 = all
    recluster: Pause = 0  # steps until k-means chooses the real images anew; 0 = random each step


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
        "canvas": ("pixels", "tiled", "multi-formation", "subsampled", "frequency"),
        "labels": ("hard", "soft"),
        "networks": ("evolving", "random", "pool"),
    }

    descent: Descent

    def dsa(self) -> DSA | None:
        """Return the augmentation of both sides, or None."""
        return None

    def lesson(self) -> DSA | None:
        """Return the augmentation under which the network itself learns, or None."""
        return self.dsa()

    def settled(self, canvas: Canvas, transform: Transform) -> tuple[Canvas, float]:
        """Return the canvas in units of the published step size, and that size."""
        if canvas.free:
            return canvas.moved_behind(transform), self.descent.lr_images
        return canvas, self.descent.scaled(transform.step_share)

    def prepare(self, real: ImageSet, canvas: Canvas, networks: Networks, run: Run) -> Objective:
        """Nothing is computed before step 0."""
        return GradientObjective(self, real, canvas, networks, run)


class GradientObjective(Objective):
    """L = sum_c d(grad CE(real_c), grad CE(syn_c)), class by class under one network."""

    def __init__(
        self, method: Any, real: ImageSet, canvas: Canvas, networks: Networks, run: Run
    ) -> None:
        self.real, self.networks, self.run = real, networks, run
        self.dsa, self.lesson = method.dsa(), method.lesson()
        self.transform, self.how = networks.transform, method.gradients
        self.labels, self.rates = method.labels.make(canvas), method.labels.rates
        self.canvas, self.lr = method.settled(canvas, self.transform)
        self.chosen: dict[str, Tensor] = {}  # by k-means, of each class that is large enough
        body = networks.at(0).net.body  # of every step's network, whose buffers it holds

        def features(theta: Mapping[str, Tensor], x: Tensor) -> Tensor:
            return functional_call(body, under("body.", theta), (x,)).flatten(1)

        self.matching = GradientMatching(
            features=features, metric=self.how.metric, layers=self.how.layers
        )

    def leaves(self) -> dict[str, Tensor]:
        """The labels, where they are soft."""
        return self.labels.leaves()

    def real_batch(self, step: int, label: int) -> Tensor:
        """Return the positions of the real images of a class in a step."""
        own, wanted, every = self.real.of_class(label), self.how.batch_real, self.how.recluster
        if not every:
            draw = self.run.generator("real", step, label)
            return own[torch.randperm(len(own), generator=draw)[:wanted]]
        if len(own) <= wanted:  # nothing to choose from
            return own
        name = f"chosen/{label}"
        if step % every == 0:
            draw, network = self.run.generator("k-means", step, label), self.networks.at(step)
            self.chosen[name] = representatives(self.real, own, network, wanted, draw)
        return self.chosen[name]

    def terms(self, step: int, canvas: Canvas, piece: int) -> Iterator[Term]:
        """One distance for each class; its graph is freed before the next one is built."""
        theta = dict(self.networks.at(step).net.named_parameters())
        for label in range(canvas.classes):
            real = self._real(step, label)
            synthetic = self._augmented(self._synthetic(step, canvas, label), step, label)
            (distance,) = self.matching.distances(theta, [real], [synthetic])
            yield Term("match", distance[None], label, {"distance": distance.detach()[None]})

    def _synthetic(self, step: int, canvas: Canvas, label: int) -> Side:
        own = self.labels.targets(canvas.rows(label, label + 1))
        seen, most = canvas.seen(self.transform, label, label + 1), self.how.batch_syn
        if not 0 < most < len(seen):
            return seen, own
        draw = self.run.generator("synthetic", step, label)
        rows = torch.randperm(len(seen), generator=draw)[:most].to(seen.device)
        return seen[rows], own[rows]

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
        """Let the network learn from the canvas, or from real images."""
        self.networks.after(step, canvas, self.labels.targets(), self.lesson)

    def state(self) -> dict[str, Tensor]:
        """Networks that move, and real images that were chosen for more than one step."""
        return super().state() | self.chosen

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Put both back."""
        super().load_state(tensors)
        self.chosen = {name: rows for name, rows in tensors.items() if name.startswith("chosen/")}

    def pieces(self, run: Run) -> int:
        """Classes are taken one by one."""
        return 1

    def outcome(self, canvas: Canvas) -> dict[str, Any]:
        """Images, and labels that were learned."""
        return super().outcome(canvas) | self.labels.outcome()
