"""DSA: Dataset Condensation with Differentiable Siamese Augmentation (Zhao and Bilen, ICML 2021).

    L = sum_c d(grad_theta CE(A(real_c); theta), grad_theta CE(A(syn_c); theta))

DC (:mod:`potstill.methods.gradient.dc`) with one augmentation A, drawn anew for each class and
step, on both sides; the network is trained on augmented images, too. arXiv 2102.08259.

Deviations: those of DC. Recipe: recipes/dsa/.
"""

from __future__ import annotations

from dataclasses import dataclass

from potstill.canvas import CanvasSpec, Pixels
from potstill.data import DSA as Augmentation
from potstill.methods.base import Matcher, MethodInfo
from potstill.methods.gradient.dc import DC
from potstill.methods.gradient.gradient_matching import Gradients, MatchesGradients
from potstill.networks import NetworkSpec
from potstill.networks.evolving import EvolvingNets
from potstill.networks.view_draws import SiameseViews
from potstill.run.descent import Descent

__all__ = ["DSA"]


@dataclass(frozen=True, kw_only=True)
class DSA(MatchesGradients, Matcher):
    """Match gradients of augmented images."""

    info = MethodInfo(
        name="dsa",
        title="Differentiable Siamese Augmentation",
        paper="Zhao and Bilen, ICML 2021",
        year=2021,
        arxiv="2102.08259",
        family="gradient matching",
        labels="hard",
        long_tail="class by class; no class prior enters the match",
        cost="as DC",
    )

    canvas: CanvasSpec = Pixels(bounded=False)
    networks: NetworkSpec = EvolvingNets()
    views: SiameseViews = SiameseViews(
        augment="color_crop_cutout_flip_scale_rotate", augment_rule="dc"
    )
    gradients: Gradients = Gradients()
    descent: Descent = DC().descent

    def dsa(self) -> Augmentation | None:
        """Return the augmentation of both sides, or None."""
        return self.views.dsa()
