"""What is alike should be seen alike: two views of an image, or images of a class.

Losses without labels take the projections ``a`` and ``b`` (n, d) of two views of the same n images
and return a scalar.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from potstill.run.errors import InputError

__all__ = ["OBJECTIVES", "barlow_twins", "class_nce", "nt_xent", "self_supervised"]

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


def class_nce(
    anchors: Tensor, labels: Tensor, keys: Tensor, key_labels: Tensor, temperature: float
) -> Tensor:
    """Return -log of the share of its class among all keys, by cosine, of each anchor (n,).

        -log  sum_{keys of its class} w exp(z z' / t)  /  sum_{all keys} w exp(z z' / t)

    Args:
        anchors: (n, d) of classes ``labels`` (n,). keys: (m, d) of classes ``key_labels`` (m,).
        temperature: t above 0.

    w is one over the keys of the key's class, so that large classes are no likelier; the class of
    every anchor has a key. MIM4DD (Shang et al., NeurIPS 2023) bounds mutual information so.
    """
    cosines = normalize(anchors, dim=1) @ normalize(keys, dim=1).T
    counts = torch.bincount(key_labels)[key_labels].to(cosines)
    logits = cosines / temperature - counts.log()
    other = labels[:, None] != key_labels
    return logits.logsumexp(1) - logits.masked_fill(other, -torch.inf).logsumexp(1)


def self_supervised(objective: str, a: Tensor, b: Tensor, temperature: float) -> Tensor:
    """Return the loss of the objective's name."""
    if objective == "simclr":
        return nt_xent(a, b, temperature)
    if objective == "barlow":
        return barlow_twins(a, b)
    raise InputError(f"objective is {objective!r}; use one of {', '.join(OBJECTIVES)}")
