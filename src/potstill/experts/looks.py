"""What a teacher of tiles has to be trained on: real images as they look once they are tiles.

A tile holds a quarter of an image's pixels or less. A network that has only seen whole images gets
about half of them right (docs/results.md), and its labels then harm; so a teacher learns from
images that lost what tiles lose. Shrinking is by averaging, as that of a mosaic; that subsampled
tiles lost half of the resolution of their colours besides is not among it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from potstill.data import ImageSet
from potstill.data.transform import Transform
from potstill.run.machine import CPU_CHUNK

__all__ = ["blurring", "shrunk"]


def shrunk(real: ImageSet, factor: int) -> ImageSet:
    """Return the images ``factor`` times smaller per side (rounded up), 8 bits.

    All of them are held in memory, one part in ``factor``² of what the whole images take.
    """
    if factor == 1:
        return real
    size = -(-real.shape[1] // factor), -(-real.shape[2] // factor)
    small = torch.empty(len(real), real.shape[0], *size, dtype=torch.uint8)
    for rows in torch.arange(len(real)).split(CPU_CHUNK):
        small[rows] = _shrink(real.rows(rows).float(), size).round_().to(torch.uint8).cpu()
    told = hashlib.sha256(f"{real.fingerprint} shrunk {factor}".encode()).hexdigest()[:16]
    fact = {"op": "shrunk", "factor": factor}
    history = (*real.history, fact)
    return replace(real, images=small, mapped=None, fingerprint=told, history=history)


def blurring(transform: Transform, decode: Mapping[str, Any]) -> Transform:
    """Return a transform behind which whole images look as those of a tiled set do.

    Args:
        transform: of the set. decode: how its images are decoded. Where whole images are among
            what it decodes to ("multi") images stay as they are.
    """
    if decode["kind"] != "tiled" or decode["formation"] == "multi":
        return transform
    return _Blurring(transform, int(decode["factor"]))


def _shrink(x: Tensor, size: tuple[int, int]) -> Tensor:
    return interpolate(x, size=size, mode="area")


class _Blurring:
    """Shrinks and enlarges images before another transform; nothing can undo it."""

    def __init__(self, transform: Transform, factor: int) -> None:
        self.transform, self.factor = transform, factor
        self.kind = f"{transform.kind} shrunk {factor}"  # part of the keys of caches

    def __call__(self, x: Tensor) -> Tensor:
        """The same as :meth:`forward`."""
        return self.forward(x)

    def forward(self, x: Tensor) -> Tensor:
        """RGB 0-1 to network space, less what is lost."""
        high, wide = x.shape[-2:]
        small = _shrink(x, (-(-high // self.factor), -(-wide // self.factor)))
        enlarged = interpolate(small, size=(high, wide), mode="bilinear", align_corners=False)
        return self.transform.forward(enlarged)

    def inverse(self, x: Tensor) -> Tensor:
        """Network space to RGB 0-1; what was lost stays lost."""
        return self.transform.inverse(x)

    @property
    def step_share(self) -> float:
        """As that of the transform."""
        return self.transform.step_share

    def to_tensors(self) -> dict[str, Tensor]:
        """Those of the transform."""
        return self.transform.to_tensors()
