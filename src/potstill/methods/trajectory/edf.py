"""EDF: Emphasizing Discriminative Features (Wang et al., CVPR 2025, arXiv 2410.17193).

DATM with two masks (potstill.methods.trajectory.masks). The distance leaves out the share alpha of
all parameters in which student and expert agree best, and is divided by what the rest went; and the
gradient of a pixel counts more where a trained network sees the class:

    L = || m (theta_N - theta*_{s+M}) ||^2 / || m (theta*_s - theta*_{s+M}) ||^2
    gradient of the images times W,   W = beta + M where the Grad-CAM map M is above its mean, or 1

Deviations: those of DATM; maps are those of the first expert instead of a ResNet-18 trained on
ImageNet, plain Grad-CAM instead of SmoothGradCAM++, of the image's class instead of the likeliest
of its label. An update above ``threshold`` moves by momentum alone. Recipe: recipes/edf/.
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

__all__ = ["EDF"]


@dataclass(frozen=True, kw_only=True)
class EDF(MatchesTrajectories, Matcher):
    """Match what experts learn late and where they look."""

    info: ClassVar[MethodInfo] = MethodInfo(
        name="edf",
        title="Emphasizing Discriminative Features",
        paper="Wang et al., CVPR 2025",
        year=2025,
        arxiv="2410.17193",
        family="trajectory matching",
        labels="soft (learned), with a learned student step size",
        long_tail="none: experts, labels and students inherit the bias; lad takes its masks",
        cost="as DATM; a pass of the images through an expert every so many steps",
    )
    sizes = MatchesTrajectories.sized(
        standard={"ema": 0.9987},  # the same share of a shorter run, as for FTD
        quick={"ema": 0.957, "start_grow": 20, "lr_images": 100.0, "area_every": 10},
    )

    canvas: CanvasSpec = Pixels(start="correct", bounded=False)  # which experts classify rightly
    labels: LabelSpec = Soft()  # soft labels that descend with the images
    networks: Experts = Experts(network="convnet-d5-w128-in", expert_epochs=100, expert_rho=0.01)
    trajectory: Trajectory = Trajectory(  # CIFAR-10, IPC 10
        student_steps=40, start_now=10, start_grow=1_000, threshold=1.0, ema=0.9995
    )
    masks: Masks = Masks(drop_share=0.25, area_every=100)  # CIFAR-10, IPC 10
    descent: Descent = Descent(steps=10_000, lr_images=1_000.0, optimizer="sgd")
