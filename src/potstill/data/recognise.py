"""What kind of source a user named: recognised at once, read later (or never, if it is cached)."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

from potstill.data import tables
from potstill.data.arrays import array_rows, dataset_rows, digits_splits, npz_splits
from potstill.data.decode import Rows
from potstill.data.detection import detection_layout
from potstill.data.files import Place
from potstill.data.folders import folder_rows, folder_stamp
from potstill.data.listfiles import SUFFIXES
from potstill.data.lists import Lists, find_lists
from potstill.data.reading import Reading
from potstill.data.splits import UnlabelledError, split_role
from potstill.data.torchvision_sets import torchvision_set
from potstill.data.tree import Split, find_splits
from potstill.run import InputError, logger, nearest

__all__ = ["Source", "recognise"]

_FILES = (".npz", *sorted(tables.SUFFIXES | SUFFIXES))
_KINDS = ".npz, .parquet, .arrow, or a list of pictures: .csv, .tsv, .jsonl, .txt"
_LISTS = (".csv", ".tsv", ".jsonl")
Splits = Mapping[str, Callable[[], Rows]]


@dataclass(frozen=True)
class Source:
    """A source that has been recognised but not read."""

    name: str
    splits: Callable[[], Splits]
    stamp: Any = None  # JSON-like identity of its files; None: not worth caching

    @property
    def title(self) -> str:
        """Name for results that travel: a file or folder goes by its own name, not its place."""
        path = Path(self.name).expanduser()
        return path.resolve().name if path.exists() else self.name


def recognise(source: Any, how: Reading) -> Source:
    """Recognise any source that :mod:`potstill.data.sources` lists.

    Raises:
        InputError: nothing of that name, or ``labels`` for a source without columns.
    """
    if isinstance(source, str | Path):
        return _named(source, how)
    if isinstance(source, Mapping):
        return _objects("arrays", source, how)
    name = "arrays" if _is_pair(source) else type(source).__name__
    return _objects(name, {"train": source}, how)


def _is_pair(source: Any) -> bool:
    return isinstance(source, tuple | list) and len(source) == 2


def _objects(
    name: str, parts: Mapping[str, Any], how: Reading, stamp: Any = None, hub: bool = False
) -> Source:
    """Splits that are in memory: pairs of arrays, torch data sets, ``datasets`` data sets."""

    def rows(part: Any) -> Callable[[], Rows]:
        if hasattr(part, "select_columns"):  # a data set of the `datasets` library
            return lambda: tables.object_rows(part, name, how, hub=hub)
        _no_columns(name, how)
        if _is_pair(part):
            return lambda: array_rows(part[0], part[1], name)
        return lambda: dataset_rows(part, name)

    splits = {split: rows(part) for split, part in parts.items()}
    return Source(name, lambda: splits, stamp)


def _no_columns(name: str, how: Reading) -> None:
    for option in ("labels", "image_column", "image_root"):
        if (value := getattr(how, option)) is not None:
            what = "is no list of pictures" if option == "image_root" else "has no columns"
            raise InputError(f"{option} is {value!r}, but source {name!r} {what}; leave it out")


def _named(source: str | Path, how: Reading) -> Source:
    name, path = str(source), Path(source)
    with suppress(RuntimeError):  # no home of that name
        path = path.expanduser()
    if name == "digits":
        _no_columns(name, how)
        return Source(name, digits_splits)
    if not name:
        raise InputError(
            "source is empty; give 'digits', a folder, a file or a hub name owner/name"
        )
    if _is_there(path, name):
        return _path(name, Place(path, how.follow_links), how)
    looks_like_path = isinstance(source, Path) or name[:1] in ("/", ".", "~") or "\\" in name
    if name in tables.HUB or (
        name.count("/") == 1 and not looks_like_path and path.suffix.lower() not in _FILES
    ):
        parts = tables.from_hub(tables.HUB.get(name, name))
        prints = {split: getattr(part, "_fingerprint", None) for split, part in parts.items()}
        known = [prints, how.labels] if all(prints.values()) else None
        return _objects(name, parts, how, known, hub=True)
    options: list[str] = []
    with suppress(OSError):  # a folder that may not be listed gives no hints
        options = [str(path.with_name(at.name)) for at in path.parent.iterdir() if at.is_dir()]
    hint = nearest(name, ["digits", *tables.HUB, *options])
    if hint.startswith("; choose"):
        hint = f"; give 'digits', a folder, a file ({_KINDS}) or a hub name owner/name"
    raise InputError(f"source is {name!r}, and there is nothing of that name{hint}")


def _is_there(path: Path, name: str) -> bool:
    """Whether there is a file or folder; anything else of that name is refused."""
    try:
        name.encode()
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        if path.is_symlink():
            raise InputError(
                f"source is {name!r}, a link that leads nowhere; restore its target"
            ) from None
        return False
    except UnicodeEncodeError:
        raise InputError(f"source is {name!a}, which is not UTF-8; rename it") from None
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise InputError(
            f"source is {name[:200]!r}, which cannot be read ({why}); correct it"
        ) from error
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise InputError(f"source is {name!r}, a device or socket; give a folder or a file")
    return True


def _path(name: str, place: Place, how: Reading) -> Source:
    path = place.root
    if not os.access(path, os.R_OK | (os.X_OK if path.is_dir() else 0)):
        raise InputError(f"source is {name!r}, which may not be read; change its permissions")
    identity: list[Any] = [str(path.resolve()), how.labels]
    kind = path.suffix.lower()
    if lists := _lists(name, place, how):
        return Source(name, lists.splits, [*identity, lists.stamp()])
    _no_columns(name, Reading(image_root=how.image_root))
    if (path.is_dir() and tables.is_table(path)) or kind in tables.SUFFIXES:
        identity.append(place.stamp())
        return Source(name, cache(lambda: tables.table_splits(place, how)), identity)
    _no_columns(name, how)
    if path.is_dir():
        return _folder(name, place, identity)
    if kind != ".npz":
        raise InputError(f"source is {name!r}, a file of unknown kind; use {_KINDS}")
    return Source(name, lambda: npz_splits(place), [*identity, place.stamp()])


def _lists(name: str, place: Place, how: Reading) -> Lists | None:
    """A list of pictures, or those that lie in a folder as Hugging Face has them."""
    if place.root.is_file():
        return Lists.of(place.root, how) if place.root.suffix.lower() in SUFFIXES else None
    found = {} if tables.is_table(place.root) else find_lists(place)
    return Lists(name, place, found, how) if found else None


def _folder(name: str, place: Place, identity: list[Any]) -> Source:
    """One of torchvision's sets, or class folders."""
    if known := torchvision_set(place):
        return Source(name, lambda: known[0], [*identity, known[1]])
    try:
        found = find_splits(place)
        stamp = folder_stamp(place, found)
    except InputError as error:
        raise _explained(place, error) from error
    for path in sorted(place.root.iterdir()):
        train = path.suffix in SUFFIXES and (split_role(path.stem) or " ")[0] == "train"
        if train or path.suffix in _LISTS:
            logger.warning(
                "source %s: read as class folders; if %s is a list of the pictures to train on, "
                "give that as the source",
                *(place.root, path.name),
            )
    rows = {split: partial(_class_folders, place, part) for split, part in found.items()}
    return Source(name, lambda: rows, [*identity, stamp])


def _class_folders(place: Place, split: Split) -> Rows:
    try:
        return folder_rows(place, split)
    except UnlabelledError:
        raise
    except InputError as error:
        raise _explained(place, error) from error


def _explained(place: Place, error: InputError) -> InputError:
    """The error, with what a folder is that holds no class folders."""
    if what := detection_layout(place):
        return InputError(what)
    lists = sorted(path for path in place.root.iterdir() if path.suffix in _LISTS)
    if lists and "class" in str(error):
        return InputError(f"{error}; if {lists[0].name} names them with classes, give that instead")
    return error
