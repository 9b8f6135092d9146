"""Mosaic: random real images, shrunken, several to a stored image. The baseline of equal storage.

IDC, M3D, NCFM, SDM and CSDM store ``factor**2`` training images in the pixels of one (Kim et al.,
ICML 2022, arXiv 2205.14959). This is that storage without any matching: whatever a tiled method
scores above it was distilled, the rest is the trick of storing more and smaller images.
With ``colours="half"`` they are twice as many, see :mod:`potstill.canvas.subsampled`.
Deviations: shrinking by area average. Recipe: recipes/mosaic/.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Annotated

from potstill.canvas import start_canvas, subsampled_fault
from potstill.canvas.pixels import Factor
from potstill.data import ImageSet
from potstill.methods.base import Method, MethodInfo
from potstill.methods.selector import real_set
from potstill.run import InputError, Run
from potstill.run.fields import OneOf
from potstill.synthetic import SyntheticSet

__all__ = ["Mosaic"]

Filled = Annotated[str, OneOf("repeat", "noise")]
Colours = Annotated[str, OneOf("full", "half")]


@dataclass(frozen=True, kw_only=True)
class Mosaic(Method):
    """Store ``factor**2`` random real images of a class in each of ``ipc`` images."""

    info = MethodInfo(
        name="mosaic",
        title="Random real mosaics",
        paper="baseline",
        year=0,
        arxiv="",
        family="selection",
        labels="hard",
        long_tail="balanced; small classes repeat their images, shifted",
        cost="nothing",
    )

    factor: Factor = 2  # tiles per side of a stored image
    shortage: Filled = "repeat"  # too few real images: "repeat" (shifted copies) or "noise"
    colours: Colours = "full"  # "half": at half the resolution of brightness, twice as many tiles

    def __call__(self, real: ImageSet, ipc: int, run: Run) -> SyntheticSet:
        """Return the mosaics that the tiled methods begin with at the same seed."""
        began = time.monotonic()
        self.check(real)
        halved = self.colours == "half"
        if halved and (fault := subsampled_fault(real.shape, self.factor)):
            raise InputError(f"colours is 'half', but {fault}; use colours=full")
        canvas = start_canvas(
            real,
            ipc,
            run.generator,
            start="tiled",
            factor=self.factor,
            formation="subsampled" if halved else "single",
            shortage=self.shortage,
        )
        told = self.provenance(real, ipc, run, time.monotonic() - began)
        images = canvas.images.detach()
        return self.stored(real_set(real, images, canvas.labels, told, decode=canvas.spec))
