"""Images that share one learned matrix (RFAD, NeurIPS 2022, arXiv 2210.12067): S = X A.

A receiver gets S, so that it needs nothing of A.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from potstill.canvas.pixels import Canvas
from potstill.data.transform import Transform

__all__ = ["MixedCanvas"]


class MixedCanvas(Canvas):
    """A plain canvas behind a transform, with a matrix A (d, d) of all values of an image.

    It shares the images and labels of ``base``; A begins as the identity.
    """

    def __init__(self, base: Canvas) -> None:
        self.__dict__.update(vars(base))
        size = base.images[0].numel()
        self.mixing = torch.eye(size, device=base.images.device, requires_grad=True)

    def parameters(self) -> dict[str, Tensor]:
        """Return images and matrix."""
        return {self.leaf: self.images, "mixing": self.mixing}

    def pixel_parameters(self) -> list[Tensor]:
        """Return the images; the matrix has no row per image."""
        return [self.images]

    def render(self, leaves: Mapping[str, Tensor]) -> Tensor:
        """Return S as RGB, of rows of X."""
        images = leaves[self.leaf]
        mixing = leaves.get("mixing", self.mixing)
        mixed = (images.flatten(1) @ mixing).view_as(images)
        return mixed if self.behind is None else self.behind.inverse(mixed)

    def decode(self, first: int = 0, last: int | None = None) -> tuple[Tensor, Tensor]:
        """Return S, RGB, and labels of the classes ``first <= c < last``."""
        rows = self.rows(first, last)
        return self.render({self.leaf: self.images[rows]}), self.labels[rows]

    def seen(self, transform: Transform, first: int = 0, last: int | None = None) -> Tensor:
        """Return S as networks see it."""
        own = self.images[self.rows(first, last)]
        return (own.flatten(1) @ self.mixing).view_as(own)
