"""Gradient matching: what a class's real and synthetic images would change in a network.

DC (Zhao, Mopuri & Bilen, ICLR 2021, arXiv 2006.05929) and DSA (ICML 2021, arXiv 2102.08259) take,
class by class, the gradient of the mean loss in a network's parameters on a real and on a synthetic
batch, and learn pixels for which both agree. Per layer, with a row g_i for each output unit,

    d(g, h) = Σ_layers Σ_i (1 - ⟨g_i, h_i⟩ / (‖g_i‖ ‖h_i‖ + 1e-6)),

over the layers' weights alone: the released code lets parameters with one axis (biases, scales and
shifts of norms) count nothing, so their gradients are not even computed here.

The last linear layer needs no automatic differentiation: with s the slopes of the loss in the
logits, its weight has the gradient sᵀz, its bias the sum of s, and the features z the slopes s W.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from potstill.losses import Loss, cross_entropy
from potstill.match.curvature import Curvature
from potstill.match.rollout import Forward, Params
from potstill.run import InputError
from potstill.run.fields import Batch, Checked, OneOf, check_value
from potstill.run.machine import CPU_CHUNK

__all__ = ["GradientMatching", "Layers", "Metric", "Side", "gradient_distance"]

Metric = Annotated[str, OneOf("rows", "cosine", "mse", "kernels", "kernels_l1")]
Layers = Annotated[str, OneOf("all", "body", "head")]
Side = tuple[Tensor, Tensor]  # images (n, c, h, w) as the network takes them, and targets
_FLOOR = 1e-6  # of the denominators, as released
_OF_WEIGHTS = ("rows", "kernels", "kernels_l1")  # to which parameters with one axis are nothing


def gradient_distance(
    real: Mapping[str, Tensor], synthetic: Mapping[str, Tensor], metric: str = "rows"
) -> Tensor:
    """Return the distance of two gradients by name, scalar, differentiable once in both.

    "rows" is DC's distance (released as "ours"), of rows (out, rest) of the parameters with two
    axes or more; "cosine" is 1 - the cosine of all values at once; "mse" is their squared
    distance, a sum as released; "kernels" is that of the parameters with two axes or more (IDC),
    "kernels_l1" the sum of their absolute differences (IDC on ImageNet).

    Raises:
        InputError: an unknown metric, or nothing to compare.
    """
    check_value("metric", metric, Metric)
    whole = metric not in _OF_WEIGHTS
    names = [name for name, value in synthetic.items() if whole or value.ndim > 1]
    if not names:
        raise InputError(f"metric is {metric!r}, for which the gradients hold no parameter")
    if metric == "rows":
        gaps = [_row_gaps(real[name].flatten(1), synthetic[name].flatten(1)) for name in names]
        return torch.cat(gaps).sum()
    a, b = (torch.cat([side[name].flatten() for name in names]) for side in (real, synthetic))
    if metric == "cosine":
        return _row_gaps(a[None], b[None]).sum()
    return (a - b).abs().sum() if metric == "kernels_l1" else (a - b).square().sum()


def _row_gaps(a: Tensor, b: Tensor) -> Tensor:
    """1 - cosine of each row of two (r, d), (r,)."""
    norms = torch.linalg.vector_norm(a, dim=1) * torch.linalg.vector_norm(b, dim=1)
    return 1 - (a * b).sum(1) / (norms + _FLOOR)


@dataclass(frozen=True, kw_only=True, eq=False)
class GradientMatching(Checked):
    """How gradients of one network are taken and compared.

    Batch norm has to stand in evaluation mode (DC freezes its statistics on real images first):
    parts of a batch would otherwise see statistics of their own.

    Example:
        >>> body = torch.nn.Flatten()
        >>> matching = GradientMatching(features=lambda parameters, x: body(x), layers="head")
        >>> network = {"classifier.weight": torch.eye(2, 4), "classifier.bias": torch.zeros(2)}
        >>> x, y = torch.ones(3, 1, 2, 2), torch.zeros(3, dtype=torch.long)
        >>> [d.item() < 1e-4 for d in matching.distances(network, [(x, y)], [(x, y)])]
        [True]

    Raises:
        InputError: a field is out of range.
    """

    features: Forward  # parameters and images (b, c, h, w) to what the classifier sees (b, d)
    loss: Loss = cross_entropy  # logits and targets to values (b,); its mean is differentiated
    metric: Metric = "rows"
    # "body": all but the classifier; "head": the classifier alone, without a backward pass
    layers: Layers = "all"
    chunk: Batch | None = None  # real images at a time; None = 64 on a CPU, all on a GPU
    head: tuple[str, str] = ("classifier.weight", "classifier.bias")  # names of the last layer

    def distances(
        self, parameters: Mapping[str, Tensor], real: Iterable[Side], synthetic: Iterable[Side]
    ) -> Iterator[Tensor]:
        """Yield the distance of each pair of batches, such as one per class, scalar.

        Differentiable once in the synthetic images and targets. The graph of a pair is built when
        it is asked for, so that a backward pass per pair holds one at a time.

        Args:
            parameters: of the network by name; constants here.
            real, synthetic: batches in the same order; drawn one by one, so generators will do.
        """
        for ours, theirs in zip(synthetic, real, strict=True):
            goal = self.real_gradient(parameters, *theirs)
            yield gradient_distance(goal, self.gradient(parameters, *ours), self.metric)

    def real_gradient(
        self, parameters: Mapping[str, Tensor], images: Tensor, targets: Tensor
    ) -> Params:
        """Return the gradient of the mean loss by name, without a graph, a chunk at a time."""
        size = self.chunk or (CPU_CHUNK if images.device.type == "cpu" else len(images))
        total: Params = {}
        for x, t in zip(images.detach().split(size), targets.detach().split(size), strict=True):
            found = self._gradient(parameters, x, t, len(images), graph=False)
            total = {name: total[name].add_(g) for name, g in found.items()} if total else found
        return total

    def gradient(self, parameters: Mapping[str, Tensor], images: Tensor, targets: Tensor) -> Params:
        """Return the gradient of the mean loss by name, differentiable in images and targets."""
        return self._gradient(parameters, images, targets, len(images), graph=True)

    def _gradient(
        self, parameters: Mapping[str, Tensor], x: Tensor, targets: Tensor, total: int, graph: bool
    ) -> Params:
        """A batch's share of the gradient of a mean over ``total`` images."""
        theta = {name: value.detach() for name, value in parameters.items()}
        weight, bias = self.head
        inner = [name for name in theta if name not in self.head and self._counts(theta[name])]
        if self.layers == "head":
            inner = []
        for name in inner:
            theta[name].requires_grad_()
        with torch.set_grad_enabled(graph or bool(inner)):
            with Curvature(x, parameters=False) if graph and inner else nullcontext():
                z = self.features(theta, x)
            s = self._slope(torch.nn.functional.linear(z, theta[weight], theta[bias]), targets)
            s = s / total
            found = {}
            if inner:
                pull = s @ theta[weight]
                pull = pull if graph else pull.detach()
                slopes = torch.autograd.grad(
                    z, [theta[name] for name in inner], pull, create_graph=graph,
                    materialize_grads=True,
                )  # fmt: skip
                found = dict(zip(inner, slopes, strict=True))
            if self.layers != "body":
                found[weight] = s.T @ z
                if self._counts(theta[bias]):
                    found[bias] = s.sum(0)
        return found if graph else {name: value.detach() for name, value in found.items()}

    def _slope(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Slopes of the sum of losses in the logits, with their graph if there is one."""
        graph = torch.is_grad_enabled()
        with torch.enable_grad():
            own = logits if logits.requires_grad else logits.detach().requires_grad_()
            (s,) = torch.autograd.grad(self.loss(own, targets).sum(), own, create_graph=graph)
        return s

    def _counts(self, parameter: Tensor) -> bool:
        return self.metric not in _OF_WEIGHTS or parameter.ndim > 1
