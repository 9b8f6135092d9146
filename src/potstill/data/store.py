"""Decoded images on disk: written once, checked, and read back or memory-mapped.

An entry is a folder ``<cache>/decoded/<key>/`` with ``images.npy`` (uint8 (n, c, h, w)) and
``facts.safetensors``: labels, row numbers, what is known besides, and a check of every block of
images. It appears in one step or not at all, and nothing of it is believed without its check:
images that are read into memory are compared at once, memory-mapped ones block by block when they
are first looked at.
"""

from __future__ import annotations

import errno
import hashlib
import io
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

from potstill.data.checked import (
    IMAGES,
    Checks,
    Mapped,
    map_file,
    read_file,
    require_file,
    rows_per_block,
)
from potstill.run import ArtifactError, StorageError, logger
from potstill.run.cache import Cached, hold_folder
from potstill.run.memory import Budget

__all__ = ["Bank", "Facts", "Mapped", "collect", "read_entry", "take", "tensor_digest"]

_FACTS = "facts.safetensors"
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
    mapped: Mapped | None  # the file behind `images`; None: memory


def collect(
    blocks: Blocks, count: int, facts: Facts, *, root: Path, entry: Cached | None, memory_gb: float
) -> Bank:
    """Gather ``count`` decoded images and keep them as ``entry``, if given; ``root`` is for files.

    Up to ``memory_gb`` they are gathered in memory, and a disk that cannot take a copy costs a
    warning; above, they go to disk as they come and are memory-mapped.

    Raises:
        StorageError: images above ``memory_gb`` cannot be written.
    """
    began, blocks = time.monotonic(), iter(blocks)
    first = next(blocks)
    shape = (count, *first[0].shape[1:])
    large = math.prod(shape) > Budget(memory_gb).images
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
        if entry is not None:
            try:
                with _Staging(root, entry) as staging:
                    staging.write_images(shape, [bank])
                    staging.write_facts(labels, facts, fingerprint, time.monotonic() - began)
            except OSError as error:
                logger.warning("decoded images are not cached (%s); going on without", error)
        return Bank(torch.from_numpy(bank), torch.from_numpy(labels), facts, fingerprint, None)

    try:
        with _Staging(root, entry) as staging:
            staging.write_images(shape, pixels())
            fingerprint = _finish(content, labels)
            staging.write_facts(labels, facts, fingerprint, time.monotonic() - began)
            mapped = staging.map_images()
    except OSError as error:
        size = math.prod(shape) / 1e9
        raise StorageError(
            f"cannot write {size:.1f} GB of decoded images to {root} ({error.strerror or error}); "
            f"free space, set POTSTILL_CACHE to a larger disk, or raise memory_gb above {size:.1f}"
        ) from error
    return Bank(mapped.images, torch.from_numpy(labels), facts, fingerprint, mapped)


