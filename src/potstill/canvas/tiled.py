"""Several training images inside one stored image (IDC, Kim et al., ICML 2022, "multi-formation").

A stored image of height h and width w is cut into factor x factor tiles, each enlarged bilinearly
to (h, w). A receiver who stores one image trains on factor**2 of them, or, with colours at half the
resolution, on twice as many (:mod:`potstill.canvas.subsampled`).
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from potstill.canvas.subsampled import laid_out, subsampled_tiles

__all__ = ["joined", "mosaic", "small_views", "tiles", "views"]


def _padded(images: Tensor, factor: int) -> Tensor:
    """Pad bottom and right with mid grey until both sides are multiples of ``factor``."""
    height, width = images.shape[-2:]
    pad = (0, -width % factor, 0, -height % factor)
    return F.pad(images, pad, value=0.5) if any(pad) else images


def tiles(images: Tensor, factor: int) -> Tensor:
    """Cut and enlarge: (n, c, h, w) -> (n * factor**2, c, h, w), the tiles of an image in a row.

    Half-pixel bilinear interpolation, tiles in row-major order.
    """
    return images if factor == 1 else _enlarged(_cut(images, factor), images)


def _enlarged(small: Tensor, like: Tensor) -> Tensor:
    size = (like.shape[-2], like.shape[-1])
    return F.interpolate(small, size=size, mode="bilinear", align_corners=False)


def _cut(images: Tensor, factor: int) -> Tensor:
    n, c = images.shape[:2]
    padded = _padded(images, factor)
    h, w = padded.shape[-2] // factor, padded.shape[-1] // factor
    parts = padded.reshape(n, c, factor, h, factor, w).permute(0, 2, 4, 1, 3, 5)
    return parts.reshape(n * factor**2, c, h, w)


def views(images: Tensor, factor: int, formation: str) -> Tensor:
    """All training images of each stored image: (n, c, h, w) -> (n, views, c, h, w).

    ``single`` takes the finest cut only; ``multi`` every cut from 1 to ``factor``; ``subsampled``
    the finest, with colours at half its resolution.
    """
    if formation == "subsampled":
        return _enlarged(subsampled_tiles(images, factor), images).unflatten(0, (len(images), -1))
    found = [tiles(images, f) for f in _factors(factor, formation)]
    return torch.cat([part.unflatten(0, (len(images), -1)) for part in found], dim=1)


def small_views(images: Tensor, factor: int, formation: str) -> Tensor:
    """As :func:`views`, each as large as the finest tile: that one as it is stored, others shrunk.

    Nothing is enlarged: (n, c, h, w) -> (n, views, c, h / factor, w / factor), rounded up.
    """
    if formation == "subsampled":
        return subsampled_tiles(images, factor).unflatten(0, (len(images), -1))
    height, width = images.shape[-2:]
    size = (-(-height // factor), -(-width // factor))
    found = [
        F.interpolate(_cut(images, f), size=size, mode="area") for f in _factors(factor, formation)
    ]
    return torch.cat([part.unflatten(0, (len(images), -1)) for part in found], dim=1)


def _factors(factor: int, formation: str) -> Iterable[int]:
    return [factor] if formation == "single" else range(1, factor + 1)


def mosaic(parts: Tensor, factor: int, formation: str = "single") -> Tensor:
    """Inverse of cutting: shrink (n, v, c, h, w) and lay out to (n, c, h, w).

    Of v = factor**2 images, twice as many where ``formation`` is "subsampled".
    """
    height, width = parts.shape[-2:]
    size = (-(-height // factor), -(-width // factor))
    small = F.interpolate(parts.flatten(0, 1), size=size, mode="area").unflatten(
        0, (len(parts), -1)
    )
    if formation == "subsampled":
        return laid_out(small, factor)
    return joined(small, factor)[..., :height, :width].contiguous()


def joined(small: Tensor, factor: int) -> Tensor:
    """Lay (n, factor**2, c, h, w) beside each other: (n, c, factor h, factor w)."""
    n, _, c, h, w = small.shape
    grid = small.reshape(n, factor, factor, c, h, w).permute(0, 3, 1, 4, 2, 5)
    return grid.reshape(n, c, factor * h, factor * w)
