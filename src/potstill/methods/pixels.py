"""Matching on pixels: what distribution and trajectory matching begin with and look through."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from potstill.canvas import Canvas, check_start, start_canvas
from potstill.canvas.pixels import Formation
from potstill.canvas.start import Shortage, Start
from potstill.data import ZCA, ImageSet, Normalize
from potstill.data.transform import Transform
from potstill.methods.base import Matcher
from potstill.run import Run
from potstill.run.fields import OneOf, Range

__all__ = ["PixelMatcher"]

Factor = Annotated[int, Range(0, 8)]
Preprocess = Annotated[str, OneOf("normalize", "zca")]


@dataclass(kw_only=True)
class PixelMatcher(Matcher):
    """Descend on the pixels of stored images, whole or as tiles."""

    start: Start = "real"  # first images: "real", "tiled" (mosaics of real images) or "noise"
    shortage: Shortage = "repeat"  # too few real images to start: "repeat", "noise" or "keep" fewer
    factor: Factor = 1  # tiles per side of a stored image; 0 = 2 from 16 pixels up, else 1
    formation: Formation = "single"  # the finest tiles only, or "multi" = tiles of every size
    bounded: bool = True  # keep pixels in [0, 1]
    preprocess: Preprocess = "normalize"  # what networks see: mean and std, or "zca" whitening

    def check(self, real: ImageSet | None = None) -> None:
        """Check the start and the descent."""
        super().check(real)
        check_start(self.start, self.shortage)

    def make_canvas(self, real: ImageSet, ipc: int, run: Run) -> Canvas:
        """Return the canvas before step 0, on the CPU."""
        return start_canvas(
            real,
            ipc,
            run.generator,
            start=self.start,
            factor=self.tile_factor(real),
            formation=self.formation,
            shortage=self.shortage,
            bounded=self.bounded,
        )

    def tile_factor(self, real: ImageSet) -> int:
        """Tiles per side of a stored image; below 16 pixels a tile would show nothing."""
        return self.factor or (2 if min(real.shape[1:]) >= 16 else 1)

    def transform(self, real: ImageSet) -> Transform:
        """Fit what stands between RGB 0-1 and the networks."""
        if getattr(self, "fitted_", ("", None))[0] != real.checksum:  # ZCA takes a while
            fitted = ZCA.fit(real) if self.preprocess == "zca" else Normalize.fit(real)
            self.fitted_: tuple[str, Transform] = (real.checksum, fitted)
        return self.fitted_[1]
