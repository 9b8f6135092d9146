"""A new method in two classes: match the mean and the covariance of every class's features.

Run it with ``python examples/new_method.py [--quick]``. Networks, canvas, the real side and descent
are parts; a comparison says what is averaged over a class and how two averages differ.
"""

from dataclasses import dataclass

import torch

from potstill.match.spectral import segment_mean
from potstill.methods import Matcher, MethodInfo
from potstill.methods.distribution.class_matching import ClassMatching, Comparison
from potstill.networks import PoolNets
from potstill.networks.real_statistics import RealStatistics, SiameseViews
from potstill.run.descent import Descent
from potstill.run.fields import Count  # bounds stand beside the field


class Covariances(Comparison):
    """|mean_real - mean_syn|^2 + |Cov_real - Cov_syn|_F^2, in random directions."""

    def __init__(self, axes, run):
        self.axes, self.run, self.facts = axes, run, {"embed": "moments", "axes": axes}

    facts = {}  # what the cache of the real side depends on

    def embed(self, features, view):  # (n, d) -> (n, axes + axes^2), averaged per class
        draw = self.run.generator("axes", view.number)
        z = features @ torch.randn(features.shape[1], self.axes, generator=draw).to(features.device)
        return torch.cat([z, (z[:, :, None] * z[:, None, :]).flatten(1)], dim=1)

    def class_distance(self, view, features, labels, first, last):  # of the classes first..last-1
        syn = self.moments(segment_mean(self.embed(features, view), labels, last - first))
        pairs = zip(self.moments(view.table[first:last]), syn, strict=True)
        distance = sum((a - b).square().flatten(1).sum(1) for a, b in pairs)
        return distance, {"distance": distance}

    def moments(self, table):
        mean, second = table[:, : self.axes], table[:, self.axes :].unflatten(1, (self.axes, -1))
        return mean, second - mean[:, :, None] * mean[:, None, :]


@dataclass(frozen=True, kw_only=True)
class Covariance(Matcher):
    info = MethodInfo("covariance", "Covariance matching", "this example", 2026, "",
                      "distribution matching", "hard", "per-class moments", "as SDM")  # fmt: skip
    networks: PoolNets = PoolNets()
    views: SiameseViews = SiameseViews()
    statistics: RealStatistics = RealStatistics(real_side="fixed", entries=10)
    descent: Descent = Descent(lr_images=2e-2)
    axes: Count = 24  # directions

    def prepare(self, real, canvas, networks, run):
        return ClassMatching(real, canvas, networks, run, Covariances(self.axes, run),
                             views=self.views, statistics=self.statistics)  # fmt: skip


if __name__ == "__main__":
    pass
