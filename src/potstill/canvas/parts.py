"""What is stored and optimised, as a part of a method: chosen by name, with fields of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from torch import Tensor

from potstill.canvas.pixels import Canvas
from potstill.canvas.start import (
    Profile,
    Shortage,
    Start,
    check_start,
    images_per_class,
    start_canvas,
)
from potstill.data import ImageSet
from potstill.run import InputError, Run
from potstill.run.fields import Range
from potstill.run.parts import Part

__all__ = ["CanvasSpec", "MultiFormation", "Pixels", "Tiled"]

Factor = Annotated[int, Range(0, 8)]


@dataclass(frozen=True, kw_only=True)
class CanvasSpec(Part, room=True):
    """How a synthetic image is parametrised."""

    @property
    def judged(self) -> bool:
        """Whether trained networks choose the first images."""
        return False

    def counts(self, real: ImageSet, ipc: int) -> list[int]:
        """Return the stored images of each class."""
        return [ipc] * real.num_classes

    def make(
        self, real: ImageSet, ipc: int, run: Run, *, candidates: Sequence[Tensor] | None = None
    ) -> Canvas:
        """Return the canvas before step 0, on the CPU.

        Args:
            ipc: stored images per class.
            candidates: positions of the real images from which each class may start; default all.
        """
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class Started(CanvasSpec):
    """A canvas that starts from images, real ones or noise."""

    start: Start = "real"  # first images: "real", "tiled" (mosaics), "noise" or "correct" (judged)
    shortage: Shortage = "repeat"  # too few real images to start: "repeat", "noise" or "keep" fewer
    ipc_profile: Profile = "balanced"  # images per class: equal, or "long_tailed" as the real set

    @property
    def judged(self) -> bool:
        """Whether trained networks choose the first images."""
        return self.start == "correct"

    def check(self, method: Any, real: ImageSet | None = None) -> None:
        """Refuse a start that cannot be made."""
        check_start(self.start, self.shortage)
        if self.judged and not getattr(method.networks, "judges", False):
            raise InputError("start is 'correct', which needs experts to judge; use start=real")
        if self.judged and self.factor_for((16, 16)) > 1:
            raise InputError(
                f"start is 'correct' with canvas {self.kind!r}, whose tiles no expert has judged; "
                "use start=tiled"
            )

    def factor_for(self, size: tuple[int, int]) -> int:
        """Return the tiles per side of a stored image of ``size`` (h, w)."""
        return 1

    @property
    def formation(self) -> str:
        """Which tiles a receiver trains on."""
        return "single"

    def counts(self, real: ImageSet, ipc: int) -> list[int]:
        """Return the stored images of each class."""
        return images_per_class(real, ipc, self.ipc_profile)

    def make(
        self, real: ImageSet, ipc: int, run: Run, *, candidates: Sequence[Tensor] | None = None
    ) -> Canvas:
        """Return the canvas before step 0, on the CPU."""
        factor = self.factor_for((real.shape[1], real.shape[2]))
        started = start_canvas(
            real,
            self.counts(real, ipc),
            run.generator,
            start=self.start,
            factor=factor,
            formation=self.formation,
            shortage=self.shortage,
            bounded=getattr(self, "bounded", False),
            candidates=candidates,
        )
        return self.formed(started, real, run)

    def formed(self, started: Canvas, real: ImageSet, run: Run) -> Canvas:
        """Return the canvas that holds these first images."""
        return started


@dataclass(frozen=True, kw_only=True)
class Pixels(Started, kind="pixels"):
    """Stored images are pixels and are trained on whole."""

    bounded: bool = True  # keep pixels in [0, 1]


@dataclass(frozen=True, kw_only=True)
class Tiled(Pixels, kind="tiled"):
    """Each stored image is ``factor**2`` training images, shrunken (IDC, Kim et al., ICML 2022)."""

    start: Start = "tiled"  # first images: "real", "tiled" (mosaics), "noise"
    factor: Factor = 0  # tiles per side of a stored image; 0 = 2 from 16 pixels up, else 1

    def factor_for(self, size: tuple[int, int]) -> int:
        """Return the tiles per side; below 16 pixels a tile would show nothing."""
        return self.factor or (2 if min(size) >= 16 else 1)


@dataclass(frozen=True, kw_only=True)
class MultiFormation(Tiled, kind="multi-formation"):
    """As tiled, and trained on in tiles of every size from the whole image down."""

    @property
    def formation(self) -> str:
        """Which tiles a receiver trains on."""
        return "multi"
