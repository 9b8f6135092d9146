"""Distances between moments: means (DM, WACV 2023), covariances of channels (IID, CVPR 2024)."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["channel_products", "covariance", "mean_distance", "shrunken"]


def mean_distance(a: Tensor, b: Tensor) -> Tensor:
    """Return the squared distance (k,) of class means a and b (k, d)."""
    return (a - b).square().sum(dim=-1)


def channel_products(maps: Tensor) -> Tensor:
    """Return X Xᵀ (n, c, c) of maps X (n, c, p): products of channels, summed over the pixels."""
    return torch.einsum("nap,nbp->nab", maps, maps)


def covariance(mean: Tensor, products: Tensor) -> Tensor:
    """Return the covariance of channels (k, c, c) of each class, summed over the pixels.

    Args:
        mean: of a class's maps (k, c, p). products: their mean :func:`channel_products` (k, c, c).

    Equal to the mean of (X - mean)(X - mean)ᵀ over a class's images.
    """
    return products - channel_products(mean)


def shrunken(covariances: Tensor, counts: Tensor, strength: float) -> Tensor:
    """Return (1 - s) Cov_c + s · (mean of all classes) with s = strength / (strength + n_c).

    Args:
        covariances: (C, c, c). counts: images behind each, (C,). strength: 0 = as they are.
    """
    share = (strength / (strength + counts.to(covariances)))[:, None, None]
    return torch.lerp(covariances, covariances.mean(0, keepdim=True), share)
