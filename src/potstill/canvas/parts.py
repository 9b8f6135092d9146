"""What is stored and optimised, as a part of a method: chosen by name, with fields of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from torch import Tensor

from potstill.canvas.crops import Judge, confident_crops
from potstill.canvas.pixels import Canvas, canvas_spec, tiles_per_image
from potstill.canvas.start import (
    Profile,
    Shortage,
    Start,
    check_start,
    images_per_class,
    start_canvas,
)
from potstill.canvas.subsampled import subsampled_fault
from potstill.data import ImageSet
from potstill.run import InputError, Run
from potstill.run.fields import Range
from potstill.run.parts import Part

__all__ = ["CanvasSpec", "MultiFormation", "Pixels", "Subsampled", "Tiled"]

Factor = Annotated[int, Range(0, 8)]


@dataclass(frozen=True, kw_only=True)
class CanvasSpec(Part, room=True):
    """How a synthetic image is parametrised."""

    @property
    def judged(self) -> bool:
        """Whether trained networks choose the first images."""
        return False

    @property
    def even(self) -> bool:
        """Whether every class has equally many stored images."""
        return True

    def counts(self, real: ImageSet, ipc: int) -> list[int]:
        """Return the stored images of each class."""
        return [ipc] * real.num_classes

    def material(self, real: ImageSet, ipc: int) -> list[int]:
        """Return how many real images each class begins with; none where it is not free to say."""
        return []

    def make(
        self,
        real: ImageSet,
        ipc: int,
        run: Run,
        *,
        candidates: Sequence[Tensor] | None = None,
        judge: Judge | None = None,
    ) -> Canvas:
        """Return the canvas before step 0, on the CPU.

        Args:
            ipc: stored images per class.
            candidates: positions of the real images from which each class may start; default all.
            judge: what trained networks say of images, for starts that they choose.
        """
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class Started(CanvasSpec):
    """A canvas that starts from images, real ones or noise."""

    # first images: "real", "tiled" (mosaics), "noise", "correct" (judged by experts) or "crops"
    # (mosaics of those of which a pool is surest)
    start: Start = "real"
    shortage: Shortage = "repeat"  # too few real images to start: "repeat", "noise" or "keep" fewer
    ipc_profile: Profile = "balanced"  # images per class: equal, or "long_tailed" as the real set

    @property
    def judged(self) -> bool:
        """Whether trained networks choose the first images."""
        return self.start == "correct"

    def check(self, method: Any, real: ImageSet | None = None) -> None:
        """Refuse a start that cannot be made."""
        check_start(self.start, self.shortage)
        if self.start == "crops" and not method.networks.has_trained:
            raise InputError(
                f"start is 'crops' with networks {method.networks.kind!r}, of which none can judge "
                "them before step 0; use start=tiled, or networks=pool"
            )
        if self.judged and not method.networks.judges:
            raise InputError("start is 'correct', which needs experts to judge; use start=real")
        if self.judged and self.tiles_for((16, 16)) > 1:
            raise InputError(
                f"start is 'correct' with canvas {self.kind!r}, whose tiles no expert has judged; "
                "use start=tiled"
            )

    def factor_for(self, size: tuple[int, int]) -> int:
        """Return the tiles per side of a stored image of ``size`` (h, w)."""
        return 1

    def tiles_for(self, size: tuple[int, int]) -> int:
        """Return how many images a mosaic of ``size`` (h, w) holds."""
        return tiles_per_image(canvas_spec(self.factor_for(size), self.formation))

    @property
    def begins(self) -> str:
        """From what the first images are made."""
        return self.start

    @property
    def formation(self) -> str:
        """Which tiles a receiver trains on."""
        return "single"

    @property
    def clamped(self) -> bool:
        """Whether pixels are kept in [0, 1]."""
        return False

    @property
    def even(self) -> bool:
        """Whether every class has equally many stored images."""
        return self.ipc_profile == "balanced"

    def counts(self, real: ImageSet, ipc: int) -> list[int]:
        """Return the stored images of each class."""
        return images_per_class(real, ipc, self.ipc_profile)

    def material(self, real: ImageSet, ipc: int) -> list[int]:
        """Return how many real images each class begins with; none where it is not free to say."""
        if self.begins not in ("real", "tiled"):
            return []
        size = (real.shape[1], real.shape[2])
        per_image = self.tiles_for(size) if self.begins == "tiled" else 1
        return [per_image * count for count in self.counts(real, ipc)]

    def make(
        self,
        real: ImageSet,
        ipc: int,
        run: Run,
        *,
        candidates: Sequence[Tensor] | None = None,
        judge: Judge | None = None,
    ) -> Canvas:
        """Return the canvas before step 0, on the CPU."""
        factor, counts = self.factor_for((real.shape[1], real.shape[2])), self.counts(real, ipc)
        crops = None
        if self.start == "crops" and judge is not None:
            needed = [self.tiles_for((real.shape[1], real.shape[2])) * count for count in counts]
            crops = confident_crops(real, needed, judge, run.generator, run.device)
        started = start_canvas(
            real,
            counts,
            run.generator,
            start=self.begins,
            factor=factor,
            formation=self.formation,
            shortage=self.shortage,
            bounded=self.clamped,
            candidates=candidates,
            crops=crops,
        )
        return self.formed(started, real, run)

    def formed(self, started: Canvas, real: ImageSet, run: Run) -> Canvas:
        """Return the canvas that holds these first images."""
        return started


@dataclass(frozen=True, kw_only=True)
class Pixels(Started, kind="pixels"):
    """Stored images are pixels and are trained on whole."""

    bounded: bool = True  # keep pixels in [0, 1]

    @property
    def clamped(self) -> bool:
        """Whether pixels are kept in [0, 1]."""
        return self.bounded


@dataclass(frozen=True, kw_only=True)
class Tiled(Pixels, kind="tiled"):
    """Each stored image is ``factor**2`` training images, shrunken (IDC, Kim et al., ICML 2022)."""

    # first images: "real", "tiled" (mosaics), "noise", or "crops" (mosaics of those of which a pool
    # is surest)
    start: Start = "tiled"
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


@dataclass(frozen=True, kw_only=True)
class Subsampled(Tiled, kind="subsampled"):
    """As tiled, with colours at half the resolution of brightness: twice as many tiles."""

    def check(self, method: Any, real: ImageSet | None = None) -> None:
        """Refuse images that have no colours, or no half resolution."""
        super().check(method, real)
        if real is not None:
            factor = self.factor_for((real.shape[1], real.shape[2]))
            if fault := subsampled_fault(real.shape, factor):
                raise InputError(f"canvas is 'subsampled', but {fault}; use canvas=tiled")

    @property
    def begins(self) -> str:
        """From what the first images are made: a whole image has no place here, so from mosaics."""
        return "tiled" if self.start == "real" else self.start

    @property
    def formation(self) -> str:
        """Which tiles a receiver trains on."""
        return "subsampled"
