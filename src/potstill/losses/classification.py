"""Losses of a classifier, for balanced and for long-tailed data.

Every loss takes ``logits`` (b, C) and ``targets``, either class indices (b,) int64 or soft labels
(b, C), and returns one value per image (b,). All are linear in soft labels, so mixed labels and
image weights can be multiplied into them. Write z for logits, y for the target class, π for the
class frequencies n_c / Σ n.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

import torch
from torch import Tensor
from torch.nn.functional import log_softmax

from potstill.run.errors import InputError

__all__ = [
    "Loss",
    "adjust",
    "balanced_softmax",
    "class_balanced",
    "cross_entropy",
    "focal",
    "logit_adjusted",
]

Loss = Callable[[Tensor, Tensor], Tensor]


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Return -log softmax(z)_y per image (b,)."""
    return -_at(log_softmax(logits, 1), targets)


def logit_adjusted(counts: Sequence[int] | Tensor, tau: float = 1.0) -> Loss:
    """Logit adjustment: -log softmax(z + τ log π)_y (Menon et al., ICLR 2021, eq. 10).

    Args:
        counts: training images per class (C,), all positive.
        tau: 1 is consistent for balanced error; 0 is plain cross-entropy.
    """
    shift = _placed(tau * _log_prior(counts))
    return lambda logits, targets: cross_entropy(logits + shift(logits), targets)


def balanced_softmax(counts: Sequence[int] | Tensor) -> Loss:
    """Balanced softmax: -log(n_y e^{z_y} / Σ_c n_c e^{z_c}) (Ren et al., NeurIPS 2020, theorem 1).

    The same function as :func:`logit_adjusted` with τ = 1.
    """
    return logit_adjusted(counts, tau=1.0)


def class_balanced(counts: Sequence[int] | Tensor, beta: float = 0.9999) -> Loss:
    """Cross-entropy times (1 - β) / (1 - β^{n_y}), scaled to sum to C (Cui et al., CVPR 2019).

    Args:
        counts: training images per class (C,), all positive.
        beta: in [0, 1); 0 is plain cross-entropy, towards 1 the weights go as 1 / n.

    Raises:
        InputError: ``beta`` outside [0, 1), or a class without images.
    """
    if not 0 <= beta < 1:
        raise InputError(f"beta is {beta}; use a number from 0 up to, not including, 1")
    weight = 1 / (1 - torch.pow(beta, _positive(counts)))
    place = _placed(weight * len(weight) / weight.sum())
    return lambda logits, targets: -_at(place(logits) * log_softmax(logits, 1), targets)


def focal(gamma: float = 2.0) -> Loss:
    """Focal loss on softmax probabilities: -(1 - p_y)^γ log p_y (Lin et al., ICCV 2017, eq. 4).

    Args:
        gamma: at least 0; 0 is plain cross-entropy.

    Raises:
        InputError: ``gamma`` is negative.
    """
    if gamma < 0:
        raise InputError(f"gamma is {gamma}; use a number of at least 0")

    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        log_p = log_softmax(logits, 1)
        # 1 - p can round to 0, where a power below 1 has no finite slope.
        doubt = (-torch.expm1(log_p)).clamp_min(torch.finfo(log_p.dtype).tiny)
        return -_at(doubt**gamma * log_p, targets)

    return loss


def adjust(logits: Tensor, counts: Sequence[int] | Tensor, tau: float = 1.0) -> Tensor:
    """Post-hoc logit adjustment: z - τ log π, (b, C) (Menon et al., ICLR 2021, eq. 9)."""
    return logits - tau * _log_prior(counts).to(logits)


def _at(values: Tensor, targets: Tensor) -> Tensor:
    """Return the target class's column of ``values`` (b, C), or the mean under soft labels."""
    if targets.is_floating_point():
        return (values * targets).sum(1)
    return values.gather(1, targets.unsqueeze(1)).squeeze(1)


def _positive(counts: Sequence[int] | Tensor) -> Tensor:
    values = torch.as_tensor(counts, dtype=torch.float64)
    if values.ndim != 1 or not bool((values > 0).all()):
        raise InputError(f"counts is {counts}; give one positive number of images per class")
    return values


def _log_prior(counts: Sequence[int] | Tensor) -> Tensor:
    values = _positive(counts)
    return (values / values.sum()).log()


def _placed(values: Tensor) -> Callable[[Tensor], Tensor]:
    """Return ``values`` like a tensor, copied to each device once and not at every step."""
    place = cache(lambda device, dtype: values.to(device, dtype))
    return lambda like: place(like.device, like.dtype)
