"""What MIM4DD asks beside a match: real images of a class are found by its synthetic ones.

A further term for any class matching; :mod:`potstill.methods.distribution.mim4dd` puts it on DM.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from potstill.canvas import Canvas
from potstill.losses.contrastive import class_nce
from potstill.match.spectral import segment_mean
from potstill.methods.distribution.class_matching import FurtherTerm
from potstill.nets.taps import relu_layers
from potstill.networks.real_statistics import RealSide
from potstill.networks.view_draws import RealStatistics, ViewDraws
from potstill.run.fields import Batch, NotNegative, Positive, Range
from potstill.run.machine import CPU_CHUNK
from potstill.run.memory import bytes_per_image, cuts
from potstill.run.objective import Term
from potstill.run.parts import Part

__all__ = ["Contrast", "ContrastTerm"]


@dataclass(frozen=True, kw_only=True)
class Contrast(Part):
    """Mutual information of both sides at every layer, bounded by contrast (MIM4DD)."""

    contrast: NotNegative = 100.0  # weight of the contrastive bounds; 0 = off
    # of cosines; low ones look at the nearest keys only
    contrast_temperature: Annotated[float, Range(0.01, 100)] = 0.1
    contrast_growth: Positive = 2.0  # how many times as much a layer counts as the one before it
    contrast_keys: Batch = 32  # real images of a class among which an image finds its own

    def on(self, side: RealSide) -> FurtherTerm | None:
        """Return the term beside a match with this real side, or None."""
        return ContrastTerm(self, side) if self.contrast else None


class ContrastTerm(FurtherTerm):
    """w sum_k b^(k-K) L_k behind the network, and under the augmentation, of the match.

    L_k is the sum over classes, as that of a match, of the mean over a class's synthetic images of
    :func:`potstill.losses.contrastive.class_nce`, on the means over the pixels of layer k's map.
    """

    def __init__(self, how: Contrast, side: RealSide) -> None:
        self.how, self.side = how, side
        drawn = RealStatistics(real_side="fresh", batch_real=how.contrast_keys)
        self.draws = ViewDraws(side.real, side.run, drawn, 0, None)
        self.layers = relu_layers(side.networks.at(0).net)
        places = range(1 - len(self.layers), 1)
        self.weights = [how.contrast_growth**place for place in places]

    def seen(
        self, images: Tensor, labels: Tensor, number: int, augment: dict[str, Tensor]
    ) -> list[Tensor]:
        """Return what each layer sees, (n, channels), of RGB images of these classes."""
        own = self.side.draws.of_images(augment, labels)
        network = self.side.networks.at(number)
        return network.maps(self.layers, images, self.side.dsa, own, pooled=True)[:-1]

    @torch.no_grad()
    def keys(
        self, step: int, number: int, augment: dict[str, Tensor]
    ) -> tuple[list[Tensor], Tensor]:
        """Return real keys of each layer and their labels (m,); few where there are few."""
        side, rows = self.side, self.draws.positions(step)
        labels, found = side.real.labels[rows].to(side.run.device), []
        for part in cuts(len(rows), 16 * CPU_CHUNK if side.run.on_gpu else CPU_CHUNK):
            images = self.draws.images(step, rows, part)
            found.append(self.seen(images, labels[part], number, augment))
        return [torch.cat(layer) for layer in zip(*found, strict=True)], labels

    def terms(self, step: int, number: int, canvas: Canvas, piece: int) -> Iterator[Term]:
        """Yield each class's bounds at all layers together."""
        augment = self.side.draws.augment(number)
        keys, truth = self.keys(step, number, augment)
        for part in cuts(canvas.classes, piece):
            images, labels = canvas.decode(part.start, part.stop)
            seen, t = self.seen(images, labels, number, augment), self.how.contrast_temperature
            layers = zip(self.weights, seen, keys, strict=True)
            bounds = [w * class_nce(z, labels, k, truth, t) for w, z, k in layers]
            own, classes = labels - part.start, part.stop - part.start
            mean = segment_mean(torch.stack(bounds, 1).sum(1, keepdim=True), own, classes)[:, 0]
            yield Term("contrast", self.how.contrast * mean, part.start, {"contrast": mean})

    def image_bytes(self, image: Tensor) -> int:
        """Measured with one image, all maps kept."""
        network = self.side.networks.at(0)
        return bytes_per_image(
            lambda n: network.maps(
                self.layers, image.repeat(n, 1, 1, 1).requires_grad_(), pooled=True
            )
        )
