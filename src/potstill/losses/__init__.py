"""Classification losses for balanced and long-tailed data, and the table that chooses them."""

from potstill.losses.classification import (
    Deferred,
    Loss,
    Scheduled,
    adjust,
    balanced_softmax,
    class_balanced,
    cross_entropy,
    effective_weights,
    focal,
    label_aware,
    ldam,
    logit_adjusted,
    loss_at,
    weighted,
)
from potstill.losses.dam import WEIGHT_SCALES, dam
from potstill.losses.table import LOSSES, REMEDIES, priors, told
from potstill.losses.targets import divergence, logit_error, scaled_error, squared_error

__all__ = [
    "LOSSES",
    "REMEDIES",
    "WEIGHT_SCALES",
    "Deferred",
    "Loss",
    "Scheduled",
    "adjust",
    "balanced_softmax",
    "class_balanced",
    "cross_entropy",
    "dam",
    "divergence",
    "effective_weights",
    "focal",
    "label_aware",
    "ldam",
    "logit_error",
    "logit_adjusted",
    "loss_at",
    "priors",
    "scaled_error",
    "squared_error",
    "told",
    "weighted",
]
