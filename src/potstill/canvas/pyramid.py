"""Images as a sum of resolutions that are added one after the other (LGM, arXiv 2511.16674).

    image = sigmoid(2 M sum_k upsample(level_k))

Level k has 2^k pixels a side. Descent begins with the coarsest alone; every ``grow_every`` steps a
finer one is added until the full resolution is reached, so that shapes come before texture and no
high-frequency pattern can hide. M is the colour decorrelation of feature visualisation: a step in
one stored channel moves along a principal direction of natural colours.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import reduce
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from potstill.canvas.parts import CanvasSpec
from potstill.canvas.pixels import Canvas, canvas_spec
from potstill.data import ImageSet
from potstill.run import Run
from potstill.run.fields import Every, OneOf, check_value
from potstill.run.memory import cuts

__all__ = ["Pyramid", "PyramidCanvas", "level_sizes"]

Levels = Annotated[str, OneOf("all", "one")]
Growth = Annotated[str, OneOf("noise", "zero", "grey")]
# Square root of the covariance of natural colours, as published with feature visualisation
# (Olah et al., Distill 2017), scaled by its longest column.
_COLOURS = torch.tensor([[0.26, 0.09, 0.02], [0.27, 0.00, -0.05], [0.27, -0.09, 0.03]]).double()
_COLOURS = _COLOURS / _COLOURS.norm(dim=0).max()


def level_sizes(size: tuple[int, int], levels: str = "all") -> list[tuple[int, int]]:
    """Return (h, w) of every level, coarse to fine; the full size alone for "one"."""
    if levels == "one":
        return [size]
    sizes, side = [(1, 1)], 1
    while sizes[-1] != size:
        side *= 2
        sizes.append((min(side, size[0]), min(side, size[1])))
    return sizes


class PyramidCanvas(Canvas):
    """Class-sorted images whose leaves are the levels; starts from noise.

    Args:
        labels: (n,) int64, ascending. classes: number of classes.
        shape: (c, h, w) of an image.
        generator: ``run.generator``; level k is drawn from ``generator("pyramid", k)``.
        levels: "all", or "one" of full size from the beginning.
        grow_every: steps from one level to the next; 200 as released.
        growth: a new level is "noise" (standard normal over the number of levels), or "zero" (the
            mean of the others, enlarged); the others shrink by k / (k + 1) either way. The
            coarsest begins as noise; under "grey", which grows as "zero" does, at zero.
        decorrelate: use M for images with three channels.
    """

    def __init__(
        self,
        labels: Tensor,
        classes: int,
        shape: tuple[int, int, int],
        generator: Callable[..., torch.Generator],
        *,
        levels: str = "all",
        grow_every: int = 200,
        growth: str = "noise",
        decorrelate: bool = True,
    ) -> None:
        check_value("levels", levels, Levels)
        check_value("growth", growth, Growth)
        check_value("grow_every", grow_every, Every)
        self.shape, self.generator = shape, generator
        self.sizes = level_sizes((shape[1], shape[2]), levels)
        self.grow_every, self.growth = grow_every, growth
        self.colours = _COLOURS.float() if decorrelate and shape[0] == 3 else None
        super().__init__(self._noise(0, len(labels)), labels, classes, canvas_spec(), bounded=False)
        self.levels = [self.images]

    def _noise(self, level: int, n: int) -> Tensor:
        """A new level, coarse to fine number ``level``, when there are ``level + 1`` of them."""
        shape = (n, self.shape[0], *self.sizes[level])
        if self.growth == "grey":
            return torch.zeros(shape)
        draw = self.generator("pyramid", level)
        return torch.randn(shape, generator=draw) / (level + 1)

    def to(self, device: str) -> PyramidCanvas:
        """Return the same canvas on another device."""
        moved: Any = super().to(device)
        moved.levels = [level.detach().to(device).requires_grad_(True) for level in self.levels]
        moved.images = moved.levels[0]
        moved.colours = None if self.colours is None else self.colours.to(device)
        return moved

    @property
    def plain(self) -> bool:
        """Levels are not what networks are shown."""
        return False

    def parameters(self) -> dict[str, Tensor]:
        """Return the levels there are, coarse to fine."""
        return {f"level-{k}": level for k, level in enumerate(self.levels)}

    def levels_at(self, step: int) -> int:
        """Return how many levels there are at ``step`` (from 0): one more at 201, 401, ..."""
        return min(len(self.sizes), 1 + max(0, step - 1) // self.grow_every)

    @torch.no_grad()
    def grow_(self, step: int) -> bool:
        """Add the levels that are due at ``step``; return whether there were any."""
        wanted = self.levels_at(step)
        if wanted <= len(self.levels):
            return False
        while len(self.levels) < wanted:
            k = len(self.levels)
            scaled = [level.detach() * (k / (k + 1)) for level in self.levels]
            if self.growth == "noise":
                new = self._noise(k, len(self.labels)).to(scaled[0])
            else:
                new = self._enlarged(self.levels, self.sizes[k]) / (k + 1)
            self.levels = [level.requires_grad_(True) for level in [*scaled, new]]
        self.images = self.levels[0]
        return True

    @staticmethod
    def _enlarged(levels: list[Tensor], size: tuple[int, int]) -> Tensor:
        """The sum of the levels at ``size``, bilinear without antialiasing."""

        def enlarged(level: Tensor) -> Tensor:
            own = tuple(level.shape[2:])
            if own == (1, 1):
                return level.expand(-1, -1, *size)
            if own == size:
                return level
            return F.interpolate(level, size, mode="bilinear", align_corners=False)

        return reduce(torch.add, map(enlarged, levels))

    def render(self, leaves: Mapping[str, Tensor]) -> Tensor:
        """Return RGB images (n, c, h, w) in (0, 1) of the rows of the levels; differentiable."""
        total = self._enlarged(list(leaves.values()), (self.shape[1], self.shape[2]))
        if self.colours is not None:
            total = torch.einsum("nchw,dc->ndhw", total, self.colours.to(total))
        return torch.sigmoid(2 * total)

    @torch.no_grad()
    def pictures(self, leaves: Mapping[str, Tensor] | None = None) -> Tensor:
        """Return RGB images (n, c, h, w)."""
        levels = self.parameters() if leaves is None else leaves
        parts = [
            {n: level[rows] for n, level in levels.items()} for rows in cuts(len(self.labels), 64)
        ]
        return torch.cat([self.render(part) for part in parts])


@dataclass(frozen=True, kw_only=True)
class Pyramid(CanvasSpec, kind="pyramid"):
    """A sum of resolutions behind a sigmoid, from noise, coarse to fine."""

    levels: Levels = "all"  # "one" = the full size from the beginning
    grow_every: Every = 200  # steps until the pyramid gets its next level
    growth: Growth = "noise"  # a new level: "noise" or "zero" (the others, enlarged); "grey" start
    decorrelate: bool = True  # steps along the principal colours of natural images

    def make(self, real: ImageSet, ipc: int, run: Run, **_: Any) -> PyramidCanvas:
        """Return the coarsest level of ``ipc`` images per class."""
        labels = torch.arange(real.num_classes).repeat_interleave(ipc)
        return PyramidCanvas(
            labels,
            real.num_classes,
            real.shape,
            run.generator,
            levels=self.levels,
            grow_every=self.grow_every,
            growth=self.growth,
            decorrelate=self.decorrelate,
        )
