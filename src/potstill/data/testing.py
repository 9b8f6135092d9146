"""Test images: their classes are those of the training images, and what has to be said of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
import xxhash
from torch import Tensor

from potstill.data.classes import check_labels
from potstill.data.images import ImageSet
from potstill.run import InputError, logger

__all__ = [
    "FEW",
    "aligned",
    "few_note",
    "few_words",
    "lacking_note",
    "lacking_words",
    "shared_images",
    "tell_shared",
]

FEW = 10  # test images of a class below which its accuracy moves by more than ten points an image


def lacking_words(names: Sequence[str], classes: int) -> str:
    """Return which classes a test set lacks, in a sentence; "" if it has all."""
    if not names:
        return ""
    shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    return (
        f"No test images of {len(names)} of {classes} classes ({shown}): accuracies are over the "
        f"{classes - len(names)} others."
    )


def lacking_note(test: ImageSet) -> str:
    """As :func:`lacking_words`, of a test set."""
    return lacking_words(test.lacking, test.num_classes)


def aligned(
    train: ImageSet, labels: Tensor, names: tuple[str, ...] | None, title: str
) -> tuple[Tensor, tuple[str, ...]]:
    """Return labels (n,) of test images as positions in the classes of ``train``, and these.

    Classes are told apart by name; where both are numbers without names, by number.

    Raises:
        InputError: test images of a class that ``train`` has not.
    """
    if names == train.classes:
        return labels, train.classes
    present = labels.unique().tolist()
    if names is None:
        check_labels(labels, max(present) + 1, title)
        names = tuple(map(str, range(max(present) + 1)))
    place = {name: label for label, name in enumerate(train.classes)}
    strange = [names[label] for label in present if names[label] not in place]
    if strange or len(place) < len(train.classes):
        raise InputError(
            f"the test images of {title!r} have other classes than the training images of "
            f"{train.source!r} ({', '.join(strange[:5]) or 'two of one name'}); give both the same "
            "classes, name some with subset, or give only the train split as the source, and test "
            "images are held out of it"
        )
    moved = torch.zeros(max(present) + 1, dtype=torch.int64)
    moved[present] = torch.tensor([place[names[label]] for label in present])
    return moved[labels], train.classes


def few_note(test: ImageSet) -> str:
    """Return a sentence where a class has few test images, "" where none has."""
    fewest = min(count for count in test.counts if count)
    if fewest >= FEW:
        return ""
    fold = any(fact.get("op") == "fold" for fact in test.history)
    fix = "look at all folds." if fold else "potstill crossval tests every image."
    return f"{few_words(fewest)}; {fix}"


def few_words(fewest: int) -> str:
    """Return what it means that a class has so few test images, without a full stop."""
    return (
        f"Few test images: {fewest} of the smallest class, so one image is {100 / fewest:.0f} "
        "points of its accuracy"
    )


def shared_images(train: ImageSet, test: ImageSet) -> list[int]:
    """Positions in ``test`` of images that are in ``train``, too, pixel for pixel.

    A digest of 64 bits of each image; memory-mapped sets are not gone through.
    """
    if train.mapped or test.mapped or train.shape != test.shape:
        return []
    known = set(_digests(train))
    return [position for position, digest in enumerate(_digests(test)) if digest in known]


def _digests(real: ImageSet) -> Iterator[int]:
    pixels = np.ascontiguousarray(real.rows().cpu().numpy())
    return (xxhash.xxh3_64_intdigest(image.data) for image in pixels)


def tell_shared(train: ImageSet, test: ImageSet) -> None:
    """Warn about test images that are in ``train``, too, pixel for pixel."""
    if shared := shared_images(train, test):
        logger.warning(
            "%d of %d test images of %s are training images, too, pixel for pixel (the first is "
            "row %d): scores on them say little; take them out of one of both",
            *(len(shared), len(test), test.source, int(test.indices[shared[0]])),
        )
