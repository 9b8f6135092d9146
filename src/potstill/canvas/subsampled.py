"""Twice as many tiles in a stored image: brightness at full, colour at half the resolution.

Eyes and networks need colour less finely than brightness, which is why JPEG and every video keep it
at half the height and width (4:2:0). With the Y'CbCr of JPEG (ITU-T T.871, full range) a tile of
3 a numbers becomes one of 1.5 a, and a stored image (3, h, w) of factor f holds 2 f**2 of them:

    channels 0 and 1    brightness: f x f tiles of (h / f, w / f) each, row by row
    channel 2           colour: 2f x 2f blocks of (h / 2f, w / 2f), Cb and Cr of each tile in turn

All values lie in [0, 1] (0.5 is no colour), so bounds and storage in 8 bits are those of pixels.
What this costs and gives is in docs/results.md.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["brightness_and_colour", "laid_out", "rgb", "subsampled_fault", "subsampled_tiles"]

_RED, _GREEN, _BLUE = 0.299, 0.587, 0.114  # what they add to brightness


def subsampled_fault(shape: tuple[int, int, int], factor: int) -> str | None:
    """Say why stored images of ``shape`` (c, h, w) cannot hold such tiles, or return None."""
    channels, high, wide = shape
    if channels != 3:
        return f"images have {channels} channel(s), and only RGB has colours to halve"
    if high % (2 * factor) or wide % (2 * factor):
        return f"images are {high} x {wide}, which {2 * factor} (twice the factor) does not divide"
    return None


def brightness_and_colour(x: Tensor) -> Tensor:
    """Return RGB 0-1 (n, 3, h, w) as Y, Cb and Cr, each in [0, 1]; linear."""
    red, green, blue = x.unbind(1)
    y = _RED * red + _GREEN * green + _BLUE * blue
    cb, cr = (blue - y) / (2 - 2 * _BLUE) + 0.5, (red - y) / (2 - 2 * _RED) + 0.5
    return torch.stack([y, cb, cr], 1)


def rgb(x: Tensor) -> Tensor:
    """Return Y, Cb and Cr (n, 3, h, w) as RGB, the inverse; outside [0, 1] where no colour is."""
    y, cb, cr = x.unbind(1)
    red, blue = y + (2 - 2 * _RED) * (cr - 0.5), y + (2 - 2 * _BLUE) * (cb - 0.5)
    return torch.stack([red, (y - _RED * red - _BLUE * blue) / _GREEN, blue], 1)


def laid_out(parts: Tensor, factor: int) -> Tensor:
    """Store small RGB tiles (n, 2 f**2, 3, h / f, w / f) as (n, 3, h, w)."""
    n, (high, wide) = len(parts), parts.shape[-2:]
    values = brightness_and_colour(parts.flatten(0, 1))
    y = _joined(values[:, :1].reshape(n, 2, factor**2, high, wide), factor)
    colour = F.interpolate(values[:, 1:], size=(high // 2, wide // 2), mode="area")
    blocks = colour.reshape(n, 1, 4 * factor**2, high // 2, wide // 2)
    return torch.cat([y, _joined(blocks, 2 * factor)], 1)


def subsampled_tiles(images: Tensor, factor: int) -> Tensor:
    """Return the small RGB tiles (n * 2 f**2, 3, h / f, w / f) of stored images, in [0, 1].

    Colours are enlarged bilinearly; what no screen can show is clipped, as by every decoder.
    """
    y = _cut(images[:, :2], factor).flatten(0, 2)[:, None]
    blocks = _cut(images[:, 2:], 2 * factor)
    colour = blocks.reshape(len(y), 2, *blocks.shape[-2:])
    size = (y.shape[-2], y.shape[-1])
    colour = F.interpolate(colour, size=size, mode="bilinear", align_corners=False)
    return rgb(torch.cat([y, colour], 1)).clamp(0, 1)


def _cut(planes: Tensor, side: int) -> Tensor:
    """(n, c, h, w) into (n, c, side**2, h / side, w / side), row by row."""
    n, c, high, wide = planes.shape
    blocks = planes.reshape(n, c, side, high // side, side, wide // side)
    return blocks.permute(0, 1, 2, 4, 3, 5).flatten(2, 3)


def _joined(blocks: Tensor, side: int) -> Tensor:
    """The inverse: (n, c, side**2, h, w) into (n, c, side h, side w)."""
    n, c, _, high, wide = blocks.shape
    grid = blocks.reshape(n, c, side, side, high, wide).permute(0, 1, 2, 4, 3, 5)
    return grid.reshape(n, c, side * high, side * wide)
