"""Graph-Cut: images like all of their class and unlike each other, by their gradients.

Submodular Combinatorial Information Measures (Iyer et al., ALT 2021, arXiv 2006.15412), as DeepCore
(Guo et al., DEXA 2022, arXiv 2204.08499, released code) uses it for selection. Of the gradient of
the cross-entropy by the last layer, g = [p - y, (p - y) x f], the likeness is
s_ij = (1 + cos(g_i, g_j)) / 2, and the chosen X of a class V maximise greedily

    F(X) = λ sum_{i in V, j in X} s_ij - sum_{i, j in X} s_ij .

One step takes argmax_j λ sum_i s_ij - 2 sum_{i chosen} s_ij. Since
cos(g_i, g_j) = cos(p_i - y_i, p_j - y_j) cos([1, f_i], [1, f_j]), neither the gradients nor the
matrix s are formed: O(n (K + d)) memory and time per image chosen, the same picks. Deviations:
features in half precision; the scorer's step size falls as a cosine. Recipe: recipes/graphcut/.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import normalize, pad

from potstill.methods.base import MethodInfo
from potstill.methods.selection.class_by_class import ClassByClass, ClassFeatures
from potstill.methods.selector import Selector
from potstill.run import Run
from potstill.run.fields import NotNegative

__all__ = ["GraphCut", "Likeness"]


@dataclass(frozen=True, kw_only=True)
class GraphCut(ClassByClass, Selector):
    """Choose real images by the cut between them and their class."""

    info = MethodInfo(
        name="graphcut",
        title="Graph-Cut on last-layer gradients",
        paper="Iyer et al., ALT 2021",
        year=2021,
        arxiv="2006.15412",
        family="selection",
        labels="hard",
        long_tail="balanced quotas; the scorer or its head under any row of the long-tail table",
        cost="one network and one pass of the real set",
    )
    pairs: ClassVar[Mapping[str, tuple[str, ...]]] = {"networks": ("scorer", "backbone-head")}

    coverage: NotNegative = 1.0  # λ: what likeness to the class counts beside unlikeness

    def pick(self, seen: ClassFeatures, count: int, run: Run) -> Tensor:
        """Return places (count,), the largest gain first."""
        return Likeness(seen.residuals, seen.z).greedy(count, self.coverage)


class Likeness:
    """s_ij of n images, as two factors: residuals (n, K) and features (n, d), float64.

    An image without a residual is as like to all as not.
    """

    def __init__(self, residuals: Tensor, features: Tensor) -> None:
        self.r = normalize(residuals, dim=1, eps=1e-300)
        self.f = normalize(pad(features, (0, 1), value=1.0), dim=1)

    def to(self, place: int) -> Tensor:
        """Return s of all and one, (n,)."""
        return 0.5 + 0.5 * (self.r @ self.r[place]) * (self.f @ self.f[place])

    def sums(self) -> Tensor:
        """Return the sum of s over all, (n,)."""
        return 0.5 * len(self.r) + 0.5 * ((self.r @ (self.r.T @ self.f)) * self.f).sum(1)

    def greedy(self, count: int, coverage: float) -> Tensor:
        """Return ``count`` places, each with the largest gain after those before it."""
        gains, chosen = coverage * self.sums(), list[int]()
        for _ in range(count):
            chosen.append(int(gains.argmax()))
            gains -= 2 * self.to(chosen[-1])
            gains[chosen[-1]] = -torch.inf
        return torch.tensor(chosen)
