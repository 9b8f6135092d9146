"""What a linear classifier on frozen features tells about two sets: its gradients, and their limit.

LGM (Cazenavette et al., NeurIPS 2025, arXiv 2511.16674) compares the gradients of a random linear
head on real and on synthetic features; SFM (arXiv 2602.05391) compares flows, which are what these
gradients become for a head near zero on balanced classes. Everything is closed-form in the features
z (n, d), so backbones are passed once forward and once backward.
"""

from __future__ import annotations

import torch
from torch import Tensor

from potstill.run import InputError

__all__ = [
    "REDUCTIONS",
    "analytic_gradient",
    "cosine_distance",
    "flows",
    "linear_gradient",
    "row_cosines",
    "shrink_centres",
    "sub_flows",
]

REDUCTIONS = ("global", "per_class")


def linear_gradient(
    z: Tensor,
    labels: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    image_weights: Tensor | None = None,
) -> Tensor:
    """Gradient of the mean cross-entropy of softmax(W z + b) in (W, b), (C, d + 1).

    Closed form: with P the probabilities and Y the one-hot labels, (P - Y)^T Z / n for W and the
    column mean of P - Y for b (last column). First-order differentiable in z, which makes the
    double backward of the released code unnecessary.

    Args:
        z: (n, d). labels: (n,). weight: (C, d). bias: (C,), zero by default.
        image_weights: (n,), of a weighted mean; they need not sum to anything.
    """
    logits = z @ weight.T if bias is None else torch.addmm(bias, z, weight.T)
    gap = logits.softmax(1) - torch.nn.functional.one_hot(labels, len(weight)).to(logits)
    if image_weights is None:
        gap = gap / len(z)
    else:
        gap = gap * (image_weights / image_weights.sum())[:, None].to(gap)
    return torch.cat([gap.T @ z, gap.sum(0)[:, None]], 1)


def analytic_gradient(centres: Tensor, priors: Tensor, second: Tensor, weight: Tensor) -> Tensor:
    """First-order expansion in W of the expected :func:`linear_gradient`, (C, d + 1), b = 0.

        g_k = m / C - π_k μ_k + S (w_k - w̄) / C,    m = Σ_c π_c μ_c

    with class means μ (C, d), priors π (C,) and second moments S (d, d) = E[z z^T] under the same
    priors. It needs no image: the whole real side is (μ, π, S). Bias: 1/C - π_k + (w_k - w̄)·m / C.
    """
    classes = len(centres)
    mean = priors @ centres
    lean = weight - weight.mean(0)
    rows = mean / classes - priors[:, None] * centres + lean @ second / classes
    bias = 1 / classes - priors + lean @ mean / classes
    return torch.cat([rows, bias[:, None]], 1)


def flows(centres: Tensor) -> Tensor:
    """From each class centre to the mean of the others: f_k = ν_k - μ_k, (C, d) (SFM).

    ν_k is the mean of the other C - 1 centres, for any number of images per class: with the
    released divisor (number of images - 1) f would no longer ignore a common shift of all features.
    """
    classes = len(centres)
    if classes < 2:
        raise InputError(f"centres has {classes} class(es); flows need at least 2")
    others = (centres.sum(0, keepdim=True) - centres) / (classes - 1)
    return others - centres


def sub_flows(centres: Tensor, parts: Tensor) -> Tensor:
    """From each part of a class to the mean of the other classes' centres, (C, k, d).

    Args:
        centres: (C, d). parts: (C, k, d), such as k-means centres of a class or its k images.
    """
    return (flows(centres) + centres)[:, None] - parts


def cosine_distance(a: Tensor, b: Tensor, reduction: str = "global") -> Tensor:
    """1 - cosine of two (C, ...) tensors: of everything at once, or the mean over rows, scalar."""
    if reduction == "per_class":
        return 1 - row_cosines(a, b).mean()
    if reduction != "global":
        raise InputError(f"reduction is {reduction!r}; use one of {', '.join(REDUCTIONS)}")
    return 1 - torch.nn.functional.cosine_similarity(a.flatten(), b.flatten(), dim=0, eps=1e-12)


def row_cosines(a: Tensor, b: Tensor) -> Tensor:
    """Cosine of each class's row, (C,)."""
    return torch.nn.functional.cosine_similarity(a.flatten(1), b.flatten(1), dim=1, eps=1e-12)


def shrink_centres(centres: Tensor, counts: Tensor, kappa: float, nearest: int = 3) -> Tensor:
    """Pull noisy centres of small classes towards nearby centres of larger ones, (C, d).

        μ_c <- (n_c μ_c + κ m_c) / (n_c + κ)

    m_c is the mean of the ``nearest`` (Euclidean) centres among the classes in the largest third
    that are larger than c. The largest classes, and all classes of a balanced set, stay.

    Args:
        centres: (C, d). counts: (C,) real images. kappa: images' worth of trust in the neighbours.
    """
    if not kappa >= 0:
        raise InputError(f"kappa is {kappa}; use 0 (off) or more")
    if kappa == 0:
        return centres
    counts = counts.to(centres)
    head = counts.argsort(descending=True, stable=True)[: max(1, round(len(counts) / 3))]
    moved = centres.clone()
    for label in range(len(centres)):
        larger = head[counts[head] > counts[label]]
        if not len(larger):
            continue
        gaps = torch.linalg.vector_norm(centres[larger] - centres[label], dim=1)
        close = larger[gaps.argsort(stable=True)[:nearest]]
        n = counts[label]
        moved[label] = (n * centres[label] + kappa * centres[close].mean(0)) / (n + kappa)
    return moved
