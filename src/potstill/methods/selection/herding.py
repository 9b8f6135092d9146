"""Herding: the images whose running mean stays closest to the mean of their class.

Herding Dynamical Weights to Learn (Welling, ICML 2009), as iCaRL (Rebuffi et al., CVPR 2017) and
the tables of dataset distillation use it. With features f and the class mean μ, the k-th image is

    argmin_j | k μ - sum_{i chosen} f_i - f_j |        over those of the class not chosen yet.

One step: the target k μ - sum is moved, and the nearest image is taken; O(n d) each. DeepCore's
code (Guo et al., DEXA 2022) takes the farthest image instead, which is no herding. Deviations:
features in half precision; the scorer's step size falls as a cosine. Recipe: recipes/herding/.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from potstill.methods.base import MethodInfo
from potstill.methods.selection.class_by_class import ClassByClass, ClassFeatures
from potstill.methods.selector import Selector
from potstill.run import Run

__all__ = ["Herding"]


@dataclass(frozen=True, kw_only=True)
class Herding(ClassByClass, Selector):
    """Choose real images whose mean is that of their class."""

    info = MethodInfo(
        name="herding",
        title="Herding",
        paper="Welling, ICML 2009",
        year=2009,
        arxiv="",
        family="selection",
        labels="hard",
        long_tail="balanced quotas; the scorer under any row of the long-tail table",
        cost="one network and one pass of the real set",
    )

    def pick(self, seen: ClassFeatures, count: int, run: Run) -> Tensor:
        """Return places (count,), the nearest to the target first."""
        z, mean, squares = seen.z, seen.z.mean(0), seen.z.square().sum(1)
        target, chosen = torch.zeros_like(mean), list[int]()
        for _ in range(count):
            target += mean
            gaps = squares - 2 * z @ target  # |target - z|^2 without |target|^2
            gaps[chosen] = torch.inf
            chosen.append(int(gaps.argmin()))
            target -= z[chosen[-1]]
        return torch.tensor(chosen)
