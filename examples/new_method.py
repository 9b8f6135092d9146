"""A new method in one class: match the mean and the covariance of every class's features.

    python examples/new_method.py [--quick]

The base class brings networks, cached real side, augmentation, calibration, optimiser, chunks,
checkpoints and logs. The method says what is averaged (``embed``) and how it differs (``gap``).
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import torch
from torch import Tensor

import potstill
from potstill.match.spectral import segment_mean
from potstill.methods import DistributionMatcher, MethodInfo
from potstill.run.loop import Term


@dataclass(kw_only=True)
class Covariance(DistributionMatcher):
    """L = (1/C) sum_c |mean_real - mean_syn|^2 + weight |Cov_real - Cov_syn|_F^2."""

    info = MethodInfo("covariance", "Covariance Matching", "this example", 2026, "",
                      "distribution matching", "hard", "per-class moments", "as DM")  # fmt: skip
    axes: int = 24  # random directions in which the covariance is compared
    weight: float = 1.0  # of the covariance beside the mean

    def embedding_facts(self):
        return {"embed": "moments", "axes": self.axes}  # names the cached real side

    def embed(self, features, entry):
        draw = self.run_.generator("axes", entry.number)
        axes = torch.randn(features.shape[1], self.axes, generator=draw).to(features.device)
        z = features @ axes  # (n, axes)
        return torch.cat([z, (z[:, :, None] * z[:, None, :]).flatten(1)], dim=1)

    def gap(self, entry, features, labels, first, last):
        syn = segment_mean(self.embed(features, entry), labels, last - first)
        (mean, cov), (mean_syn, cov_syn) = map(self.moments, (entry.table[first:last], syn))
        distance = (mean - mean_syn).square().sum(1)
        distance = distance + self.weight * (cov - cov_syn).square().sum((1, 2))
        return Term("match", distance, first, {"distance": distance})

    def moments(self, table: Tensor) -> tuple[Tensor, Tensor]:
        mean, second = table[:, : self.axes], table[:, self.axes :]
        return mean, second.unflatten(1, (self.axes, -1)) - mean[:, :, None] * mean[:, None, :]


def main(quick: bool) -> None:
    size = {"steps": 60, "networks": 2, "pool_epochs": 2, "entries": 8} if quick else {
        "steps": 500, "networks": 4, "pool_epochs": 6, "entries": 40}  # fmt: skip
    method = Covariance(network="convnet-w32-in", real_side="fixed", lr_images=5e-3, **size)
    train, test, _ = potstill.load_pair("digits")
    train = train.long_tailed(50)
    syn = potstill.distill(method, train, ipc=10)
    protocol = potstill.PROTOCOLS["quick-noflip"].with_(epochs=20 if quick else 100)
    (score,) = potstill.evaluate(
        syn, train, test, network="convnet-w32-in", protocol=protocol, runs=2 if quick else 5
    )
    random = score.random["accuracy"]["mean"]
    print(f"covariance matching {score.accuracy['mean']:.1f} %, random {random:.1f} %")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a few steps, to see that it works")
    main(parser.parse_args().quick)
