"""DATM: Difficulty-Aligned Trajectory Matching (Guo et al., ICLR 2024).

MTT's objective with three changes: start epochs lie in [T-, T+) chosen by IPC (early epochs teach
easy patterns and suit few images, late ones hard patterns and suit many); the upper bound grows
from T to T+ during distillation; and labels are soft. Images begin as real ones that experts
classify rightly, label logits as the mean logits of the experts that are right, and the logits
descend with the images.

Deviations: those of MTT; classes with fewer rightly classified images than needed are filled up by
``shortage`` (the released code does not end then); the exact gradient is the default. Recipe:
recipes/datm/.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from potstill.methods.base import MethodInfo
from potstill.methods.trajectory.trajectory_matching import TrajectoryMatcher

__all__ = ["DATM"]


@dataclass(kw_only=True)
class DATM(TrajectoryMatcher):
    """Match flat trajectories within a range of difficulty, with learned soft labels."""

    info: ClassVar[MethodInfo] = MethodInfo(
        name="datm",
        title="Difficulty-Aligned Trajectory Matching",
        paper="Guo et al., ICLR 2024",
        year=2024,
        arxiv="2310.05773",
        family="trajectory matching",
        labels="soft (learned), with a learned student step size",
        long_tail="none: experts, labels and students inherit the bias",
        cost="as FTD, with more student steps",
    )

    steps: int = 10_000  # optimisation steps
    expert_epochs: int = 100  # training epochs of each expert
    expert_rho: float = 0.01  # radius of adaptive GSAM
    student_steps: int = 80  # N: steps of the student
    start: str = "correct"  # first images: those that experts classify rightly
    label_kind: str = "learned"  # soft labels that descend with the images
    start_now: int = 10  # T: start epochs are below this at first (CIFAR-10, IPC 10)
    start_grow: int = 1_000  # steps in which the bound grows to start_max (CIFAR-10, IPC 10)
    threshold: float = 1.0  # skip the update if the distance is above this
