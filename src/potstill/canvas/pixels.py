"""The plain canvas: stored images are pixels in RGB 0-1, decoded whole or as tiles."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import torch
from torch import Tensor

from potstill.canvas.tiled import views
from potstill.run import InputError
from potstill.run.fields import OneOf, Range, admits

__all__ = [
    "Canvas",
    "Factor",
    "Formation",
    "canvas_spec",
    "check_spec",
    "decode_images",
    "views_per_image",
]

Factor = Annotated[int, Range(1, 8)]  # tiles per side of a stored image
Formation = Annotated[str, OneOf("single", "multi")]


def canvas_spec(factor: int = 1, formation: str = "single") -> dict[str, Any]:
    """Return how stored images become training images, as it stands in an artifact."""
    if factor == 1:
        return {"kind": "pixels"}
    spec = {"kind": "tiled", "factor": factor, "formation": formation}
    check_spec(spec)
    return spec


def check_spec(spec: Mapping[str, Any]) -> None:
    """Raise InputError unless ``spec`` is one this version can decode."""
    kind = spec.get("kind")
    if kind == "pixels":
        return
    if kind != "tiled":
        raise InputError(f"decode kind is {kind!r}; this version knows 'pixels' and 'tiled'")
    factor, formation = spec.get("factor"), spec.get("formation")
    if not admits(Factor, factor):
        raise InputError(f"decode factor is {factor!r}; use an integer from 1 to 8")
    if not admits(Formation, formation):
        raise InputError(f"decode formation is {formation!r}; use 'single' or 'multi'")


def views_per_image(spec: Mapping[str, Any]) -> int:
    """Return how many training images one stored image yields."""
    if spec["kind"] == "pixels":
        return 1
    factor = spec["factor"]
    return factor**2 if spec["formation"] == "single" else sum(f * f for f in range(1, factor + 1))


def decode_images(
    images: Tensor, labels: Tensor, spec: Mapping[str, Any], *extras: Tensor | None
) -> tuple[Any, ...]:
    """Turn stored images into training images.

    Args:
        images: (n, c, h, w), RGB 0-1. labels: (n,).
        spec: see :func:`canvas_spec`.
        extras: further per-image tensors (n, ...) or None, repeated like the labels.

    Returns:
        (n * v, c, h, w) images, (n * v,) labels and the repeated extras; the v views of an image
        stand in a row, so class-sorted images stay class-sorted.
    """
    check_spec(spec)
    if spec["kind"] == "pixels":
        return (images, labels, *extras)
    decoded = views(images, spec["factor"], spec["formation"])
    v = decoded.shape[1]
    repeated = [None if e is None else e.repeat_interleave(v, dim=0) for e in (labels, *extras)]
    return (decoded.flatten(0, 1), *repeated)


class Canvas:
    """What a matching method descends on: class-sorted stored images and how they decode.

    Args:
        images: (n, c, h, w) float, RGB 0-1, class-sorted. labels: (n,) int64, ascending.
        classes: number of classes; every class has at least one image.
        spec: see :func:`canvas_spec`.
        bounded: keep pixels in [0, 1] after every step.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        classes: int,
        spec: dict[str, Any],
        *,
        bounded: bool = True,
    ) -> None:
        check_spec(spec)
        self.images = images.clone().requires_grad_(True)
        self.labels = labels
        self.spec = spec
        self.bounded = bounded
        counts = torch.bincount(labels, minlength=classes).tolist()
        if 0 in counts:
            raise InputError(f"class {counts.index(0)} has no synthetic image; raise ipc")
        self.starts = [0, *torch.tensor(counts).cumsum(0).tolist()]

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self.starts) - 1

    @property
    def views(self) -> int:
        """Training images per stored image."""
        return views_per_image(self.spec)

    def to(self, device: str) -> Canvas:
        """Return the same canvas on another device."""
        moved = type(self).__new__(type(self))
        moved.__dict__.update(self.__dict__)
        moved.images = self.images.detach().to(device).requires_grad_(True)
        moved.labels = self.labels.to(device)
        return moved

    def parameters(self) -> dict[str, Tensor]:
        """Return the leaves that are optimised, by name."""
        return {"images": self.images}

    def pixel_parameters(self) -> list[Tensor]:
        """Return the leaves that hold pixels, (n, ...) each."""
        return [self.images]

    def grow_(self, step: int) -> bool:
        """Bring the leaves into their form at ``step``; return whether they are others now."""
        return False

    def pictures(self) -> Tensor:
        """Return the stored images as RGB, (n, c, h, w)."""
        return self.images.detach()

    def decode(self, first: int = 0, last: int | None = None) -> tuple[Tensor, Tensor]:
        """Return training images and labels of the classes ``first <= c < last``."""
        last = self.classes if last is None else last
        rows = slice(self.starts[first], self.starts[last])
        images, labels = decode_images(self.images[rows], self.labels[rows], self.spec)
        return images, labels

    @torch.no_grad()
    def project_(self) -> None:
        """Clamp to [0, 1] where the method asks for it; called after every step."""
        if self.bounded:
            self.images.clamp_(0, 1)
