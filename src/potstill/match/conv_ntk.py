"""Kernels of infinitely wide convolutional ReLU networks, exactly, for small images.

A block is a 3x3 convolution with zero padding, a ReLU and a 2x2 average pooling; after the last one
all pixels go into one dense layer (KIP's second paper, Nguyen et al., NeurIPS 2021, and RFAD).
Since pooling mixes pixels, the covariance of every pixel p of one image with every pixel q of the
other is carried through (Novak et al., ICLR 2019; Arora et al., NeurIPS 2019). With v its values at
p = q of one image, in the "ntk" parameterisation,

    convolution   K_pq ← σ_w² mean_δ K_{p+δ, q+δ} + σ_b²
                  Θ_pq ← K_pq + σ_w² mean_δ Θ_{p+δ, q+δ}
    ReLU          K_pq ← √(v_p v_q) (sin θ + (π - θ) cos θ) / 2π,   Θ_pq ← Θ_pq (π - θ) / 2π
    pooling       means over the four times four pairs of pixels

and at the end K ← σ_w² mean_p K_pp + σ_b², Θ ← K + σ_w² mean_p Θ_pp, with θ the angle of
:mod:`potstill.match.ntk`. A pair of images of 8 pixels costs 4096 numbers per step of this, of 32
pixels a million. Float64 throughout.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.utils.checkpoint import checkpoint

from potstill.match.ntk import behind_relu
from potstill.run import InputError
from potstill.run.fields import Checked, NotNegative, OneOf, Positive, Range

__all__ = ["ConvNetwork"]

_LIVE = 12  # numbers that are alive at a time for each pair of pixels


@dataclass(frozen=True, kw_only=True)
class ConvNetwork(Checked):
    """The kernel of an infinitely wide ConvNet without norm.

    Example:
        >>> x = torch.ones(2, 1, 4, 4)
        >>> ConvNetwork()(x, x).shape
        torch.Size([2, 2])

    Raises:
        InputError: a field is out of range.
    """

    depth: Annotated[int, Range(1, 10)] = 1  # blocks; each halves the image
    weight_variance: Positive = 2.0  # σ_w², of W_std = √2
    bias_variance: NotNegative = 0.01  # σ_b², of b_std = 0.1
    kind: Annotated[str, OneOf("ntk", "nngp")] = "ntk"  # tangent kernel, or covariance of outputs

    def check(self, size: tuple[int, int]) -> None:
        """Refuse images (h, w) of which nothing is left after ``depth`` poolings."""
        if min(size) >> self.depth < 1:
            raise InputError(
                f"depth is {self.depth} for images of {size[0]}x{size[1]} pixels, which each block "
                "halves; use a smaller depth"
            )

    def __call__(self, x: Tensor, y: Tensor, chunk: int | None = None) -> Tensor:
        """Return the kernel matrix (n, m), float64, differentiable in x and y.

        Args:
            x: (n, c, h, w). y: (m, c, h, w).
            chunk: rows of x at a time, of which alone intermediate tensors exist, in the backward
                pass, too (they are computed again); None = all at once.

        Raises:
            InputError: images of different shapes, too small ones, or a chunk below 1.
        """
        if x.ndim != 4 or x.shape[1:] != y.shape[1:]:
            shapes = f"{tuple(x.shape)} and {tuple(y.shape)}"
            raise InputError(f"x and y have shapes {shapes}; use (n, c, h, w) and (m, c, h, w)")
        if chunk is not None and chunk < 1:
            raise InputError(f"chunk is {chunk}; use a positive number of rows or None")
        self.check((x.shape[2], x.shape[3]))
        x, y, most = x.double(), y.double(), chunk or len(x)
        of_y = self._in_parts(self._variances, most, y)
        of_x = of_y if x is y else self._in_parts(self._variances, most, x)
        if most >= len(x):
            return self._rows(x, *of_x, y, *of_y)
        return self._in_parts(self._rows, most, x, *of_x, rest=(y, *of_y))[0]

    def rows_within(self, budget: int, others: int, pixels: int) -> int:
        """Return how many rows of x, of images of so many ``pixels``, fit into ``budget`` bytes."""
        return max(1, budget // (8 * _LIVE * pixels**2 * max(1, others)))

    def _in_parts(
        self, work: Any, most: int, *of: Tensor, rest: tuple[Tensor, ...] = ()
    ) -> list[Tensor]:
        """What ``work`` makes of rows of ``of``, ``most`` at a time, each result joined."""
        parts = zip(*(value.split(most) for value in of), strict=True)
        graph = torch.is_grad_enabled() and any(v.requires_grad for v in (*of, *rest))
        options: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False}
        found = [
            checkpoint(work, *p, *rest, **options) if graph else work(*p, *rest) for p in parts
        ]
        whole = [one if isinstance(one, tuple) else (one,) for one in found]
        return [torch.cat(column) for column in zip(*whole, strict=True)]

    def _spread(self, k: Tensor) -> Tensor:
        """σ_w² times the mean over the nine shifts of both pixels, zero outside of the image."""
        for axis in (-4, -3):  # rows of both pixels, then columns
            sizes = [0] * 8
            for place in (axis, axis + 2):
                sizes[-2 * place - 2] = sizes[-2 * place - 1] = 1
            n, m = k.shape[axis], k.shape[axis + 2]
            wide = pad(k, sizes)
            k = sum(
                (wide.narrow(axis, d, n).narrow(axis + 2, d, m) for d in range(3)),
                start=torch.zeros((), dtype=k.dtype, device=k.device),
            )
        return self.weight_variance / 9 * k

    def _variances(self, x: Tensor) -> tuple[Tensor, ...]:
        """Variance of each pixel in front of each ReLU, (n, h, w) each."""
        k, found = torch.einsum("ncij,nckl->nijkl", x, x) / x.shape[1], []
        for _ in range(self.depth):
            k = self._spread(k) + self.bias_variance
            v = torch.einsum("nijij->nij", k)
            found.append(v)
            k = _pooled(behind_relu(k, v[..., None, None], v[:, None, None])[0])
        return tuple(found)

    def _rows(self, x: Tensor, *rest: Tensor) -> Tensor:
        """The kernel of some rows: ``rest`` are their variances, y and those of y."""
        of_x, y, of_y = rest[: self.depth], rest[self.depth], rest[self.depth + 1 :]
        k = torch.einsum("ncij,mckl->nmijkl", x, y) / x.shape[1]
        tangent = torch.zeros((), dtype=k.dtype, device=k.device)
        for place, (v_x, v_y) in enumerate(zip(of_x, of_y, strict=True)):
            k = self._spread(k) + self.bias_variance
            tangent = k + self._spread(tangent) if place and self.kind == "ntk" else k
            k, left = behind_relu(k, v_x[:, None, :, :, None, None], v_y[None, :, None, None])
            k = _pooled(k)
            if self.kind == "ntk":
                tangent = _pooled(tangent * (left / (2 * math.pi)))
        pixels = k.shape[2] * k.shape[3]
        k = self.weight_variance * torch.einsum("nmijij->nm", k) / pixels + self.bias_variance
        if self.kind == "nngp":
            return k
        return k + self.weight_variance * torch.einsum("nmijij->nm", tangent) / pixels


def _pooled(k: Tensor) -> Tensor:
    """Means over 2x2 pixels of both images; an odd last row or column is left out."""
    for axis in (-4, -3, -2, -1):
        half = k.shape[axis] // 2
        k = k.narrow(axis, 0, 2 * half).unflatten(axis, (half, 2)).mean(axis)
    return k
