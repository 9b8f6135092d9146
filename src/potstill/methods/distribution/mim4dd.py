"""MIM4DD: Mutual Information Maximization for Dataset Distillation (Shang et al., NeurIPS 2023).

    L = L_base + w sum_k b^(k-K) L_k,
    L_k = - sum_c mean_{s in syn_c} log [ sum_{x in real_c} e^{z_k(s) z_k(x) / t}
                                           / sum_{x real} e^{z_k(s) z_k(x) / t} ]

The mutual information of real and synthetic images at each layer k of K, bounded from below by
contrast: real images of the same class are positives, those of other classes negatives, later
layers weigh more. z_k is layer k's map, averaged over its pixels and of unit length. An addition to
another method, here DM: distances of class means (:mod:`potstill.methods.distribution.contrast` is
the part that any class matching takes).

Deviations: there is no released code and its values were not at hand, so this is "MIM4DD-style":
form of the bound, layers, weights, temperature and number of keys are ours, and so is the base (the
paper's are trajectory and unrolled matching). Keys weigh alike by class, whatever their number.
arXiv 2312.16627. Recipe: recipes/mim4dd/.
"""

from __future__ import annotations

from dataclasses import dataclass

from potstill.canvas import Canvas, CanvasSpec
from potstill.data import ImageSet
from potstill.methods.base import Matcher, MethodInfo
from potstill.methods.distribution.class_matching import ClassMatching
from potstill.methods.distribution.contrast import Contrast
from potstill.methods.distribution.dm import DM, MeanDistance
from potstill.networks import Networks, NetworkSpec
from potstill.networks.view_draws import RealStatistics, SiameseViews
from potstill.run import Run
from potstill.run.descent import Descent

__all__ = ["MIM4DD"]


@dataclass(frozen=True, kw_only=True)
class MIM4DD(Matcher):
    """Match class means; at every layer images are nearest to real ones of their class."""

    info = MethodInfo(
        name="mim4dd",
        title="Mutual Information Maximization (MIM4DD-style), on DM",
        paper="Shang et al., NeurIPS 2023",
        year=2023,
        arxiv="2312.16627",
        family="distribution matching",
        labels="hard",
        long_tail="per-class means; real keys weigh alike by class",
        cost="as DM, a second pass of the synthetic set and one of the real keys per step",
    )
    sizes = DM.sizes
    pairs = DM.pairs

    canvas: CanvasSpec = DM().canvas
    networks: NetworkSpec = DM().networks
    views: SiameseViews = DM().views
    statistics: RealStatistics = DM().statistics
    contrasting: Contrast = Contrast()
    descent: Descent = DM().descent

    def prepare(
        self, real: ImageSet, canvas: Canvas, networks: Networks, run: Run
    ) -> ClassMatching:
        """Open DM's real side and lay the contrast upon it."""
        objective = ClassMatching.of(self, real, canvas, networks, run, MeanDistance())
        objective.further = self.contrasting.on(objective.side)
        objective.lr = self.descent.scaled(networks.transform.step_share)
        return objective
