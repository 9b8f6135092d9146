"""Data sets in tables: Parquet and Arrow files, what ``datasets`` saved, and any hub name.

Files on disk are read here, from a list of files inside the source: the ``datasets`` library would
keep what it reads in a cache whose key is little more than the folder's name, and would open any
file that a table or card names.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np

from potstill.data.cells import split_rows
from potstill.data.columns import Table
from potstill.data.decode import Rows, brief
from potstill.data.files import File, Place
from potstill.data.layout import class_names, front_matter, split_files
from potstill.data.reading import Reading
from potstill.data.tablefiles import BATCH, SUFFIXES, read_column, read_schema, taken
from potstill.run import InputError, nearest
from potstill.run.records import fits, parse_json

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["HUB", "SUFFIXES", "from_hub", "is_table", "object_rows", "table_splits"]

# Short names of sets that the field uses; every other hub set is "owner/name[:configuration]".
HUB = {
    "cifar10": "uoft-cs/cifar10",
    "cifar100": "uoft-cs/cifar100",
    "mnist": "ylecun/mnist",
    "fashion-mnist": "zalando-datasets/fashion_mnist",
    "svhn": "ufldl-stanford/svhn:cropped_digits",
    "tiny-imagenet": "zh-plus/tiny-imagenet",
}
_TEXT = 16 << 20  # bytes of a README.md or state.json


def is_table(root: Path) -> bool:
    """Whether a folder holds visible Parquet or Arrow files, directly or one folder down.

    Only names are looked at: what a link leads to matters when it is read.
    """
    patterns = ("*.parquet", "*/*.parquet", "*.arrow", "*/*.arrow")
    found = (path for pattern in patterns for path in root.glob(pattern) if path.is_file())
    return any(not f"/{path.relative_to(root).as_posix()}".count("/.") for path in found)


def table_splits(place: Place, how: Reading) -> Mapping[str, Callable[[], Rows]]:
    """Splits of a Parquet file, a folder of Parquet or Arrow files, or what ``datasets`` saved.

    Raises:
        InputError: damaged files, or files whose split is not clear; see
            :mod:`potstill.data.layout`.
    """
    root = place.root
    if root.is_file():
        return {"train": partial(_files_rows, place, [root], {}, how)}
    named: Mapping[str, tuple[str, ...]] = {}
    splits: Mapping[str, Callable[[], list[str]]]
    known = {path.relative_to(root).as_posix(): path for path in place.files()}
    if "dataset_dict.json" in known:
        folders = _json(place, known["dataset_dict.json"]).get("splits")
        if not folders or not fits(folders, list[str]):
            raise InputError(f"{known['dataset_dict.json']} names no splits; save the set again")
        splits = {name: partial(_saved, place, name, known) for name in folders}
    elif "state.json" in known:
        splits = {"train": partial(_saved, place, "", known)}
    else:
        path = known.get("README.md")
        text = "" if path is None else place.read(path, _TEXT).decode(errors="replace")
        card = front_matter(text, str(root))
        splits = split_files(list(known), card, str(root))
        named = class_names(card, str(root))

    def rows(names: Callable[[], list[str]]) -> Rows:
        return _files_rows(place, [known[name] for name in names()], named, how)

    return {split: partial(rows, names) for split, names in splits.items()}


def object_rows(data: Any, name: str, how: Reading, *, hub: bool = False) -> Rows:
    """Rows of an open split of the ``datasets`` library (Dataset or IterableDataset).

    Pictures that its cells name by path are read where they lie: whoever opened it chose them. Of a
    ``hub`` set, which a stranger wrote, only those in the caches of ``datasets`` are.

    Raises:
        UnlabelledError, InputError: as :func:`potstill.data.cells.split_rows`.
    """
    if data.features is None:
        raise InputError(f"source {name!r} does not tell its columns; set its features")

    def cells(column: str, rows: np.ndarray | None) -> Iterator[pa.Array]:
        part, wanted = data, rows
        if rows is not None and hasattr(data, "select"):  # the others are read nowhere
            part, wanted = data.select(rows), None
        view = part.select_columns([column]).with_format("arrow")
        batches = (batch.column(column) for batch in view.iter(batch_size=BATCH))
        yield from taken((batch.combine_chunks() for batch in batches), wanted)

    locate = _downloaded if hub else _anywhere
    table = Table(name, {name: data.features.arrow_schema}, cells, locate, {})
    return split_rows(table, how.labels, how.image_column)


def from_hub(name: str) -> Mapping[str, Any]:
    """Open ``owner/name`` or ``owner/name:configuration``, from the local cache when offline.

    Raises:
        InputError: unknown there, out of reach, or a configuration has to be named.
    """
    import datasets
    from datasets.exceptions import DatasetNotFoundError

    repository, _, configuration = name.partition(":")
    try:
        return datasets.load_dataset(repository, configuration or None)
    except DatasetNotFoundError as error:
        raise InputError(
            f"source is {name!r}, which is neither a folder here nor a data set on the hub"
            f"{nearest(repository, HUB.values())}"
        ) from error
    except ConnectionError as error:
        why = "HF_HUB_OFFLINE is set" if datasets.config.HF_HUB_OFFLINE else "no connection"
        raise InputError(
            f"source is {name!r}, which is no folder here, and the hub is out of reach ({why}); "
            "check the path, or load it once with a connection"
        ) from error
    except Exception as error:  # whatever the builder of a foreign data set raises
        raise InputError(
            f"source is {name!r}, which the hub does not give ({brief(error)}); check the name, or "
            f"name one of its configurations as '{repository}:configuration'"
        ) from error


def _anywhere(name: str) -> File:
    place = Place(Path(name).absolute())
    return File(place, place.resolve(place.root))


def _downloaded(name: str) -> File:
    """A picture that the hub's own builders have put into their caches."""
    from datasets import config
    from huggingface_hub.constants import HF_HUB_CACHE

    caches = (config.HF_DATASETS_CACHE, config.DOWNLOADED_DATASETS_PATH, HF_HUB_CACHE)
    for cache in dict.fromkeys(map(Path, caches)):
        with suppress(InputError):
            return File(Place(cache), Place(cache).resolve(Path(name).absolute()))
    raise InputError(
        f"a cell of the hub set names {name[:200]!r}, which is no picture that was downloaded with "
        "it; choose another data set"
    )


