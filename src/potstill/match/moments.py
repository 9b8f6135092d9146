"""Class means (DM, WACV 2023), covariances of channels (IID, CVPR 2024) and of features (DSDM)."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = [
    "channel_products",
    "covariance",
    "covariance_distance",
    "mean_distance",
    "scatter_rows",
    "shrunken",
]


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


def scatter_rows(features: Tensor, mask: Tensor) -> Tensor:
    """Return rows A (k, n, d) of each class, of which AᵀA is the covariance of its features.

    Args:
        features: (k, n, d), padded. mask: (k, n) true where there is an image.

    A class of one image has the covariance 0; others divide by their images less one.
    """
    own = mask[..., None].to(features)
    count = own.sum(1, keepdim=True)
    mean = (features * own).sum(1, keepdim=True) / count.clamp_min(1)
    return (features - mean) * own / (count - 1).clamp_min(1).sqrt()


def covariance_distance(
    a: Tensor, b: Tensor, pooled: Tensor | None = None, share: Tensor | None = None
) -> Tensor:
    """Return |(1 - s) AᵀA + s P - BᵀB|² (k,) of :func:`scatter_rows` (k, n, d) and (k, m, d).

    Args:
        pooled: P (d, d), to which the first side is drawn by ``share`` s (k,); none without.

    Inner products of covariances are those of the Gram matrices A Bᵀ, n by m: no (d, d) matrix of a
    class is made.
    """
    aa, ab, bb = (_inner(u, v) for u, v in ((a, a), (a, b), (b, b)))
    if pooled is None or share is None:
        return aa - 2 * ab + bb
    ap, bp = (torch.einsum("knd,de,kne->k", u, pooled, u) for u in (a, b))
    kept = 1 - share
    aim = kept**2 * aa + 2 * kept * share * ap + share**2 * pooled.square().sum()
    return aim - 2 * (kept * ab + share * bp) + bb


def _inner(a: Tensor, b: Tensor) -> Tensor:
    return (a @ b.transpose(1, 2)).square().sum((1, 2))
