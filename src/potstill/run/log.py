"""What a run says while it works: progress with time left, and one line of JSON per record."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from tqdm.auto import tqdm

from potstill.run.checkpoint import write_bytes
from potstill.run.errors import StorageError
from potstill.run.records import parse_json, read_regular

__all__ = ["Metrics", "logger", "progress"]

logger = logging.getLogger("potstill")
T = TypeVar("T")


def progress(
    items: Iterable[T], *, label: str, quiet: bool, total: int | None = None, done: int = 0
) -> Iterator[T]:
    """Iterate with a bar that shows the time left; silent when ``quiet`` or shorter than 2 s."""
    return tqdm(
        items,
        desc=label,
        total=total,
        initial=done,
        disable=quiet,
        delay=2.0,
        leave=False,
        file=sys.stderr,
        dynamic_ncols=True,
        mininterval=0.5,
    )


class Metrics:
    """Append-only JSON lines; on resume, records from the checkpoint's step onward are dropped."""

    def __init__(self, path: Path | None, *, resume_at: int = 0) -> None:
        self.path = path
        if path is None:
            return
        kept = [r for r in read(path) if r["step"] < resume_at] if path.exists() else []
        write_bytes(path, "".join(json.dumps(record) + "\n" for record in kept).encode())

    def write(self, **record: Any) -> None:
        """Append one record."""
        if self.path is None:
            return
        try:
            with self.path.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(record) + "\n")
        except OSError as error:
            raise StorageError(
                f"cannot write {self.path}: {error.strerror}; free space and run the same command "
                "again (it goes on from the last checkpoint)"
            ) from error


def read(path: Path) -> list[dict[str, Any]]:
    """Return the records of a metrics file; lines that are none are left out.

    A kill or a full disk leaves a line that is cut off; a record is an object with a whole step.

    Raises:
        StorageError: the file cannot be read.
    """
    try:
        lines = read_regular(path).split(b"\n")
    except (OSError, ValueError) as error:
        raise StorageError(
            f"{path} cannot be read ({getattr(error, 'strerror', None) or error}); make it a "
            "readable file, or delete it (it holds the curves only)"
        ) from error
    records = []
    for line in lines:
        with suppress(ValueError):
            record = parse_json(line)
            if isinstance(record, dict) and type(record.get("step")) is int:
                records.append(record)
    return records
