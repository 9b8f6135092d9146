"""Rows of a table: what the cells of its two columns say, pictures and classes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from potstill.data.columns import (
    PLAIN,
    Table,
    class_names,
    image_column,
    kind_of,
    label_column,
    refuse_other_shards,
)
from potstill.data.decode import Rows, brief
from potstill.data.files import File
from potstill.data.splits import UnlabelledError
from potstill.run import InputError

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["split_rows"]


def split_rows(table: Table, labels: str | None, image: str | None = None) -> Rows:
    """Rows of one split: finds the two columns and reads the labels; pictures come later.

    Raises:
        UnlabelledError: no labels, or all of them hidden.
        InputError: no image column, several columns that could be meant, no whole numbers.
    """
    for schema in table.shards.values():
        (column, times), *_ = [*Counter(schema.names).most_common(1), ("", 0)]
        if times > 1:
            raise InputError(
                f"source {table.name!r} has {times} columns called {column!r}; rename all but one"
            )
    image = image_column(table, image)
    column = label_column(table, image, labels)
    for used in (image, column):
        refuse_other_shards(table, used)
    numbers, classes = _read_labels(table, column)

    def pictures(rows: np.ndarray) -> Iterator[Any]:
        wanted = None if len(rows) == len(numbers) else rows
        cells = (cell for batch in table.cells(image, wanted) for cell in batch.to_pylist())
        left = iter(rows.tolist())
        for cell, row in zip(cells, left, strict=False):
            yield _encoded(table, image, row, cell)
        if (row := next(left, None)) is not None:
            raise InputError(
                f"source {table.name!r} has a label but no picture in row {row}; write it anew"
            )

    return Rows.of(table.name, pictures, numbers, classes)


def _encoded(table: Table, column: str, row: int, cell: Any) -> bytes | File:
    """Bytes of an image file, or where it lies, from a cell of an image column."""
    if isinstance(cell, str):
        cell = {"path": cell}
    fields = cell if isinstance(cell, dict) else {"bytes": cell}
    content, path = fields.get("bytes"), fields.get("path")
    if content is None and isinstance(path, str) and path:
        return table.locate(path)
    if not content:
        raise InputError(
            f"image {row} of {table.name} is empty (column {column!r}); fill it in or leave the "
            "row out"
        )
    return bytes(content)


def _read_labels(table: Table, column: str) -> tuple[np.ndarray, tuple[str, ...] | None]:
    """Labels int64 (n,) and class names, if the column has any; text is numbered as sorted."""
    title = f"labels column {column!r} of source {table.name!r}"
    kind = kind_of(table.schema, column)
    if kind == "list":
        raise InputError(
            f"{title} holds lists: several classes for one image, or one number per class; "
            "write one class per row (of one-hot rows the position of the 1)"
        )
    if kind not in (*PLAIN, "real", "nothing"):
        held = table.schema.field(column).type
        raise InputError(f"{title} holds {str(held)[:60]!r}; use whole numbers or text")
    classes: tuple[str, ...] | None = None
    batches = list(table.cells(column, None))
    if kind == "text":
        values = [value for batch in batches for value in batch.to_pylist()]
        classes = tuple(sorted({value for value in values if value}))
        place = {name: label for label, name in enumerate(classes)}
        numbers = np.array([place.get(value, -1) for value in values], np.int64)
    else:
        classes = class_names(table, table.schema, column) if kind == "whole" else None
        parts = [_whole(batch, title, kind) for batch in batches]
        numbers = np.concatenate([np.zeros(0, np.int64), *parts])
    _refuse_missing(numbers, table, column)
    return numbers, classes


def _whole(batch: pa.Array, title: str, kind: str) -> np.ndarray:
    """Numbers of one batch, -1 where there is none; of floats only whole ones."""
    import pyarrow as pa

    if kind == "nothing":
        return np.full(len(batch), -1)
    if kind == "real":
        values = batch.cast(pa.float64()).to_numpy(zero_copy_only=False)  # null becomes NaN
        values = np.where(np.isnan(values), -1, values)
        wrong = values[(values != np.floor(values)) | (np.abs(values) > 2.0**62)]
        if len(wrong):
            raise InputError(f"{title} holds {wrong[0]}; use whole numbers or text")
        return values.astype(np.int64)
    try:
        return batch.cast(pa.int64()).fill_null(-1).to_numpy(zero_copy_only=False)
    except pa.ArrowInvalid as error:  # more than 64 bits with a sign
        raise InputError(f"{title} holds no class ({brief(error)}); count from 0") from error


def _refuse_missing(numbers: np.ndarray, table: Table, column: str) -> None:
    """Hidden labels make a split unlabelled; where only some are missing, say how many."""
    if len(numbers) and numbers.max() < 0:
        raise UnlabelledError(
            f"the labels of this split of {table.name!r} are hidden; use another split"
        )
    missing = np.flatnonzero(numbers == -1)
    if len(missing):
        which = f"row {missing[0]}" if len(missing) == 1 else f"the first is row {missing[0]}"
        raise InputError(
            f"labels of source {table.name!r} (column {column!r}) are missing in {len(missing)} of "
            f"{len(numbers)} rows, which are empty or hold -1 ({which}); fill them in or leave "
            "the rows out"
        )
