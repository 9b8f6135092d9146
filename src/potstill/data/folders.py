"""Folders of class folders: ``root/cat/1.png``; where they are says :mod:`potstill.data.tree`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from potstill.data.decode import Rows
from potstill.data.files import File, Place
from potstill.data.lists import Lists
from potstill.data.reading import Reading
from potstill.data.splits import UnlabelledError
from potstill.data.tree import PICTURES, Split, unnumbered
from potstill.run import InputError, logger

__all__ = ["folder_rows", "folder_stamp"]

# What lies beside pictures and tells about them. Anything else may be a picture that would be lost.
_TEXTS = (
    *(".txt", ".csv", ".tsv", ".xml", ".json", ".jsonl", ".yaml", ".yml", ".md", ".html", ".htm"),
    *(".md5", ".sha1", ".sha256", ".log", ".ini", ".lst"),
)
_SIDE = frozenset(_TEXTS)
_HEIC = (".heic", ".heif", ".hif")
_TINY = ("image", "label", "x0", "y0", "x1", "y1")  # columns of Tiny ImageNet's val_annotations.txt


def folder_rows(place: Place, split: Split) -> Rows:
    """List a folder of class folders; classes by name, files by path.

    Raises:
        UnlabelledError: a test split without class folders.
        InputError: no class folders, an empty one, or a file of a kind that is not read.
    """
    if split.unlabelled:
        raise UnlabelledError(
            f"{split.unlabelled}, so its images have no labels; use another split"
        )
    if split.listed:
        lists = Lists(str(split.folder), place, {split.role: split.listed}, Reading(), _TINY)
        return lists.splits()[split.role]()
    folders = place.folders(split.folder)
    if not folders:
        raise InputError(
            f"source folder {split.folder} has no class folders; put the images of each class into "
            "a folder of its own, named after the class"
        )
    paths: list[Path] = []
    labels: list[int] = []
    side = [path for path in place.files(split.folder, deep=False) if _suffix(path) in PICTURES]
    for label, folder in enumerate(folders):
        files = place.files(folder)
        pictures = [path for path in files if _suffix(path) in PICTURES]
        side += [path for path in files if _suffix(path) in _SIDE]
        _check(folder, files, pictures, split)
        paths += pictures
        labels += [label] * len(pictures)
    if side:
        logger.warning(
            "%s: %d file(s) beside the images of the classes are not read, the first is %s",
            *(split.folder, len(side), side[0]),
        )
    names = [folder.name for folder in folders]
    return Rows.of(
        str(split.folder),
        lambda rows: (File(place, paths[row]) for row in rows),
        np.array(labels),
        unnumbered(names) or tuple(names),
    )


def folder_stamp(place: Place, splits: Mapping[str, Split]) -> list[object]:
    """Identity of all that can be read of these splits, JSON-like."""
    facts: list[object] = []
    every: list[Path] = []
    for name, split in splits.items():
        folders = [] if split.unlabelled else place.folders(split.folder)
        facts += place.stamp_of([split.listed]) if split.listed else []
        below = split.folder.relative_to(place.root).as_posix()
        facts.append([name, below, [folder.name for folder in folders]])
        every += folders
    return [*facts, *place.stamp(folders=every)]


def _suffix(path: Path) -> str:
    return path.suffix.lower()


def _check(folder: Path, files: list[Path], pictures: list[Path], split: Split) -> None:
    """Refuse a class without images, and files that may be images but are not read."""
    for path in files:
        if _suffix(path) in _HEIC:
            raise InputError(
                f"{path} is a HEIC picture, which nothing here decodes; convert such pictures to "
                "JPEG, as with: magick mogrify -format jpg *.heic"
            )
        if _suffix(path) not in PICTURES and _suffix(path) not in _SIDE:
            raise InputError(
                f"{path} is no image of a kind that is read here; convert it to PNG or JPEG, or "
                "remove it"
            )
    if pictures:
        return
    if split.role == "train":
        raise InputError(
            f"class folder {folder} holds no images; add images, or remove it from every split"
        )
