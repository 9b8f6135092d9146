"""Faster second derivatives of convolution and instance norm.

Torch differentiates the backward of a group norm in many elementary steps, and the weight gradient
of a convolution by a convolution whose kernel is as large as the image. Written out, both take the
fused kernels of the first derivative. Measured on a CPU with 100 images: a seventh less time for
one step of the exact gradient, a sixth to a quarter less for one of TESLA's. First derivatives are
torch's own.

For one channel of one image with M pixels, mean μ and r = (variance + ε)^-½, instance norm is
y = γ x̂ + β, x̂ = r (x - μ), and its backward is g ↦ r γ P g with P v = v - ⟨v⟩ - x̂ ⟨v x̂⟩, ⟨⟩ the
mean over pixels. Since ∂x̂/∂x = r P, all derivatives of that are linear in the maps at hand, with
one coefficient per map, channel and image; the coefficients follow from means of products of maps.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode

__all__ = ["Curvature"]

_group_norm = torch.ops.aten.native_group_norm
_group_norm_backward = torch.ops.aten.native_group_norm_backward
_convolution_backward = torch.ops.aten.convolution_backward


class Curvature(TorchFunctionMode):
    """Within it, networks are built from the operations of this module where they apply.

    For a loss whose slopes in the parameters are taken with ``create_graph`` and differentiated
    once more; the images are not asked for in the first of the two.

    Args:
        images: what enters the network.
        parameters: whether the second derivative is asked for in the parameters, too.
    """

    def __init__(self, images: Tensor, parameters: bool = True) -> None:
        super().__init__()
        self.images, self.parameters = images, parameters

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs, answer = kwargs or {}, NotImplemented
        if func is F.group_norm:
            answer = self._group_norm(*args, **kwargs)
        elif func is torch.conv2d:
            answer = self._conv2d(*args, **kwargs)
        return func(*args, **kwargs) if answer is NotImplemented else answer

    def _group_norm(
        self,
        input: Tensor,
        num_groups: int,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        eps: float = 1e-5,
    ) -> Any:
        per_channel = input.ndim > 2 and num_groups == input.shape[1]
        if not per_channel or weight is None or bias is None or _autocast(input):
            return NotImplemented
        return _Norm.apply(input.contiguous(), weight, bias, eps)

    def _conv2d(
        self,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
    ) -> Any:
        if isinstance(padding, str) or input.ndim != 4 or _autocast(input):
            return NotImplemented
        pairs = ([v, v] if isinstance(v, int) else list(v) for v in (stride, padding, dilation))
        geometry = (*pairs, False, [0, 0], groups)
        first = input is self.images
        return _Convolution.apply(input, weight, bias, geometry, first, self.parameters)


def _autocast(x: Tensor) -> bool:
    return torch.is_autocast_enabled(x.device.type)


class _Norm(torch.autograd.Function):
    """Instance norm of x (n, c, ...) with scale and shift (c,)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, shift: Tensor, eps: float) -> Tensor:
        n, c, m = _sizes(x)
        y, mean, r = _group_norm(x, scale, shift, n, c, m, c, eps)
        ctx.save_for_backward(x, scale, mean, r)
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        return *_NormBackward.apply(g.contiguous(), *ctx.saved_tensors), None


class _NormBackward(torch.autograd.Function):
    """Gradients of instance norm in x, scale and shift, differentiable in g, x and scale."""

    @staticmethod
    def forward(
        ctx: Any, g: Tensor, x: Tensor, scale: Tensor, mean: Tensor, r: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        n, c, m = _sizes(x)
        ctx.save_for_backward(g, x, scale, mean, r)
        return _group_norm_backward(g, x, mean, r, scale, n, c, m, c, [True, True, True])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, u: Tensor, u_scale: Tensor, u_shift: Tensor) -> tuple[Any, ...]:
        g, x, scale, mean, r = ctx.saved_tensors
        n, c, m = _sizes(x)
        scale, u_scale, u_shift = (v.repeat(n) for v in (scale, u_scale, u_shift))
        shape, mean, r = x.shape, mean.flatten(), r.flatten()
        g, x, u = (v.contiguous().view(n * c, m) for v in (g, x, u))
        ux, u_mean = _means(u, x, mean, r)
        gx, g_mean = _means(g, x, mean, r)
        ug, _ = _means(u, g, torch.zeros_like(mean), torch.ones_like(r))
        cosine = ug - u_mean * g_mean - ux * gx  # ⟨u P g⟩
        d_scale = (m * r * cosine).view(n, c).sum(0)
        # in g: r γ P u + u_γ x̂ + u_β
        per_x = r * (u_scale - r * scale * ux)
        d_g = _sum((u, r * scale), (x, per_x), u_shift - r * scale * u_mean - mean * per_x)
        # in x: r (u_γ - r γ ⟨u x̂⟩) P g - r² γ ⟨g x̂⟩ P u - r² γ ⟨u P g⟩ x̂
        per_g, per_u = per_x, -r * r * scale * gx
        per_x = -r * (r * r * scale * cosine + per_g * gx + per_u * ux)
        rest = -per_g * g_mean - per_u * u_mean - per_x * mean
        d_x = _sum((u, per_u), (g, per_g), (x, per_x), rest)
        return d_g.view(shape), d_x.view(shape), d_scale, None, None


