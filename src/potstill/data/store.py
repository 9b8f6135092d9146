"""Decoded images on disk: written once, checked, and read back or memory-mapped.

An entry is a folder ``<cache>/decoded/<key>/`` with ``images.npy`` (uint8 (n, c, h, w)),
``labels.npy`` (int64 (n,)) and ``facts.json``; it appears in one step or not at all.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from potstill.run import StorageError, logger

__all__ = ["Bank", "Facts", "collect", "read_entry", "take", "tensor_digest"]

_LARGE_SELECTION = 64 << 20  # bytes; smaller selections of mapped images go into memory
_ROWS = 1024  # rows moved at once between files
_STALE = 7 * 24 * 3600  # seconds after which an unfinished entry counts as left behind
Blocks = Iterable[tuple[np.ndarray, Sequence[int]]]  # uint8 (b, c, h, w) and b labels, in order


@dataclass(frozen=True)
class Facts:
    """What is known about decoded images beside their pixels."""

    classes: tuple[str, ...] | None  # None: named "0".."C-1" after the labels
    splits: tuple[str, ...]  # all splits of the source
    rows: tuple[int, ...] | None = None  # numbers in the split, if only some of it is here
    # what decoding found out, see potstill.data.decode.blocks; there when the last block is
    found: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Bank:
    """Decoded images of one split, in memory or memory-mapped."""

    images: Tensor  # uint8 (n, c, h, w)
    labels: Tensor  # int64 (n,)
    facts: Facts
    fingerprint: str
    mapped: Path | None  # folder of the file behind `images`


def collect(
    blocks: Blocks, count: int, facts: Facts, *, root: Path, key: str | None, memory_gb: float
) -> Bank:
    """Gather ``count`` decoded images and, with a ``key``, keep them under ``root``.

    Up to ``memory_gb`` they are gathered in memory, and a disk that cannot take a copy costs a
    warning; above, they go to disk as they come and are memory-mapped.

    Raises:
        StorageError: images above ``memory_gb`` cannot be written.
    """
    blocks = iter(blocks)
    first = next(blocks)
    shape = (count, *first[0].shape[1:])
    large = math.prod(shape) > memory_gb * 1e9
    labels = np.empty(count, np.int64)
    content = hashlib.sha256(repr(shape).encode())

    def pixels() -> Iterator[np.ndarray]:
        done = 0
        for images, part in chain([first], blocks):
            labels[done : done + len(part)] = part
            done += len(part)
            content.update(images.data)
            yield images

    if not large:
        bank = np.empty(shape, np.uint8)
        done = 0
        for images in pixels():
            bank[done : done + len(images)] = images
            done += len(images)
        fingerprint = _finish(content, labels)
        if key:
            try:
                with _Staging(root, key) as staging:
                    staging.fill(shape, [bank], labels, facts, fingerprint)
            except OSError as error:
                logger.warning("decoded images are not cached (%s); going on without", error)
        return Bank(torch.from_numpy(bank), torch.from_numpy(labels), facts, fingerprint, None)

    try:
        with _Staging(root, key) as staging:
            staging.write_images(shape, pixels())
            fingerprint = _finish(content, labels)
            staging.write_facts(labels, facts, fingerprint)
            mapped = staging.map_images(shape)
    except OSError as error:
        size = math.prod(shape) / 1e9
        raise StorageError(
            f"cannot write {size:.1f} GB of decoded images to {root} ({error.strerror or error}); "
            f"free space, set POTSTILL_CACHE to a larger disk, or raise memory_gb above {size:.1f}"
        ) from error
    return Bank(mapped, torch.from_numpy(labels), facts, fingerprint, root)


def read_entry(root: Path, key: str, memory_gb: float) -> Bank | None:
    """Read a cached entry; ``None`` if there is none or it is damaged (it will be made again)."""
    folder = root / key
    try:
        known = json.loads((folder / "facts.json").read_text(encoding="utf-8"))
        rows = tuple(known["rows"]) if "rows" in known and known["rows"] is not None else None
        names = known["classes"] and tuple(known["classes"])
        facts = Facts(names, tuple(known["splits"]), rows, dict(known.get("found", {})))
        path, shape = folder / "images.npy", tuple(known["shape"])
        offset = _check_npy(path, shape)
        labels = np.load(folder / "labels.npy", allow_pickle=False)
        if labels.shape != shape[:1] or labels.dtype != np.int64:
            raise ValueError(f"labels.npy is {labels.dtype} {labels.shape}")
        if rows is not None and len(rows) != len(labels):
            raise ValueError(f"facts.json numbers {len(rows)} rows")
        if math.prod(shape) > memory_gb * 1e9:
            images, mapped = _map(path, offset, shape), root
        else:
            images, mapped = torch.from_numpy(np.load(path, allow_pickle=False)), None
        return Bank(images, torch.from_numpy(labels), facts, known["fingerprint"], mapped)
    except (OSError, ValueError, KeyError, TypeError) as error:
        if folder.exists():
            logger.warning("cached images in %s are damaged (%s); decoding again", folder, error)
            shutil.rmtree(folder, ignore_errors=True)
        return None


def take(images: Tensor, positions: Tensor, mapped: Path | None) -> Tensor:
    """Rows of ``images`` (n, c, h, w); many rows of a mapped tensor go to a mapped file in turn."""
    shape = (len(positions), *images.shape[1:])
    if mapped is None or math.prod(shape) < _LARGE_SELECTION:
        return images[positions.to(images.device)]
    with _Staging(mapped, None) as staging:
        staging.write_images(shape, (images[part].numpy() for part in positions.split(_ROWS)))
        return staging.map_images(shape)


def tensor_digest(values: Tensor) -> str:
    """16 hexadecimal digits of an integer tensor's values, as little-endian int64."""
    return hashlib.sha256(values.numpy().astype("<i8").tobytes()).hexdigest()[:16]


