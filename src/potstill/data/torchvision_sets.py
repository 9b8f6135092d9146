"""The folders that torchvision keeps for CIFAR, SVHN, STL-10 and MNIST, read without it.

A set is recognised by the names of its files, in the folder that was named or in the one that
torchvision makes below its root. The Python version of CIFAR is read as data
(:mod:`potstill.data.pickled`); SVHN's ``.mat`` files by SciPy, after their declared sizes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from potstill.data.arrays import array_rows
from potstill.data.decode import Rows, brief
from potstill.data.files import Place
from potstill.data.pickled import plain_content
from potstill.run import InputError

__all__ = ["torchvision_set"]

_FOLDERS = (
    *("", "cifar-10-batches-py", "cifar-10-batches-bin", "cifar-100-python", "cifar-100-binary"),
    *("stl10_binary", "raw", "MNIST/raw", "FashionMNIST/raw", "KMNIST/raw"),
)
_TEXT = 1 << 16  # bytes of a list of class names
_MAT = 1 << 30  # bytes of the images of a .mat file
Read = Callable[[Place, Sequence[Path]], tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class _Set:
    """Files of one set; ``names`` is where its class names stand."""

    read: Read
    splits: Mapping[str, Sequence[str]]
    names: str | Sequence[str] = ""
    key: str = "label_names"  # of the class names, in a pickle


def torchvision_set(
    place: Place,
) -> tuple[Mapping[str, Callable[[], Rows]], list[tuple[str | int, ...]]] | None:
    """Splits and identity of one of torchvision's sets in a folder; None if there is none.

    Raises:
        InputError: there are several; from the splits: a file that is damaged or missing.
    """
    found: list[tuple[Path, _Set]] = []
    for name in _FOLDERS:
        folder = place.root / name
        found += [(folder, known) for known in _SETS if _holds(folder, known)]
    if len(found) > 1:
        names = ", ".join(str(folder.relative_to(place.root)) for folder, _ in found)
        raise InputError(f"source {place.root} holds several sets ({names}); give one of them")
    if not found:
        return None
    folder, known = found[0]
    files = [folder / name for names in known.splits.values() for name in names]
    files += [folder / known.names] if isinstance(known.names, str) and known.names else []
    splits = {split: partial(_rows, place, folder, known, split) for split in known.splits}
    return splits, place.stamp_of(path for path in files if path.is_file())


def _holds(folder: Path, known: _Set) -> bool:
    """Whether the files of the training split are there, or the first of several."""
    return (folder / known.splits["train"][0]).is_file() and (
        not isinstance(known.names, str) or (folder / known.names).is_file()
    )


def _rows(place: Place, folder: Path, known: _Set, split: str) -> Rows:
    files = [folder / name for name in known.splits[split]]
    try:
        images, labels = known.read(place, files)
        names = _names(place, folder, known)
    except InputError:
        raise
    except Exception as error:  # SciPy and NumPy raise many kinds on damaged files
        raise InputError(
            f"source {folder} cannot be read ({brief(error)}); fetch it again"
        ) from error
    return array_rows(images, labels, str(folder), names)


def _names(place: Place, folder: Path, known: _Set) -> tuple[str, ...] | None:
    if not isinstance(known.names, str):
        return tuple(known.names)
    if not known.names:
        return None
    content = place.read(folder / known.names, _TEXT)
    if known.read is _pickles:
        words = plain_content(content, known.key)[known.key]
    else:
        words = content.decode().split()
    return tuple(word.decode() if isinstance(word, bytes) else str(word) for word in words)


def _pickles(place: Place, files: Sequence[Path]) -> tuple[np.ndarray, np.ndarray]:
    """CIFAR's Python version: images (n, 3, 32, 32) and labels."""
    parts = []
    for path in files:
        try:
            found = plain_content(place.read(path), "data", "labels", "fine_labels")
            labels = found.get("fine_labels", found.get("labels"))
            parts.append((found["data"].reshape(-1, 3, 32, 32), np.array(labels, np.int64)))
        except (ValueError, KeyError, AttributeError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(
                f"{path} is no batch of CIFAR ({brief(error)}), and no other pickle is read; "
                "fetch it again, or save its arrays with np.savez"
            ) from error
    return np.concatenate([images for images, _ in parts]), np.concatenate([y for _, y in parts])


def _records(head: int, place: Place, files: Sequence[Path]) -> tuple[np.ndarray, np.ndarray]:
    """CIFAR's binary version: records of ``head`` labels, of which the last counts, and 3072."""
    raw = np.concatenate([np.frombuffer(place.read(path), np.uint8) for path in files])
    raw = raw.reshape(-1, head + 3072)
    return raw[:, head:].reshape(-1, 3, 32, 32), raw[:, head - 1]


def _stl(place: Place, files: Sequence[Path]) -> tuple[np.ndarray, np.ndarray]:
    """STL-10: images column by column, labels from 1."""
    images, labels = (np.frombuffer(place.read(path), np.uint8) for path in files)
    return images.reshape(-1, 3, 96, 96).transpose(0, 1, 3, 2), labels.astype(np.int64) - 1


def _svhn(place: Place, files: Sequence[Path]) -> tuple[np.ndarray, np.ndarray]:
    """SVHN: images (h, w, c, n), and 10 stands for the digit 0."""
    from scipy.io import loadmat, whosmat

    (path,) = files
    with place.open(path) as file:
        told = {name: shape for name, shape, _ in whosmat(file)}
        if np.prod([float(side) for side in told["X"]]) > _MAT or len(told["X"]) != 4:
            raise ValueError(f"X has shape {told['X']}")
        file.seek(0)
        found = loadmat(file, variable_names=["X", "y"])
    images, labels = found["X"].astype(np.uint8, casting="safe"), found["y"].ravel()
    return images.transpose(3, 0, 1, 2), labels.astype(np.int64) % 10


def _idx(place: Place, files: Sequence[Path]) -> tuple[np.ndarray, np.ndarray]:
    """MNIST and its kin: a header of sides, then bytes."""
    parts = []
    for path in files:
        raw = place.read(path)
        sides = np.frombuffer(raw, ">u4", raw[3], 4).tolist()
        parts.append(np.frombuffer(raw, np.uint8, -1, 4 + 4 * raw[3]).reshape(sides))
    return parts[0], parts[1]


def _two(train: str, test: str, *forms: str) -> dict[str, list[str]]:
    return {
        split: [form.format(word) for form in forms]
        for split, word in (("train", train), ("test", test))
    }


_CIFAR10 = {"train": [f"data_batch_{k}" for k in range(1, 6)], "test": ["test_batch"]}
_SETS = (
    _Set(_pickles, _CIFAR10, "batches.meta"),
    _Set(_pickles, _two("train", "test", "{}"), "meta", "fine_label_names"),
    _Set(
        partial(_records, 1),
        {split: [f"{name}.bin" for name in names] for split, names in _CIFAR10.items()},
        "batches.meta.txt",
    ),
    _Set(partial(_records, 2), _two("train", "test", "{}.bin"), "fine_label_names.txt"),
    _Set(_stl, _two("train", "test", "{}_X.bin", "{}_y.bin"), "class_names.txt"),
    _Set(_svhn, _two("train", "test", "{}_32x32.mat"), tuple("0123456789")),
    _Set(
        _idx,
        _two("train", "t10k", "{}-images-idx3-ubyte", "{}-labels-idx1-ubyte"),
        tuple("0123456789"),
    ),
)
