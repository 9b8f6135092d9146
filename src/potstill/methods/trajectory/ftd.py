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
from typing import Any, ClassVar

from potstill.methods.base import MethodInfo
from potstill.methods.trajectory.mtt import MTT

__all__ = ["FTD"]


@dataclass(kw_only=True)
class FTD(MTT):
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

    sizes: ClassVar[dict[str, dict[str, Any]]] = {  # the same share of a shorter run
        "standard": {"ema": 0.9987},
        "quick": {"ema": 0.987},
    }

    expert_rho: float = 0.01  # radius of adaptive GSAM (released code)
    syn_lr: float = 0.001  # student step size at the beginning (CIFAR-10, IPC 10)
    ema: float = 0.9995  # decay of the average of images (CIFAR-10, IPC 10)
