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
from potstill.data.files import Place
from potstill.data.folders import folder_rows, folder_stamp
from potstill.data.reading import Reading
from potstill.data.tree import find_splits
from potstill.run import InputError, nearest

__all__ = ["Source", "recognise"]

_FILES = (".npz", ".parquet", ".arrow")
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
        return _objects("arrays", source, how.labels)
    name = "arrays" if _is_pair(source) else type(source).__name__
    return _objects(name, {"train": source}, how.labels)


def _is_pair(source: Any) -> bool:
    return isinstance(source, tuple | list) and len(source) == 2


def _objects(
    name: str, parts: Mapping[str, Any], labels: str | None, stamp: Any = None, hub: bool = False
) -> Source:
    """Splits that are in memory: pairs of arrays, torch data sets, ``datasets`` data sets."""

    def rows(part: Any) -> Callable[[], Rows]:
        if hasattr(part, "select_columns"):  # a data set of the `datasets` library
            return lambda: tables.object_rows(part, name, labels, hub=hub)
        _no_columns(name, labels)
        if _is_pair(part):
            return lambda: array_rows(part[0], part[1], name)
        return lambda: dataset_rows(part, name)

    splits = {split: rows(part) for split, part in parts.items()}
    return Source(name, lambda: splits, stamp)


def _no_columns(name: str, labels: str | None) -> None:
    if labels is not None:
        raise InputError(f"labels is {labels!r}, but source {name!r} has no columns; leave it out")


def _named(source: str | Path, how: Reading) -> Source:
    labels = how.labels
    name, path = str(source), Path(source)
    with suppress(RuntimeError):  # no home of that name
        path = path.expanduser()
    if name == "digits":
        _no_columns(name, labels)
        return Source(name, digits_splits)
    if not name:
        raise InputError(
            "source is empty; give 'digits', a folder, a file or a hub name owner/name"
        )
    if _is_there(path, name):
        return _path(name, Place(path, how.follow_links), labels)
    looks_like_path = isinstance(source, Path) or name[:1] in ("/", ".", "~") or "\\" in name
    if name in tables.HUB or (
        name.count("/") == 1 and not looks_like_path and path.suffix.lower() not in _FILES
    ):
        parts = tables.from_hub(tables.HUB.get(name, name))
        prints = {split: getattr(part, "_fingerprint", None) for split, part in parts.items()}
        known = [prints, labels] if all(prints.values()) else None
        return _objects(name, parts, labels, known, hub=True)
    options: list[str] = []
    with suppress(OSError):  # a folder that may not be listed gives no hints
        options = [str(path.with_name(at.name)) for at in path.parent.iterdir() if at.is_dir()]
    hint = nearest(name, ["digits", *tables.HUB, *options])
    if hint.startswith("; choose"):
        hint = "; give 'digits', a folder, a file (.npz, .parquet) or a hub name owner/name"
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


def _path(name: str, place: Place, labels: str | None) -> Source:
    path = place.root
    if not os.access(path, os.R_OK | (os.X_OK if path.is_dir() else 0)):
        raise InputError(f"source is {name!r}, which may not be read; change its permissions")
    identity: list[Any] = [str(path.resolve()), labels]
    if path.is_dir() and not tables.is_table(path):
        _no_columns(name, labels)
        splits = find_splits(place)
        rows = {split: partial(folder_rows, place, part) for split, part in splits.items()}
        return Source(name, lambda: rows, [*identity, folder_stamp(place, splits)])
    identity.append(place.stamp())
    if path.is_file() and path.suffix.lower() == ".npz":
        _no_columns(name, labels)
        return Source(name, lambda: npz_splits(place), identity)
    if path.is_file() and path.suffix.lower() not in tables.SUFFIXES:
        raise InputError(
            f"source is {name!r}, a file of unknown kind; use .npz, .parquet or .arrow"
        )
    return Source(name, cache(lambda: tables.table_splits(place, labels)), identity)
