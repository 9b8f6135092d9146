"""What methods of kernel ridge regression share: predict a real batch from the synthetic set.

    Y = K_ts (K_ss + lambda I)^-1 Y_s,    lambda = reg tr(K_ss) / n

A method gives the kernel matrices of a step. By what the prediction is judged is the only place
where real images enter, and so the one where a long tail can be met: :class:`Outer`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from potstill.canvas import Canvas
from potstill.data import ImageSet
from potstill.labels.parts import centred
from potstill.match.ntk import kernel_regression
from potstill.methods.base import Objective
from potstill.methods.judging import Judging
from potstill.networks import Networks
from potstill.run import Run
from potstill.run.descent import Rate
from potstill.run.fields import OneOf, Positive
from potstill.run.machine import CPU_CHUNK
from potstill.run.objective import Term

__all__ = ["CANVASES", "Outer", "RidgeRegression"]

CANVASES = ("pixels", "tiled", "multi-formation", "subsampled", "frequency")
OuterLoss = Annotated[str, OneOf("squared_error", "cross_entropy", "balanced_softmax")]


@dataclass(frozen=True, kw_only=True)
class Outer(Judging):
    """By what the prediction of real images is judged, and how they are drawn.

    The classes' losses are those of the long-tail table (:mod:`potstill.losses.table`), on the
    prediction times e^k with a learned k (Platt scaling, as in RFAD).
    """

    # of the prediction: "squared_error", or "cross_entropy" or "balanced_softmax" (+ log n_c) of it
    # times a learned scale
    outer_loss: OuterLoss = "squared_error"
    lr_platt: Positive = 0.01  # step size of the logarithm of that scale, which begins at 0


class RidgeRegression(Objective):
    """The error of predicting a real batch from the whole set under a method's kernel."""

    how: Any

    def __init__(
        self, how: Any, real: ImageSet, canvas: Canvas, networks: Networks, run: Run
    ) -> None:
        self.how, self.real, self.networks, self.run = how, real, networks, run
        self.transform, outer = networks.transform, how.outer
        self.labels = how.labels.make(canvas)
        self.canvas = canvas.moved_behind(self.transform) if canvas.free else canvas
        if not canvas.free:  # the step size is one of what the kernel sees
            self.lr = how.descent.scaled(self.transform.step_share)
        self.platt = None
        if outer.outer_loss != "squared_error":
            self.loss = outer.loss_for(real.counts)
            self.platt = torch.zeros((), device=canvas.labels.device, requires_grad=True)
        self.rates = {**how.labels.rates, "platt": Rate("lr_platt", outer.lr_platt)}
        self.groups = [real.of_class(label) for label in range(real.num_classes)]

    def leaves(self) -> dict[str, Tensor]:
        """The targets, and the logarithm of the prediction's scale."""
        return self.labels.leaves() | ({} if self.platt is None else {"platt": self.platt})

    def positions(self, step: int) -> Tensor:
        """Return which real images (b,) a step predicts."""
        draw = self.run.generator("real", step)
        return self.how.outer.drawn(self.groups, self.how.batch_real, draw)

    @torch.no_grad()
    def real_images(self, rows: Tensor) -> Tensor:
        """Return the real images (b, c, h, w) at ``rows`` behind the transform."""
        return self.transform.forward(self.real.batch(rows, self.run.device))

    def support(self, canvas: Canvas) -> tuple[Tensor, Tensor]:
        """Return from what is predicted: images (n, c, h, w) behind the transform, targets."""
        return canvas.seen(self.transform), self.labels.targets()

    def kernels(self, step: int, t: Tensor, s: Tensor, piece: int) -> tuple[Tensor, Tensor]:
        """Return K_ss (n, n) and K_ts (b, n) of images behind the transform."""
        raise NotImplementedError

    def features(
        self, see: Callable[[], Any], images: Tensor, piece: int, *, stays: bool = False
    ) -> Tensor:
        """Return the features (n, d) of images, as ``see()`` has them, ``piece`` at a time.

        Of those with a gradient the graph of one piece exists at a time: it is built again in the
        backward pass, for which ``see()`` is asked anew. Where the network ``stays`` as it is until
        then, a graph that fits is kept.
        """

        def look(part: Tensor) -> Tensor:
            found: Tensor = see().seen(part)
            return found

        if not images.requires_grad:
            with torch.no_grad():
                return torch.cat([look(part) for part in images.split(piece)])
        if stays and len(images) <= piece:
            return look(images)
        parts = [
            checkpoint(look, part, use_reentrant=False, preserve_rng_state=False)
            for part in images.split(piece)
        ]
        return torch.cat(parts)

    def at_a_time(self) -> int:
        """Return of how many real images features are taken at once."""
        return 1024 if self.run.on_gpu else CPU_CHUNK

    def error(self, prediction: Tensor, rows: Tensor) -> Tensor:
        """Return the outer loss of the prediction (b, K) of real images, scalar."""
        labels = self.real.labels[rows]
        if self.platt is None:
            goal = self.goal(centred(labels, self.canvas.classes).to(prediction))
            return 0.5 * (prediction - goal).square().mean()
        logits = self.platt.double().exp() * prediction
        return self.loss(logits, labels.to(prediction.device)).mean()

    def goal(self, goal: Tensor) -> Tensor:
        """Return the targets of real images as the method has them; one-hot less 1 / K here."""
        return goal

    def terms(self, step: int, canvas: Canvas, piece: int) -> Iterator[Term]:
        """One error of the whole set."""
        rows = self.positions(step)
        t = self.real_images(rows)
        s, targets = self.support(canvas)
        k_ss, k_ts = self.kernels(step, t, s, piece)
        prediction = kernel_regression(k_ss, k_ts, targets, self.how.reg)
        yield Term("regression", self.error(prediction, rows))

    @torch.no_grad()
    def predicted(self, images: Tensor, looks: int = 1) -> Tensor:
        """Return what kernel regression from the set, as it is, says of RGB images (n, K), float64.

        The score that these methods were published with beside that of a network. ``looks``: under
        the kernels of so many steps after the last, whose predictions are averaged: new networks
        (RFAD), some of the pool (FRePo), always the same (KIP).
        """
        t = self.transform.forward(images.to(self.run.device))
        (s, targets), last = self.support(self.canvas), self.how.descent.steps
        found = []
        for step in range(last, last + looks):
            k_ss, k_ts = self.kernels(step, t, s, self.at_a_time())
            found.append(kernel_regression(k_ss, k_ts, targets, self.how.reg))
        return torch.stack(found).mean(0)

    def image_bytes(self) -> int:
        """Measured with one image."""
        return self.networks.at(0).image_bytes(self.canvas.pictures()[:1])

    def pieces(self, run: Run) -> int:
        """The units are images whose features are in the making, not classes."""
        return max(1, run.budget.step // self.image_bytes())

    def outcome(self, canvas: Canvas) -> dict[str, Any]:
        """Images, and the targets where they were learned."""
        return super().outcome(canvas) | self.labels.outcome()
