"""Differentiable augmentation (DSA) and CutMix, batched, with parameters drawn as tensors.

Two published rules share the name "DSA". The rule "dc" applies one of the listed operations to the
whole batch (DC, DSA, DM, IDM, MTT); the rule "idc" applies flip, colour, one of crop, scale and
rotate, and cutout, each if listed (IDC, DREAM, M3D, NCFM). Both draw from the same ranges.

``draw`` and ``apply`` are separate so that real and synthetic images can share one draw (Siamese
augmentation), and so that a draw can be stored beside whatever was computed with it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from potstill.run import InputError, nearest
from potstill.run.fields import OneOf, check_value

__all__ = ["DSA", "OPERATIONS", "Rule", "cutmix", "moved", "reach_of"]

OPERATIONS = ("color", "crop", "cutout", "flip", "scale", "rotate")
Rule = Annotated[str, OneOf("dc", "idc")]
GEOMETRIC = ("crop", "scale", "rotate")  # the rule "idc" applies exactly one of those listed


@dataclass(frozen=True)
class DSA:
    """Differentiable Siamese augmentation (Zhao and Bilen, ICML 2021), applied after normalisation.

    Example:
        >>> dsa = DSA.parse("color_crop_cutout", rule="idc")
        >>> params = dsa.draw(1, (32, 32), torch.Generator().manual_seed(0), siamese=True)
        >>> dsa.apply(torch.rand(5, 3, 32, 32), params).shape
        torch.Size([5, 3, 32, 32])

    Raises:
        InputError: an operation or the rule is unknown, or an operation is listed twice.
    """

    ops: tuple[str, ...]
    rule: str = "dc"  # "dc": one operation per call; "idc": flip, colour, one geometric, cutout
    brightness: float = 1.0  # x + (u - 0.5) * brightness, u uniform in [0, 1)
    saturation: float = 2.0  # factor u * saturation about each pixel's channel mean
    contrast: float = 0.5  # factor u + contrast about each image's mean
    crop: float = 0.125  # largest shift as a share of the side, rounded half up: 4 of 32 pixels
    cutout: float = 0.5  # side of the blank square as a share of the side: 16 of 32 pixels
    flip: float = 0.5  # probability of a horizontal flip
    scale: float = 1.2  # both axes uniform in [1 / scale, scale]
    rotate: float = 15.0  # largest angle in degrees
    align_corners: bool = False  # sampling grid of scale and rotate; True in MTT's code family

    def __post_init__(self) -> None:
        for op in self.ops:
            if op not in OPERATIONS:
                raise InputError(f"augment is {self.name!r} with {op!r}{nearest(op, OPERATIONS)}")
        if len(set(self.ops)) < len(self.ops):
            raise InputError(f"augment is {self.name!r}; list each operation once")
        check_value("augment_rule", self.rule, Rule)

    @staticmethod
    def parse(text: str, rule: str = "dc", **ranges: Any) -> DSA:
        """Read operations joined by ``_``, e.g. ``"color_crop_cutout"``; ``"none"`` has none."""
        ops = () if text in ("", "none") else tuple(text.lower().split("_"))
        return DSA(ops, rule, **ranges)

    @property
    def name(self) -> str:
        """The operations as :meth:`parse` reads them."""
        return "_".join(self.ops) or "none"

    def without(self, *ops: str) -> DSA:
        """Return the same augmentation less some operations (IDC trains without cutout)."""
        return replace(self, ops=tuple(op for op in self.ops if op not in ops))

    def draw(
        self,
        n: int,
        size: tuple[int, int],
        generator: torch.Generator,
        siamese: bool,
        device: torch.device | str = "cpu",
    ) -> dict[str, Tensor]:
        """Draw the parameters of one call for ``n`` images of ``size`` (height, width).

        Returns tensors of length k = 1 (``siamese``) or n for the operations this call applies, and
        for no others: ``color`` (k, 3) offset and two factors, ``crop`` (k, 2) shift in pixels,
        ``cutout`` (k, 2) centre, ``flip`` (k,) 0 or 1, ``scale`` (k, 2) factors, ``rotate`` (k,)
        radians.
        """
        ops = self._chosen(generator)
        k = 1 if siamese else n
        params = {op: self._parameters(op, k, size, generator) for op in OPERATIONS if op in ops}
        return {op: value.to(device) for op, value in params.items()}

    def apply(self, x: Tensor, params: dict[str, Tensor]) -> Tensor:
        """Transform images (n, c, h, w) as drawn; differentiable, without synchronising the host.

        Parameters of length 1 serve every image, so the result does not depend on the batch size.
        They may lie on another device than ``x``.
        """
        for op in ("flip", "color", *GEOMETRIC, "cutout"):
            if op in params:
                x = self._transform(op, x, params[op])
        return x

    def _chosen(self, generator: torch.Generator) -> tuple[str, ...]:
        """The operations of one call under the rule."""

        def one_of(ops: tuple[str, ...]) -> tuple[str, ...]:
            if len(ops) < 2:
                return ops
            draw = torch.randint(len(ops), (), generator=generator, device=generator.device)
            return (ops[int(draw)],)

        if self.rule == "dc":
            return one_of(self.ops)
        geometric = one_of(tuple(op for op in self.ops if op in GEOMETRIC))
        return geometric + tuple(op for op in self.ops if op not in GEOMETRIC)

    def _parameters(
        self, op: str, k: int, size: tuple[int, int], generator: torch.Generator
    ) -> Tensor:
        def uniform(*shape: int) -> Tensor:
            return torch.rand(shape, generator=generator, device=generator.device)

        def integers(ranges: Iterable[tuple[int, int]]) -> Tensor:  # both ends included
            columns = [
                torch.randint(low, high + 1, (k,), generator=generator, device=generator.device)
                for low, high in ranges
            ]
            return torch.stack(columns, dim=1)

        if op == "color":
            u = uniform(k, 3)
            slope = u.new_tensor([self.brightness, self.saturation, 1.0])
            return u * slope + u.new_tensor([-0.5 * self.brightness, 0.0, self.contrast])
        if op == "crop":
            return integers((-_part(self.crop, side), _part(self.crop, side)) for side in size)
        if op == "cutout":  # even squares are centred on corners of pixels: there is one more
            return integers((0, side - _part(self.cutout, side) % 2) for side in size)
        if op == "flip":
            return (uniform(k) < self.flip).to(torch.uint8)
        if op == "scale":
            return uniform(k, 2) * (self.scale - 1 / self.scale) + 1 / self.scale
        return torch.deg2rad((2 * uniform(k) - 1) * self.rotate)

    def _transform(self, op: str, x: Tensor, value: Tensor) -> Tensor:
        if op == "crop":
            return _Shift.apply(x, value, tuple(_part(self.crop, side) for side in x.shape[2:]))
        value = value.to(x.device)
        if op == "flip":
            return torch.where(value.bool()[:, None, None, None], x.flip(-1), x)
        if op == "color":
            return _color(x, value)
        if op == "cutout":
            return x * _outside_square(value, x, self.cutout)
        value = value.to(x.dtype)
        if op == "scale":
            theta = torch.diag_embed(value.flip(1))  # the grid's first coordinate runs along rows
        else:
            cos, sin = value.cos(), value.sin()
            theta = torch.stack([torch.stack([cos, -sin], 1), torch.stack([sin, cos], 1)], 1)
        return _warp(x, theta, self.align_corners)


def reach_of(side: int) -> int:
    """Return by how many pixels a copy of an image of this side is moved at most: an eighth."""
    return max(1, side // 8)


def moved(images: Tensor, shifts: Tensor, mirrored: Tensor | None = None) -> Tensor:
    """Move images (n, c, h, w) by ``shifts`` (n, 2) whole pixels, border repeated; mirror some.

    ``shifts`` are down and right, within :func:`reach_of` the width; ``mirrored`` is (n,) bool.
    """
    reach, (high, wide) = reach_of(images.shape[-1]), images.shape[-2:]
    padded = F.pad(images, (reach,) * 4, mode="replicate")
    found = torch.stack(
        [
            image[:, reach + dy : reach + dy + high, reach + dx : reach + dx + wide]
            for image, (dy, dx) in zip(padded, shifts.tolist(), strict=True)
        ]
    )
    if mirrored is None:
        return found
    return torch.where(mirrored.to(found.device)[:, None, None, None], found.flip(-1), found)


def _part(share: float, side: int) -> int:
    """A share of a side in pixels, rounded half up."""
    return int(share * side + 0.5)


def _color(x: Tensor, value: Tensor) -> Tensor:
    """Brightness, saturation and contrast in turn, multiplied out to one pass.

    With m the pixel's channel mean and M the image's mean, c (s (x - m) + m + b - M - b) + M + b.
    """
    offset, saturation, contrast = value.to(x.dtype)[:, :, None, None, None].unbind(1)
    pixel = x.mean(dim=1, keepdim=True)
    image = pixel.mean(dim=(2, 3), keepdim=True)
    rest = contrast * (1 - saturation) * pixel + (1 - contrast) * image + offset
    return contrast * saturation * x + rest


class _Shift(torch.autograd.Function):
    """Move images by whole pixels with zero fill: out[y, x] = in[y + dy, x + dx].

    The adjoint of a shift is the opposite shift, so the backward needs no scatter.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, shift: Tensor, reach: tuple[int, int]) -> Tensor:
        if len(shift) == 1 and shift.device.type == "cpu":  # readable without synchronising
            dy, dx = shift[0].tolist()
            return F.pad(x, (-dx, dx, -dy, dy))
        high, wide = reach
        padded = F.pad(x, (wide, wide, high, high))
        windows = padded.unfold(2, x.shape[2], 1).unfold(3, x.shape[3], 1)  # (n, c, dy, dx, h, w)
        dy, dx = (shift + shift.new_tensor(reach)).to(x.device).expand(len(x), 2).unbind(1)
        return windows[torch.arange(len(x), device=x.device), :, dy, dx]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(inputs[1])
        ctx.reach = inputs[2]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (shift,) = ctx.saved_tensors
        return _Shift.apply(grad, -shift, ctx.reach), None, None


