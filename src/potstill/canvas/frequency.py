"""Images as a few coefficients of their cosine transform (FreD, NeurIPS 2023, arXiv 2311.08819).

    F = D_h X D_wᵀ,    X = D_hᵀ F D_w

with the orthonormal DCT-II D over rows and over columns, channel by channel. All images of a class
keep the same k positions of F, in every channel: those whose values vary most over the class's
images. In the numbers of one image there is room for h w / k such images (FreD does not pay for the
positions).

D is orthonormal here, and FreD's is not: its learning rate η becomes η / 4hw for coefficients with
neither index 0, η / 8hw with one, η / 16hw for the mean. One rate serves all of them here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from potstill.canvas.parts import Started
from potstill.canvas.pixels import Canvas
from potstill.data import ImageSet
from potstill.run import InputError, Run
from potstill.run.fields import PositiveShare

__all__ = [
    "Frequency",
    "FrequencyCanvas",
    "cosine_basis",
    "from_spectrum",
    "leading_coefficients",
    "spectrum",
]

_MOST = 1000  # real images of a class from which its coefficients are chosen
_STILL = 1e-12  # share of the energy below which variance is rounding


@lru_cache(maxsize=32)
def cosine_basis(
    n: int, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> Tensor:
    """Return the orthonormal DCT-II matrix (n, n), frequencies in rows.

    D_ki = √(2/n) cos(π k (2i + 1) / 2n), and √(1/n) for k = 0. The same tensor at every call.
    """
    place = torch.arange(n, dtype=torch.float64)
    basis = torch.cos(math.pi / (2 * n) * place[:, None] * (2 * place + 1)) * math.sqrt(2 / n)
    basis[0] = math.sqrt(1 / n)
    return basis.to(device, dtype)


def leading_coefficients(images: Tensor, keep: int) -> Tensor:
    """Return the positions (keep,) int64 of a class's coefficients in which its images vary most.

    The variance over images of the coefficients of their channel mean, largest first; of equal
    ones the lower position. A position is row * w + column of the spectrum. Where images do not
    differ (a class of one image), the coefficients with most energy are taken instead.

    Args:
        images: (n, c, h, w) float, at least one. keep: from 1 to h w.

    Raises:
        InputError: no image, or more coefficients than there are.
    """
    if not len(images):
        raise InputError("images has none of the class; give at least one")
    pixels = images.shape[-2] * images.shape[-1]
    if not 1 <= keep <= pixels:
        raise InputError(f"keep is {keep}; use a number of coefficients from 1 to {pixels}")
    values = spectrum(images.detach().double().mean(1)).flatten(1)
    energy = values.square().mean(0)
    score = (values - values.mean(0)).square().mean(0)
    if not float(score.sum()) > _STILL * float(energy.sum()):
        score = energy
    return score.argsort(descending=True, stable=True)[:keep]


def spectrum(images: Tensor) -> Tensor:
    """Return all coefficients of images (..., h, w)."""
    rows, columns = (cosine_basis(side, images.dtype, images.device) for side in images.shape[-2:])
    return rows @ images @ columns.T


def from_spectrum(values: Tensor) -> Tensor:
    """Return the images (..., h, w) of all their coefficients: adjoint and inverse."""
    rows, columns = (cosine_basis(side, values.dtype, values.device) for side in values.shape[-2:])
    return rows.T @ values @ columns


class FrequencyCanvas(Canvas):
    """Spectra of images of which all but the kept coefficients of their class stay 0.

    Args:
        base: the first images. kept: (classes, h, w) bool.
    """

    leaf = "coefficients"

    def __init__(self, base: Canvas, kept: Tensor) -> None:
        super().__init__(base.images, base.labels, base.classes, base.spec, bounded=False)
        self.kept = kept[base.labels][:, None]
        self.images = (spectrum(self.images.detach()) * self.kept).requires_grad_(True)

    def to(self, device: str) -> Canvas:
        """Return the same canvas on another device."""
        moved: Any = super().to(device)
        moved.kept = self.kept.to(device)
        return moved

    @property
    def plain(self) -> bool:
        """Coefficients are not what networks are shown."""
        return False

    def render(self, leaves: Mapping[str, Tensor]) -> Tensor:
        """Return RGB images (r, c, h, w) of rows of the coefficients; differentiable."""
        return from_spectrum(leaves[self.leaf])

    @torch.no_grad()
    def project_(self) -> None:
        """Put coefficients that the class does not keep back to 0."""
        self.images.mul_(self.kept)


@dataclass(frozen=True, kw_only=True)
class Frequency(Started, kind="frequency"):
    """Stored images have only those coefficients in which the images of their class vary most.

    A receiver gets them as pixels: as many images as whole ones, not more for the same bytes as
    FreD counts.
    """

    keep: PositiveShare = 0.25  # share of an image's coefficients that its class keeps

    def formed(self, started: Canvas, real: ImageSet, run: Run) -> Canvas:
        """Return the canvas of the first images' coefficients."""
        size = real.shape[1] * real.shape[2]
        kept = torch.zeros(real.num_classes, size, dtype=torch.bool)
        for label in range(real.num_classes):
            own = real.of_class(label)
            draw = run.generator("coefficients", label)
            rows = own[torch.randperm(len(own), generator=draw)[:_MOST]]
            count = max(1, round(self.keep * size))
            kept[label, leading_coefficients(real.batch(rows), count)] = True
        return FrequencyCanvas(started, kept.unflatten(1, (real.shape[1], real.shape[2])))
