"""What a run says while it works: progress with time left, and one line of JSON per record."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from tqdm.auto import tqdm

from potstill.run.checkpoint import write_bytes
from potstill.run.errors import StorageError

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
        kept = [r for r in read(path) if r.get("step", 0) < resume_at] if path.exists() else []
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
    """Return the records of a metrics file; a line cut off by a kill is left out."""
    records = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            records.append(json.loads(line))
        except ValueError:
            continue
    return records
