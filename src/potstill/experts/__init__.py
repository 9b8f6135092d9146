"""Everything learned or measured on the real data before matching begins."""

from potstill.experts.classifiers import train_classifiers
from potstill.experts.pool import train_pool
from potstill.experts.trajectories import train_experts

__all__ = [
    "train_classifiers",
    "train_experts",
    "train_pool",
]
