"""Folders of class folders: ``root/cat/1.png``, or ``root/train/cat/1.png`` and ``root/test``."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from potstill.data.decode import Rows
from potstill.run import InputError

__all__ = ["SPLIT_NAMES", "folder_splits", "stamp"]

# What a split is called, in order of preference.
SPLIT_NAMES = {
    "train": ("train", "training"),
    "test": ("test", "testing", "validation", "valid", "val", "dev", "eval"),
}
_PLAIN = {".png", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm"}
_IMAGE = {*_PLAIN, ".jpg", ".jpeg", ".jpe", ".jp2", ".webp", ".avif"}
_IGNORED = {"thumbs.db", "desktop.ini", "__macosx"}
_INDEXED = re.compile(r"(\d+)_(.+)")


def stamp(root: Path, suffixes: frozenset[str] | None = None) -> list[tuple[str, int, int]]:
    """Path, size and time of change of every file below ``root``, in sorted order."""
    found = []
    for path in _files(root):
        if suffixes is None or path.suffix.lower() in suffixes:
            facts = path.stat()
            found.append((str(path.relative_to(root)), facts.st_size, facts.st_mtime_ns))
    return found


def folder_splits(root: Path) -> dict[str, Path]:
    """Name and folder of each split; a folder of plain class folders is one "train" split."""
    known = {name for names in SPLIT_NAMES.values() for name in names}
    folders = {path.name: path for path in _subfolders(root)}
    lower = {name.lower() for name in folders}
    if lower & set(SPLIT_NAMES["train"]) and lower <= known:
        return {name.lower(): path for name, path in folders.items()}
    return {"train": root}


def folder_rows(root: Path) -> Rows:
    """List a folder of class folders; classes by name, files by path.

    Raises:
        InputError: no class folders, an empty one, or a file that is not an image.
    """
    folders = _subfolders(root)
    if not folders:
        raise InputError(
            f"source folder {root} has no class folders; put the images of each class into a "
            "folder of its own, named after the class"
        )
    paths: list[Path] = []
    labels: list[int] = []
    for label, folder in enumerate(folders):
        files = list(_files(folder))
        if not files:
            raise InputError(f"class folder {folder} is empty; add images or remove it")
        for path in files:
            if path.suffix and path.suffix.lower() not in _IMAGE:
                raise InputError(f"{path} is not an image; remove it from the class folder")
        paths += files
        labels += [label] * len(files)
    names = _class_names([folder.name for folder in folders])
    return Rows.of(str(root), lambda rows: (paths[row] for row in rows), np.array(labels), names)


def _class_names(folders: list[str]) -> tuple[str, ...]:
    """Names without the ``000_`` prefix that keeps an order, if all have one and they count up."""
    parts = [_INDEXED.fullmatch(name) for name in folders]
    if all(parts) and len({len(part[1]) for part in parts if part}) == 1:
        numbers = [int(part[1]) for part in parts if part]
        names = tuple(part[2] for part in parts if part)
        if numbers == list(range(len(folders))) and len(set(names)) == len(names):
            return names
    return tuple(folders)


def _visible(name: str) -> bool:
    return not name.startswith(".") and name.lower() not in _IGNORED


def _subfolders(root: Path) -> list[Path]:
    return sorted(path for path in root.iterdir() if path.is_dir() and _visible(path.name))


def _files(root: Path) -> Iterator[Path]:
    """All files below ``root`` in sorted order, without hidden and system files."""
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = sorted(filter(_visible, subfolders))
        yield from (Path(folder, name) for name in sorted(filter(_visible, names)))
