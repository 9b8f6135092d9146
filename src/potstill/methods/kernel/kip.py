"""KIP: Kernel Inducing Points (Nguyen, Chen and Lee, ICLR 2021, arXiv 2011.00050).

    L = 1/2 mean || Y_t - K_ts (K_ss + lambda I)^-1 Y_s ||^2,   lambda = reg tr(K_ss) / n    (eq. 7)

S are the synthetic images with regression targets Y_s (one-hot less 1/C), t a batch of real images,
K the neural tangent kernel of an infinitely wide fully connected ReLU network in closed form
(:mod:`potstill.match.ntk`). No network is trained or drawn: one step predicts the real batch from
the synthetic set by kernel ridge regression in float64 and moves the images, and the targets if
asked for, down the slope of the error.

On a long tail a natural batch is nearly all head, and so is its error; ``balance="sampling"`` draws
every class equally often.

Deviations: images are seen through the data set's mean and standard deviation ("zca": whitening
without the per-image norm); the fully connected kernel only. What is recalled from the paper and
not read is marked in docs/methods/kip.md. Recipe: recipes/kip/.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor

from potstill.canvas import Canvas, CanvasSpec, Pixels
from potstill.data import ImageSet
from potstill.labels import LabelSpec, Regression
from potstill.labels.parts import centred
from potstill.match.ntk import WideNetwork, regression_loss
from potstill.methods.base import Matcher, MethodInfo, Objective
from potstill.nets.sampling import balanced_order
from potstill.networks import Networks, NetworkSpec, NoNets
from potstill.run import Run
from potstill.run.descent import Descent
from potstill.run.fields import Batch, OneOf, Positive, Range
from potstill.run.objective import Term

__all__ = ["KIP"]

Depth = Annotated[int, Range(1, 20)]
KernelKind = Annotated[str, OneOf("ntk", "nngp")]
Balance = Annotated[str, OneOf("none", "sampling")]


@dataclass(frozen=True, kw_only=True)
class KIP(Matcher):
    """Learn images from which kernel ridge regression predicts the real ones."""

    info = MethodInfo(
        name="kip",
        title="Kernel Inducing Points",
        paper="Nguyen et al., ICLR 2021",
        year=2021,
        arxiv="2011.00050",
        family="kernel regression",
        labels="regression targets, learned or centred one-hot",
        long_tail="nothing as published; balance draws classes equally often",
        cost="no network; one kernel between a real batch and the set per step",
    )
    sizes = {
        "quick": {"steps": 300, "batch_real": 512},
        "standard": {"steps": 1000, "batch_real": 1000},
    }
    pairs = {
        "canvas": ("pixels", "tiled", "multi-formation", "frequency"),
        "labels": ("regression",),
        "networks": ("none",),
    }

    canvas: CanvasSpec = Pixels(bounded=False)
    labels: LabelSpec = Regression()
    networks: NetworkSpec = NoNets()
    descent: Descent = Descent(steps=5000, lr_images=0.04)  # Adam
    depth: Depth = 1  # hidden layers of the network
    kernel_kind: KernelKind = "ntk"  # tangent kernel, or "nngp", the covariance of outputs
    reg: Positive = 1e-6  # ridge, as a share of the mean of the kernel's diagonal
    batch_real: Batch = 5000  # real images per step
    balance: Balance = "none"  # long tails: "none" as published, or "sampling"

    def prepare(self, real: ImageSet, canvas: Canvas, networks: Networks, run: Run) -> Objective:
        """Nothing is computed before step 0."""
        return _Regression(self, real, canvas, networks, run)


class _Regression(Objective):
    """Half the mean squared error of predicting a real batch."""

    def __init__(
        self, how: KIP, real: ImageSet, canvas: Canvas, networks: Networks, run: Run
    ) -> None:
        self.how, self.real, self.run, self.transform = how, real, run, networks.transform
        self.labels = how.labels.make(canvas)
        self.canvas = canvas.moved_behind(self.transform) if canvas.plain else canvas
        if not canvas.plain:  # the step size is one of what the kernel sees
            self.lr = how.descent.scaled(self.transform.step_share)
        self.rates = how.labels.rates
        self.kernel = WideNetwork(depth=how.depth, kind=how.kernel_kind)
        self.groups = [real.of_class(label) for label in range(real.num_classes)]

    def leaves(self) -> dict[str, Tensor]:
        """The targets."""
        return self.labels.leaves()

    def positions(self, step: int) -> Tensor:
        """Return which real images (b,) a step predicts."""
        size, draw = min(self.how.batch_real, len(self.real)), self.run.generator("real", step)
        if self.how.balance == "sampling":
            return balanced_order(self.groups, size, draw)
        return torch.randperm(len(self.real), generator=draw)[:size]

    def terms(self, step: int, canvas: Canvas, piece: int) -> Iterator[Term]:
        """One error of the whole set."""
        rows = self.positions(step)
        with torch.no_grad():
            t = self.transform.forward(self.real.batch(rows, self.run.device)).flatten(1)
        s = canvas.seen(self.transform).flatten(1)
        goal = centred(self.real.labels[rows], canvas.classes).to(s.device)
        k_ss, k_ts = self.kernel(s, s), self.kernel(t, s)
        yield Term(
            "regression", regression_loss(k_ss, k_ts, self.labels.targets(), goal, self.how.reg)
        )

    def pieces(self, run: Run) -> int:
        """The set is solved as a whole."""
        return 1

    def outcome(self, canvas: Canvas) -> dict[str, Any]:
        """Images, and the targets where they were learned."""
        return super().outcome(canvas) | self.labels.outcome()
