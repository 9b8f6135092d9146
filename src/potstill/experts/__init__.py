"""Everything learned or measured on the real data before matching begins."""

from potstill.experts.classifiers import ClassifierTrajectories, train_classifiers
from potstill.experts.pool import Pool, train_pool
from potstill.experts.teachers import mean_right_logits, right_candidates
from potstill.experts.trajectories import Params, Trajectories, train_experts

__all__ = [
    "ClassifierTrajectories",
    "Params",
    "Pool",
    "Trajectories",
    "mean_right_logits",
    "right_candidates",
    "train_classifiers",
    "train_experts",
    "train_pool",
]
