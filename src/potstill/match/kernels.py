"""Kernels, their closed forms and their spectral laws.

A continuous shift-invariant kernel with k(x, x) = 1 is the characteristic function of a probability
law on frequencies (Bochner), so each kernel below has a value, a Gram matrix, and an exact sampler.
All but "linear" are characteristic: their distance is zero only between equal distributions.
SDM and CSDM (arXiv 2603.01698) choose among them; "rbf" with length 1 is NCFM (CVPR 2025).

With r = |x - y| and s = r² / length²:

==============  =================================  ===============================================
name            value                              frequencies
==============  =================================  ===============================================
``rbf``         exp(-s/2)                          normal, deviation 1/length
``laplace``     exp(-√s)                           Student-t, 1 degree of freedom, scale 1/length
``matern32``    (1 + √(3s)) exp(-√(3s))            Student-t, 3 degrees of freedom
``matern52``    (1 + √(5s) + 5s/3) exp(-√(5s))     Student-t, 5 degrees of freedom
``rq``          (1 + s/2q)^-q; ``rq2`` has q = 2   √τ z, τ ~ Gamma(q, rate q length²)
``cauchy``      1 / (1 + s)                        √τ z, τ ~ Exponential(rate length²/2)
``laplace-l1``  exp(-|x - y|₁ / length)            independent Cauchy(0, 1/length)
``cauchy-l1``   Π 1 / (1 + (x - y)ⱼ² / length²)    independent Laplace(0, 1/length)
``a+b``         weighted mean of the values        each component in proportion to its weight
``linear``      x · y                              none
==============  =================================  ===============================================
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from operator import mul
from typing import NamedTuple

import torch
from torch import Tensor

from potstill.match.frequencies import gamma, gaussian_rows, to_cauchy, to_laplace
from potstill.run import InputError, nearest

__all__ = ["KERNELS", "Kernel", "kernel", "mixture", "squared_distance"]


class _Isotropic(NamedTuple):
    """A Gaussian scale mixture: its value of s, and the factor on a normal row of a Gamma draw."""

    value: Callable[[Tensor, float], Tensor]  # (s, shape)
    factor: Callable[[Tensor, float], Tensor]  # (standard Gamma draw, shape)


def _root(s: Tensor) -> Tensor:
    """Square root whose gradient at 0 is 0, not infinite."""
    return s.clamp_min(1e-20).sqrt()


def _matern(s: Tensor, shape: float) -> Tensor:
    t = _root(2 * shape * s)
    decay = torch.exp(-t)
    if shape == 0.5:
        return decay
    return (1 + t) * decay if shape == 1.5 else (1 + t + t * t / 3) * decay


_STUDENT = _Isotropic(_matern, lambda draw, shape: (shape / draw).sqrt())
_ISOTROPIC = {
    "laplace": _STUDENT,
    "matern32": _STUDENT,
    "matern52": _STUDENT,
    "rq": _Isotropic(
        lambda s, shape: (1 + s / (2 * shape)) ** -shape,
        lambda draw, shape: (draw / shape).sqrt(),
    ),
    "cauchy": _Isotropic(lambda s, shape: 1 / (1 + s), lambda draw, shape: (2 * draw).sqrt()),
}
_SHAPES = {"laplace": 0.5, "matern32": 1.5, "matern52": 2.5, "rq": 1.0, "cauchy": 1.0}
_PRODUCT = ("laplace-l1", "cauchy-l1")
KERNELS = ("rbf", *_ISOTROPIC, *_PRODUCT, "linear")


@dataclass(frozen=True)
class Kernel:
    """One kernel or a mixture; make it with :func:`kernel` or :func:`mixture`."""

    name: str
    length: float = 1.0  # length-scale, in the unit of the features
    shape: float = 1.0  # q of "rq"; smoothness ν of the Matérn family
    parts: tuple[Kernel, ...] = field(default=(), repr=False)
    weights: tuple[float, ...] = field(default=(), repr=False)

    def value(self, squared_distance: Tensor) -> Tensor:
        """Kernel of squared Euclidean distances, elementwise.

        Raises:
            InputError: the kernel is not a function of the Euclidean distance.
        """
        if self.parts:
            return self._mean([part.value(squared_distance) for part in self.parts])
        s = squared_distance / self.length**2
        if self.name == "rbf":
            return torch.exp(-0.5 * s)
        if self.name not in _ISOTROPIC:
            raise InputError(
                f"kernel is {self.name!r}, which no distance determines; use its Gram matrix"
            )
        return _ISOTROPIC[self.name].value(s, self.shape)

    def gram(self, x: Tensor, y: Tensor) -> Tensor:
        """Kernel matrix (..., n, m) of x (..., n, d) and y (..., m, d), differentiable.

        "cauchy-l1" holds n·m·d numbers at once; the others n·m.
        """
        if self.parts:
            return self._mean([part.gram(x, y) for part in self.parts])
        if self.name == "linear":
            return x @ y.mT
        if self.name == "laplace-l1":
            return torch.exp(-torch.cdist(x, y, p=1) / self.length)
        if self.name == "cauchy-l1":
            difference = (x[..., :, None, :] - y[..., None, :, :]) / self.length
            return torch.exp(-torch.log1p(difference.square()).sum(-1))
        return self.value(squared_distance(x, y))

    def frequencies(
        self, count: int, dim: int, generator: torch.Generator, orthogonal: bool = False
    ) -> Tensor:
        """Draw (count, dim) frequencies from the kernel's spectral law.

        ``orthogonal`` starts from orthogonal rows: the same law per row, and less variance of the
        estimated distance (over six times for "rbf", about twice for "matern52" and "cauchy-l1",
        little for heavier tails).

        Raises:
            InputError: the linear kernel, which has no spectral law.
        """
        if any(part.name == "linear" for part in self.parts or (self,)):
            raise InputError(
                "kernel is 'linear', which has no frequencies; match feature means instead "
                "or choose 'rbf'"
            )
        rows = gaussian_rows(count, dim, generator, orthogonal)
        if not self.parts:
            return self._shaped(rows, generator)
        # Systematic sampling: components share the rows out in proportion, unbiased by the offset.
        ends = torch.tensor(self.weights, dtype=torch.float64).cumsum(0)
        offset = torch.rand((), generator=generator, device=generator.device).cpu().double()
        chosen = torch.searchsorted(ends, (torch.arange(count) + offset) / count, right=True)
        shares = torch.bincount(chosen.clamp_max(len(self.parts) - 1), minlength=len(self.parts))
        pieces = rows.split(shares.tolist())
        shaped = [p._shaped(z, generator) for p, z in zip(self.parts, pieces, strict=True)]
        return torch.cat(shaped)

    def _mean(self, values: Sequence[Tensor]) -> Tensor:
        """The mean over parts by their weights."""
        return sum(map(mul, self.weights[1:], values[1:]), self.weights[0] * values[0])

    def _shaped(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        """Turn standard normal rows (k, d) into frequencies of this kernel, not a mixture."""
        if self.name in _PRODUCT:
            to_law = to_cauchy if self.name == "laplace-l1" else to_laplace
            return to_law(rows) / self.length
        if self.name in _ISOTROPIC:
            draw = gamma(self.shape, len(rows), generator).to(rows)
            rows = rows * _ISOTROPIC[self.name].factor(draw, self.shape)[:, None]
        return rows / self.length


def kernel(name: str, length: float = 1.0) -> Kernel:
    """Return a kernel by name, e.g. ``kernel("matern32", 0.5)`` or ``kernel("rbf+laplace")``.

    ``"rq2.5"`` is the rational quadratic with q = 2.5; ``+`` mixes kernels of equal weight.

    Raises:
        InputError: unknown name, or a length or shape that is not positive.
    """
    if not 0 < length < math.inf:
        raise InputError(f"kernel length is {length}; use a positive number")
    if "+" in name:
        return mixture([kernel(part.strip(), length) for part in name.split("+")])
    family, shape = name, _SHAPES.get(name, 1.0)
    if found := re.fullmatch(r"rq(\d+(?:\.\d+)?)", name):
        family, shape = "rq", float(found[1])
    if family not in KERNELS:
        raise InputError(f"kernel is {name!r}{nearest(name, KERNELS)}")
    if shape <= 0:
        raise InputError(f"kernel is {name!r}; use a positive number after 'rq'")
    return Kernel(family, float(length), shape)


def mixture(kernels: Sequence[Kernel], weights: Sequence[float] | None = None) -> Kernel:
    """Return the weighted mean of kernels, each with its own length; equal weights by default.

    Raises:
        InputError: no kernel, or weights that do not fit.
    """
    weights = [1.0] * len(kernels) if weights is None else list(weights)
    if not kernels or len(weights) != len(kernels) or min(weights) <= 0:
        raise InputError(f"weights are {weights}; give one positive weight for each kernel")
    total = float(sum(weights))
    pairs = [
        (weight / total * share, part)
        for weight, whole in zip(weights, kernels, strict=True)
        for share, part in zip(whole.weights or (1.0,), whole.parts or (whole,), strict=True)
    ]
    return Kernel(
        name="+".join(whole.name for whole in kernels),
        parts=tuple(part for _, part in pairs),
        weights=tuple(weight for weight, _ in pairs),
    )


def squared_distance(x: Tensor, y: Tensor) -> Tensor:
    """Squared distances (..., n, m) of x (..., n, d) and y (..., m, d), never negative."""
    squares = x.square().sum(-1)[..., :, None] + y.square().sum(-1)[..., None, :]
    return (squares - 2 * x @ y.mT).clamp_min(0)
