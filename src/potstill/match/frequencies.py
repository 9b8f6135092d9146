"""Gaussian rows, independent or orthogonal, from which every kernel's frequencies are made.

A frequency matrix that hits a spectral law exactly is a map of standard normal rows: a positive
factor per row for an isotropic kernel (a Gaussian scale mixture), a quantile map per coordinate for
a product kernel. So one generator of rows, whose orthogonal form lowers the variance of a spectral
distance (Yu et al., Orthogonal Random Features, NeurIPS 2016), serves every kernel.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["gamma", "gaussian_rows", "to_cauchy", "to_laplace"]


def gaussian_rows(
    count: int, dim: int, generator: torch.Generator, orthogonal: bool = False
) -> Tensor:
    """Draw ``count`` standard normal rows (count, dim).

    ``orthogonal``: every block of ``dim`` rows has mutually orthogonal directions, uniform on the
    sphere, and independent chi-distributed lengths; the last block may be cut short. Each row is
    standard normal on its own. The gain needs complete blocks: a multiple of ``dim`` rows.
    """
    if not orthogonal:
        return torch.randn(count, dim, generator=generator, device=generator.device)
    lengths = (2 * gamma(dim / 2, count, generator)).sqrt()
    full, rest = divmod(count, dim)
    bases = []
    for shape in ((full, dim, dim), (1, dim, rest)):
        draw = torch.randn(shape, generator=generator, device=generator.device)
        basis, triangle = torch.linalg.qr(draw)
        # QR fixes its signs by convention; undoing that makes the basis uniform (Haar).
        signs = triangle.diagonal(dim1=-2, dim2=-1).sign()
        bases.append((basis * signs[:, None]).mT.reshape(-1, dim))
    return torch.cat(bases) * lengths[:, None]


def gamma(shape: float, count: int, generator: torch.Generator) -> Tensor:
    """Draw (count,) from the Gamma law with ``shape`` and unit rate, on the generator's device."""
    shapes = torch.full((count,), float(shape), device=generator.device)
    return torch._standard_gamma(shapes, generator=generator)


def to_cauchy(normal: Tensor) -> Tensor:
    """Map standard normal values to standard Cauchy ones, monotone and exact in the tails."""
    tail = torch.special.erfc(normal.abs() / math.sqrt(2))
    return normal.sign() / torch.tan(0.5 * math.pi * tail)


def to_laplace(normal: Tensor) -> Tensor:
    """Map standard normal values to Laplace(0, 1) ones, monotone and exact in the tails."""
    return -normal.sign() * torch.special.erfc(normal.abs() / math.sqrt(2)).log()
