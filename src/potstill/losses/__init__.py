"""Classification losses for balanced and long-tailed data, and the table that chooses them."""

from potstill.losses.classification import (
    Deferred,
    Loss,
    Scheduled,
    adjust,
    balanced_softmax,
    class_balanced,
    cross_entropy,
    divergence,
    effective_weights,
    focal,
    label_aware,
    ldam,
    logit_adjusted,
    loss_at,
    squared_error,
    weighted,
)
from potstill.losses.contrastive import OBJECTIVES, barlow_twins, nt_xent, self_supervised
from potstill.losses.dam import WEIGHT_SCALES, dam
from potstill.losses.table import LOSSES, REMEDIES, Remedy, priors, told

__all__ = [
    "LOSSES",
    "OBJECTIVES",
    "REMEDIES",
    "WEIGHT_SCALES",
    "Deferred",
    "Loss",
    "Remedy",
    "Scheduled",
    "adjust",
    "barlow_twins",
    "balanced_softmax",
    "class_balanced",
    "cross_entropy",
    "dam",
    "divergence",
    "effective_weights",
    "focal",
    "label_aware",
    "ldam",
    "logit_adjusted",
    "loss_at",
    "nt_xent",
    "priors",
    "squared_error",
    "self_supervised",
    "told",
    "weighted",
]
