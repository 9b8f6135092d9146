"""The exact kernel distance of two sets, as V-statistic, for one pair of sets or class by class.

Squared maximum mean discrepancy: mean k(x, x') + mean k(y, y') - 2 mean k(x, y). It needs no
frequencies and no sampling; with n·m + m² kernel entries it is cheaper than a spectral distance
whenever the synthetic set is smaller than the number of frequencies, but cannot weight amplitude
and phase. M3D (AAAI 2024) uses it with five bandwidths.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from potstill.match.kernels import Kernel, squared_distance

__all__ = ["by_class", "class_mmd2", "mmd2", "multi_bandwidth"]

Gram = Callable[[Tensor, Tensor], Tensor]  # (..., n, d), (..., m, d) -> (..., n, m)


def mmd2(x: Tensor, y: Tensor, kernel: Kernel | None = None, drop_constant: bool = False) -> Tensor:
    """Return the squared discrepancy () of real x (n, d) and synthetic y (m, d).

    ``kernel`` None: the five bandwidths of M3D. ``drop_constant`` leaves out mean k(x, x'), which
    does not depend on y; the value can then be negative, the gradient is the same.
    """
    weight_x, weight_y = x.new_ones(len(x)) / len(x), y.new_ones(len(y)) / len(y)
    return _discrepancy(x, y, weight_x, weight_y, kernel, drop_constant)


def class_mmd2(
    real: Tensor,
    mask: Tensor | None,
    syn: Tensor,
    labels: Tensor,
    kernel: Kernel | None = None,
    drop_constant: bool = True,
) -> Tensor:
    """Return the squared discrepancy (C,) of each class in one batched computation.

    ``real`` (C, n, d) with ``mask`` (C, n) true for rows that hold an image (None: all do), as
    :func:`by_class` makes them; ``syn`` (m, d) with ``labels`` (m,) in any order.
    """
    classes, n, _ = real.shape
    present = real.new_ones(classes, n) if mask is None else mask.to(real)
    syn, syn_mask = by_class(syn, labels, classes)
    weight_real = present / present.sum(-1, keepdim=True).clamp_min(1)
    weight_syn = syn_mask.to(syn) / syn_mask.sum(-1, keepdim=True).clamp_min(1)
    return _discrepancy(real, syn, weight_real, weight_syn, kernel, drop_constant)


def _discrepancy(
    x: Tensor, y: Tensor, weight_x: Tensor, weight_y: Tensor, kernel: Kernel | None, drop: bool
) -> Tensor:
    gram: Gram = kernel.gram if kernel else multi_bandwidth(x, y, weight_x, weight_y)

    def mean(u: Tensor, v: Tensor, weight_u: Tensor, weight_v: Tensor) -> Tensor:
        return torch.einsum("...i,...ij,...j->...", weight_u, gram(u, v), weight_v)

    value = mean(y, y, weight_y, weight_y) - 2 * mean(x, y, weight_x, weight_y)
    return value if drop else value + mean(x, x, weight_x, weight_x)


def by_class(features: Tensor, labels: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Sort features (n, d) into (classes, largest class, d), zero where the mask is false.

    Keeps the order within a class; differentiable; reads the size of the largest class on the host.
    """
    order = labels.argsort(stable=True)
    counts = torch.bincount(labels, minlength=classes)
    starts = counts.cumsum(0) - counts
    rank = torch.empty_like(labels)
    rank[order] = torch.arange(len(labels), device=labels.device) - starts[labels[order]]
    largest = int(counts.max())
    mask = torch.arange(largest, device=labels.device) < counts[:, None]
    padded = features.new_zeros(classes * largest, features.shape[1])
    padded = padded.index_copy(0, labels * largest + rank, features)
    return padded.view(classes, largest, -1), mask


def multi_bandwidth(
    x: Tensor,
    y: Tensor,
    weight_x: Tensor | None = None,
    weight_y: Tensor | None = None,
    bandwidths: int = 5,
    factor: float = 2.0,
) -> Gram:
    """Return M3D's kernel for one pair of sets: a sum of exp(-r² / bandwidth) over bandwidths.

    They are the mean squared distance of two different members of the union of x (..., n, d) and
    y (..., m, d), times ``factor`` to the powers -2..2, and carry no gradient. Weights (..., n) and
    (..., m) sum to one and are zero for padding.
    """
    union = torch.cat([x.detach(), y.detach()], dim=-2)
    present = torch.ones_like(union[..., 0])
    if weight_x is not None and weight_y is not None:
        present = (torch.cat([weight_x, weight_y], dim=-1) > 0).to(union)
    count = present.sum(-1)
    # Σᵢⱼ |zᵢ - zⱼ|² = 2N Σ|z - mean|²: no n² distances, and no cancellation far from the origin.
    centre = (union * present[..., None]).sum(-2, keepdim=True) / count[..., None, None]
    scatter = ((union - centre).square().sum(-1) * present).sum(-1)
    mean = (2 * scatter / (count - 1).clamp_min(1)).clamp_min(torch.finfo(union.dtype).tiny)
    powers = [factor ** (k - bandwidths // 2) for k in range(bandwidths)]

    def gram(u: Tensor, v: Tensor) -> Tensor:
        scaled = squared_distance(u, v) / mean[..., None, None]
        return torch.stack([torch.exp(-scaled / power) for power in powers]).sum(0)

    return gram
