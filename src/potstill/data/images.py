"""The typed box around real data: uint8 images, labels, class names, and where they came from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from potstill.data import longtail, store
from potstill.data.classes import check_classes, check_labels, check_size
from potstill.data.shown import MOST_SHOWN, html_of, sizes
from potstill.run import InputError, Run

__all__ = ["ImageSet", "parse_fold"]


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Labelled images, immutable. Selections return new sets and remember how they were made.

    >>> train = potstill.load("digits").long_tailed(50)
    >>> train.counts, train.imbalance_factor
    ((128, 86, 55, 36, 23, 15, 9, 6, 4, 2), 64.0)

    Raises:
        InputError: wrong dtype or shape, label out of range, empty class, fewer than 2 classes.
    """

    images: Tensor  # uint8 (n, c, h, w), c is 1 (grey) or 3 (RGB); to be read through `rows`
    labels: Tensor  # int64 (n,), positions in `classes`
    classes: tuple[str, ...]
    source: str  # what the user named: "digits", a folder, a hub name
    indices: Tensor  # int64 (n,), row numbers in the source's split
    fingerprint: str  # 16 hexadecimal digits of the decoded rows, before any selection
    history: tuple[dict[str, Any], ...] = ()  # one JSON-like record per selection, or of a scale
    mapped: store.Mapped | None = None  # the checked file behind `images`; None: memory
    partial: bool = False  # a test set, which may lack classes: it is scored over those it has

    def __post_init__(self) -> None:
        object.__setattr__(self, "classes", tuple(self.classes))
        object.__setattr__(self, "history", tuple(self.history))
        self.check()

    def check(self) -> None:
        """Raise InputError unless shapes, dtypes, label range and class sizes are right."""
        images, n = self.images, len(self.labels)
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3):
            raise InputError(
                f"images are {images.dtype} of shape {tuple(images.shape)}; "
                "give uint8 of shape (n, c, h, w) with c = 1 or 3"
            )
        for name, values in (("labels", self.labels), ("indices", self.indices)):
            if values.dtype != torch.int64 or values.shape != (len(images),):
                raise InputError(
                    f"{name} are {values.dtype} of shape {tuple(values.shape)}; "
                    f"give int64 of shape ({len(images)},), one for each image"
                )
        check_size(n, len(self.classes), self.source)
        check_labels(self.labels, len(self.classes), self.source)
        if not self.partial:
            check_classes(self.labels, self.classes, self.source)

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        c, h, w = self.shape
        kind = {1: "grey", 3: "RGB"}[c]
        factor = f"imbalance factor {self.imbalance_factor:.4g}"
        first = f"ImageSet {self.source!r}: {len(self)} images, {w}x{h} {kind}, {factor}"
        return f"{first}\n  {self.num_classes} classes: {sizes(self.counts)}"

    def _repr_html_(self) -> str:
        shown = [label for label, count in enumerate(self.counts) if count]
        firsts = torch.stack([self.of_class(label)[0] for label in shown[:MOST_SHOWN]])
        names = [self.classes[label] for label in shown]
        return html_of(repr(self), list(self.rows(firsts)), names)

    @cached_property
    def counts(self) -> tuple[int, ...]:
        """Images per class, in label order."""
        return tuple(torch.bincount(self.labels, minlength=len(self.classes)).tolist())

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.classes)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape (c, h, w) of one image."""
        c, h, w = self.images.shape[1:]
        return c, h, w

    @property
    def imbalance_factor(self) -> float:
        """Size of the largest class over that of the smallest."""
        return max(self.counts) / min(count for count in self.counts if count)

    @property
    def lacking(self) -> tuple[str, ...]:
        """Names of the classes without images; only a test set has any."""
        return tuple(n for n, count in zip(self.classes, self.counts, strict=True) if not count)

    @cached_property
    def groups(self) -> dict[str, tuple[int, ...]]:
        """Labels of the head, medium and tail classes, see :func:`longtail.size_groups`.

        Empty where the imbalance factor is below 2.
        """
        return longtail.size_groups(self.counts)

    @cached_property
    def checksum(self) -> str:
        """16 hexadecimal digits of fingerprint, class names, indices and labels."""
        content = hashlib.sha256(json.dumps([self.fingerprint, self.classes]).encode())
        content.update(self.indices.numpy().tobytes())
        content.update(self.labels.numpy().tobytes())
        return content.hexdigest()[:16]

    def facts(self) -> dict[str, Any]:
        """What a result says about the real images that it was made from, JSON-like."""
        return {
            "source": self.source,
            "fingerprint": self.fingerprint,
            "checksum": self.checksum,
            "images": len(self),
            "counts": list(self.counts),
            "classes": list(self.classes),
            "imbalance_factor": self.imbalance_factor,
            "history": list(self.history),
        }

    def of_class(self, label: int) -> Tensor:
        """Positions in this set of the images of one class, int64 (n_c,), in order."""
        return torch.nonzero(self.labels == label).flatten()

    def rows(self, positions: Tensor | slice = slice(None)) -> Tensor:
        """Images at ``positions`` (b,), or a view of a slice (all by default), uint8 (b, c, h, w).

        Those of a memory-mapped set are compared with their checks at first use.

        Raises:
            ArtifactError: the cached file behind them is damaged; it is removed.
        """
        if self.mapped is not None:
            self.mapped.check(positions)
        if isinstance(positions, slice):
            return self.images[positions]
        return self.images[positions.to(self.images.device)]

    def batch(self, positions: Tensor, device: str | torch.device = "cpu") -> Tensor:
        """Images at ``positions`` (b,) as float32 (b, c, h, w), RGB 0-1, on ``device``."""
        return self.rows(positions).to(device, non_blocking=True).float().div_(255)

    def to(self, device: str | torch.device) -> ImageSet:
        """The same set with its images on ``device`` (labels and indices stay on the CPU)."""
        return replace(self, images=self.rows().to(device), mapped=None)

    def select(self, positions: Tensor, **fact: Any) -> ImageSet:
        """Rows by position in this set, int64 (k,) or bool (n,); ``fact`` is added to the history.

        Rows of a memory-mapped set stay memory-mapped when they are many.

        Raises:
            InputError: a position is out of range, or a class would be left without images.
        """
        positions = torch.as_tensor(positions)
        if positions.dtype == torch.bool:
            positions = torch.nonzero(positions).flatten()
        positions = positions.to(torch.int64)
        if len(positions) and not 0 <= int(positions.min()) <= int(positions.max()) < len(self):
            raise InputError(
                f"positions go from {int(positions.min())} to {int(positions.max())}; "
                f"this set has positions 0 to {len(self) - 1}"
            )
        images, mapped = store.take(self.images, positions, self.mapped)
        return replace(
            self,
            images=images,
            mapped=mapped,
            labels=self.labels[positions],
            indices=self.indices[positions],
            history=(*self.history, fact) if fact else self.history,
        )

    def long_tailed(
        self,
        imbalance_factor: float,
        *,
        profile: longtail.Profile = "exponential",
        draw: longtail.Draw = "published",
        seed: int = 0,
    ) -> ImageSet:
        """Cut classes down so that their sizes fall from head (label 0) to tail (last label).

        The defaults give the CIFAR-10-LT and CIFAR-100-LT of the literature, image by image; see
        :mod:`potstill.data.longtail` for profiles and draws. ``seed`` only matters to
        ``draw="seeded"``. A class that has fewer images than its share keeps what it has, and the
        history says so.

        Raises:
            InputError: the factor is below 1 or would leave a class without images.
        """
        wanted = longtail.profile_counts(
            max(self.counts), self.num_classes, imbalance_factor, profile
        )
        counts = [min(pair) for pair in zip(wanted, self.counts, strict=True)]
        positions = longtail.draw_positions(self.labels, counts, draw, seed)
        fact: dict[str, Any] = {
            "op": "long_tailed",
            "imbalance_factor": imbalance_factor,
            "profile": profile,
            "draw": draw,
            **({"seed": seed} if draw == "seeded" else {}),
            "counts": counts,
            "index_checksum": store.tensor_digest(self.indices[positions]),
        }
        if counts != wanted:
            short = [name for name, a, b in zip(self.classes, counts, wanted, strict=True) if a < b]
            fact |= {"wanted": wanted, "capped": short}
        return self.select(positions, **fact)

    def hold_out(self, per_class: int | None = None, seed: int = 0) -> tuple[ImageSet, ImageSet]:
        """Split into (rest, balanced random hold-out of ``per_class`` images of every class).

        ``per_class`` defaults to a tenth of the smallest class, at least 1. Then a class of a
        single image keeps it, and the hold-out lacks that class.

        Raises:
            InputError: a class would be left without images.
        """
        several = [count for count in self.counts if count > 1]
        smallest = min(several if several and per_class is None else self.counts)
        size = max(1, smallest // 10) if per_class is None else per_class
        if not 1 <= size < smallest:
            name = self.classes[self.counts.index(smallest)]
            fix = f"use 1 to {smallest - 1}" if smallest > 1 else "add images or name a test set"
            raise InputError(
                f"per_class is {size} but class {name!r} has {smallest} image(s) and must keep "
                f"one; {fix}"
            )
        fact = {"op": "hold_out", "per_class": size, "seed": seed}

        def first(label: int, order: Tensor) -> Tensor:
            return order[: size if len(order) > 1 else 0]

        return self._apart("hold-out", first, fact)

    def fold(self, number: int, folds: int, seed: int = 0) -> tuple[ImageSet, ImageSet]:
        """Split into (rest, fold ``number`` of ``folds``), counted from 1, for cross-validation.

        Each image is in exactly one fold. Classes are dealt out one after the other in random
        order, so a fold has as many images of a class as any other, or one more, and folds differ
        in size by one image at most. A class of a single image keeps it and is in no fold.

        Raises:
            InputError: no such fold, or a class has fewer images than there are folds.
        """
        parse_fold((number, folds))
        smallest = min([count for count in self.counts if count > 1] or self.counts)
        if smallest < folds:
            name = self.classes[self.counts.index(smallest)]
            fix = f"use at most {smallest} folds" if smallest > 1 else "add images or leave it out"
            raise InputError(
                f"fold is {number}/{folds} but class {name!r} has {smallest} image(s), too few "
                f"for one in each fold; {fix}"
            )

        def dealt(label: int, order: Tensor) -> Tensor:
            turns = sum(self.counts[:label]) + torch.arange(len(order))
            return order[(turns % folds == number - 1) & (len(order) > 1)]

        fact = {"op": "fold", "fold": number, "folds": folds, "seed": seed}
        return self._apart("fold", dealt, fact)

    def _apart(
        self, purpose: str, chosen: Callable[[int, Tensor], Tensor], fact: dict[str, Any]
    ) -> tuple[ImageSet, ImageSet]:
        """The rest, and what is ``chosen`` of each class's places in random order."""
        held, run = torch.zeros(len(self), dtype=torch.bool), Run(seed=fact["seed"], device="cpu")
        for label in range(self.num_classes):
            rows = self.of_class(label)
            order = torch.randperm(len(rows), generator=run.generator(purpose, label))
            held[rows[chosen(label, order)]] = True
        test = replace(self, partial=True)
        return self.select(~held, **fact, part="rest"), test.select(held, **fact, part="held")


def parse_fold(fold: str | tuple[int, int]) -> tuple[int, int]:
    """Return (K, N) of ``"K/N"`` or of such a pair.

    Raises:
        InputError: it is neither.
    """
    words = fold.split("/") if isinstance(fold, str) else list(fold)
    try:
        number, folds = (int(word) for word in words)
    except (TypeError, ValueError):
        raise InputError(f"fold is {fold!r}; write K/N, as in 1/5 for the first of five") from None
    if folds < 2 or not 1 <= number <= folds:
        raise InputError(f"fold is {fold!r}; use K/N with N at least 2 and K from 1 to N")
    return number, folds