def read_entry(entry: Cached, memory_gb: float) -> Bank | None:
    """Read a cached entry; ``None`` if there is none or it is damaged (it will be made again)."""
    folder = entry.folder

    def read(tensors: dict[str, Tensor], known: dict[str, Any]) -> Bank:
        about, path, shape = dict(known["about"]), folder / IMAGES, tuple(known["shape"])
        names = about.pop("classes")
        rows = tuple(tensors["rows"].tolist()) if "rows" in tensors else None
        facts = Facts(names and tuple(names), tuple(about.pop("splits")), rows, **about)
        require_file(path, bytes.fromhex(known["header"]), shape)
        offset, checks = len(known["header"]) // 2, tensors["checks"].numpy().view(np.uint64)
        counts = {len(tensors["labels"]), shape[0], shape[0] if rows is None else len(rows)}
        if len(counts) > 1 or len(checks) != -(-shape[0] // rows_per_block(shape)):
            raise ArtifactError(f"{folder} is damaged (its parts are of other images)")
        if math.prod(shape) > Budget(memory_gb).images:
            mapped = Mapped(folder.parent, folder, map_file(path, offset, shape), checks, entry)
            images = mapped.images
        else:
            images, mapped = read_file(path, offset, shape, checks), None
        return Bank(images, tensors["labels"], facts, known["fingerprint"], mapped)

    bank = entry.recall(_FACTS, "decoding again", read)
    if bank is None:
        shutil.rmtree(folder, ignore_errors=True)
    return bank


def take(images: Tensor, positions: Tensor, mapped: Mapped | None) -> tuple[Tensor, Mapped | None]:
    """Rows of ``images`` (n, c, h, w); many rows of a mapped file go to a mapped file in turn.

    Raises:
        ArtifactError: they lie in a damaged block. StorageError: they cannot be written.
    """
    if mapped is None:
        return images[positions.to(images.device)], None
    shape = (len(positions), *images.shape[1:])
    if math.prod(shape) < _LARGE_SELECTION:
        mapped.check(positions)
        return images[positions], None

    def parts() -> Iterator[np.ndarray]:
        for part in positions.split(_ROWS):
            mapped.check(part)
            yield images[part].numpy()

    with _Staging(mapped.root, None) as staging:
        staging.write_images(shape, parts())
        chosen = staging.map_images()
    return chosen.images, chosen


def tensor_digest(values: Tensor) -> str:
    """16 hexadecimal digits of an integer tensor's values, as little-endian int64."""
    return hashlib.sha256(values.numpy().astype("<i8").tobytes()).hexdigest()[:16]


class _Staging:
    """A folder that is filled and then, if it is to, becomes an entry in one step, or vanishes."""

    def __init__(self, root: Path, entry: Cached | None) -> None:
        self.root, self.entry = root, entry

    def __enter__(self) -> _Staging:
        self.root.mkdir(parents=True, exist_ok=True)
        for left in self.root.glob(".part-*"):  # by a process that was killed
            with suppress(OSError):
                if time.time() - left.stat().st_mtime > _STALE:
                    shutil.rmtree(left)
        self.folder = Path(tempfile.mkdtemp(dir=self.root, prefix=".part-"))
        self.made = self.entry.at(self.folder) if self.entry else None
        if self.made is not None:
            self.made.hold()
        else:
            hold_folder(self.folder, self)
        return self

    def __exit__(self, kind: type | None, *rest: object) -> None:
        if self.entry and kind is None:
            with suppress(OSError):  # another process was quicker
                self.folder.chmod(0o755)
                self.folder.rename(self.entry.folder)
        # Mapped files stay readable after removal.
        shutil.rmtree(self.folder, ignore_errors=True)

    def write_images(self, shape: tuple[int, ...], images: Iterable[np.ndarray]) -> None:
        """Plain writes, not a writable map: a full disk raises OSError instead of SIGBUS."""
        if shutil.disk_usage(self.folder).free < math.prod(shape):  # sooner than after filling it
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.shape, self.header = shape, io.BytesIO()
        header = {"descr": "|u1", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(self.header, header)
        checks = Checks(shape)
        with (self.folder / IMAGES).open("wb") as file:
            file.write(self.header.getvalue())
            for part in images:
                own = np.ascontiguousarray(part)
                file.write(own.data)
                checks.add(own)
            _sync(file)
        self.checks = checks.all()

    def write_facts(
        self, labels: np.ndarray, facts: Facts, fingerprint: str, seconds: float
    ) -> None:
        about = asdict(facts)
        rows = about.pop("rows")
        checks = torch.from_numpy(self.checks.view(np.int64))
        tensors = {"labels": torch.from_numpy(labels), "checks": checks}
        tensors |= {} if rows is None else {"rows": torch.tensor(rows)}
        header = self.header.getvalue().hex()
        known = {"shape": self.shape, "header": header, "fingerprint": fingerprint, "about": about}
        if self.made is not None:
            self.made.save(_FACTS, tensors, known, seconds)

    def map_images(self) -> Mapped:
        """The images as they will stand in the entry."""
        path, header = self.folder / IMAGES, self.header.getvalue()
        require_file(path, header, self.shape)
        images = map_file(path, len(header), self.shape)
        place = self.entry.folder if self.entry else None
        return Mapped(self.root, place, images, self.checks, self.made)


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _finish(content: Any, labels: np.ndarray) -> str:
    content.update(labels.astype("<i8").tobytes())
    return content.hexdigest()[:16]
