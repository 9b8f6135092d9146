"""Distances between means: distribution matching (DM, WACV 2023), the linear kernel's case."""

from __future__ import annotations

from torch import Tensor

__all__ = ["mean_distance"]


def mean_distance(a: Tensor, b: Tensor) -> Tensor:
    """Return the squared distance (k,) of class means a and b (k, d)."""
    return (a - b).square().sum(dim=-1)
