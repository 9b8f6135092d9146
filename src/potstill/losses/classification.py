"""Losses of a classifier, for balanced and for long-tailed data.

Every loss takes ``logits`` (b, C) and ``targets``, either class indices (b,) int64 or soft labels
(b, C), and returns one value per image (b,). All are linear in soft labels, so mixed labels, image
weights and class weights can be multiplied into them. Write z for logits, y for the target class,
p for softmax(z), n for the images per class and π for the class frequencies n_c / Σ n.

A loss that changes in the course of a training is a :class:`Scheduled`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn.functional import log_softmax, softplus

from potstill.run.errors import InputError

__all__ = [
    "Deferred",
    "Loss",
    "Scheduled",
    "adjust",
    "balanced_softmax",
    "class_balanced",
    "cross_entropy",
    "effective_weights",
    "focal",
    "label_aware",
    "ldam",
    "logit_adjusted",
    "loss_at",
    "weighted",
]

Loss = Callable[[Tensor, Tensor], Tensor]


@runtime_checkable
class Scheduled(Protocol):
    """A loss that depends on how much of the training is over."""

    def at(self, share: float) -> Loss:
        """Return the loss of an epoch before which ``share`` in [0, 1) of the epochs passed."""
        ...


@dataclass(frozen=True)
class Deferred:
    """Deferred re-weighting: one loss, and from ``start`` on another (Cao et al., NeurIPS 2019)."""

    first: Loss
    then: Loss
    start: float = 0.8  # share of the epochs; the released code re-weights from epoch 160 of 200

    def at(self, share: float) -> Loss:
        """Return the loss of an epoch, see :class:`Scheduled`."""
        return self.first if share < self.start - 1e-9 else self.then


def loss_at(loss: Loss | Scheduled, share: float) -> Loss:
    """Return the loss of an epoch before which ``share`` of the epochs passed."""
    return loss.at(share) if isinstance(loss, Scheduled) else loss


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


def weighted(loss: Loss, weights: Tensor) -> Loss:
    """Multiply ``weights`` (C,) of the classes into the targets of ``loss``."""
    place = _placed(weights)

    def result(logits: Tensor, targets: Tensor) -> Tensor:
        w = place(logits)
        if targets.is_floating_point():
            return loss(logits, targets * w)
        return loss(logits, targets) * w[targets]

    return result


def effective_weights(counts: Sequence[int] | Tensor, beta: float = 0.9999) -> Tensor:
    """Return (1 - β) / (1 - β^{n_c}) scaled to sum to C, (C,) float64 (Cui et al., CVPR 2019).

    Args:
        counts: training images per class (C,), all positive.
        beta: in [0, 1); 0 weighs all classes alike, towards 1 the weights go as 1 / n.

    Raises:
        InputError: ``beta`` outside [0, 1), or a class without images.
    """
    if not 0 <= beta < 1:
        raise InputError(f"beta is {beta}; use a number from 0 up to, not including, 1")
    weight = 1 / (1 - torch.pow(beta, _positive(counts)))
    return weight * len(weight) / weight.sum()


def class_balanced(counts: Sequence[int] | Tensor, beta: float = 0.9999) -> Loss:
    """Cross-entropy times the class's :func:`effective_weights`."""
    return weighted(cross_entropy, effective_weights(counts, beta))


def ldam(counts: Sequence[int] | Tensor, most: float = 0.5, scale: float = 1.0) -> Loss:
    """Label-distribution-aware margins: -log softmax(s (z - Δ_y e_y))_y, Δ_c ∝ n_c^{-1/4}.

    Cao et al., NeurIPS 2019, eqs. 11-13. The released code has s = 30 on the cosines of a
    normalised classifier; the logits of a linear one have a scale of their own.

    Args:
        counts: training images per class (C,), all positive.
        most: margin of the smallest class, at least 0; 0 is plain cross-entropy of s z.
        scale: s, above 0.

    Raises:
        InputError: a number out of range, or a class without images.
    """
    if most < 0 or scale <= 0:
        raise InputError(f"most is {most} and scale is {scale}; use at least 0 and above 0")
    root = _positive(counts) ** -0.25
    place = _placed(scale * most * root / root.max())

    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        z = scale * logits
        return _at(softplus(_others(z) + place(logits) - z), targets)

    return loss


def label_aware(counts: Sequence[int] | Tensor, head: float = 0.3, tail: float = 0.0) -> Loss:
    """Label-aware smoothing: -(1 - ε_y) log p_y - ε_y mean_c log p_c (MiSLAS, CVPR 2021, eq. 6).

    With ε_c = ε_tail + (ε_head - ε_tail) sin(π (n_c - n_min) / 2 (n_max - n_min)), the concave form
    of the released code (Zhong et al.), which also takes the mean over all classes, y included.

    Args:
        counts: training images per class (C,), all positive; equal counts are all heads.
        head: ε of the largest class, 0 to 1. tail: of the smallest.

    Raises:
        InputError: a number out of range, or a class without images.
    """
    if not (0 <= head <= 1 and 0 <= tail <= 1):
        raise InputError(f"head is {head} and tail is {tail}; use numbers from 0 to 1")
    n = _positive(counts)
    spread = n.max() - n.min()
    rank = (n - n.min()) / spread if spread > 0 else torch.ones_like(n)
    place = _placed(tail + (head - tail) * (rank * math.pi / 2).sin())

    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        log_p, smooth = log_softmax(logits, 1), place(logits)
        return -_at((1 - smooth) * log_p + smooth * log_p.mean(1, keepdim=True), targets)

    return loss


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


def _others(z: Tensor) -> Tensor:
    """log Σ_{j != c} e^{z_j} of each class c, (b, C), also where one class has almost all."""
    top, total = z.argmax(1, keepdim=True), z.logsumexp(1, keepdim=True)
    below = z.scatter(1, top, -torch.inf).logsumexp(1, keepdim=True)
    p = (z - total).exp().scatter(1, top, 0.0)  # at most 1/2, so that 1 - p keeps its digits
    return (total + torch.log1p(-p)).scatter(1, top, below)


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
