"""Several training images inside one stored image (IDC, Kim et al., ICML 2022, "multi-formation").

A stored image of height h and width w is cut into factor x factor tiles, each enlarged bilinearly
to (h, w). A receiver who stores one image trains on factor**2 of them.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["mosaic", "tiles", "views"]


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
    n, c, height, width = images.shape
    padded = _padded(images, factor)
    h, w = padded.shape[-2] // factor, padded.shape[-1] // factor
    cut = padded.reshape(n, c, factor, h, factor, w).permute(0, 2, 4, 1, 3, 5)
    cut = cut.reshape(n * factor**2, c, h, w)
    return F.interpolate(cut, size=(height, width), mode="bilinear", align_corners=False)


def views(images: Tensor, factor: int, formation: str) -> Tensor:
    """All training images of each stored image: (n, c, h, w) -> (n, views, c, h, w).

    ``single`` takes the finest cut only; ``multi`` every cut from 1 to ``factor``.
    """
    factors = [factor] if formation == "single" else range(1, factor + 1)
    return torch.cat([tiles(images, f).unflatten(0, (len(images), f * f)) for f in factors], dim=1)


def mosaic(parts: Tensor, factor: int) -> Tensor:
    """Inverse of cutting: shrink (n, factor**2, c, h, w) and lay out to (n, c, h, w)."""
    n, _, c, height, width = parts.shape
    h, w = -(-height // factor), -(-width // factor)
    small = F.interpolate(parts.flatten(0, 1), size=(h, w), mode="area")
    grid = small.reshape(n, factor, factor, c, h, w).permute(0, 3, 1, 4, 2, 5)
    return grid.reshape(n, c, factor * h, factor * w)[..., :height, :width].contiguous()
