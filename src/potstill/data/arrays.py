"""Data that is in memory or in one file: digits, arrays, ``.npz`` files, torch data sets."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from potstill.data.archives import Member, members
from potstill.data.classes import written
from potstill.data.decode import Rows
from potstill.data.files import Place
from potstill.data.pictures import as_numpy, channels_last
from potstill.data.splits import UnlabelledError
from potstill.run import InputError

__all__ = ["array_rows", "dataset_rows", "digits_splits", "npz_splits"]

_CLASSES = ("classes", "class_names", "label_names")
_DIGITS_TEST = 50  # last images of each class in file order
# "images", "train_images" (MedMNIST), "x_train" (Keras), "X_train" (scikit-learn), "data" and what
# np.savez calls arrays without a name; and what their labels may be called.
_LABELS = {
    "images": ("labels", "label", "targets", "y"),
    "x": ("y", "labels"),
    "data": ("labels", "label", "targets", "target", "y"),
    "arr_0": ("arr_1",),
}
_NPZ = re.compile(r"(?:(\w+)_)?(images|x|data|arr_0)|(images|x|data)_(\w+)")


def digits_splits() -> Mapping[str, Callable[[], Rows]]:
    """scikit-learn's 1,797 digits, grey 8x8: 500 of them are the test split."""
    from sklearn.datasets import load_digits

    data = load_digits()
    images = np.round(data.images * 255 / 16).astype(np.uint8)
    test = np.zeros(len(images), bool)
    for digit in range(10):
        test[np.flatnonzero(data.target == digit)[-_DIGITS_TEST:]] = True
    names = tuple(map(str, range(10)))
    return {
        "train": lambda: array_rows(images[~test], data.target[~test], "digits", names),
        "test": lambda: array_rows(images[test], data.target[test], "digits", names),
    }


def array_rows(images: Any, labels: Any, name: str, classes: tuple[str, ...] | None = None) -> Rows:
    """Rows of two arrays or tensors; the layout rule stands in :mod:`potstill.data.sources`.

    Raises:
        UnlabelledError: all labels are below 0.
        InputError: shapes that do not fit, labels that are no whole numbers or are out of range.
    """
    tensor = isinstance(images, torch.Tensor)
    stored = images if isinstance(images, Member) else None
    pictures = np.broadcast_to(np.uint8(0), stored.shape) if stored else as_numpy(images)
    if pictures.ndim not in (3, 4) or 0 in pictures.shape[1:]:
        raise InputError(
            f"images of {name} have shape {pictures.shape}; give (n, h, w), (n, h, w, c) or "
            "(n, c, h, w)"
        )
    if pictures.ndim == 4:
        pictures = channels_last(pictures, channels_first=tensor, title=f"images of {name}")
    numbers, named = _numbered(as_numpy(labels), name)
    if named and classes is None:
        classes = named
    wide = numbers.dtype == np.uint64 and numbers.size and numbers.max() > np.iinfo(np.int64).max
    if wide or numbers.dtype.kind not in "iub" or numbers.shape != (len(pictures),):
        raise InputError(
            f"labels of {name} are {numbers.dtype} of shape {numbers.shape}; "
            f"give {len(pictures)} whole numbers or words, one for each image, or one-hot rows"
        )
    if numbers.size and numbers.dtype.kind == "i" and numbers.max() < 0:
        raise UnlabelledError(f"the labels of {name} are hidden (all below 0); use another split")
    read = stored.rows if stored else lambda rows: (pictures[row] for row in rows)
    return Rows.of(name, read, numbers, classes)


