"""A file of decoded images with a check for every block of them: read whole, or memory-mapped."""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import xxhash
from torch import Tensor

from potstill.run import ArtifactError
from potstill.run.records import require_regular

__all__ = ["IMAGES", "Checks", "Mapped", "map_file", "read_file", "require_file", "rows_per_block"]

IMAGES = "images.npy"
_BLOCK = 1 << 20  # bytes under one check


@dataclass(eq=False)
class Mapped:
    """A memory-mapped file of images; each block of it is compared with its check at first use.

    Threads may ask at the same time: at worst a block is compared twice.
    """

    root: Path  # where selections of it are written
    entry: Path | None  # its folder; None: a file of this process alone
    images: Tensor = field(repr=False)  # uint8 (n, c, h, w), the map
    checks: np.ndarray = field(repr=False)  # uint64 (blocks,)
    held: object = field(default=None, repr=False)  # what keeps the entry in the cache meanwhile

    def __post_init__(self) -> None:
        self._sound = np.zeros(len(self.checks), np.bool_)
        self._all = False

    def check(self, rows: Tensor | slice) -> None:
        """Compare the blocks of ``rows`` that nobody has looked at yet.

        Raises:
            ArtifactError: one is damaged; its entry is removed, so that it is decoded anew.
        """
        if self._all:
            return
        size = rows_per_block(self.images.shape)
        if isinstance(rows, slice):
            first, last, _ = rows.indices(len(self.images))
            blocks = np.arange(first // size, -(-last // size))
        else:
            blocks = np.unique(rows.numpy() // size)
        for block in blocks[~self._sound[blocks]].tolist():
            own = self.images[block * size : (block + 1) * size]
            if xxhash.xxh3_64_intdigest(own.numpy().data) != self.checks[block]:
                if self.entry is not None:
                    shutil.rmtree(self.entry, ignore_errors=True)
                place = self.root if self.entry is None else self.entry / IMAGES
                raise ArtifactError(
                    f"{place} is damaged at row {block * size} or soon after; run the same command "
                    "again, which decodes the images anew"
                )
            self._sound[block] = True
        self._all = bool(self._sound.all())


class Checks:
    """The check of every block of rows that come in pieces of any size."""

    def __init__(self, shape: Sequence[int]) -> None:
        self.rows, self.filled, self.found = rows_per_block(shape), 0, list[int]()
        self.total = xxhash.xxh3_64()

    def add(self, images: np.ndarray) -> None:
        """Take in the next rows (b, c, h, w), contiguous."""
        while len(images):
            part, images = np.split(images, [self.rows - self.filled])
            self.total.update(part.data)
            self.filled += len(part)
            if self.filled == self.rows:
                self._close()

    def _close(self) -> None:
        self.found.append(self.total.intdigest())
        self.total.reset()
        self.filled = 0

    def all(self) -> np.ndarray:
        """The checks of all blocks, uint64 (blocks,)."""
        if self.filled:
            self._close()
        return np.array(self.found, np.uint64)


def rows_per_block(shape: Sequence[int]) -> int:
    """Images of (n, c, h, w) under one check."""
    return max(1, _BLOCK // math.prod(shape[1:]))


def require_file(path: Path, header: bytes, shape: tuple[int, ...]) -> None:
    """Raise unless a regular file begins with ``header`` and is as long as images of ``shape``."""
    require_regular(path)
    with path.open("rb") as file:
        if file.read(len(header)) != header:
            raise ArtifactError(f"{path} is damaged (another header)")
    if (size := path.stat().st_size) != len(header) + math.prod(shape):
        raise ArtifactError(f"{path} is damaged ({size} bytes)")


def read_file(path: Path, offset: int, shape: tuple[int, ...], checks: np.ndarray) -> Tensor:
    """All images in memory; every block is compared while the caches hold it."""
    images, size = np.empty(shape, np.uint8), rows_per_block(shape)
    with path.open("rb") as file:
        file.seek(offset)
        for block, check in enumerate(checks):
            own = images[block * size : (block + 1) * size].data.cast("B")
            if file.readinto(own) != len(own) or xxhash.xxh3_64_intdigest(own) != check:
                raise ArtifactError(f"{path} is damaged at row {block * size} or soon after")
    return torch.from_numpy(images)


def map_file(path: Path, offset: int, shape: tuple[int, ...]) -> Tensor:
    """A private (copy-on-write) map: nothing that happens to the tensor reaches the file."""
    size = offset + math.prod(shape)
    return torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8)[offset:].view(
        shape
    )
