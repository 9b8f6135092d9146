"""Lists of pictures: CSV, JSON lines or text whose rows name a file and its class.

``image_id,dx`` of HAM10000, Kaggle's ``id,label``, ``file_name,label`` of a Hugging Face
``metadata.csv`` or ``metadata.jsonl``, and ``path label`` as the lists of ImageNet-LT and
iNaturalist-LT have it. A row becomes a row of a table, so that columns are found and labels read as
in any other (:mod:`potstill.data.columns`); a whole number that is not written as one, "007", stays
text.

Pictures lie below the list's own folder or ``image_root``, and nowhere else. A name is looked up as
a path, else without the suffix of the file, else, if it has no folder, anywhere below.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from hashlib import blake2b
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from potstill.data.cells import split_rows
from potstill.data.columns import Table
from potstill.data.decode import Rows
from potstill.data.files import File, Place
from potstill.data.listfiles import Columns, naming_column, read_list, text_of, typed
from potstill.data.reading import Reading
from potstill.data.splits import split_role, split_roles
from potstill.data.tablefiles import BATCH, taken
from potstill.data.tree import PICTURES
from potstill.run import InputError

__all__ = ["Lists", "find_lists"]

_HUGGING_FACE = ("metadata.csv", "metadata.jsonl")
_SPLIT = ("split", "subset", "partition", "set")  # columns that may say which rows are for testing


def find_lists(place: Place) -> dict[str, Path]:
    """Hugging Face's ``metadata`` lists of a folder, by split; {} if it has none.

    They lie in the folder itself or, one for each split, in the folders below it.
    """
    found: dict[str, Path] = {}
    for folder in (place.root, place.root / "train"):
        if any((folder / name).is_file() for name in _HUGGING_FACE):
            break
    else:
        return {}
    below = place.folders(folder.parent if folder.name == "train" else folder)
    roles = split_roles([path.name for path in below])
    for path, split in [(folder, "train"), *((p, roles[p.name]) for p in below if p.name in roles)]:
        for name in _HUGGING_FACE:
            if (path / name).is_file():
                found.setdefault(path.name if path in below else split, path / name)
    return found


@dataclass(frozen=True)
class Lists:
    """The lists of a source, by split, and the folder that their pictures are in."""

    name: str  # of the source, for messages
    place: Place  # gate to the lists
    files: Mapping[str, Path]
    how: Reading
    columns: tuple[str, ...] = ()  # of lists without a header; the first names pictures
    # by folder: gates to pictures, with what is known about their files
    _roots: dict[Path, _Pictures] = field(default_factory=dict, init=False, compare=False)

    @staticmethod
    def of(path: Path, how: Reading) -> Lists:
        """Return a list that was named and, if it is one to train on, those beside it to test on.

        ``ImageNet_LT_test.txt`` belongs to ``ImageNet_LT_train.txt``: names that differ in the
        word for the split only.
        """
        place, own = Place(path.parent, how.follow_links), split_role(path.stem)
        if own is None or own[0] != "train":
            return Lists(str(path), place, {own[0] if own else "train": path}, how)
        files = {"train": path}
        for other in place.files(path.parent, deep=False):
            role = split_role(other.stem) if other.suffix == path.suffix else None
            if role and role[0] != "train" and role[1] == own[1]:
                files[role[0]] = other
        return Lists(str(path), place, files, how)

    def splits(self) -> Mapping[str, Callable[[], Rows]]:
        """How to get the rows of each split."""
        return {split: partial(self._rows, *part) for split, part in self._parts.items()}

    def stamp(self) -> list[Any]:
        """Identity of the lists and of every file that they name, JSON-like."""
        facts: list[Any] = [self.place.stamp_of(self.files.values())]
        for split, (path, content, image) in self._parts.items():
            paths = self._pictures(path).all(content[image])
            digest = blake2b(repr(self.place.stamp_of(paths)).encode(), digest_size=16)
            facts.append([split, len(paths), digest.hexdigest()])
        return facts

    @cached_property
    def _parts(self) -> dict[str, tuple[Path, Columns, str]]:
        """File, columns and the column of pictures of each split."""
        found: dict[str, tuple[Path, Columns, str]] = {}
        for split, path in self.files.items():
            content = read_list(self.place, path, self.columns)
            image = naming_column(content, path, self.how.image_column)
            parts = _by_split(content, image, path) if len(self.files) == 1 else {}
            for own, rows in (parts or {split: list(range(len(content[image])))}).items():
                part = {name: [cells[row] for row in rows] for name, cells in content.items()}
                found[own] = path, part, image
        return found

    def _pictures(self, path: Path) -> _Pictures:
        root = self.how.image_root
        folder = path.parent if root is None else Path(root).expanduser()
        if not folder.is_dir():
            raise InputError(f"image_root is {root!r}, which is no folder; correct it")
        if folder not in self._roots:
            gate = self.place if root is None else Place(folder, self.how.follow_links)
            self._roots[folder] = _Pictures(gate, folder, path.name)
        return self._roots[folder]

    def _rows(self, path: Path, content: Columns, image: str) -> Rows:
        import pyarrow as pa

        columns = {
            name: pa.array([text_of(cell) for cell in cells]) if name == image else typed(cells)
            for name, cells in content.items()
        }
        table, pictures = pa.table(columns), self._pictures(path)

        def cells(column: str, rows: np.ndarray | None) -> Iterator[pa.Array]:
            held = table.column(column).combine_chunks()
            return taken((held.slice(at, BATCH) for at in range(0, len(held), BATCH)), rows)

        found = Table(self.name, {path.name: table.schema}, cells, pictures.file, {})
        return split_rows(found, self.how.labels, image)


@dataclass(frozen=True)
class _Pictures:
    """The pictures below a folder, by what a list calls them."""

    place: Place
    root: Path
    title: str  # of the list, for messages

    def file(self, name: str) -> File:
        """The picture of a name; raises InputError if there is none, or it may be several."""
        (path,) = self.all([name])
        return File(self.place, path)

    def all(self, names: Sequence[Any]) -> list[Path]:
        """The pictures of these names, in order."""
        found, missing = [], []
        for name in map(text_of, names):
            path = self._path(name) or self._named(name)
            found.append(path) if path else missing.append(name)
        if missing:
            count = f"{len(missing)} pictures, the first is" if len(missing) > 1 else "a picture,"
            raise InputError(
                f"{self.title} names {count} {missing[0][:200]!r}, not found below {self.root}; "
                "fetch them, or say with image_root=FOLDER where they are"
            )
        return [path for path in found if path]

    def _path(self, name: str) -> Path | None:
        """The file at a path below the folder."""
        text = name if "/" in name else name.replace("\\", "/")
        parts = PurePosixPath(text).parts
        if not text or "\0" in text or len(text) > 4096:
            raise InputError(f"{self.title} has a row without the name of a picture; correct it")
        if text.startswith(("/", "~")) or ".." in parts or "://" in text:
            raise InputError(
                f"{self.title} names {text[:200]!r}, which may lie outside of {self.root}; write "
                "paths below it, or say with image_root=FOLDER where the pictures are"
            )
        if any(part.startswith(".") for part in parts):
            raise InputError(f"{self.title} names {text[:200]!r}, a hidden file; rename it")
        try:
            path = self.root.joinpath(*parts)
            return path if path.is_file() else None
        except (OSError, ValueError):
            return None

    def _named(self, name: str) -> Path | None:
        """The only picture called so, with or without its suffix and folders."""
        paths = self._known.get(name.replace("\\", "/"), [])
        if len(paths) > 1:
            raise InputError(
                f"{self.title} names {name[:200]!r}, which may be {paths[0]} or {paths[1]}; say "
                "with image_root=FOLDER which folder is meant, or write paths"
            )
        return paths[0] if paths else None

    @cached_property
    def _known(self) -> dict[str, list[Path]]:
        known: dict[str, list[Path]] = {}
        for path in self.place.files(self.root):
            below = path.relative_to(self.root)
            if path.suffix.lower() in PICTURES:
                for key in {path.name, path.stem, below.with_suffix("").as_posix()}:
                    known.setdefault(key, []).append(path)
        return known


def _by_split(content: Columns, image: str, path: Path) -> dict[str, list[int]]:
    """Rows of each split, where a column says it, or the folders that a ``metadata`` list names."""
    told = [cells for name, cells in content.items() if name.lower() in _SPLIT and name != image]
    if path.name in _HUGGING_FACE:
        told.append([text_of(cell).partition("/")[0] for cell in content[image]])
    for cells in told:
        words = {text_of(cell) for cell in cells}
        roles = {word: role[0] for word in words if (role := split_role(word))}
        if len(roles) == len(words) > 1:
            found: dict[str, list[int]] = {}
            for row, cell in enumerate(cells):
                found.setdefault(text_of(cell).lower(), []).append(row)
            return found
    return {}
