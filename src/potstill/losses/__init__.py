"""Classification losses for balanced and long-tailed data."""

from potstill.losses.classification import (
    Loss,
    adjust,
    balanced_softmax,
    class_balanced,
    cross_entropy,
    focal,
    logit_adjusted,
)
from potstill.losses.contrastive import OBJECTIVES, barlow_twins, nt_xent, self_supervised
from potstill.losses.distribution_agnostic import WEIGHT_SCALES, dam

__all__ = [
    "OBJECTIVES",
    "WEIGHT_SCALES",
    "Loss",
    "adjust",
    "barlow_twins",
    "balanced_softmax",
    "class_balanced",
    "cross_entropy",
    "dam",
    "focal",
    "logit_adjusted",
    "nt_xent",
    "self_supervised",
]
