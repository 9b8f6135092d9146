"""M3D: Condensation by Minimizing Maximum Mean Discrepancy (Zhang et al., AAAI 2024, 2312.15927).

    L = (1/C) sum_c MMD^2_k(f(real_c), f(syn_c)),   k = sum of five Gaussians    (eq. 8)

The kernel sees all moments of the features, not only their mean. Its widths are 2^j times the
mean squared distance of the class, j = -2..2, not differentiated.

Deviations: several steps share one random network through the views of the real side; the
real-real part of MMD^2, a constant, is not computed. Recipe: recipes/m3d/.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from potstill.canvas import Canvas, CanvasSpec, Tiled
from potstill.data import ImageSet
from potstill.match.mmd import class_mmd2
from potstill.methods.base import Matcher, MethodInfo
from potstill.methods.distribution.class_matching import (
    CANVASES,
    LABELS,
    TRAINED,
    ClassMatching,
    Comparison,
)
from potstill.networks import Networks, NetworkSpec, RandomNets
from potstill.networks.real_views import ClassFeatures
from potstill.networks.view_draws import RealStatistics, SiameseViews
from potstill.run import Run
from potstill.run.descent import Descent

__all__ = ["M3D"]


class _Discrepancy(Comparison):
    """MMD^2 of single features, without its constant real-real part."""

    keeps_features = True

    def class_distance(
        self, view: ClassFeatures, features: Tensor, labels: Tensor, first: int, last: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return MMD^2 of each class."""
        distance = class_mmd2(view.features[first:last], view.mask[first:last], features, labels)
        return distance, {"distance": distance}


@dataclass(frozen=True, kw_only=True)
class M3D(Matcher):
    """Match class distributions of features in the RKHS of a Gaussian mixture kernel."""

    info = MethodInfo(
        name="m3d",
        title="Minimized Maximum Mean Discrepancy",
        paper="Zhang et al., AAAI 2024",
        year=2024,
        arxiv="2312.15927",
        family="distribution matching",
        labels="hard",
        long_tail="per-class kernel means; no class prior enters",
        cost="no training; kernel between the synthetic images and cached real features",
    )
    sizes = {
        "quick": {"steps": 600, "network": "convnet-w32-in", "entries": 40, "batch_real": 128},
        "standard": {"steps": 5000, "entries": 100},
    }

    pairs = {"canvas": CANVASES, "labels": LABELS, "networks": ("random", *TRAINED)}

    canvas: CanvasSpec = Tiled()  # "factor and up-sampling"
    networks: NetworkSpec = RandomNets()
    views: SiameseViews = SiameseViews()
    statistics: RealStatistics = RealStatistics(  # banks of this many networks
        real_side="fixed", entries=100, batch_real=256
    )
    descent: Descent = Descent(lr_images=1.0, optimizer="sgd")  # in RGB 0-1

    def prepare(
        self, real: ImageSet, canvas: Canvas, networks: Networks, run: Run
    ) -> ClassMatching:
        """Open the real side; eq. 8 is the mean over classes."""
        return ClassMatching.of(
            self, real, canvas, networks, run, _Discrepancy(), weight=1 / real.num_classes
        )
