"""What students are trained on: the artifact, all real images, and what stands beside it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from potstill.canvas import decode_images, start_canvas
from potstill.data import ImageSet
from potstill.data.transform import Transform
from potstill.evaluation.labels import tier_of
from potstill.nets import Examples
from potstill.run import InputError, Run
from potstill.synthetic import SyntheticSet

__all__ = [
    "distinct_images",
    "mosaic_views",
    "random_examples",
    "random_rows",
    "real_examples",
    "synthetic_examples",
]


def synthetic_examples(syn: SyntheticSet, labels: str = "auto") -> Examples:
    """Return what a receiver trains on: decoded images with their labels.

    Args:
        syn: the artifact. labels: what a protocol says about them. Where a teacher labels views
            ("online", "projected"), images come with their classes and the bench adds the teacher.

    Raises:
        InputError: labels are asked for that are not there.
    """
    images, hard, soft, weights = syn.decoded()
    tier = tier_of(syn, labels)
    if (tier == "static" and soft is None) or (tier == "stored" and syn.view_labels is None):
        raise InputError(f"labels is {labels!r} but the artifact has none; use 'auto' or 'hard'")
    if tier == "stored":
        return Examples(images, hard, syn.transform, weights, views=syn.view_labels)
    goals = syn.decoded_targets()
    if tier == "regression" and goals is not None:
        return Examples(images, goals, syn.transform, weights, regression=True)
    targets = soft if tier == "static" and soft is not None else hard
    return Examples(images, targets, syn.transform, weights)


def real_examples(train: ImageSet, transform: Transform) -> Examples:
    """Return all real images with their labels, as unevenly as they come."""
    return Examples(train.rows(), train.labels, transform)


def random_examples(
    train: ImageSet, counts: Sequence[int], transform: Transform, run: Run
) -> Examples:
    """Return a random real subset with its labels, see :func:`random_rows`."""
    rows = random_rows(train, counts, run)
    return Examples(train.batch(rows), train.labels[rows], transform)


def random_rows(train: ImageSet, counts: Sequence[int], run: Run) -> Tensor:
    """Return positions of ``counts[c]`` random images of class c, or of all it has if fewer.

    The draw is that of the method ``random`` with the same seed.
    """
    chosen = []
    for label, count in enumerate(counts):
        own = train.of_class(label)
        order = torch.randperm(len(own), generator=run.generator("random", label))
        chosen.append(own[order[:count]])
    return torch.cat(chosen)


def mosaic_views(
    train: ImageSet, counts: Sequence[int], run: Run, *, factor: int, formation: str = "single"
) -> tuple[Tensor, Tensor]:
    """Return random real images at the storage of a tiled set: ``factor**2`` small ones for one.

    Images (n * factor**2, c, h, w), RGB 0-1, as a receiver enlarges them, and their labels; twice
    as many where ``formation`` is "subsampled". They are those of the method ``mosaic`` with the
    same seed, for ``counts[c]`` stored images of class c; a class with fewer real images repeats
    them, shifted.
    """
    most = [max(1, count) for count in counts]
    how: dict[str, Any] = {"start": "tiled", "factor": factor, "formation": formation}
    canvas = start_canvas(train, most, run.generator, quiet=True, **how)
    kept = torch.tensor(counts)[canvas.labels] > 0
    images, labels = decode_images(canvas.images.detach()[kept], canvas.labels[kept], canvas.spec)
    return images, labels


def distinct_images(train: ImageSet, wanted: Sequence[int]) -> int:
    """Return how many real images there are of ``wanted[c]`` of each class c."""
    return sum(min(pair) for pair in zip(wanted, train.counts, strict=True))
