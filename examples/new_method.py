"""A new method in one class: match the mean and the covariance of every class's features.

Run it with ``python examples/new_method.py [--quick]``. The base class brings networks, the cached
real side, augmentation, calibration, the loop, checkpoints and logs; the method says what is
averaged over a class (``embed``) and how two averages differ (``gap``).
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import torch

import potstill
from potstill.match.spectral import segment_mean
from potstill.methods import DistributionMatcher, MethodInfo
from potstill.run.fields import Count  # bounds stand beside the field
from potstill.run.loop import Term


@dataclass(kw_only=True)
class Covariance(DistributionMatcher):
    """L = (1/C) sum_c |mean_real - mean_syn|^2 + |Cov_real - Cov_syn|_F^2, in random directions."""

    info = MethodInfo("covariance", "Covariance matching", "this example", 2026, "",
                      "distribution matching", "hard", "per-class moments", "as SDM")  # fmt: skip
    axes: Count = 24  # directions

    def embedding_facts(self):  # what the cache of the real side depends on
        return {"embed": "moments", "axes": self.axes}

    def embed(self, features, entry):  # (n, d) -> (n, axes + axes^2), averaged per class
        draw = self.run_.generator("axes", entry.number)
        z = features @ torch.randn(features.shape[1], self.axes, generator=draw).to(features.device)
        return torch.cat([z, (z[:, :, None] * z[:, None, :]).flatten(1)], dim=1)

    def gap(self, entry, features, labels, first, last):  # distance of the classes first..last-1
        mean, cov = self.moments(entry.table[first:last])
        syn = self.moments(segment_mean(self.embed(features, entry), labels, last - first))
        distance = (mean - syn[0]).square().sum(1) + (cov - syn[1]).square().sum((1, 2))
        return Term("match", distance, first, {"distance": distance})

    def moments(self, table):
        mean, second = table[:, : self.axes], table[:, self.axes :].unflatten(1, (self.axes, -1))
        return mean, second - mean[:, :, None] * mean[:, None, :]


parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--quick", action="store_true", help="a few steps, to see that it works")
steps, pool_epochs, epochs, runs = (40, 2, 20, 2) if parser.parse_args().quick else (500, 6, 100, 5)
train, test, _ = potstill.load_pair("digits")
train = train.long_tailed(50)
network, protocol = "convnet-w32-in", potstill.PROTOCOLS["quick-noflip"].with_(epochs=epochs)
method = Covariance(steps=steps, network=network, networks=2, pool_epochs=pool_epochs,
                    lr_images=5e-3, real_side="fixed", entries=10)  # fmt: skip
syn = potstill.distill(method, train, ipc=10)
(score,) = potstill.evaluate(syn, train, test, network=network, protocol=protocol, runs=runs)
print(f"covariance {score.accuracy['mean']:.1f} %, random {score.random['accuracy']['mean']:.1f} %")
