"""What a run says while it works: progress with time left, and one line of JSON per record."""

from __future__ import annotations

import io
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


class _Lines(io.TextIOBase):
    """Where no terminal is: what a bar would draw over itself becomes one line after another."""

    def write(self, text: str) -> int:
        if line := text.strip("\r\n "):
            sys.stderr.write(f"potstill: {line}\n")
        return len(text)

    def flush(self) -> None:
        sys.stderr.flush()


def progress(
    items: Iterable[T], *, label: str, quiet: bool, total: int | None = None, done: int = 0
) -> Iterator[T]:
    """Iterate with a bar that shows the time left; silent when ``quiet`` or shorter than 2 s.

    Without a terminal (a log file, a scheduler) the bar is a line every 30 seconds.
    """
    how: dict[str, Any] = {"file": sys.stderr, "dynamic_ncols": True, "mininterval": 0.5}
    if not sys.stderr.isatty() and "notebook" not in tqdm.__name__:
        told = "{desc}: {n_fmt} of {total_fmt}, {elapsed} gone, {remaining} left"
        how = {"file": _Lines(), "mininterval": 30.0, "maxinterval": 60.0, "bar_format": told}
    return tqdm(
        items, desc=label, total=total, initial=done, disable=quiet, delay=2.0, leave=False, **how
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
