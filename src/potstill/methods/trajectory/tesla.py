"""TESLA: Scaling Up Dataset Distillation with Constant Memory (Cui et al., ICML 2023).

MTT's objective is a quadratic in the sum G of the student's gradients. TESLA takes every
intermediate student for a constant, so each step's share of the gradient needs that step's graph:

    dL/dx_i = d/dx_i < -(2 eta / D) (theta_N - theta*), g_i(x_i; theta_i) >

which is exact for one step and an approximation for more (see ``--gradient exact`` for the true
gradient in the same memory). For data sets with many classes the current target expert labels the
images anew at every step (``--label-kind teacher``).

Deviations: those of MTT; the factor 2 that the released code loses is there.
Recipe: recipes/tesla/.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from potstill.canvas import CanvasSpec, Pixels
from potstill.methods.base import Matcher, MethodInfo
from potstill.methods.trajectory.masks import Masks
from potstill.methods.trajectory.trajectory_matching import MatchesTrajectories, Trajectory
from potstill.networks import Experts
from potstill.run.descent import Descent

__all__ = ["TESLA"]


@dataclass(frozen=True, kw_only=True)
class TESLA(MatchesTrajectories, Matcher):
    """Match trajectories with the truncated gradient in constant memory."""

    info: ClassVar[MethodInfo] = MethodInfo(
        name="tesla",
        title="Trajectory matching with constant memory",
        paper="Cui et al., ICML 2023",
        year=2023,
        arxiv="2211.10586",
        family="trajectory matching",
        labels="hard, or soft labels by the experts; learned student step size",
        long_tail="none: experts and students inherit the bias",
        cost="as MTT",
    )

    canvas: CanvasSpec = Pixels(bounded=False)
    networks: Experts = Experts()
    trajectory: Trajectory = Trajectory(gradient="tesla")
    masks: Masks = Masks()
    descent: Descent = Descent(steps=5_000, lr_images=100.0, optimizer="sgd")
