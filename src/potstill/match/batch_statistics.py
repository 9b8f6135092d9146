"""Means and variances in front of a network's layers: SRe2L, G-VBSM, EDC, RLDD and WMDD match them.

Moments are means and mean squares side by side, (..., 2q); those of a batch are the mean of those
of its images, so a batch may be passed in pieces. Statistics are means and variances, (..., 2q).
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["densification", "mixed_statistics", "running_mean", "statistics", "statistics_apart"]


def statistics(moments: Tensor) -> Tensor:
    """Return means and biased variances (..., 2q) of moments (..., 2q)."""
    mean, square = moments.chunk(2, dim=-1)
    return torch.cat([mean, square - mean.square()], dim=-1)


def statistics_apart(a: Tensor, b: Tensor) -> Tensor:
    """Return the distance of variances plus that of means (...) of statistics a and b (..., 2q).

    Distances are Euclidean, not squared, as in SRe2L's released code.
    """
    means, variances = (a - b).chunk(2, dim=-1)
    return variances.norm(dim=-1) + means.norm(dim=-1)


def mixed_statistics(table: Tensor, weights: Tensor, *, between: bool = True) -> Tensor:
    """Return the statistics (2q,) of a mixture of classes.

    Args:
        table: moments of each class (C, 2q). weights: shares of the classes (C,), any scale.
        between: whether variances hold what lies between the classes, as those of a batch do; the
            mean of the classes' own variances if not (as RLDD prints it).
    """
    weights = weights.to(table)
    shares = weights / weights.sum()
    return statistics(shares @ table) if between else shares @ statistics(table)


def running_mean(now: Tensor, before: Tensor | None, decay: float) -> Tensor:
    """Return ``decay`` of what was before and the rest of ``now``, with the gradient of ``now``.

    G-VBSM, Shao et al., CVPR 2024: a batch is too small to have the statistics that it should
    have, so what is compared is the mean over steps, and what moves is this step's batch. The
    first value is the first mean.
    """
    if before is None:
        return now
    return (before.lerp(now, 1 - decay) - now).detach() + now


def densification(images: Tensor, labels: Tensor, classes: int, temperature: float) -> Tensor:
    """Return KL(softmax(s / T) | softmax(s)) summed over classes; s: eigenvalues of a Gram matrix.

    Args:
        images: (n, c, h, w) with ``labels`` (n,). temperature: T above 1.

    G-VBSM's data densification: the flatter spectrum is the aim, constant, so that the images of a
    class do not become alike. The Gram matrix is over the number of pixel values. A class of one
    image has no spectrum to flatten.
    """
    total, rows = images.new_zeros(()), images.flatten(1)
    for label in range(classes):
        own = rows[labels == label]
        if len(own) > 1:
            s = torch.linalg.eigvalsh(own @ own.T / rows.shape[1])
            aim = (s / temperature).detach().log_softmax(0)
            total = total + (aim.exp() * (aim - s.log_softmax(0))).sum()
    return total
