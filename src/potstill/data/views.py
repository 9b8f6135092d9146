"""Random views of images for frozen backbones: flip, resized crop, noise; drawn, stored, replayed.

What LGM and SFM call their standard augmentation (released code of Cazenavette et al., NeurIPS
2025, arXiv 2511.16674). Flip and crop are one affine sampling grid. A draw says everything about a
view, noise included, so that a second pass over the same images sees the very same pixels, in
chunks of any size.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from potstill.run.fields import PositiveShare, Range, Share, check_fields

__all__ = ["Draw", "Views", "clean_view", "part_of"]

Aspect = Annotated[float, Range(1, 100)]
Level = Annotated[float, Range(-100, 100)]
Spread = Annotated[float, Range(0, 100)]
Draw = dict[str, Tensor]  # "box" (n, 4), "flip" (n,), "noise" (n,): one row per image


@dataclass(frozen=True, kw_only=True)
class Views:
    """How a random view is made, in RGB 0-1 and before normalisation.

    Example:
        >>> views = Views()
        >>> draw = views.draw(8, torch.Generator().manual_seed(0))
        >>> views.apply(torch.rand(8, 3, 256, 256), draw, 224).shape
        torch.Size([8, 3, 224, 224])

    Raises:
        InputError: a field is out of range.
    """

    crop_min: PositiveShare = 0.08  # smallest area of a crop as a share of the image; 1 = no crop
    aspect: Aspect = 4 / 3  # crops are up to this much wider or higher than square
    flip: Share = 0.5  # probability of a horizontal flip
    noise: Share = 0.5  # probability of Gaussian noise
    noise_mean: Level = 0.5  # as released; it brightens half of the views
    noise_std: Spread = 0.2

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def facts(self) -> dict[str, Any]:
        """Every field, for keys and hashes."""
        return asdict(self)

    def draw(self, n: int, generator: torch.Generator) -> Draw:
        """Draw ``n`` views on the CPU.

        Returns:
            "box" (n, 4): left, top, width and height as shares of the image. Area and log-aspect
            are uniform; a side may exceed 1, which brings zero borders in (as released, there is
            no rejection). "flip" (n,) bool. "noise" (n,) int64: the seed of an image's noise, or
            -1 for none.
        """
        u = torch.rand(n, 6, generator=generator)
        area = self.crop_min + (1 - self.crop_min) * u[:, 0]
        ratio = ((2 * u[:, 1] - 1) * math.log(self.aspect)).exp()
        if self.crop_min == 1:
            ratio = torch.ones_like(ratio)
        width, height = (area * ratio).sqrt(), (area / ratio).sqrt()
        left, top = u[:, 2] * (1 - width), u[:, 3] * (1 - height)
        seeds = torch.randint(2**62, (n,), generator=generator)
        return {
            "box": torch.stack([left, top, width, height], 1),
            "flip": u[:, 4] < self.flip,
            "noise": torch.where(u[:, 5] < self.noise, seeds, torch.full_like(seeds, -1)),
        }

    def apply(self, x: Tensor, draw: Draw, size: int | tuple[int, int]) -> Tensor:
        """Return the views (n, c, *size) of ``x`` (n, c, h, w), RGB 0-1; differentiable.

        Bilinear sampling without antialiasing, zeros outside, noise not clamped (as released).
        """
        side = (size, size) if isinstance(size, int) else size
        box = draw["box"].to(x)
        left, top, width, height = box.unbind(1)
        zero = torch.zeros_like(left)
        across = torch.stack([width, zero, 2 * left + width - 1], 1)
        mirror = torch.where(draw["flip"].to(x.device), -1.0, 1.0).to(x.dtype)
        down = torch.stack([zero, height, 2 * top + height - 1], 1)
        theta = torch.stack([across * mirror[:, None], down], 1)
        grid = F.affine_grid(theta, [len(x), x.shape[1], *side], align_corners=False)
        seen = F.grid_sample(x, grid, padding_mode="zeros", align_corners=False)
        noise = self._noise(draw["noise"], seen)
        return seen if noise is None else seen + noise

    def _noise(self, seeds: Tensor, like: Tensor) -> Tensor | None:
        """One stream per image, so that chunks of any size see the same noise."""
        wanted = [(row, seed) for row, seed in enumerate(seeds.tolist()) if seed >= 0]
        if not wanted:
            return None
        noise = torch.zeros_like(like)
        generator = torch.Generator(like.device)
        for row, seed in wanted:
            noise[row].normal_(
                self.noise_mean, self.noise_std, generator=generator.manual_seed(seed)
            )
        return noise


def part_of(draw: Draw, rows: slice | Tensor) -> Draw:
    """Return the draw of some of the images."""
    return {name: values[rows] for name, values in draw.items()}


def clean_view(x: Tensor, size: int | tuple[int, int]) -> Tensor:
    """Return images (n, c, h, w) as a test sees them, (n, c, *size).

    Images larger than ``size`` lose a border, an eighth of the side at most (224 out of 256, as
    everywhere in the literature), and are brought to size; smaller ones are enlarged.
    """
    side = (size, size) if isinstance(size, int) else size
    window = [
        full if full <= want else max(want, round(0.875 * full))
        for full, want in zip(x.shape[2:], side, strict=True)
    ]
    top, left = ((f - w) // 2 for f, w in zip(x.shape[2:], window, strict=True))
    x = x[:, :, top : top + window[0], left : left + window[1]]
    if tuple(x.shape[2:]) == tuple(side):
        return x
    shrinks = x.shape[2] > side[0] or x.shape[3] > side[1]
    return F.interpolate(x, side, mode="bilinear", align_corners=False, antialias=shrinks)
