"""DM: Dataset Condensation with Distribution Matching (Zhao and Bilen, WACV 2023, 2110.04181).

    L = sum_c | mean_{x in real_c} f(A(x)) - mean_{s in syn_c} f(A(s)) |^2        (eq. 4)

f is a randomly initialised network, new for every entry of the real side; A is one Siamese
augmentation for both sides. Plain features, no calibration, pixels without bounds.

Deviations: the images live in RGB 0-1, so the published step size (which acts on normalised
pixels) is multiplied by the mean squared standard deviation of the data, which gives the same
step; one augmentation is drawn per entry instead of per class. ``real_side="fresh"`` with
``batch_real=256`` is the published loop; the cached policies use all images of a class.
Recipe: recipes/dm/.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from potstill.canvas import Canvas
from potstill.data import ImageSet
from potstill.data.transform import Normalize
from potstill.experts.real_statistics import Entry
from potstill.match.moments import mean_distance
from potstill.match.spectral import segment_mean
from potstill.methods.base import MethodInfo
from potstill.methods.distribution.class_matching import DistributionMatcher
from potstill.run import Run
from potstill.run.loop import Term

__all__ = ["DM"]


@dataclass(kw_only=True)
class DM(DistributionMatcher):
    """Match class means of features of random networks."""

    info: ClassVar[MethodInfo] = MethodInfo(
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
    sizes: ClassVar[dict[str, dict[str, Any]]] = {
        "quick": {
            "steps": 600,
            "network": "convnet-w32-in",
            "real_side": "fixed",
            "entries": 40,
            "batch_real": 256,
        },
        "standard": {"steps": 5000, "real_side": "rolling", "entries": 200, "refresh": 10},
    }

    lr_images: float = 1.0  # paper sec. 4.1; per normalised pixel
    optimizer: str = "sgd"  # with momentum 0.5
    network: str = "convnet-w128-in"  # random, one per entry
    networks: int = 0  # never trained
    normalize: bool = False  # plain features
    augment: str = "color_crop_cutout_flip_scale_rotate"  # DSA
    augment_rule: str = "dc"  # one operation per draw
    real_side: str = "fresh"  # a new network and real batch per step
    batch_real: int = 256  # paper sec. 4.1
    bounded: bool = False  # pixels may leave [0, 1]
    match_weight: float = 1.0  # the sum over classes is restored in gap
    calibration: float = 0.0  # none in DM

    def prepare(self, real: ImageSet, canvas: Canvas, run: Run) -> None:
        """Remember the scale between normalised pixels and RGB."""
        transform = self.eye_.transform
        spread = transform.std if isinstance(transform, Normalize) else torch.ones(1)
        self.pixel_scale_ = float(spread.double().square().mean())

    def step_size(self, classes: int) -> float:
        """Published step size in RGB units."""
        return self.lr_images * self.pixel_scale_

    def gap(self, entry: Entry, features: Tensor, labels: Tensor, first: int, last: int) -> Term:
        """Squared distance of class means, summed over classes (eq. 4)."""
        assert entry.table is not None
        syn = segment_mean(features, labels, last - first)
        distance = mean_distance(entry.table[first:last], syn)
        return Term("match", distance * self.classes_, first, {"distance": distance})
