"""A new method: match the mean and the covariance of every class's features.

Run it with ``python examples/new_method.py [--quick]``. Canvas, networks and descent are parts; a
comparison says what is averaged over a class and how two averages differ."""

import argparse
from dataclasses import dataclass

import torch

import potstill
from potstill.match.spectral import segment_mean
from potstill.methods import Matcher, MethodInfo
from potstill.methods.distribution.class_matching import ClassMatching, Comparison
from potstill.networks import PoolNets
from potstill.networks.view_draws import RealStatistics, SiameseViews


class Covariances(Comparison):
    """|mean_real - mean_syn|^2 + |Cov_real - Cov_syn|_F^2, in random directions."""

    facts = {"embed": "24 moments"}  # what the cache of the real side depends on

    def embed(self, features, frequencies):  # (n, d) -> (n, 24 + 24^2), averaged per class
        axes = torch.randn(features.shape[1], 24, generator=torch.Generator().manual_seed(0))
        z = features @ axes.to(features.device)
        return torch.cat([z, (z[:, :, None] * z[:, None, :]).flatten(1)], dim=1)

    def class_distance(self, view, features, labels, first, last):  # of the classes first..last-1
        syn = segment_mean(self.embed(features, view.frequencies), labels, last - first)
        (a, cov_a), (b, cov_b) = map(self.moments, (view.table[first:last], syn))
        distance = (a - b).square().sum(1) + (cov_a - cov_b).square().sum((1, 2))
        return distance, {"distance": distance}

    def moments(self, table):
        m, second = table[:, :24], table[:, 24:].unflatten(1, (24, 24))
        return m, second - m[:, :, None] * m[:, None, :]


@dataclass(frozen=True, kw_only=True)
class Covariance(Matcher):
    info = MethodInfo("covariance", "Covariance matching", "this example", 2026, "", "", "", "", "")
    networks: PoolNets = PoolNets(network="convnet-w32-in", members=2)
    statistics: RealStatistics = RealStatistics(real_side="fixed", entries=10)

    def prepare(self, real, canvas, networks, run):
        how = {"views": SiameseViews(), "statistics": self.statistics, "normalize": True}
        return ClassMatching(real, canvas, networks, run, Covariances(), **how)


parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--quick", action="store_true", help="a few steps, to see that it works")
steps, pool, epochs, runs = (40, 2, 20, 2) if parser.parse_args().quick else (500, 6, 100, 5)
train, test, _ = potstill.load_pair("digits")
train, protocol = train.long_tailed(50), potstill.PROTOCOLS["quick-noflip"].with_(epochs=epochs)
method = Covariance().with_(steps=steps, pool_epochs=pool, lr_images=2e-2)
syn, network = potstill.distill(method, train, ipc=10), method.networks.network
(score,) = potstill.evaluate(syn, train, test, network=network, protocol=protocol, runs=runs)
print(f"covariance {score.accuracy['mean']:.1f} %, random {score.random['accuracy']['mean']:.1f} %")
