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

__all__ = [
    "Loss",
    "adjust",
    "balanced_softmax",
    "class_balanced",
    "cross_entropy",
    "focal",
    "logit_adjusted",
]
