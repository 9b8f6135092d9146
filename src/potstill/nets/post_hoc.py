"""Correcting a classifier that was trained on a long tail, and keeping its norms within bounds.

Each correction takes a linear classifier and what it was trained on to another one. Write w_c and
b_c for its rows and biases, z for features, n_c for the images of class c and μ_c for the mean of
their features.

=====================  =============================================================================
``prior_subtraction``  b_c - log n_c / Σ n (Menon et al., ICLR 2021, eq. 9; Buda et al., 2018)
``tau_norm``           w_c / |w_c|^τ without biases, τ = 1 (Kang et al., ICLR 2020, eq. 5)
``lws``                f_c (w_c z + b_c), the f of least class-balanced loss (Kang et al., eq. 6)
``crt``                new w and b of least class-balanced loss (Kang et al., section 4.2)
``ncm``                the class of the nearest mean: w_c = μ_c, b_c = -|μ_c|^2 / 2 (Kang et al.)
=====================  =============================================================================

Kang et al. draw batches of balanced classes for 10 epochs. On features that rest, the loss that
such batches have on average is convex in crt and lws, and L-BFGS goes to its minimum without draws.
The trainings as published, on fresh views, are :mod:`potstill.experts.recipes`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from potstill.losses import adjust, cross_entropy
from potstill.nets.layers import Network, predict
from potstill.nets.training import Examples

__all__ = ["CORRECTIONS", "MaxNorm", "correct", "correct_"]

Classifier = tuple[Tensor, Tensor]  # weight (C, d), bias (C,)
_DECAY = 5e-4  # of the weights of crt, as in Kang et al.; without it separable classes have no end


def _prior_subtraction(
    weight: Tensor, bias: Tensor, features: Callable[[], Tensor], labels: Tensor
) -> Classifier:
    return weight, adjust(bias[None], labels.bincount(minlength=len(bias)))[0]


def _tau_norm(
    weight: Tensor, bias: Tensor, features: Callable[[], Tensor], labels: Tensor, tau: float = 1.0
) -> Classifier:
    return weight / weight.norm(dim=1, keepdim=True) ** tau, torch.zeros_like(bias)


def _lws(
    weight: Tensor, bias: Tensor, features: Callable[[], Tensor], labels: Tensor
) -> Classifier:
    scale, logits = torch.ones_like(bias), features().to(weight) @ weight.T + bias
    _minimise([scale], lambda: _balanced_mean(logits * scale, labels))
    return weight * scale[:, None], bias * scale


def _crt(
    weight: Tensor, bias: Tensor, features: Callable[[], Tensor], labels: Tensor
) -> Classifier:
    z, new, shift = features().to(weight), torch.zeros_like(weight), torch.zeros_like(bias)

    def loss() -> Tensor:
        return _balanced_mean(z @ new.T + shift, labels) + _DECAY / 2 * new.square().sum()

    _minimise([new, shift], loss)
    return new, shift


def _ncm(
    weight: Tensor, bias: Tensor, features: Callable[[], Tensor], labels: Tensor
) -> Classifier:
    z = features().to(weight)
    sums = torch.zeros_like(weight).index_add_(0, labels, z)
    means = sums / labels.bincount(minlength=len(bias)).clamp_min(1)[:, None]
    return means, -means.square().sum(1) / 2


CORRECTIONS: dict[str, Callable[..., Classifier]] = {
    "none": lambda weight, bias, features, labels: (weight, bias),
    "prior_subtraction": _prior_subtraction,
    "tau_norm": _tau_norm,
    "lws": _lws,
    "crt": _crt,
    "ncm": _ncm,
}


@torch.no_grad()
def correct(
    name: str, weight: Tensor, bias: Tensor, features: Callable[[], Tensor], labels: Tensor
) -> Classifier:
    """Return the weight (C, d) and bias (C,) that a correction makes of a classifier's.

    Args:
        name: of :data:`CORRECTIONS`.
        features: called where they are needed, (n, d) of what it was trained on.
        labels: (n,) int64 on the classifier's device, of every class at least one.
    """
    return CORRECTIONS[name](weight, bias, features, labels)


@torch.no_grad()
def correct_(network: Network, name: str, examples: Examples) -> None:
    """Correct the classifier of a network in place, by clean views of what it was trained on.

    Soft labels count as the class they favour; weights of images are not looked at.
    """
    weight, bias = network.classifier.weight, network.classifier.bias

    def features() -> Tensor:
        return predict(
            network, examples.images, examples.transform, device=weight.device, features=True
        )

    better = correct(name, weight, bias, features, examples.labels.to(weight.device))
    weight.copy_(better[0]), bias.copy_(better[1])


def _balanced_mean(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy averaged over each class's images, then over classes."""
    counts = labels.bincount(minlength=logits.shape[1])
    weights = 1 / (counts[labels] * (counts > 0).sum())
    return (weights * cross_entropy(logits, labels)).sum()


def _minimise(parameters: Sequence[Tensor], loss: Callable[[], Tensor]) -> None:
    """Move ``parameters`` in place to the minimum of a convex ``loss``."""
    for parameter in parameters:
        parameter.requires_grad_(True)
    search = torch.optim.LBFGS(
        parameters, max_iter=500, tolerance_grad=1e-6, line_search_fn="strong_wolfe"
    )

    @torch.enable_grad()
    def again() -> Tensor:
        search.zero_grad()
        value = loss()
        value.backward()
        return value

    search.step(again)
    for parameter in parameters:
        parameter.requires_grad_(False)


class MaxNorm:
    """Keep the rows of a classifier within a bound by their norms at the beginning.

    δ = min_c |w_c| + ``share`` (max_c |w_c| - min_c |w_c|); longer rows are cut to δ (Alshammari et
    al., CVPR 2022, eq. 4 and released code).
    """

    def __init__(self, weight: Tensor, share: float | None) -> None:
        """Look at ``weight`` (..., C, d); nothing is ever done where ``share`` is ``None``."""
        self.weight, self.bound = weight, None
        if share is not None:
            norms = weight.detach().norm(dim=-1, keepdim=True)
            least, most = norms.amin(-2, keepdim=True), norms.amax(-2, keepdim=True)
            self.bound = torch.lerp(least, most, share)

    @torch.no_grad()
    def project_(self) -> None:
        """Cut the rows that are too long, in place."""
        if self.bound is not None:
            norms = self.weight.norm(dim=-1, keepdim=True)
            self.weight.mul_((self.bound / norms.clamp_min(1e-12)).clamp(max=1))
