"""Kernels of infinitely wide fully connected ReLU networks, and ridge regression with them.

KIP (Nguyen, Chen & Lee, ICLR 2021, arXiv 2011.00050) learns images S on which kernel ridge
regression predicts the real images T. Its kernel is the neural tangent kernel (Jacot et al.,
NeurIPS 2018), in the "ntk" parameterisation: a layer of d inputs is σ_w W x / √d + σ_b b with
standard normal W and b. With k the covariance of a layer's outputs (the NNGP kernel) and Θ the
tangent kernel, both σ_w² ⟨x, x'⟩ / d + σ_b² before the first ReLU, each ReLU and the layer after it
make (Cho & Saul, NeurIPS 2009)

    k ← σ_w² √(k_xx k_x'x') (sin θ + (π - θ) cos θ) / 2π + σ_b²,    cos θ = k / √(k_xx k_x'x'),
    Θ ← k + σ_w² (π - θ) / 2π · Θ.

Everything is float64: with the published ridge of 1e-6 a solve in float32 has few digits left.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from potstill.run import InputError
from potstill.run.fields import Checked, NotNegative, OneOf, Positive, Range

__all__ = ["WideNetwork", "behind_relu", "kernel_regression"]

_EQUAL = 1e-14  # a cosine as close to ±1 as this is ±1: the rest is rounding of dot products
_TINY = 1e-30  # least variance of an output, for zero images without biases


@dataclass(frozen=True, kw_only=True)
class WideNetwork(Checked):
    """The kernel of an infinitely wide fully connected ReLU network; KIP's FC1 by default.

    Example:
        >>> x = torch.ones(2, 12)
        >>> WideNetwork()(x, x).shape
        torch.Size([2, 2])

    Raises:
        InputError: a field is out of range.
    """

    depth: Annotated[int, Range(1, 100)] = 1  # hidden layers
    weight_variance: Positive = 2.0  # σ_w², of W_std = √2
    bias_variance: NotNegative = 0.01  # σ_b², of b_std = 0.1
    kind: Annotated[str, OneOf("ntk", "nngp")] = "ntk"  # tangent kernel, or covariance of outputs

    def __call__(self, x: Tensor, y: Tensor, chunk: int | None = None) -> Tensor:
        """Return the kernel matrix (n, m), float64, differentiable in x and y.

        The tangent kernel has a kink where x = y; its slope there is taken to be the mean of both
        sides, which is that of the norms alone.

        Args:
            x: (n, ...), flattened. y: (m, ...), of as many values.
            chunk: rows of x at a time, of which alone intermediate matrices exist, in the
                backward pass, too (they are computed again); None = all at once.

        Raises:
            InputError: rows of different lengths, or a chunk that is no positive number.
        """
        x, y = x.flatten(1).double(), y.flatten(1).double()
        if x.shape[1] != y.shape[1] or not x.shape[1]:
            raise InputError(
                f"y has {y.shape[1]} values per image and x has {x.shape[1]}; make them equal"
            )
        if chunk is not None and chunk < 1:
            raise InputError(f"chunk is {chunk}; use a positive number of rows or None")
        if chunk is None or chunk >= len(x):
            return self._rows(x, y)
        rows = x.split(chunk)
        if not (torch.is_grad_enabled() and (x.requires_grad or y.requires_grad)):
            return torch.cat([self._rows(part, y) for part in rows])
        parts = [
            checkpoint(self._rows, part, y, use_reentrant=False, preserve_rng_state=False)
            for part in rows
        ]
        return torch.cat(parts)

    def diagonal(self, x: Tensor) -> Tensor:
        """Return the kernel of each image of x (n, ...) with itself, (n,), float64."""
        k = self._first(x.flatten(1).double().square().mean(1))
        tangent = k
        for _ in range(self.depth):
            k = self._first(k / 2)
            tangent = k + self.weight_variance / 2 * tangent
        return tangent if self.kind == "ntk" else k

    def _first(self, moment: Tensor) -> Tensor:
        """What a layer makes of the second moment of its inputs."""
        return self.weight_variance * moment + self.bias_variance

    def _rows(self, x: Tensor, y: Tensor) -> Tensor:
        """The kernel of some rows, all at once."""
        of_x, of_y = (self._first(z.square().mean(1)) for z in (x, y))
        k = tangent = self._first(x @ y.T / x.shape[1])
        for _ in range(self.depth):
            behind, rest = behind_relu(k, of_x[:, None], of_y)
            k = self._first(behind)
            if self.kind == "ntk":
                tangent = k + self.weight_variance * rest / (2 * math.pi) * tangent
            of_x, of_y = self._first(of_x / 2), self._first(of_y / 2)
        return tangent if self.kind == "ntk" else k


def behind_relu(k: Tensor, of_x: Tensor, of_y: Tensor) -> tuple[Tensor, Tensor]:
    """Return the covariance behind a ReLU of numbers with covariance ``k``, and π - θ.

    θ is their angle, and (π - θ) / 2π the covariance of the ReLU's slopes.

    Args:
        of_x, of_y: variances of the numbers, of shapes that go with that of ``k``.
    """
    scale = (of_x.clamp_min(_TINY) * of_y.clamp_min(_TINY)).sqrt()
    cosine = (k / scale).clamp(-1, 1)
    angle, sine = _angle(cosine)
    rest = math.pi - angle
    return scale * (sine + rest * cosine) / (2 * math.pi), rest


def _angle(cosine: Tensor) -> tuple[Tensor, Tensor]:
    """Angle and sine, with a slope of 0 instead of infinity at ±1."""
    inside = cosine.abs() < 1 - _EQUAL
    safe = torch.where(inside, cosine, 0.0)
    ends = torch.where(cosine.detach() > 0, 0.0, math.pi)
    angle = torch.where(inside, safe.acos(), ends)
    return angle, torch.where(inside, ((1 - safe) * (1 + safe)).sqrt(), 0.0)


def kernel_regression(k_ss: Tensor, k_ts: Tensor, y_s: Tensor, reg: float | Tensor) -> Tensor:
    """Predict y_t = K_ts (K_ss + λ I)⁻¹ y_s, (m, C), float64, with λ = reg · trace(K_ss) / n.

    KIP's ridge: relative to the mean of the diagonal, so that it has no unit. Differentiable in
    every tensor.

    Args:
        k_ss: (n, n), symmetric. k_ts: (m, n). y_s: (n, C).
        reg: at least 0; 1e-6 in KIP and FRePo, 5e-3 in RFAD.

    Raises:
        InputError: shapes that do not fit, reg below 0, or a matrix that is singular or not finite.
    """
    n = len(k_ss)
    if k_ss.shape != (n, n) or k_ts.shape[1:] != (n,) or y_s.ndim != 2 or len(y_s) != n:
        shapes = ", ".join(str(tuple(value.shape)) for value in (k_ss, k_ts, y_s))
        raise InputError(f"k_ss, k_ts and y_s have shapes {shapes}; use (n, n), (m, n) and (n, C)")
    share = float(reg.detach() if isinstance(reg, Tensor) else reg)
    if not share >= 0:
        raise InputError(f"reg is {share}; use 0 or a positive number")
    k_ss, k_ts, y_s = k_ss.double(), k_ts.double(), y_s.double()
    mean = k_ss.diagonal().mean()
    factor, failed = torch.linalg.cholesky_ex(k_ss + torch.diag((reg * mean).expand(n)))
    # A pivot that small is what rounding left of zero, and the solution would be noise.
    least = float(factor.detach().diagonal().square().min()) if n else 0.0
    if int(failed) or not least > n * torch.finfo(torch.float64).eps * float(mean.detach()):
        raise InputError(
            f"reg is {share}, with which the kernel of {n} images is singular or not finite "
            "(equal images?); use a larger reg"
        )
    return k_ts @ torch.cholesky_solve(y_s, factor)
