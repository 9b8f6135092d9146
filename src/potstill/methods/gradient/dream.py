"""DREAM: Efficient Dataset Distillation by Representative Matching (Liu et al., ICCV 2023).

IDC (:mod:`potstill.methods.gradient.idc`), of which the real images are no longer drawn at random:
every ten steps the features that the network of that step gives all images of a class are clustered
by k-means, with a centre for each real image of a step, and the images nearest to the centres are
matched until the next clustering. The canvas begins with the images nearest to as many centres as
it has tiles, seen by the first network. arXiv 2302.14416.

A class with no more images than centres gives them all.

Deviations: those of IDC; no image stands twice in a batch. DREAM+ (features matched beside
gradients, networks warmed up) is not there. Recipe: recipes/dream/.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from potstill.canvas import Canvas, CanvasSpec
from potstill.data import ImageSet
from potstill.methods.base import Matcher, MethodInfo
from potstill.methods.gradient.gradient_matching import Gradients
from potstill.methods.gradient.idc import IDC, MatchesOnReal
from potstill.methods.gradient.representatives import representatives
from potstill.networks import NetworkSpec
from potstill.networks.view_draws import SiameseViews
from potstill.run import Run
from potstill.run.descent import Descent

__all__ = ["DREAM"]


@dataclass(frozen=True, kw_only=True)
class DREAM(MatchesOnReal, Matcher):
    """Match gradients of representative real images, on tiles."""

    info = MethodInfo(
        name="dream",
        title="Distillation by Representative Matching",
        paper="Liu et al., ICCV 2023",
        year=2023,
        arxiv="2302.14416",
        family="gradient matching",
        labels="hard",
        long_tail="as IDC; a class with fewer images than centres gives all of them",
        cost="as IDC, and a pass of the whole real set and k-means every ten steps",
    )

    canvas: CanvasSpec = IDC().canvas
    networks: NetworkSpec = IDC().networks
    views: SiameseViews = IDC().views
    gradients: Gradients = replace(IDC().gradients, batch_real=128, recluster=10)
    descent: Descent = IDC().descent

    def start(self, real: ImageSet, ipc: int, networks: Any, run: Run) -> Canvas:
        """Return a canvas of representative images, where it begins with real ones."""
        chosen, first = [], networks.at(0)
        for label, count in enumerate(self.canvas.material(real, ipc)):
            own, draw = real.of_class(label), run.generator("k-means/start", label)
            chosen.append(representatives(real, own, first, min(count, len(own)), draw))
        if not chosen:  # noise, or others choose
            return super().start(real, ipc, networks, run)
        return self.canvas.make(real, ipc, run, candidates=chosen)
