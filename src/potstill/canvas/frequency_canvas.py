"""Images as the leading cosine coefficients of their class (FreD, NeurIPS 2023, 2311.08819)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from potstill.canvas.frequency import from_spectrum, leading_coefficients, spectrum
from potstill.canvas.parts import Started
from potstill.canvas.pixels import Canvas
from potstill.data import ImageSet
from potstill.run import Run
from potstill.run.fields import PositiveShare

__all__ = ["Frequency", "FrequencyCanvas"]

_MOST = 1000  # real images of a class from which its coefficients are chosen


class FrequencyCanvas(Canvas):
    """Spectra of images of which all but the kept coefficients of their class stay 0.

    Args:
        base: the first images. kept: (classes, h, w) bool.
    """

    leaf = "coefficients"

    def __init__(self, base: Canvas, kept: Tensor) -> None:
        super().__init__(base.images, base.labels, base.classes, base.spec, bounded=False)
        self.kept = kept[base.labels][:, None]
        self.images = (spectrum(self.images.detach()) * self.kept).requires_grad_(True)

    def to(self, device: str) -> Canvas:
        """Return the same canvas on another device."""
        moved: Any = super().to(device)
        moved.kept = self.kept.to(device)
        return moved

    @property
    def plain(self) -> bool:
        """Coefficients are not what networks are shown."""
        return False

    def render(self, leaves: Mapping[str, Tensor]) -> Tensor:
        """Return RGB images (r, c, h, w) of rows of the coefficients; differentiable."""
        return from_spectrum(leaves[self.leaf])

    @torch.no_grad()
    def project_(self) -> None:
        """Put coefficients that the class does not keep back to 0."""
        self.images.mul_(self.kept)


@dataclass(frozen=True, kw_only=True)
class Frequency(Started, kind="frequency"):
    """Stored images have only those coefficients in which the images of their class vary most.

    A receiver gets them as pixels: as many images as whole ones, not more for the same bytes as
    FreD counts.
    """

    keep: PositiveShare = 0.25  # share of an image's coefficients that its class keeps

    def make(
        self,
        real: ImageSet,
        ipc: int,
        run: Run,
        *,
        candidates: Sequence[Tensor] | None = None,
    ) -> Canvas:
        """Return the canvas before step 0, on the CPU."""
        base = super().make(real, ipc, run, candidates=candidates)
        size = real.shape[1] * real.shape[2]
        kept = torch.zeros(real.num_classes, size, dtype=torch.bool)
        for label in range(real.num_classes):
            own = real.of_class(label)
            draw = run.generator("coefficients", label)
            rows = own[torch.randperm(len(own), generator=draw)[:_MOST]]
            count = max(1, round(self.keep * size))
            kept[label, leading_coefficients(real.batch(rows), count)] = True
        return FrequencyCanvas(base, kept.unflatten(1, (real.shape[1], real.shape[2])))
