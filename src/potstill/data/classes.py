"""What labels and classes of a source have to be, whatever it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from potstill.run import InputError

__all__ = ["check_classes", "check_labels", "check_names", "check_size", "plain_names", "written"]

_LONGEST = 200  # characters of a class name; what an artifact can hold


def check_size(images: int, classes: int, source: str) -> None:
    """Raise InputError unless there are images of at least 2 classes."""
    if not images:
        raise InputError(f"source {source!r} holds no images; add some")
    if classes < 2:
        raise InputError(
            f"source {source!r} holds {images} image(s) in {classes} class(es); "
            "at least 2 classes are needed"
        )


def written(names: Sequence[Any], source: str) -> list[str]:
    """Return names of classes as text; bytes are UTF-8, or are refused."""
    found = []
    for name in names:
        try:
            found.append(name.decode() if isinstance(name, bytes) else str(name))
        except UnicodeDecodeError:
            raise InputError(
                f"source {source!r} has the class name {ascii(name)[1:]}, which is not UTF-8; "
                "write it as text"
            ) from None
    return found


def check_names(classes: Sequence[str], source: str) -> None:
    """Raise InputError unless every name can be written to an artifact."""
    for label, name in enumerate(classes):
        if not 0 < len(name) <= _LONGEST or not name.strip():
            what = f"{len(name)} characters ({name[:40]!a}...)" if name.strip() else "no text"
            raise InputError(
                f"class {label} of source {source!r} has a name of {what}; give it one of 1 to "
                f"{_LONGEST} characters"
            )
        if any("\ud800" <= letter <= "\udfff" for letter in name):
            raise InputError(
                f"class {label} of source {source!r} is called {name!a}, which is not UTF-8; "
                "rename it"
            )


def check_classes(labels: Tensor, classes: Sequence[str], source: str) -> None:
    """Raise InputError unless every class has one of the ``labels`` (n,), which are in range.

    Takes memory for the labels, however many classes are claimed.
    """
    present = _present(labels, len(classes))
    if len(present) < len(classes):
        label = _first_gap(present)
        raise InputError(
            f"class {classes[label]!r} (label {label}) of source {source!r} has no images; add "
            "some or leave the class out"
        )


def plain_names(labels: Tensor, source: str, *, gaps: bool = False) -> tuple[str, ...]:
    """Names "0".."C-1" for the classes of ``labels`` (n,) int64 that have none.

    Raises:
        InputError: a negative label, a number below the largest one that no image has or, with
            ``gaps``, more classes than images; before that many names are made.
    """
    high = int(labels.max())
    check_labels(labels, high + 1, source)
    present = _present(labels, high + 1)
    if len(present) <= high and not (gaps and high < len(labels)):
        gap = _first_gap(present)
        raise InputError(
            f"class '{gap}' (label {gap}) of source {source!r} has no images, but labels go from "
            f"{int(present[0])} to {high}; number the classes from 0 without gaps"
        )
    return tuple(map(str, range(high + 1)))


def _present(labels: Tensor, classes: int) -> Tensor:
    """Labels that occur, ascending; counted by class only if there are as many images."""
    if classes > len(labels):
        return labels.unique()
    return torch.nonzero(torch.bincount(labels, minlength=classes)).flatten()


def _first_gap(present: Tensor) -> int:
    """The smallest label that is not among ``present``, ascending from 0 or above."""
    wrong = torch.nonzero(present != torch.arange(len(present)))
    return int(wrong[0]) if len(wrong) else len(present)


def check_labels(labels: Tensor, classes: int, source: str) -> None:
    """Raise InputError unless all ``labels`` (n,), at least one, lie in 0..classes - 1."""
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= classes:
        wrong = low if low < 0 else high
        row = int(torch.nonzero(labels == wrong)[0])
        raise InputError(
            f"labels of source {source!r} hold {wrong} (row {row}); "
            f"{classes} classes need labels from 0 to {classes - 1}"
        )
