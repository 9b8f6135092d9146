"""Losses of what is no class: numbers to regress on, and what a teacher says.

Each takes ``logits`` (b, C) and ``targets`` and returns one value per image (b,). None is linear in
its targets, so unlike those of :mod:`potstill.losses.classification` they take no weights.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import log_softmax, one_hot

from potstill.losses.classification import Loss, cross_entropy
from potstill.run.errors import InputError

__all__ = ["divergence", "logit_error", "scaled_error", "squared_error"]


def squared_error(logits: Tensor, targets: Tensor) -> Tensor:
    """Half the squared distance of outputs (b, C) and targets (b, C), one-hot for classes, (b,).

    KIP and FRePo train networks so on their targets; not linear in them, so images have no weights.
    """
    if not targets.is_floating_point():
        targets = one_hot(targets, logits.shape[1]).to(logits)
    return 0.5 * (logits - targets).square().sum(1)


def scaled_error(scale: float) -> Loss:
    """Return squared error to ``scale`` times the targets; of classes these are 1 - 1/K and -1/K.

    RFAD trains finite networks so (Loo et al., NeurIPS 2022).
    """

    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        if not targets.is_floating_point():
            targets = one_hot(targets, logits.shape[1]).to(logits) - 1 / logits.shape[1]
        return squared_error(logits, scale * targets)

    return loss


def divergence(temperature: float = 1.0) -> Loss:
    """Return T² KL(p_T || softmax(z / T)), where p_T is proportional to p^(1/T).

    What a student learns from a teacher's probabilities p (Hinton et al., 2015, sec. 2); T² keeps
    the size of gradients. Not linear in p, so images have no weights.

    Args:
        temperature: T, above 0.

    Raises:
        InputError: ``temperature`` is not positive.
    """
    if not temperature > 0:
        raise InputError(f"temperature is {temperature}; use a number above 0")

    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        p = (targets.log() / temperature).softmax(1)
        cross = -(p * log_softmax(logits / temperature, 1)).sum(1)
        return temperature**2 * (cross + torch.xlogy(p, p).sum(1))

    return loss


def logit_error(hard_weight: float = 0.0) -> Loss:
    """Return mean_c (z_c - t_c)² + γ CE(z, y): MSE-GT (G-VBSM, CVPR 2024; EDC, NeurIPS 2024).

    Targets are (b, 2 K): a teacher's logits t, and beside them probabilities y of the classes.

    Args:
        hard_weight: γ, at least 0.
    """

    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        said, own = targets.chunk(2, dim=1)
        error = (logits - said).square().mean(1)
        return error + hard_weight * cross_entropy(logits, own) if hard_weight else error

    return loss
