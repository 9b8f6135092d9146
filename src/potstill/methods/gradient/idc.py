"""IDC: Dataset Condensation via Efficient Synthetic-Data Parameterization (Kim et al., ICML 2022).

    L = sum_c | grad_theta CE(A(real_c); theta) - grad_theta CE(A(f(syn_c)); theta) |^2

f cuts every stored image into 2 x 2 tiles and enlarges each to full size (the paper's
multi-formation; here the canvas ``tiled``). theta are the kernels of convolutions of a network that
is trained on *real* images in turns with the canvas, with CutMix; a new random one begins after
every hundred steps. A is one augmentation for both sides, anew for each class and step.
arXiv 2205.14959.

Deviations: all classes take a step together, which moves each as far as the released steps one
class after another; pixels are clamped after every step, not after every network; the feature
distance and networks that are trained before their first step (ImageNet) are not there.
Recipe: recipes/idc/.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from potstill.canvas import Canvas, CanvasSpec, Tiled
from potstill.data import DSA as Augmentation
from potstill.data.transform import Transform
from potstill.methods.base import Matcher, MethodInfo
from potstill.methods.gradient.gradient_matching import Gradients, MatchesGradients
from potstill.networks import NetworkSpec
from potstill.networks.evolving import EvolvingNets
from potstill.networks.view_draws import SiameseViews
from potstill.run.descent import Descent

__all__ = ["IDC", "MatchesOnReal"]


class MatchesOnReal(MatchesGradients):
    """What IDC and DREAM share; to be mixed into a :class:`Matcher`."""

    sizes: ClassVar[dict[str, dict[str, Any]]] = MatchesGradients.sizes | {
        "quick": MatchesGradients.sizes["quick"]
        | {"renew_every": 50, "real_steps": 10, "lr_images": 0.1},
        "standard": {"steps": 2_000, "lr_images": 0.02},  # ours: fewer steps have to go further
    }
    views: SiameseViews

    def dsa(self) -> Augmentation | None:
        """Return the augmentation of both sides, or None."""
        return self.views.dsa()

    def lesson(self) -> Augmentation | None:
        """Return the same without cutout, beside CutMix."""
        dsa = self.dsa()
        return dsa and dsa.without("cutout")

    def settled(self, canvas: Canvas, transform: Transform) -> tuple[Canvas, float]:
        """Return the canvas as it is; a plain step grows with images per class and their area."""
        n, _, h, w = canvas.images.shape
        share = n / canvas.classes / 10 * h * w / 32**2
        return canvas, self.descent.lr_images * (share if self.descent.optimizer == "sgd" else 1)


@dataclass(frozen=True, kw_only=True)
class IDC(MatchesOnReal, Matcher):
    """Match gradients of networks trained on real images, on tiles."""

    info = MethodInfo(
        name="idc",
        title="Efficient Synthetic-Data Parameterization",
        paper="Kim et al., ICML 2022",
        year=2022,
        arxiv="2205.14959",
        family="gradient matching",
        labels="hard",
        long_tail="class by class; networks learn from the long-tailed real images (`real_prior`)",
        cost="as DC with more synthetic images, and a pass of real images per step",
    )

    canvas: CanvasSpec = Tiled()
    networks: NetworkSpec = EvolvingNets(  # released code: 2000 images, 64 at a time, per step
        trained_on="real",
        renew_every=100,
        real_steps=31,
        real_cutmix=0.5,
        inner_momentum=0.9,
        inner_decay=5e-4,
        inner_batch=64,
    )
    views: SiameseViews = SiameseViews()
    gradients: Gradients = Gradients(batch_real=64, metric="kernels", layers="body", batch_syn=128)
    descent: Descent = Descent(  # 2000 networks; per RGB 0-1, at 10 images of 32 pixels per class
        steps=200_000, lr_images=5e-3, optimizer="sgd"
    )
