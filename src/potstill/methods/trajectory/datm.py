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

from potstill.canvas import CanvasSpec, Pixels
from potstill.labels import LabelSpec, Soft
from potstill.methods.base import Matcher, MethodInfo
from potstill.methods.trajectory.masks import Masks
from potstill.methods.trajectory.trajectory_matching import MatchesTrajectories, Trajectory
from potstill.networks import Experts
from potstill.run.descent import Descent

__all__ = ["DATM"]


@dataclass(frozen=True, kw_only=True)
class DATM(MatchesTrajectories, Matcher):
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
    sizes = MatchesTrajectories.sized(quick={"start_grow": 20})

    canvas: CanvasSpec = Pixels(start="correct", bounded=False)  # which experts classify rightly
    labels: LabelSpec = Soft()  # soft labels that descend with the images
    networks: Experts = Experts(expert_epochs=100, expert_rho=0.01)
    trajectory: Trajectory = Trajectory(  # T, and the growth to T+: CIFAR-10, IPC 10
        student_steps=80, start_now=10, start_grow=1_000, threshold=1.0
    )
    masks: Masks = Masks()
    descent: Descent = Descent(steps=10_000, lr_images=100.0, optimizer="sgd")