def _inside(place: Place, name: str) -> File:
    """A picture that a cell of a file names: below the source, where the stamp covers it."""
    title = f"a cell of source {place.root} names {name[:200]!r}"
    roots = [place.root.absolute(), place.root.resolve()] if place.root.is_dir() else []
    path = Path(os.path.normpath(place.root.absolute() / name))
    below = [path.relative_to(root) for root in roots if path.is_relative_to(root)]
    if not below:
        raise InputError(
            f"{title}, a file outside of it; write the pictures themselves into the table, or put "
            "both into one folder and give that"
        )
    if any(part.startswith(".") for part in below[0].parts):
        raise InputError(f"{title}, a hidden file; give it a name without a dot in front")
    return File(place, place.resolve(path))


def _json(place: Place, path: Path) -> dict[str, Any]:
    content = place.read(path, _TEXT)
    try:
        found = parse_json(content)
    except ValueError as error:
        raise InputError(f"{path} is damaged ({brief(error)}); save the data set again") from error
    if not isinstance(found, dict):
        raise InputError(f"{path} holds no fields; save the data set again")
    return found


def _saved(place: Place, folder: str, known: Mapping[str, Path]) -> list[str]:
    """Names of the Arrow files that ``save_to_disk`` lists for one split."""
    title = PurePosixPath(folder, "state.json").as_posix()
    if title not in known:
        raise InputError(f"source {place.root} lacks {title}; save the data set again")
    state = _json(place, known[title])
    listed = state.get("_data_files")
    listed = listed if isinstance(listed, list) else []
    files = [file.get("filename") for file in listed if isinstance(file, dict)]
    names = [PurePosixPath(folder, str(file)).as_posix() for file in files]
    if not names or state.get("_indices_data_files"):
        raise InputError(f"{known[title]} names no files of all rows; save the data set again")
    for name in names:
        if name not in known:
            raise InputError(
                f"{known[title]} names {name[:200]!r}, which is no file of the folder; save the "
                "data set again"
            )
    return names


def _files_rows(
    place: Place, files: list[Path], named: Mapping[str, tuple[str, ...]], how: Reading
) -> Rows:
    """Rows of one split on disk: its files one after another."""
    schemas = {os.path.relpath(path, place.root): read_schema(place, path) for path in files}

    def cells(column: str, rows: np.ndarray | None) -> Iterator[pa.Array]:
        return taken((cell for path in files for cell in read_column(place, path, column)), rows)

    table = Table(str(place.root), schemas, cells, partial(_inside, place), named)
    return split_rows(table, how.labels, how.image_column)
