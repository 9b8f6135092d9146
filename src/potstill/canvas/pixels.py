"""The plain canvas: stored images are pixels in RGB 0-1, decoded whole or as tiles."""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from itertools import pairwise
from typing import Annotated, Any

import torch
from torch import Tensor

from potstill.canvas.tiled import joined, small_views, views
from potstill.data.transform import Transform
from potstill.run import InputError
from potstill.run.fields import OneOf, Range, admits

__all__ = [
    "Canvas",
    "Factor",
    "Formation",
    "canvas_spec",
    "check_spec",
    "decode_images",
    "for_people",
    "tiles_per_image",
    "views_per_image",
]

Factor = Annotated[int, Range(1, 8)]  # tiles per side of a stored image
Formation = Annotated[str, OneOf("single", "multi", "subsampled")]


def canvas_spec(factor: int = 1, formation: str = "single") -> dict[str, Any]:
    """Return how stored images become training images, as it stands in an artifact."""
    if factor == 1 and formation != "subsampled":
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
        raise InputError(
            f"decode formation is {formation!r}; use 'single', 'multi' or 'subsampled'"
        )


def views_per_image(spec: Mapping[str, Any]) -> int:
    """Return how many training images one stored image yields."""
    if spec["kind"] == "pixels":
        return 1
    if spec["formation"] == "multi":
        return sum(f * f for f in range(1, spec["factor"] + 1))
    return tiles_per_image(spec)


def tiles_per_image(spec: Mapping[str, Any]) -> int:
    """Return how many real images a mosaic in the form of a stored image holds."""
    if spec["kind"] == "pixels":
        return 1
    return spec["factor"] ** 2 * (2 if spec["formation"] == "subsampled" else 1)


def for_people(images: Tensor, labels: Tensor, spec: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """Return stored images (n, c, h, w) as pictures RGB 0-1, and the labels of these.

    What is stored is a picture already, save for tiles with subsampled colours: two mosaics each.
    """
    if spec.get("formation") != "subsampled":
        return images, labels
    small = small_views(images, spec["factor"], spec["formation"])
    pictures = joined(small.reshape(-1, spec["factor"] ** 2, *small.shape[2:]), spec["factor"])
    return pictures, labels.repeat_interleave(2)


def decode_images(
    images: Tensor,
    labels: Tensor,
    spec: Mapping[str, Any],
    *extras: Tensor | None,
    small: bool = False,
) -> tuple[Any, ...]:
    """Turn stored images into training images.

    Args:
        images: (n, c, h, w), RGB 0-1. labels: (n,).
        spec: see :func:`canvas_spec`.
        extras: further per-image tensors (n, ...) or None, repeated like the labels.
        small: as large as tiles are stored, instead of as large as a stored image.

    Returns:
        (n * v, c, h, w) images, (n * v,) labels and the repeated extras; the v views of an image
        stand in a row, so class-sorted images stay class-sorted.
    """
    check_spec(spec)
    if spec["kind"] == "pixels":
        return (images, labels, *extras)
    decoded = (small_views if small else views)(images, spec["factor"], spec["formation"])
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

    Attributes:
        behind: the transform behind which the images are kept, see :meth:`moved_behind`.
    """

    leaf = "images"  # name of the leaf that holds pixels
    rounds = 1  # how often the steps of a descent are taken

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
        self.images = images.detach().clone().requires_grad_(True)
        self.labels, self.spec, self.bounded = labels, spec, bounded
        self.behind: Transform | None = None
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

    @property
    def most(self) -> int:
        """Training images of the largest class."""
        return self.views * max(b - a for a, b in pairwise(self.starts))

    def to(self, device: str) -> Canvas:
        """Return the same canvas on another device."""
        moved = copy(self)
        moved.images = self.images.detach().to(device).requires_grad_(True)
        moved.labels = self.labels.to(device)
        return moved

    @property
    def leaf_labels(self) -> Tensor:
        """Class of each row of the leaves."""
        return self.labels

    @property
    def plain(self) -> bool:
        """Whether what is stored are the pixels that networks are shown, one image each."""
        return self.views == 1

    @property
    def free(self) -> bool:
        """Whether it can be moved behind a transform: plain, and no pixel has to stay in 0-1."""
        return self.plain and not self.bounded

    def moved_behind(self, transform: Transform) -> Canvas:
        """Return this canvas with its pixels as networks see them, without bounds.

        A step is then one of what networks see. Only for a :attr:`free` canvas.
        """
        moved = copy(self)
        moved.images = transform.forward(self.images.detach()).requires_grad_(True)
        moved.behind, moved.bounded = transform, False
        return moved

    def parameters(self) -> dict[str, Tensor]:
        """Return the leaves that are optimised, by name."""
        return {self.leaf: self.images}

    def pixel_parameters(self) -> list[Tensor]:
        """Return the leaves that hold pixels, (n, ...) each."""
        return list(self.parameters().values())

    def grow_(self, step: int) -> bool:
        """Bring the leaves into their form at ``step``; return whether they are others now."""
        return False

    def render(self, leaves: Mapping[str, Tensor]) -> Tensor:
        """Return the stored images, RGB (r, c, h, w), of rows of the leaves; differentiable."""
        images = leaves[self.leaf]
        return images if self.behind is None else self.behind.inverse(images)

    @torch.no_grad()
    def pictures(self, leaves: Mapping[str, Tensor] | None = None) -> Tensor:
        """Return the stored images as RGB, (n, c, h, w), of the canvas or of others of its kind."""
        return self.render(self.parameters() if leaves is None else leaves).detach()

    def rows(self, first: int = 0, last: int | None = None) -> slice:
        """Return the rows of the classes ``first <= c < last``."""
        return slice(self.starts[first], self.starts[self.classes if last is None else last])

    def decode(self, first: int = 0, last: int | None = None) -> tuple[Tensor, Tensor]:
        """Return training images, RGB, and labels of the classes ``first <= c < last``."""
        rows = self.rows(first, last)
        stored = self.render({name: leaf[rows] for name, leaf in self.parameters().items()})
        images, labels = decode_images(stored, self.labels[rows], self.spec)
        return images, labels

    def seen(self, transform: Transform, first: int = 0, last: int | None = None) -> Tensor:
        """Return the training images of the classes ``first <= c < last`` as networks see them."""
        if self.behind is None:
            return transform.forward(self.decode(first, last)[0])
        whole = first == 0 and last is None
        return self.images if whole else self.images[self.rows(first, last)]

    @torch.no_grad()
    def project_(self) -> None:
        """Clamp to [0, 1] where the method asks for it; called after every step."""
        if self.bounded:
            self.images.clamp_(0, 1)
