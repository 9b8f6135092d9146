"""Pictures that hold nothing to tell them apart: noticed while a split is decoded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Any

import numpy as np

from potstill.run import InputError, logger

__all__ = ["Variety", "check_variety"]


class Variety:
    """Notices classes whose pictures are all constant, or all equal.

    A class is looked at until it has shown two pictures that differ and one that is not constant:
    for usual data these are its first two.
    """

    def __init__(self) -> None:
        self._settled: set[int] = set()
        self._first: dict[int, bytes] = {}  # digest of the first picture, by label
        self._several: set[int] = set()  # labels with more than one picture
        self._plain: dict[int, bool] = {}  # all of them constant so far
        self._same: dict[int, bool] = {}  # all of them equal so far

    def look(self, images: np.ndarray, labels: Sequence[int]) -> None:
        """Take in a block (b, c, h, w)."""
        for row, label in enumerate(labels):
            if label not in self._settled:
                self._one(images[row], label)

    def _one(self, picture: np.ndarray, label: int) -> None:
        plain = picture[0].size > 1 and bool((picture == picture[:, :1, :1]).all())
        content = blake2b(picture.tobytes(), digest_size=16).digest()
        if label in self._first:
            self._several.add(label)
        self._plain[label] = self._plain.get(label, True) and plain
        self._same[label] = content == self._first.setdefault(label, content) and (
            self._same.get(label, True)
        )
        if not (self._plain[label] or self._same[label]):
            self._settled.add(label)

    def settle(self, classes: Sequence[str] | None) -> dict[str, Any]:
        """Return what :func:`check_variety` looks at, JSON-like."""
        alike = [
            str(label) if classes is None else classes[label]
            for label in sorted(self._first)
            if self._plain[label] or (self._same[label] and label in self._several)
        ]
        equal = all(self._same.values()) and len(set(self._first.values())) == 1
        return {"alike": alike, "equal": equal and len(self._first) + len(self._several) > 1}


def check_variety(found: Mapping[str, Any], title: str) -> None:
    """Warn about classes of constant or equal pictures.

    Raises:
        InputError: all pictures of the split are equal.
    """
    if found.get("equal"):
        raise InputError(
            f"all pictures of {title} are equal once decoded, so there is nothing to learn; look "
            "at the files, and say --value-range if they are deeper than 8 bits, --background if "
            "their shapes lie in transparency"
        )
    if names := found.get("alike"):
        logger.warning(
            "%d class(es) of %s hold only pictures of one colour, or equal ones (%s); look at "
            "their files",
            len(names),
            title,
            ", ".join(map(repr, names[:5])) + (", ..." if len(names) > 5 else ""),
        )
