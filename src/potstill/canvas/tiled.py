"""Several training images inside one stored image (IDC, Kim et al., ICML 2022, "multi-formation").

A stored image of height h and width w is cut into factor x factor tiles, each enlarged bilinearly
to (h, w). A receiver who stores one image trains on factor**2 of them.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["mosaic", "small_views", "tiles", "views"]


def _padded(images: Tensor, factor: int) -> Tensor:
    """Pad bottom and right with mid grey until both sides are multiples of ``factor``."""
    height, width = images.shape[-2:]
    pad = (0, -width % factor, 0, -height % factor)
    return F.pad(images, pad, value=0.5) if any(pad) else images


def tiles(images: Tensor, factor: int) -> Tensor:
    """Cut and enlarge: (n, c, h, w) -> (n * factor**2, c, h, w), the tiles of an image in a row.

    Half-pixel bilinear interpolation, tiles in row-major order.
    """
    if factor == 1:
        return images
    size = (images.shape[-2], images.shape[-1])
    return F.interpolate(_cut(images, factor), size=size, mode="bilinear", align_corners=False)


def _cut(images: Tensor, factor: int) -> Tensor:
    n, c = images.shape[:2]
    padded = _padded(images, factor)
    h, w = padded.shape[-2] // factor, padded.shape[-1] // factor
    parts = padded.reshape(n, c, factor, h, factor, w).permute(0, 2, 4, 1, 3, 5)
    return parts.reshape(n * factor**2, c, h, w)


def views(images: Tensor, factor: int, formation: str) -> Tensor:
    """All training images of each stored image: (n, c, h, w) -> (n, views, c, h, w).

    ``single`` takes the finest cut only; ``multi`` every cut from 1 to ``factor``.
    """
    found = [tiles(images, f) for f in _factors(factor, formation)]
    return torch.cat([part.unflatten(0, (len(images), -1)) for part in found], dim=1)


def small_views(images: Tensor, factor: int, formation: str) -> Tensor:
    """As :func:`views`, each as large as the finest tile: that one as it is stored, others shrunk.

    Nothing is enlarged: (n, c, h, w) -> (n, views, c, h / factor, w / factor), rounded up.
    """
    height, width = images.shape[-2:]
    size = (-(-height // factor), -(-width // factor))
    found = [
        F.interpolate(_cut(images, f), size=size, mode="area") for f in _factors(factor, formation)
    ]
    return torch.cat([part.unflatten(0, (len(images), -1)) for part in found], dim=1)


def _factors(factor: int, formation: str) -> Iterable[int]:
    return [factor] if formation == "single" else range(1, factor + 1)


def mosaic(parts: Tensor, factor: int) -> Tensor:
    """Inverse of cutting: shrink (n, factor**2, c, h, w) and lay out to (n, c, h, w)."""
    n, _, c, height, width = parts.shape
    h, w = -(-height // factor), -(-width // factor)
    small = F.interpolate(parts.flatten(0, 1), size=(h, w), mode="area")
    grid = small.reshape(n, factor, factor, c, h, w).permute(0, 3, 1, 4, 2, 5)
    return grid.reshape(n, c, factor * h, factor * w)[..., :height, :width].contiguous()