def _outside_square(centre: Tensor, x: Tensor, share: float) -> Tensor:
    """Mask (k, 1, h, w): 0 within the square about ``centre`` (k, 2), clipped at the border."""
    inside = []
    for axis, side in enumerate(x.shape[2:]):
        extent = _part(share, side)
        first = centre[:, axis, None] - extent // 2
        place = torch.arange(side, device=centre.device)
        inside.append((place >= first) & (place < first + extent))
    rows, columns = inside
    return (~(rows[:, :, None] & columns[:, None, :]))[:, None].to(x.dtype)


def _warp(x: Tensor, theta: Tensor, align_corners: bool) -> Tensor:
    """Sample bilinearly on the grid moved by ``theta`` (k, 2, 2), zeros outside."""
    theta = F.pad(theta, (0, 1))  # no translation: (k, 2, 3)
    grid = F.affine_grid(theta, [len(theta), *x.shape[1:]], align_corners=align_corners)
    grid = grid.expand(len(x), -1, -1, -1)
    return F.grid_sample(x, grid, padding_mode="zeros", align_corners=align_corners)


def cutmix(
    x: Tensor, targets: Tensor, generator: torch.Generator, probability: float = 0.5
) -> tuple[Tensor, Tensor]:
    """Paste one box of a shuffled batch into ``x`` (n, c, h, w) and mix ``targets`` (n, K) by area.

    One draw per batch (Yun et al., ICCV 2019): with ``probability`` a share of Beta(1, 1), a box
    about a uniform centre, clipped at the border, and a permutation of the batch. Rows of
    ``targets`` are probabilities, and stay so. The inputs are left as they are.
    """
    device = generator.device
    chance, across, down = torch.rand(3, generator=generator, device=device).tolist()
    if chance >= probability:
        return x, targets
    keep = float(torch._sample_dirichlet(torch.ones(2, device=device), generator=generator)[0])
    partner = torch.randperm(len(x), generator=generator, device=device).to(x.device)
    mixed, area = paste(x, x[partner], keep, down, across)
    return mixed, torch.lerp(targets, targets[partner], area)


def paste(
    x: Tensor, other: Tensor, keep: float, down: float, across: float
) -> tuple[Tensor, float]:
    """Return ``x`` (n, c, h, w) with a box of ``other`` in it, and the box's share of the area.

    Its share is 1 - ``keep`` before it is clipped; its centre lies at shares of the sides.
    """
    h, w = x.shape[2:]
    top, bottom, left, right = cut_box(keep, down, across, (h, w))
    mixed = x.clone()
    mixed[:, :, top:bottom, left:right] = other[:, :, top:bottom, left:right]
    return mixed, (bottom - top) * (right - left) / (h * w)


def cut_box(
    keep: float, down: float, across: float, size: Sequence[int]
) -> tuple[int, int, int, int]:
    """Return top, bottom, left and right of the box of :func:`paste` in images of ``size``."""
    (h, w), cut = size, (1 - keep) ** 0.5
    return *_clipped(int(down * h), int(cut * h), h), *_clipped(int(across * w), int(cut * w), w)


def _clipped(centre: int, extent: int, side: int) -> tuple[int, int]:
    """The interval of half-width ``extent // 2`` about ``centre`` within [0, side]."""
    return max(centre - extent // 2, 0), min(centre + extent // 2, side)
