"""Losses that need no labels: two views of an image should be alike, those of others not.

Both take the projections ``a`` and ``b`` (n, d) of two views of the same n images and return a
scalar.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from potstill.run.errors import InputError

__all__ = ["OBJECTIVES", "barlow_twins", "nt_xent", "self_supervised"]

OBJECTIVES = ("simclr", "barlow")


def nt_xent(a: Tensor, b: Tensor, temperature: float = 0.5) -> Tensor:
    """NT-Xent: cross-entropy of finding the other view among 2n - 1 others by cosine.

    SimCLR (Chen et al., ICML 2020, eq. 1), mean over both directions.
    """
    z = normalize(torch.cat([a, b]), dim=1)
    logits = z @ z.T / temperature
    logits = logits.masked_fill(torch.eye(len(z), dtype=torch.bool, device=z.device), -torch.inf)
    n = len(a)
    partner = torch.arange(2 * n, device=z.device).roll(n)
    return cross_entropy(logits, partner)


def barlow_twins(a: Tensor, b: Tensor, off_diagonal: float = 0.005) -> Tensor:
    """Barlow Twins: the cross-correlation of the two views' projections should be the identity.

    Zbontar et al., ICML 2021, eq. 1; ``off_diagonal`` is its λ. Standardised over the batch.
    """

    def standard(z: Tensor) -> Tensor:
        return (z - z.mean(0)) / z.std(0, correction=0).clamp_min(1e-5)

    correlation = standard(a).T @ standard(b) / len(a)
    diagonal = correlation.diagonal()
    rest = correlation.square().sum() - diagonal.square().sum()
    return (1 - diagonal).square().sum() + off_diagonal * rest


def self_supervised(objective: str, a: Tensor, b: Tensor, temperature: float) -> Tensor:
    """Return the loss of the objective's name."""
    if objective == "simclr":
        return nt_xent(a, b, temperature)
    if objective == "barlow":
        return barlow_twins(a, b)
    raise InputError(f"objective is {objective!r}; use one of {', '.join(OBJECTIVES)}")
