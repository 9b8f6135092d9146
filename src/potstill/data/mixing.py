"""Mixing a batch with a shuffled copy of itself: mixup, and Remix for long tails.

The box of CutMix is :func:`potstill.data.augment.cutmix`'s.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["mixup", "remix_shares"]


def mixup(
    x: Tensor, targets: Tensor, generator: torch.Generator, counts: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return λx + (1 - λ)x' and the labels mixed alike, λ ~ Beta(1, 1) = U(0, 1).

    One λ and one permutation for a batch (Zhang et al., ICLR 2018, with the usual α of 1).

    Args:
        x: images (n, c, h, w). targets: probabilities (n, K).
        counts: training images per class (K,): labels then weigh as :func:`remix_shares` says.
    """
    device = generator.device
    keep = float(torch.rand((), generator=generator, device=device))
    partner = torch.randperm(len(x), generator=generator, device=device).to(x.device)
    others, share = targets[partner], targets.new_full((len(x),), keep)
    if counts is not None:
        n = counts.to(targets)
        share = remix_shares(keep, n[targets.argmax(1)], n[others.argmax(1)])
    return torch.lerp(x[partner], x, keep), torch.lerp(others, targets, share[:, None])


def remix_shares(
    keep: float, n: Tensor, others: Tensor, kappa: float = 3, tau: float = 0.5
) -> Tensor:
    """Remix: the share (b,) of the first label, which goes whole to a much smaller class.

    0 where n_i / n_j >= κ and λ < τ, 1 where n_i / n_j <= 1 / κ and 1 - λ < τ, otherwise λ (Chou et
    al., ECCV workshops 2020, eq. 8).

    Args:
        keep: λ. n, others: images (b,) of the classes of the first and of the second image.
    """
    share = torch.full_like(n, keep)
    share[(n >= kappa * others) & (keep < tau)] = 0
    share[(others >= kappa * n) & (1 - keep < tau)] = 1
    return share
