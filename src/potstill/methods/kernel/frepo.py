"""FRePo: Feature Regression with Pooling (Zhou, Nezhadarya, Ba, NeurIPS 2022, arXiv 2206.00719).

    L = 1/2 mean_t || y_t - phi_t phi_s^T (phi_s phi_s^T + lambda I)^-1 Y_s ||^2
        - mean_s min(top1(y_s) - top2(y_s), 1/C),         lambda = reg tr(phi_s phi_s^T) / n

phi are the features before the classifier of a network from a pool of ten at different ages. One
step draws a network, predicts a batch of real images by ridge regression on its features of the
synthetic images and their mirror images, moves images and targets down the slope of the error, and
then lets that network learn from the set by one update, or renews it when it is old.

Of a long tail only the outer loss knows anything: the pool learns from the balanced set alone.

Deviations: Adam in the place of LAMB; the cosine ends at 0, not at a tenth; networks are new at
first, and only their renewals are staggered. What is recalled is marked in docs/methods/frepo.md.
Recipes: recipes/frepo/.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from potstill.canvas import Canvas, CanvasSpec, Pixels
from potstill.data import ImageSet
from potstill.labels import LabelSpec, Regression
from potstill.methods.base import Matcher, MethodInfo, Objective
from potstill.methods.kernel.ridge_regression import CANVASES, Outer, RidgeRegression
from potstill.networks import Networks, NetworkSpec
from potstill.networks.online_pool import OnlinePoolNets
from potstill.run import Run
from potstill.run.descent import Descent
from potstill.run.fields import Batch, NotNegative, Positive
from potstill.run.objective import Term

__all__ = ["FRePo"]


@dataclass(frozen=True, kw_only=True)
class FRePo(Matcher):
    """Predict real images by regression on features of networks that learn from the set."""

    info = MethodInfo(
        name="frepo",
        title="neural Feature Regression with Pooling",
        paper="Zhou et al., NeurIPS 2022",
        year=2022,
        arxiv="2206.00719",
        family="kernel regression",
        labels="regression targets, learned",
        long_tail="nothing as published; outer_loss balanced_softmax, or balance, in the only "
        "place where real images enter",
        cost="one network's pass of a real batch, of the set with its gradient, and one update",
    )
    sizes = {
        "quick": {
            "steps": 600,
            "network": "convnet-w32-bn",
            "members": 5,
            "batch_real": 256,
            "lr_images": 1e-2,
            "lr_targets": 1e-2,
            "pool_epochs": 6,
        },
        "standard": {"steps": 20_000, "lr_images": 3e-3, "lr_targets": 3e-3},
    }
    pairs = {
        "canvas": CANVASES,
        "labels": ("regression",),
        "networks": ("online", "random", "pool"),
    }

    canvas: CanvasSpec = Pixels(bounded=False)
    labels: LabelSpec = Regression(learn_labels=True, lr_targets=3e-4)
    networks: NetworkSpec = OnlinePoolNets(network="convnet-w128-bn", preprocess="zca")
    outer: Outer = Outer()
    descent: Descent = Descent(steps=500_000, lr_images=3e-4, schedule="cosine")
    reg: Positive = 1e-6  # ridge, as a share of the mean of the kernel's diagonal
    batch_real: Batch = 1024  # real images per step
    mirrored: bool = True  # predict from mirror images, too; not for digits and letters
    label_margin: NotNegative = 1.0  # weight of the term that keeps learned targets apart

    def prepare(self, real: ImageSet, canvas: Canvas, networks: Networks, run: Run) -> Objective:
        """Nothing is computed before step 0."""
        return _Features(self, real, canvas, networks, run)


class _Features(RidgeRegression):
    """Under the features of a network that learns from the set."""

    how: FRePo

    def __init__(
        self, how: FRePo, real: ImageSet, canvas: Canvas, networks: Networks, run: Run
    ) -> None:
        super().__init__(how, real, canvas, networks, run)
        with torch.no_grad():
            self.labels.stored().copy_(self.goal(self.labels.stored()))

    def goal(self, goal: Tensor) -> Tensor:
        """Divide targets by the root of C / 10, so that their size does not fall with C."""
        return goal / (self.canvas.classes / 10) ** 0.5

    def support(self, canvas: Canvas) -> tuple[Tensor, Tensor]:
        """Images, and beside them their mirror images with the same targets."""
        s, targets = super().support(canvas)
        if not self.how.mirrored:
            return s, targets
        return torch.cat([s, s.flip(-1)]), targets.repeat(2, 1)

    def kernels(self, step: int, t: Tensor, s: Tensor, piece: int) -> tuple[Tensor, Tensor]:
        """Products of features, float64."""
        own = self.networks.at(step)
        phi_s = self.features(lambda: own, s, piece, stays=True).double()
        phi_t = self.features(lambda: own, t, self.at_a_time()).double()
        return phi_s @ phi_s.T, phi_t @ phi_s.T

    def error(self, prediction: Tensor, rows: Tensor) -> Tensor:
        """Sum squares over classes, which weighs them against the margin of labels."""
        found = super().error(prediction, rows)
        return found * self.canvas.classes if self.platt is None else found

    def terms(self, step: int, canvas: Canvas, piece: int) -> Iterator[Term]:
        """The error of prediction, and the margin of learned targets."""
        yield from super().terms(step, canvas, piece)
        if self.how.label_margin and self.labels.stored().requires_grad:
            most = self.labels.stored().topk(2, dim=1).values
            margin = (most[:, 0] - most[:, 1]).clamp_max(1 / canvas.classes)
            yield Term("margin", -self.how.label_margin * margin.mean())

    def after(self, step: int, canvas: Canvas) -> None:
        """Let the network of the step learn from the set."""
        self.networks.after(step, canvas, self.labels.targets())
