"""Parquet and Arrow files: their columns, and the cells of one column batch by batch.

What pyarrow finds wrong in a damaged file becomes one sentence. Memory is bounded by batches
and pages, not by row groups, and rows by the size of the file: a few bytes can claim billions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from potstill.data.decode import brief
from potstill.data.files import Place
from potstill.run import InputError

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["BATCH", "SUFFIXES", "read_column", "read_schema", "taken"]

BATCH = 256  # rows
SUFFIXES = frozenset({".parquet", ".arrow"})
_BUFFER = 1 << 20  # bytes of a column that are read at once
_BATCH_BYTES = 4 << 20  # of the cells of a batch: fewer rows where pictures are large
_ARROW = b"ARROW1"  # how Arrow's file format begins; its stream format has no mark


def read_schema(place: Place, path: Path) -> pa.Schema:
    """Columns of a file, with their metadata; raises InputError where it is damaged."""
    with _opened(place, path) as (schema, _):
        for field in schema:  # names that are no text are refused here
            _ = field.name, [field.type.field(at).name for at in range(field.type.num_fields)]
        return schema


def read_column(place: Place, path: Path, column: str) -> Iterator[pa.Array]:
    """Cells of one column, at most :data:`BATCH` at a time, without dictionaries.

    Raises:
        InputError: a damaged file, or more rows than it has bytes.
    """
    import pyarrow as pa

    rows, most = 0, path.stat().st_size
    with _opened(place, path) as (_, batches):
        for batch in batches(column):
            rows += len(batch)
            if rows > most:
                raise InputError(
                    f"{path} claims more rows than it has bytes ({most}); it is damaged"
                )
            cells = batch.column(batch.schema.names.index(column))
            cells.validate(full=True)  # before anything follows an offset
            if isinstance(cells, pa.ExtensionArray):
                cells = cells.storage
            if pa.types.is_dictionary(cells.type):
                cells = cells.dictionary_decode()
            yield from (cells.slice(at, BATCH) for at in range(0, len(cells), BATCH))


def taken(batches: Iterator[pa.Array], rows: np.ndarray | None) -> Iterator[pa.Array]:
    """Cells at ascending row numbers, or all."""
    start = 0
    for batch in batches:
        if rows is None:
            yield batch
            continue
        first, last = np.searchsorted(rows, (start, start + len(batch)))
        if first < last:
            yield batch.take(rows[first:last] - start)
        start += len(batch)


Batches = Callable[[str], Iterator[Any]]


@contextmanager
def _opened(place: Place, path: Path) -> Iterator[tuple[pa.Schema, Batches]]:
    """Schema of a file and its record batches with one column; pyarrow's errors in a sentence."""
    try:
        with place.open(path) as file:
            arrow = path.suffix.lower() == ".arrow"
            yield _arrow(file) if arrow else _parquet(file)
    except InputError:
        raise
    except Exception as error:  # pyarrow raises many kinds on damaged files
        raise InputError(
            f"source {path} cannot be read as a data set ({brief(error)}); fetch or write the "
            "file again"
        ) from error


def _parquet(file: Any) -> tuple[pa.Schema, Batches]:
    import pyarrow.parquet as pq

    table = pq.ParquetFile(
        file, buffer_size=_BUFFER, pre_buffer=False, page_checksum_verification=True
    )
    about = table.metadata
    size = sum(about.row_group(at).total_byte_size for at in range(about.num_row_groups))
    rows = max(1, min(BATCH, _BATCH_BYTES * max(1, about.num_rows) // max(1, size)))

    def batches(column: str) -> Iterator[Any]:
        return table.iter_batches(rows, columns=[column], use_threads=False)

    return table.schema_arrow, batches


def _arrow(file: Any) -> tuple[pa.Schema, Batches]:
    from pyarrow import ipc

    whole = file.read(len(_ARROW)) == _ARROW
    file.seek(0)
    schema = (ipc.open_file(file) if whole else ipc.open_stream(file)).schema

    def batches(column: str) -> Iterator[Any]:
        file.seek(0)
        options = ipc.IpcReadOptions(included_fields=[schema.names.index(column)])
        if whole:
            reader = ipc.open_file(file, options=options)
            return (reader.get_batch(at) for at in range(reader.num_record_batches))
        return iter(ipc.open_stream(file, options=options))

    return schema, batches
