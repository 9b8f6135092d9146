"""KIP: Kernel Inducing Points (Nguyen, Chen and Lee, ICLR 2021, arXiv 2011.00050).

    L = 1/2 mean || Y_t - K_ts (K_ss + lambda I)^-1 Y_s ||^2,   lambda = reg tr(K_ss) / n    (eq. 7)

S are the synthetic images with regression targets Y_s (one-hot less 1/C), t a batch of real images,
K the neural tangent kernel of an infinitely wide ReLU network in closed form, fully connected
(:mod:`potstill.match.ntk`) or, for small images, convolutional (:mod:`potstill.match.conv_ntk`; the
kernel of KIP's second paper, Nguyen et al., NeurIPS 2021, arXiv 2107.13034). No network is trained
or drawn: one step predicts the real batch from the synthetic set by kernel ridge regression in
float64 and moves the images, and the targets if asked for, down the slope of the error.

On a long tail a natural batch is nearly all head, and so is its error; ``balance="sampling"`` draws
every class equally often, and ``outer_loss="balanced_softmax"`` judges the prediction as a
classifier that knows the class sizes (:mod:`potstill.methods.kernel.ridge_regression`).

Deviations: images are seen through the data set's mean and standard deviation ("zca": whitening
without the per-image norm); the convolutional kernel is for images of at most 256 pixels. What is
recalled from the paper and not read is marked in docs/methods/kip.md. Recipe: recipes/kip/.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from torch import Tensor

from potstill.canvas import Canvas, CanvasSpec, Pixels
from potstill.data import ImageSet
from potstill.labels import LabelSpec, Regression
from potstill.match.conv_ntk import ConvNetwork
from potstill.match.ntk import WideNetwork
from potstill.methods.base import Matcher, MethodInfo, Objective
from potstill.methods.kernel.ridge_regression import CANVASES, Outer, RidgeRegression
from potstill.networks import Networks, NetworkSpec, NoNets
from potstill.run import InputError, Run
from potstill.run.descent import Descent
from potstill.run.fields import Batch, OneOf, Positive, Range

__all__ = ["KIP"]

Depth = Annotated[int, Range(1, 20)]
KernelKind = Annotated[str, OneOf("ntk", "nngp")]
KernelNetwork = Annotated[str, OneOf("dense", "conv")]
_MOST = 256  # pixels of an image under a convolutional kernel, which takes the square per pair


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
        "canvas": CANVASES,
        "labels": ("regression",),
        "networks": ("none",),
    }

    canvas: CanvasSpec = Pixels(bounded=False)
    labels: LabelSpec = Regression()
    networks: NetworkSpec = NoNets()
    outer: Outer = Outer()
    descent: Descent = Descent(steps=5000, lr_images=0.04)  # Adam
    depth: Depth = 1  # hidden layers of the network
    kernel_kind: KernelKind = "ntk"  # tangent kernel, or "nngp", the covariance of outputs
    # of which network: "dense" layers, or "conv" blocks, exactly, for images of up to 16x16 pixels
    kernel_network: KernelNetwork = "dense"
    reg: Positive = 1e-6  # ridge, as a share of the mean of the kernel's diagonal
    batch_real: Batch = 5000  # real images per step

    def check(self, real: ImageSet | None = None) -> None:
        """Refuse images of which a convolutional kernel would be too much, or nothing."""
        super().check(real)
        if real is None or self.kernel_network == "dense":
            return
        height, width = real.shape[1:]
        if height * width > _MOST:
            raise InputError(
                f"kernel_network is 'conv' for images of {height}x{width} pixels, of which each "
                f"pair takes {(height * width) ** 2} covariances; use images of at most {_MOST} "
                "pixels, kernel_network=dense, or the method rfad, which estimates it"
            )
        ConvNetwork(depth=self.depth).check((height, width))

    def prepare(self, real: ImageSet, canvas: Canvas, networks: Networks, run: Run) -> Objective:
        """Nothing is computed before step 0."""
        return _Wide(self, real, canvas, networks, run)


class _Wide(RidgeRegression):
    """Under the closed-form kernel."""

    def __init__(
        self, how: KIP, real: ImageSet, canvas: Canvas, networks: Networks, run: Run
    ) -> None:
        super().__init__(how, real, canvas, networks, run)
        kind: Any = WideNetwork if how.kernel_network == "dense" else ConvNetwork
        self.kernel = kind(depth=how.depth, kind=how.kernel_kind)

    def kernels(self, step: int, t: Tensor, s: Tensor, piece: int) -> tuple[Tensor, Tensor]:
        """In closed form."""
        return self.kernel(s, s, self.rows(s)), self.kernel(t, s, self.rows(s))

    def rows(self, s: Tensor) -> int | None:
        """Return how many rows of a convolutional kernel are computed at a time."""
        if not isinstance(self.kernel, ConvNetwork):
            return None
        return self.kernel.rows_within(self.run.budget.step, len(s), s[0, 0].numel())

    def pieces(self, run: Run) -> int:
        """The set is solved as a whole."""
        return 1
