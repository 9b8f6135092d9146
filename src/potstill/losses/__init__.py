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
from potstill.losses.longtail import WEIGHT_SCALES, dam

__all__ = [
    "WEIGHT_SCALES",
    "Loss",
    "adjust",
    "balanced_softmax",
    "class_balanced",
    "cross_entropy",
    "dam",
    "focal",
    "logit_adjusted",
]