def _sizes(x: Tensor) -> tuple[int, int, int]:
    n, c = x.shape[:2]
    return n, c, x[0, 0].numel()


def _means(a: Tensor, b: Tensor, mean: Tensor, r: Tensor) -> tuple[Tensor, Tensor]:
    """Row means of a r (b - mean) and of a, for a and b (k, m): one pass of a fused kernel.

    It is the gradient in scale and shift of a norm with a group for each row.
    """
    (k, m), rows = a.shape, (1, *a.shape)
    statistics = (mean.view(1, k), r.view(1, k), None, 1, k, m, k, [False, True, True])
    _, product, plain = _group_norm_backward(a.view(rows), b.view(rows), *statistics)
    return product / m, plain / m


def _sum(first: tuple[Tensor, Tensor], *rest: Any) -> Tensor:
    """Sum of maps (k, m), each times its coefficients (k,), and of the coefficients at the end."""
    total = first[0] * first[1][:, None]
    for maps, coefficients in rest[:-1]:
        total.addcmul_(maps, coefficients[:, None])
    return total.add_(rest[-1][:, None])


class _Convolution(torch.autograd.Function):
    """Convolution of x (n, c, h, w) with a geometry as ``torch.convolution`` takes it."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Any, geometry: Any, first: bool, parameters: bool
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.has_bias, ctx.geometry, ctx.first, ctx.parameters = (
            bias is not None, geometry, first, parameters,
        )  # fmt: skip
        return torch.convolution(x, weight, bias, *geometry)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Any, ...]:
        x, weight = ctx.saved_tensors
        in_x, in_weight = ctx.needs_input_grad[:2]
        if torch.is_grad_enabled():  # the first derivative, in parameters only
            in_x = in_x and not ctx.first
        else:
            in_weight = in_weight and ctx.parameters
        wanted = [in_x, in_weight, in_weight and ctx.has_bias]
        slopes = _ConvolutionBackward.apply(g, x, weight, ctx.geometry, wanted, ctx.parameters)
        return *slopes, None, None, None


class _ConvolutionBackward(torch.autograd.Function):
    """Gradients of convolution in x, weight and bias, differentiable in g, x and weight."""

    @staticmethod
    def forward(
        ctx: Any, g: Tensor, x: Tensor, weight: Tensor, geometry: Any, wanted: Any, parameters: bool
    ) -> tuple[Any, ...]:
        ctx.save_for_backward(g, x, weight)
        ctx.set_materialize_grads(False)
        ctx.geometry, ctx.parameters = geometry, parameters
        d_x = _slope_in_x(g, x, weight, geometry) if wanted[0] else None
        return d_x, *_slopes_in_weight(g, x, weight, geometry, wanted[1:])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, u: Any, u_weight: Any, u_bias: Any) -> tuple[Any, ...]:
        g, x, weight = ctx.saved_tensors
        d_g = d_x = d_weight = None
        if u_weight is not None:
            d_g = torch.convolution(x, u_weight, u_bias, *ctx.geometry)
            if ctx.needs_input_grad[1]:
                d_x = _slope_in_x(g, x, u_weight, ctx.geometry)
        elif u_bias is not None:
            d_g = u_bias[:, None, None].expand_as(g)
        if u is not None:
            across = torch.convolution(u, weight, None, *ctx.geometry)
            d_g = across if d_g is None else d_g + across
            if ctx.parameters:
                d_weight, _ = _slopes_in_weight(g, u, weight, ctx.geometry, [True, False])
        return d_g, d_x, d_weight, None, None, None


def _slope_in_x(g: Tensor, x: Tensor, weight: Tensor, geometry: Any) -> Tensor:
    stride, padding, dilation, _, _, groups = geometry
    if x.device.type == "cpu" and x.shape[1] <= 4 and groups == 1:
        # torch's kernel computes a block of 16 channels; images have three
        columns = weight.flatten(1).T @ g.flatten(2)
        return F.fold(columns, x.shape[2:], weight.shape[2:], dilation, padding, stride)
    return _convolution_backward(g, x, weight, None, *geometry, [True, False, False])[0]


def _slopes_in_weight(
    g: Tensor, x: Tensor, weight: Tensor, geometry: Any, wanted: list[bool]
) -> tuple[Any, Any]:
    """Gradients in weight and bias, None where not wanted."""
    if not any(wanted):
        return None, None
    return _convolution_backward(g, x, weight, [len(weight)], *geometry, [False, *wanted])[1:]
