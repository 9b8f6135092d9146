"""M3D: Condensation by Minimizing Maximum Mean Discrepancy (Zhang et al., AAAI 2024, 2312.15927).

    L = (1/C) sum_c MMD^2_k(f(real_c), f(syn_c)),   k = sum of five Gaussians    (eq. 8)

The kernel sees all moments of the features, not only their mean. Its widths are 2^j times the
mean squared distance of the class, j = -2..2, not differentiated.

Deviations: several steps share one random network through the entries of the real side; the
real-real part of MMD^2, a constant, is not computed. Recipe: recipes/m3d/.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from potstill.experts.real_statistics import Entry
from potstill.match.mmd import class_mmd2
from potstill.methods.base import MethodInfo
from potstill.methods.distribution.class_matching import DistributionMatcher
from potstill.run.loop import Term

__all__ = ["M3D"]


@dataclass(kw_only=True)
class M3D(DistributionMatcher):
    """Match class distributions of features in the RKHS of a Gaussian mixture kernel."""

    info: ClassVar[MethodInfo] = MethodInfo(
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
    sizes: ClassVar[dict[str, dict[str, Any]]] = {
        "quick": {"steps": 600, "network": "convnet-w32-in", "entries": 40, "batch_real": 128},
        "standard": {"steps": 5000, "entries": 100},
    }

    lr_images: float = 1.0  # SGD with momentum 0.5, in RGB 0-1
    optimizer: str = "sgd"
    networks: int = 0  # random networks
    normalize: bool = False  # plain features
    start: str = "tiled"  # mosaics of real images; also "real", "noise"
    factor: int = 0  # "factor and up-sampling": 2 from 16 pixels up, else 1
    real_side: str = "fixed"  # feature banks of this many random networks
    entries: int = 100
    batch_real: int = 256  # real features per class in a bank
    match_weight: float = 1.0
    calibration: float = 0.0  # none in M3D

    @property
    def keeps_features(self) -> bool:
        """MMD compares single features."""
        return True

    def gap(self, entry: Entry, features: Tensor, labels: Tensor, first: int, last: int) -> Term:
        """MMD^2 of each class without its constant real-real part."""
        assert entry.stack is not None and entry.mask is not None
        distance = class_mmd2(entry.stack[first:last], entry.mask[first:last], features, labels)
        return Term("match", distance, first, {"distance": distance})
