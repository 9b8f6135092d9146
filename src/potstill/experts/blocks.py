"""One safetensors file of equally long rows, written and read one row at a time.

The file is made whole and sparse: a row that was never written takes no space, and every reader of
safetensors can open it. Nothing is mapped into memory, so a file that shrinks under a reader is an
error to report and not the end of the process.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from potstill.run.checkpoint import atomic

__all__ = ["Block", "content"]


def content(row: Tensor) -> memoryview:
    """The bytes of a float32 row on the CPU, not copied."""
    return row.numpy().data.cast("B")


@dataclass(frozen=True, eq=False)
class Block:
    """A tensor "rows" (members, epochs, columns) float32 in ``path``; ``facts`` stand in it."""

    path: Path
    shape: tuple[int, int, int]
    facts: Mapping[str, Any]

    @cached_property
    def header(self) -> bytes:
        """Length and JSON as safetensors has them, padded so that rows begin at a page."""
        about = {"potstill": json.dumps(self.facts, sort_keys=True)}
        entry = {"dtype": "F32", "shape": list(self.shape), "data_offsets": [0, self.size]}
        text = json.dumps({"__metadata__": about, "rows": entry}).encode()
        text += b" " * (-(len(text) + 8) % 4096)
        return len(text).to_bytes(8, "little") + text

    @property
    def size(self) -> int:
        """Bytes of all rows."""
        return 4 * self.shape[0] * self.shape[1] * self.shape[2]

    def fault(self) -> str | None:
        """What is wrong with the file as a whole, or None."""
        try:
            size = self.path.stat().st_size
            with self.path.open("rb") as file:
                header = file.read(len(self.header))
        except OSError as error:
            return f"cannot be read ({error.strerror})"
        if header != self.header:
            return "has another header"
        expected = len(self.header) + self.size
        return None if size == expected else f"has {size} bytes instead of {expected}"

    def make(self) -> None:
        """Put an empty file in place.

        Raises:
            StorageError: it cannot be written.
        """

        def write(temporary: Path) -> None:
            with temporary.open("wb") as file:
                file.write(self.header)
                file.truncate(len(self.header) + self.size)

        atomic(self.path, write)

    def read(self, member: int, epoch: int) -> Tensor | None:
        """Return a row (columns,), or None where the file ends before it does."""
        row = torch.empty(self.shape[2])
        with suppress(OSError), self.path.open("rb") as file:
            file.seek(self._offset(member, epoch))
            if file.readinto(content(row)) == row.nbytes:
                return row
        return None

    def write(self, member: int, epoch: int, row: Tensor) -> None:
        """Write a float32 row (columns,) in place; raises OSError."""
        with self.path.open("rb+") as file:
            file.seek(self._offset(member, epoch))
            file.write(content(row))

    def _offset(self, member: int, epoch: int) -> int:
        return len(self.header) + 4 * self.shape[2] * (member * self.shape[1] + epoch)
