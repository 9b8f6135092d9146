"""MTT: Dataset Distillation by Matching Training Trajectories (Cazenavette et al., CVPR 2022).

    L = || theta_N - theta*_{s+M} ||^2 / || theta*_s - theta*_{s+M} ||^2
    theta_0 = theta*_s,   theta_{i+1} = theta_i - eta grad CE(A(x), y; theta_i)

theta* is the trajectory of an expert trained on the real set, s a random start epoch below T+, A a
DSA augmentation, eta a learned step size. Images and eta descend on L through all N student steps.

Deviations: the gradient is computed by an adjoint recursion (equal to unrolling, in the memory of
one step); eta is kept positive by a softplus; the last iterate is the result, not the best on the
test set; experts stop at the last epoch that is matched. Recipe: recipes/mtt/.
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

__all__ = ["MTT"]


@dataclass(frozen=True, kw_only=True)
class MTT(MatchesTrajectories, Matcher):
    """Match training trajectories of plainly trained experts, with hard labels."""

    info: ClassVar[MethodInfo] = MethodInfo(
        name="mtt",
        title="Matching Training Trajectories",
        paper="Cazenavette et al., CVPR 2022",
        year=2022,
        arxiv="2203.11932",
        family="trajectory matching",
        labels="hard, with a learned student step size",
        long_tail="none: experts and students inherit the bias",
        cost="experts once per data set; then N first- and second-order steps each",
    )

    canvas: CanvasSpec = Pixels(bounded=False)
    networks: Experts = Experts()
    trajectory: Trajectory = Trajectory()
    masks: Masks = Masks()
    descent: Descent = Descent(steps=5_000, lr_images=100.0, optimizer="sgd")
