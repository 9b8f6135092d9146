"""Data sets that the ``datasets`` library reads: Parquet and Arrow folders, and any hub name."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from potstill.data.decode import Rows, brief
from potstill.data.splits import UnlabelledError
from potstill.run import InputError, nearest

__all__ = ["HUB", "from_disk", "from_hub", "is_table", "table_rows"]

# Short names of sets that the field uses; every other hub set is "owner/name[:configuration]".
HUB = {
    "cifar10": "uoft-cs/cifar10",
    "cifar100": "uoft-cs/cifar100",
    "mnist": "ylecun/mnist",
    "fashion-mnist": "zalando-datasets/fashion_mnist",
    "svhn": "ufldl-stanford/svhn:cropped_digits",
    "tiny-imagenet": "zh-plus/tiny-imagenet",
}
SUFFIXES = frozenset({".parquet", ".arrow", ".json", ".yaml", ".md"})
_BATCH = 256


def is_table(root: Path) -> bool:
    """Whether ``root`` holds Parquet or Arrow files, directly or one folder down."""
    patterns = ("*.parquet", "*/*.parquet", "*.arrow", "*/*.arrow")
    return any(next(root.glob(pattern), None) for pattern in patterns)


def from_disk(path: Path) -> Mapping[str, Any]:
    """Open a Parquet file, a folder of Parquet or Arrow files, or what ``save_to_disk`` wrote.

    Rows are streamed from the files: nothing is copied.
    """
    import datasets

    try:
        if path.is_file():
            files = {"train": str(path)}
            return datasets.load_dataset("parquet", data_files=files, streaming=True)
        if (path / "dataset_dict.json").exists():
            return datasets.load_from_disk(str(path))
        if (path / "state.json").exists():
            return {"train": datasets.load_from_disk(str(path))}
        return datasets.load_dataset(str(path), streaming=True)
    except Exception as error:  # pyarrow, fsspec and datasets raise many kinds
        raise InputError(
            f"source {path} cannot be read as a data set ({brief(error)}); check its files"
        ) from error


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


def table_rows(table: Any, name: str, labels: str | None) -> Rows:
    """Rows of one split (a ``datasets`` Dataset or IterableDataset); finds the two columns.

    Raises:
        UnlabelledError: every label is hidden.
        InputError: no image column, no or several label columns, or labels out of range.
    """
    features = dict(table.features or {})
    image = _image_column(features, name)
    column = _label_column(features, name, labels)
    read = _batches(table, [column])
    values = [value for batch in read() for value in batch.column(column).to_pylist()]
    classes = getattr(features[column], "names", None)
    if any(isinstance(value, str) for value in values):
        classes = sorted({value for value in values if isinstance(value, str)})
        lookup = {text: label for label, text in enumerate(classes)}
        values = [lookup.get(value) for value in values]
    numbers = np.array([-1 if value is None else value for value in values])
    if len(numbers) and numbers.dtype.kind not in "iub":
        raise InputError(f"labels column {column!r} holds {numbers.dtype}; use whole numbers")
    if len(numbers) and numbers.max() < 0:
        raise UnlabelledError(f"the labels of this split of {name!r} are hidden; use another split")

    def pictures(rows: np.ndarray) -> Iterator[Any]:
        """Cells of the wanted rows; a table that is not streamed is read nowhere else."""
        part, wanted = table, rows
        if len(rows) < len(numbers) and hasattr(table, "select"):
            part, wanted = table.select(rows), np.arange(len(rows))
        start = 0
        for batch in _batches(part, [image])():
            first, last = np.searchsorted(wanted, (start, start + len(batch)))
            if first < last:
                column = batch.column(image).take(wanted[first:last] - start)
                yield from map(_encoded, column.to_pylist())
            start += len(batch)

    return Rows.of(name, pictures, numbers, classes and tuple(classes))


def _batches(table: Any, columns: list[str]) -> Callable[[], Iterator[Any]]:
    view = table.select_columns(columns).with_format("arrow")
    return lambda: view.iter(batch_size=_BATCH)


def _encoded(item: Any) -> Any:
    """Bytes of an image file, or its path, from a cell of an image column."""
    if isinstance(item, dict):
        return item["bytes"] if item.get("bytes") else Path(item["path"])
    return item


def _image_column(features: Mapping[str, Any], name: str) -> str:
    from datasets import Image

    def holds_images(feature: Any) -> bool:
        encoded = isinstance(feature, dict) and "bytes" in feature
        return isinstance(feature, Image) or encoded or getattr(feature, "dtype", "") == "binary"

    found = [column for column, feature in features.items() if holds_images(feature)]
    if not found:
        raise InputError(
            f"source {name!r} has columns {', '.join(features)}, none of which holds images; "
            "choose a data set with an image column"
        )
    return next((column for column in ("image", "img") if column in found), found[0])


def _label_column(features: Mapping[str, Any], name: str, wanted: str | None) -> str:
    from datasets import ClassLabel

    if wanted is not None:
        if wanted not in features:
            raise InputError(f"labels is {wanted!r}{nearest(wanted, features)}")
        return wanted
    named = [column for column, feature in features.items() if isinstance(feature, ClassLabel)]
    whole = [c for c, feature in features.items() if "int" in str(getattr(feature, "dtype", ""))]
    found = named or whole
    if len(found) == 1:
        return found[0]
    for usual in ("label", "labels", "fine_label"):
        if usual in found:
            return usual
    if found:
        raise InputError(
            f"source {name!r} has several label columns ({', '.join(found)}); "
            f"choose one, e.g. labels={found[0]!r}"
        )
    raise InputError(
        f"source {name!r} has columns {', '.join(features)} but no class labels; "
        "name the label column with labels="
    )