class _Staging:
    """A folder that is filled and then, with a key, becomes an entry in one step, or vanishes."""

    def __init__(self, root: Path, key: str | None) -> None:
        self.root, self.key = root, key

    def __enter__(self) -> _Staging:
        self.root.mkdir(parents=True, exist_ok=True)
        for left in self.root.glob(".part-*"):  # by a process that was killed
            with suppress(OSError):
                if time.time() - left.stat().st_mtime > _STALE:
                    shutil.rmtree(left)
        self.folder = Path(tempfile.mkdtemp(dir=self.root, prefix=".part-"))
        return self

    def __exit__(self, kind: type | None, *rest: object) -> None:
        if self.key and kind is None:
            with suppress(OSError):  # another process was quicker
                self.folder.chmod(0o755)
                self.folder.rename(self.root / self.key)
        # Mapped files stay readable after removal.
        shutil.rmtree(self.folder, ignore_errors=True)

    def fill(
        self,
        shape: tuple[int, ...],
        images: Iterable[np.ndarray],
        labels: np.ndarray,
        facts: Facts,
        fingerprint: str,
    ) -> None:
        self.write_images(shape, images)
        self.write_facts(labels, facts, fingerprint)

    def write_images(self, shape: tuple[int, ...], images: Iterable[np.ndarray]) -> None:
        """Plain writes, not a writable map: a full disk raises OSError instead of SIGBUS."""
        self.shape = shape
        if shutil.disk_usage(self.folder).free < math.prod(shape):  # sooner than after filling it
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        header = {"descr": "|u1", "fortran_order": False, "shape": shape}
        with (self.folder / "images.npy").open("wb") as file:
            np.lib.format.write_array_header_1_0(file, header)
            for part in images:
                file.write(np.ascontiguousarray(part).data)
            _sync(file)

    def write_facts(self, labels: np.ndarray, facts: Facts, fingerprint: str) -> None:
        with (self.folder / "labels.npy").open("wb") as file:
            np.save(file, labels, allow_pickle=False)
            _sync(file)
        known = {**asdict(facts), "shape": self.shape, "fingerprint": fingerprint}
        with (self.folder / "facts.json").open("wb") as file:
            file.write(json.dumps(known, indent=1).encode())
            _sync(file)

    def map_images(self, shape: tuple[int, ...]) -> Tensor:
        path = self.folder / "images.npy"
        return _map(path, _check_npy(path, shape), shape)


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _check_npy(path: Path, shape: tuple[int, ...]) -> int:
    """Return where the data of a uint8 .npy file begin, after comparing header and file size."""
    with path.open("rb") as file:
        np.lib.format.read_magic(file)
        found, fortran, dtype = np.lib.format.read_array_header_1_0(file)
        offset = file.tell()
    if found != shape or fortran or dtype != np.uint8:
        raise ValueError(f"{path.name} is {dtype} {found}")
    if path.stat().st_size != offset + math.prod(shape):
        raise ValueError(f"{path.name} has {path.stat().st_size} bytes")
    return offset


def _map(path: Path, offset: int, shape: tuple[int, ...]) -> Tensor:
    """A private (copy-on-write) map: nothing that happens to the tensor reaches the file."""
    size = offset + math.prod(shape)
    return torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8)[offset:].view(
        shape
    )


def _finish(content: Any, labels: np.ndarray) -> str:
    content.update(labels.astype("<i8").tobytes())
    return content.hexdigest()[:16]
