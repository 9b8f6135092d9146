"""Data that is in memory or in one file: digits, arrays, ``.npz`` files, torch data sets."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from potstill.data.archives import Member, members
from potstill.data.decode import Rows
from potstill.data.files import Place
from potstill.data.pictures import as_numpy, channels_last
from potstill.data.splits import UnlabelledError
from potstill.run import InputError

__all__ = ["array_rows", "dataset_rows", "digits_splits", "npz_splits"]

_DIGITS_TEST = 50  # last images of each class in file order
# "images", "train_images" (MedMNIST) and "x_train" (Keras); the labels beside them.
_NPZ = (re.compile(r"(?:(\w+)_)?images"), re.compile(r"x_(\w+)"))


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
    numbers = labels.detach().cpu().numpy() if isinstance(labels, torch.Tensor) else labels
    numbers = np.asarray(numbers)
    if numbers.ndim == 2 and numbers.shape[1] == 1:
        numbers = numbers[:, 0]
    if numbers.dtype.kind not in "iub" or numbers.shape != (len(pictures),):
        raise InputError(
            f"labels of {name} are {numbers.dtype} of shape {numbers.shape}; "
            f"give {len(pictures)} whole numbers, one for each image"
        )
    if numbers.size and numbers.dtype.kind == "i" and numbers.max() < 0:
        raise UnlabelledError(f"the labels of {name} are hidden (all below 0); use another split")
    read = stored.rows if stored else lambda rows: (pictures[row] for row in rows)
    return Rows.of(name, read, numbers, classes)


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
            names = content["classes"]().whole() if "classes" in content else None
            classes = None if names is None else tuple(map(str, names.tolist()))
            return array_rows(content[images](), content[labels]().whole(), str(path), classes)

        return read

    splits, labelled = {}, False
    for key in content:
        for pattern in _NPZ:
            if match := pattern.fullmatch(key):
                partner = key.replace("images", "labels") if "images" in key else f"y_{match[1]}"
                splits[match[1] or "train"] = rows(key, partner)
                labelled |= partner in content
    if not labelled:
        raise InputError(
            f"source {path} holds {', '.join(content) or 'nothing'}; "
            "it needs 'images' and 'labels' (or train_images, train_labels, ...)"
        )
    return splits


def dataset_rows(data: Any, name: str) -> Rows:
    """Rows of a torch ``Dataset`` whose items are (picture, whole number).

    Raises:
        InputError: without a length, or an item of another form.
    """
    if not (hasattr(data, "__len__") and hasattr(data, "__getitem__")):
        raise InputError(
            f"source is a {name}; give a path, a name, (images, labels) or a data set with a length"
        )
    classes = getattr(data, "classes", None)
    named = isinstance(classes, list | tuple) and all(isinstance(text, str) for text in classes)

    def pair(row: int) -> tuple[Any, int]:
        item = data[row]
        try:
            picture, label = item
            return picture, label.__index__()
        except (TypeError, ValueError, AttributeError):
            raise InputError(
                f"item {row} of {name} is no (picture, whole number); "
                "leave out transforms that change the label"
            ) from None

    return Rows(
        name,
        len(data),
        lambda: map(pair, range(len(data))),
        tuple(classes) if classes and named else None,
        lambda rows: (pair(row)[0] for row in rows.tolist()),
    )
