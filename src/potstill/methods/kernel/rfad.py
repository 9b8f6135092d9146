"""RFAD: Random Feature Approximation (Loo, Hasani, Amini and Rus, NeurIPS 2022, arXiv 2210.12067).

    L = CE( e^k K_ts (K_ss + lambda I)^-1 Y_s, y_t ),       lambda = reg tr(K_ss) / n
    K = sw^2 / (m d) sum_j phi_j phi_j^T + sb^2,            S = X A

phi_j are the d features of m new random networks per step, with normal weights: their products
estimate the kernel of an infinitely wide network (NNGP), at a cost that is linear in images. sw^2 =
2 and sb^2 = 0.01 are those of the last layer, which is left out. k is a learned scale (Platt). The
images X and a matrix A that they share are learned; what is stored is S.

Deviations: Adam in the place of AdaBelief; no early stop on held-out images, which on a long tail
would take the tail's; one real batch per step (the release draws four, and differentiates the last
alone). What is recalled is marked in docs/methods/rfad.md. Recipes: recipes/rfad/.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from potstill.canvas import Canvas, CanvasSpec, Pixels
from potstill.canvas.mixed import MixedCanvas
from potstill.data import ImageSet
from potstill.labels import LabelSpec, Regression
from potstill.methods.base import Matcher, MethodInfo, Objective
from potstill.methods.kernel.ridge_regression import Outer, RidgeRegression
from potstill.networks import GaussianNets, Networks, NetworkSpec
from potstill.run import InputError, Run
from potstill.run.descent import Descent, Rate
from potstill.run.fields import Batch, Count, Positive

__all__ = ["RFAD"]

_WEIGHT, _BIAS = 2.0, 0.01  # variances of the last layer, as of the others
_LARGEST = 1 << 14  # values of an image with a matrix: 1 GB, and three times that to learn it


@dataclass(frozen=True, kw_only=True)
class RFAD(Matcher):
    """Predict real images by regression on features of many random networks."""

    info = MethodInfo(
        name="rfad",
        title="Random Feature Approximation for Dataset Distillation",
        paper="Loo et al., NeurIPS 2022",
        year=2022,
        arxiv="2210.12067",
        family="kernel regression",
        labels="regression targets, learned or centred one-hot",
        long_tail="nothing as published; outer_loss balanced_softmax, or balance, in the only "
        "place where real images enter",
        cost="passes of a real batch and of the set, with its gradient, through each new network",
    )
    sizes = {
        "quick": {
            "steps": 400,
            "network": "convnet-w32-none",
            "nets_per_step": 4,
            "batch_real": 256,
            "lr_images": 1e-2,
            "members": 4,
            "pool_epochs": 6,
        },
        "standard": {"steps": 3000, "network": "convnet-w128-none"},
    }
    pairs = {
        "canvas": ("pixels",),
        "labels": ("regression",),
        "networks": ("gaussian", "random", "pool"),
    }

    canvas: CanvasSpec = Pixels(bounded=False)
    labels: LabelSpec = Regression(lr_targets=1e-3)
    networks: NetworkSpec = GaussianNets(network="convnet-w256-none", preprocess="zca")
    outer: Outer = Outer(outer_loss="cross_entropy")
    descent: Descent = Descent(steps=10_000, lr_images=1e-3)
    reg: Positive = 5e-3  # ridge, as a share of the mean of the kernel's diagonal
    batch_real: Batch = 1280  # real images per step
    nets_per_step: Count = 8  # new networks of a step
    learn_mixing: bool = True  # learn a matrix A that all images share; they are stored as X A
    lr_mixing: Positive = 5e-5  # its step size

    def check(self, real: ImageSet | None = None) -> None:
        """Refuse a matrix that is larger than all else."""
        super().check(real)
        if self.learn_mixing and getattr(self.canvas, "bounded", False):
            raise InputError(
                "bounded is True with learn_mixing, which moves images behind the transform, where "
                "0-1 means nothing; use learn_mixing=False"
            )
        size = 0 if real is None else math.prod(real.shape)
        if self.learn_mixing and size > _LARGEST:
            raise InputError(
                f"learn_mixing is True for images of {size} values, whose matrix has the square of "
                "that; use learn_mixing=False, or a smaller image size"
            )

    def prepare(self, real: ImageSet, canvas: Canvas, networks: Networks, run: Run) -> Objective:
        """Nothing is computed before step 0."""
        return _RandomFeatures(self, real, canvas, networks, run)


class _RandomFeatures(RidgeRegression):
    """Under the mean kernel of a step's random networks."""

    how: RFAD

    def __init__(
        self, how: RFAD, real: ImageSet, canvas: Canvas, networks: Networks, run: Run
    ) -> None:
        super().__init__(how, real, canvas, networks, run)
        if how.learn_mixing:
            self.canvas = MixedCanvas(self.canvas)
            self.rates = {**self.rates, "mixing": Rate("lr_mixing", how.lr_mixing)}

    def kernels(self, step: int, t: Tensor, s: Tensor, piece: int) -> tuple[Tensor, Tensor]:
        """Estimate both by features of each network, float64."""
        count, dim = self.how.nets_per_step, self.networks.dim
        share, bias = _WEIGHT / (count * dim), _BIAS
        k_ss, k_ts = s.new_zeros(()).double(), s.new_zeros(()).double()
        for number in range(step * count, (step + 1) * count):

            def see(number: int = number) -> Any:
                return self.networks.at(number)

            phi_s = self.features(see, s, piece).double()
            phi_t = self.features(see, t, self.at_a_time()).double()
            k_ss, k_ts = k_ss + share * (phi_s @ phi_s.T), k_ts + share * (phi_t @ phi_s.T)
        return k_ss + bias, k_ts + bias
