"""Centroids: the real images whose features lie closest to the centre of their class.

A baseline of LGM (Cazenavette et al., NeurIPS 2025, arXiv 2511.16674, released code), which has
one image per class: the one that is nearest (Euclidean) to the class mean of a frozen backbone's
features, centre crops throughout. Deviations: for more images per class, the class has as many
k-means centres, and each takes the nearest image that is still free. Recipe: recipes/centroids/.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from potstill.data import ImageSet
from potstill.experts.features import StoredFeatures, sub_centres
from potstill.methods.base import MethodInfo
from potstill.methods.selection.nearest import BackboneSelector, free_nearest
from potstill.methods.selector import Selector
from potstill.nets.backbone import Backbone
from potstill.networks import FrozenBackbone
from potstill.run import Run

__all__ = ["Centroids"]


@dataclass(frozen=True, kw_only=True)
class Centroids(BackboneSelector, Selector):
    """Choose real images near the centres of their class."""

    info = MethodInfo(
        name="centroids",
        title="Real images nearest to class centres",
        paper="baseline of LGM",
        year=2025,
        arxiv="2511.16674",
        family="selection",
        labels="hard",
        long_tail="balanced; small classes give all they have",
        cost="one pass of the real set",
    )

    networks: FrozenBackbone = FrozenBackbone()  # what sees the images

    def choose(
        self, real: ImageSet, stats: StoredFeatures, backbone: Backbone, ipc: int, run: Run
    ) -> Tensor:
        """Return positions (n,), class-sorted."""
        goals = stats.centres[:, None] if ipc == 1 else sub_centres(stats, ipc, run)
        chosen = []
        for label in range(real.num_classes):
            own = real.of_class(label)
            gaps = torch.cdist(goals[label].double(), stats.bank[0, own].double())
            chosen.append(own[free_nearest(gaps)])
        return torch.cat(chosen)
