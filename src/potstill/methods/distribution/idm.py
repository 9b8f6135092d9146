"""IDM: Improved Distribution Matching (Zhao et al., CVPR 2023, 2307.09742).

    L = sum_c | mean_{x in real_c} f(A(x)) - mean_{s in syn_c} f(A(s)) |^2
            + w * acc(f) * mean_{s in syn_c} CE(f(A(s)), c)

DM with three changes. Partitioning and expansion: a stored image holds four training images, each
enlarged twice. A queue of networks, a few of which are trained on real images after every step, so
that f is of any age. Class-aware regularisation: f also has to tell the images' class, the more so
the better it is: acc(f) is its accuracy in training, in percent.

Deviations: acc(f) is that of f's newest training, not a mean since the last evaluation; the images
live in RGB 0-1 with the step size of normalised pixels, as DM's; all classes move in one step,
which moves them as far as the released loop's step per class (docs/methods/idm.md); the real batch
of hard images at one image per class is not there. Recipe: recipes/idm/.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from potstill.canvas import Canvas, CanvasSpec, Tiled
from potstill.data import ImageSet
from potstill.losses import REMEDIES, adjust, cross_entropy
from potstill.match.spectral import segment_mean
from potstill.methods.base import Matcher, MethodInfo
from potstill.methods.distribution.class_matching import (
    CANVASES,
    LABELS,
    ClassMatching,
    Removed,
)
from potstill.methods.distribution.dm import MeanDistance
from potstill.networks import Networks, NetworkSpec, QueueNets
from potstill.networks.real_views import ClassMeans
from potstill.networks.view_draws import RealStatistics, SiameseViews
from potstill.run import Run
from potstill.run.descent import Descent
from potstill.run.fields import NotNegative

__all__ = ["IDM", "ClassAware"]


class ClassAware(MeanDistance):
    """Squared distance of class means, and the cross-entropy of the network that they are seen by.

    Args:
        method: with ``ce_weight``, ``ce_prior`` and the part ``networks``.
    """

    def __init__(self, method: Any, real: ImageSet, networks: Networks) -> None:
        self.weight, self.networks, self.counts = method.ce_weight, networks, real.counts
        trained = REMEDIES[method.networks.prior]
        self.left = trained.left if method.ce_prior == "adjusted" else 0.0

    def class_distance(
        self, view: ClassMeans, features: Tensor, labels: Tensor, first: int, last: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return |mean real - mean synthetic|^2 + w acc CE of each class."""
        distance, facts = super().class_distance(view, features, labels, first, last)
        percent = 100 * self.networks.accuracy(view.number)
        logits = self.networks.at(view.number).net.classifier(features)
        if self.left:
            logits = adjust(logits, self.counts, self.left)
        losses = cross_entropy(logits, labels + first)[:, None]
        mean = segment_mean(losses, labels, last - first)[:, 0]
        return distance + self.weight * percent * mean, facts | {"cross_entropy": mean}


@dataclass(frozen=True, kw_only=True)
class IDM(Matcher):
    """Match class means of features of networks of all ages, on images that hold four."""

    info = MethodInfo(
        name="idm",
        title="Improved Distribution Matching",
        paper="Zhao et al., CVPR 2023",
        year=2023,
        arxiv="2307.09742",
        family="distribution matching",
        labels="hard",
        long_tail="per-class means; pool_prior and ce_prior take the prior out of the networks",
        cost="a pass of real batches and some steps of training networks per step",
    )
    sizes = {
        "quick": {
            "steps": 400,
            "network": "convnet-w32-in",
            "batch_real": 64,
            "queue_every": 40,
            "queue_most": 8,
            "queue_trained": 1,
            "real_steps": 5,
            "inner_lr": 0.05,
            "inner_batch": 64,
        },
        "standard": {"steps": 5000},
    }
    pairs = {"canvas": CANVASES, "labels": LABELS, "networks": ("queue",)}

    canvas: CanvasSpec = Tiled(bounded=False)  # partitioning and expansion
    networks: NetworkSpec = QueueNets()
    views: SiameseViews = SiameseViews(
        augment="color_crop_cutout_flip_scale_rotate", augment_rule="dc"
    )
    statistics: RealStatistics = RealStatistics(
        real_side="fresh", batch_real=256, augment_per="class"
    )
    descent: Descent = Descent(lr_images=0.2, optimizer="sgd")  # per normalised pixel
    ce_weight: NotNegative = 0.5  # weight of the cross-entropy, times accuracy in percent; 0 = off
    ce_prior: Removed = "none"  # its logits as published, or "adjusted": minus log class prior

    def prepare(
        self, real: ImageSet, canvas: Canvas, networks: Networks, run: Run
    ) -> ClassMatching:
        """Open the real side; the published step size acts on normalised pixels."""
        objective = ClassMatching.of(
            self, real, canvas, networks, run, ClassAware(self, real, networks)
        )
        objective.lr = self.descent.scaled(networks.transform.step_share)
        return objective
