"""DM: Dataset Condensation with Distribution Matching (Zhao and Bilen, WACV 2023, 2110.04181).

    L = sum_c | mean_{x in real_c} f(A(x)) - mean_{s in syn_c} f(A(s)) |^2        (eq. 4)

f is a randomly initialised network, new for every view of the real side; A is one Siamese
augmentation for both sides. Plain features, no calibration, pixels without bounds.

Deviations: the images live in RGB 0-1, so the published step size (which acts on normalised
pixels) is multiplied by the mean squared standard deviation of the data, which gives the same
step; one augmentation is drawn per view instead of per class. ``real_side="fresh"`` with
``batch_real=256`` is the published loop; the cached policies use all images of a class.
Recipe: recipes/dm/.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from potstill.canvas import Canvas, CanvasSpec, Pixels
from potstill.data import ImageSet
from potstill.match.moments import mean_distance
from potstill.match.spectral import segment_mean
from potstill.methods.base import Matcher, MethodInfo
from potstill.methods.distribution.class_matching import (
    CANVASES,
    LABELS,
    TRAINED,
    ClassMatching,
    Comparison,
)
from potstill.networks import Networks, NetworkSpec, RandomNets
from potstill.networks.real_views import ClassMeans
from potstill.networks.view_draws import RealStatistics, SiameseViews
from potstill.run import Run
from potstill.run.descent import Descent

__all__ = ["DM", "MeanDistance"]


class MeanDistance(Comparison):
    """Squared distance of class means (eq. 4)."""

    def class_distance(
        self, view: ClassMeans, features: Tensor, labels: Tensor, first: int, last: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return |mean real - mean synthetic|^2 of each class."""
        syn = segment_mean(features, labels, last - first)
        distance = mean_distance(view.table[first:last], syn)
        return distance, {"distance": distance}


@dataclass(frozen=True, kw_only=True)
class DM(Matcher):
    """Match class means of features of random networks."""

    info = MethodInfo(
        name="dm",
        title="Distribution Matching",
        paper="Zhao and Bilen, WACV 2023",
        year=2023,
        arxiv="2110.04181",
        family="distribution matching",
        labels="hard",
        long_tail="per-class means; no class prior enters",
        cost="no training; one pass of the synthetic set per step, real side cached",
    )
    sizes = {
        "quick": {
            "steps": 600,
            "network": "convnet-w32-in",
            "real_side": "fixed",
            "entries": 40,
            "batch_real": 256,
        },
        "standard": {"steps": 5000, "real_side": "rolling", "entries": 200, "refresh": 10},
    }
    pairs = {
        "canvas": CANVASES,
        "labels": LABELS,
        "networks": ("random", *TRAINED, "evolving", "queue"),
    }

    canvas: CanvasSpec = Pixels(bounded=False)
    networks: NetworkSpec = RandomNets()
    views: SiameseViews = SiameseViews(
        augment="color_crop_cutout_flip_scale_rotate", augment_rule="dc"
    )
    statistics: RealStatistics = RealStatistics(real_side="fresh", batch_real=256)
    descent: Descent = Descent(lr_images=1.0, optimizer="sgd")  # paper sec. 4.1; normalised pixels

    def prepare(
        self, real: ImageSet, canvas: Canvas, networks: Networks, run: Run
    ) -> ClassMatching:
        """Open the real side; the published step size acts on normalised pixels."""
        objective = ClassMatching.of(self, real, canvas, networks, run, MeanDistance())
        objective.lr = self.descent.scaled(networks.transform.step_share)
        return objective