def _numbered(labels: np.ndarray, name: str) -> tuple[np.ndarray, tuple[str, ...] | None]:
    """Labels as numbers (n,): words by their sorted order, of one-hot rows the place of the 1."""
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.dtype.kind in "US" and labels.ndim == 1:
        words = written(labels.tolist(), name)
        classes = tuple(sorted({*words} - {""}))
        place = {word: label for label, word in enumerate(classes)}
        return np.array([place.get(word, -1) for word in words], np.int64), classes
    if labels.ndim == 2 and labels.dtype.kind in "iubf" and len(labels):
        ones = labels.astype(bool)
        if (ones.sum(1) == 1).all() and (labels == ones).all():
            return labels.argmax(1), None
        raise InputError(
            f"labels of {name} have shape {labels.shape}, but rows that are not one-hot (one 1, "
            "else 0); give each image one class"
        )
    return labels, None


def npz_splits(place: Place) -> Mapping[str, Callable[[], Rows]]:
    """Splits of an ``.npz`` file; never unpickles.

    Raises:
        InputError: damaged, pickled objects inside, or no images with labels.
    """
    path, content = place.root, members(place)

    def rows(images: str, labels: str) -> Callable[[], Rows]:
        def read() -> Rows:
            if labels not in content:
                raise UnlabelledError(f"{images} of {path} has no {labels}; use another split")
            given = next((key for key in _CLASSES if key in content), None)
            names = content[given]().whole() if given else None
            classes = None if names is None else tuple(written(names.tolist(), str(path)))
            return array_rows(content[images](), content[labels]().whole(), str(path), classes)

        return read

    splits: dict[str, Callable[[], Rows]] = {}
    labelled = False
    known = {key.lower(): key for key in content}
    for key in known:
        if match := _NPZ.fullmatch(key):
            word, split = match[2] or match[3], match[1] or match[4]
            form = "{1}" if split is None else ("{0}_{1}" if match[1] else "{1}_{0}")
            partners = [form.format(split, label) for label in _LABELS[word]]
            partner = next((label for label in partners if label in known), partners[0])
            splits.setdefault(split or "train", rows(known[key], known.get(partner, partner)))
            labelled |= partner in known
    if not labelled:
        raise InputError(
            f"source {path} holds {', '.join(content) or 'nothing'}; "
            "it needs 'images' and 'labels' (or train_images, x_train, ... with their labels)"
        )
    return splits


def _number(label: Any) -> int:
    """A whole number, or that in an array or tensor of one."""
    if isinstance(label, np.ndarray | torch.Tensor) and label.ndim:
        (label,) = label.tolist()  # MedMNIST's labels have shape (1,)
    number: int = label.__index__()
    return number


def dataset_rows(data: Any, name: str) -> Rows:
    """Rows of a torch ``Dataset`` whose items are (picture, whole number).

    Raises:
        InputError: without a length, or an item of another form.
    """
    if not (hasattr(data, "__len__") and hasattr(data, "__getitem__")):
        raise InputError(
            f"source is a {name}; give a path, a name, (images, labels) or a data set with a length"
        )
    classes, inner = getattr(data, "classes", None), data
    while classes is None and hasattr(inner, "indices") and hasattr(inner, "dataset"):
        inner = inner.dataset  # of a Subset, as random_split gives
        classes = getattr(inner, "classes", None)
    names: tuple[str, ...] | None = None
    if isinstance(classes, list | tuple) and all(isinstance(text, str) for text in classes):
        names = tuple(classes)
    most = len(names) if names else len(data)  # classes that there can be

    def pair(row: int) -> tuple[Any, int]:
        item = data[row]
        try:
            picture, label = item
            number = _number(label)
        except (TypeError, ValueError, AttributeError):
            raise InputError(
                f"item {row} of {name} is no (picture, whole number); "
                "leave out transforms that change the label"
            ) from None
        if not 0 <= number < most:
            raise InputError(
                f"labels of source {name!r} hold {number} (row {row}); {most} "
                f"{'classes' if names else 'images'} need labels from 0 to {most - 1}"
            )
        return picture, number

    return Rows(
        name,
        len(data),
        lambda: map(pair, range(len(data))),
        names or None,
        lambda rows: (pair(row)[0] for row in rows.tolist()),
    )
