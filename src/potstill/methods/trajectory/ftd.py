"""FTD: Minimizing the Accumulated Trajectory Error (Du et al., CVPR 2023).

MTT's objective with flat experts: they are trained with GSAM (Zhuang et al., ICLR 2022) in its
adaptive form, which looks for weights whose neighbourhood has a low loss, so that a student that
strays from the trajectory loses little. The images are averaged over the steps:

    ema <- d ema + (1 - d) images

Deviations: those of MTT; the released code evaluates the average with a network already trained on
the images, we store the average and evaluate it like any other set. Recipe: recipes/ftd/.
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

__all__ = ["FTD"]


@dataclass(frozen=True, kw_only=True)
class FTD(MatchesTrajectories, Matcher):
    """Match flat trajectories; the result is the average of the images."""

    info: ClassVar[MethodInfo] = MethodInfo(
        name="ftd",
        title="Flat Trajectory Distillation",
        paper="Du et al., CVPR 2023",
        year=2023,
        arxiv="2211.11004",
        family="trajectory matching",
        labels="hard, with a learned student step size",
        long_tail="none: experts and students inherit the bias",
        cost="as MTT; each expert step costs two",
    )
    # the same share of a shorter run
    sizes = MatchesTrajectories.sized(standard={"ema": 0.9987}, quick={"ema": 0.957})

    canvas: CanvasSpec = Pixels(bounded=False)
    networks: Experts = Experts(expert_rho=0.01)  # radius of adaptive GSAM (released code)
    trajectory: Trajectory = Trajectory(syn_lr=0.001, ema=0.9995)  # CIFAR-10, IPC 10
    masks: Masks = Masks()
    descent: Descent = Descent(steps=5_000, lr_images=100.0, optimizer="sgd")
