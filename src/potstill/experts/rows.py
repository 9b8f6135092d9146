"""Rows of numbers in files larger than memory: what experts were after each of their epochs.

A folder holds one file per block of 10 members and 50 epochs (:mod:`potstill.experts.blocks`), and
``index.json``, which says what the rows are of, and which of them are whole, with a CRC-32 each.
Rows reach the disk before the index does, so a killed process loses at most the rows since the
last :meth:`Rows.flush`, and a damaged row shows when it is read.
"""

from __future__ import annotations

import json
import os
import shutil
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from torch import Tensor

from potstill.experts.blocks import Block, content
from potstill.run import ArtifactError, InputError, StorageError, logger
from potstill.run.cache import Cached
from potstill.run.checkpoint import content_check, write_bytes
from potstill.run.recall import tell_damage
from potstill.run.records import read_json

__all__ = ["EPOCHS", "MEMBERS", "Rows", "in_short"]

MEMBERS, EPOCHS = 10, 50  # of one file
_FORMAT = "potstill-rows-1"
_ELSEWHERE = "free space, or point $POTSTILL_CACHE to another disk"


class Rows:
    """Rows (P,) float32 by member and epoch in the folder of a cache entry.

    Args:
        entry: its facts say what the rows are of; it stays while these rows are looked at.
        layout: names and shapes of the tensors that follow each other in a row.

    Raises:
        ArtifactError: the folder holds rows of something else.
    """

    def __init__(self, entry: Cached, layout: Mapping[str, Sequence[int]]) -> None:
        self.entry, self.folder = entry, entry.folder
        self.layout = {name: torch.Size(shape) for name, shape in layout.items()}
        self.columns = sum(shape.numel() for shape in self.layout.values())
        shapes = {name: list(shape) for name, shape in self.layout.items()}
        self.facts = json.loads(json.dumps({"format": _FORMAT, **entry.facts, "layout": shapes}))
        self._blocks: dict[tuple[int, int], Block] = {}
        self._known: dict[tuple[int, int], tuple[int, float]] = {}  # CRC-32 and seconds
        self._checked: set[tuple[int, int]] = set()
        self._lock = FileLock(self.folder / ".lock")  # the same process may take it twice
        self.repair: Callable[[int, int], object] | None = None  # makes one row anew
        self._dirty: set[Path] = set()
        self._spent = 0.0  # seconds of rows since the last flush
        self._flushed = time.monotonic()
        self.reload()

    def reload(self) -> None:
        """Read the index anew, leaving out rows whose file is missing or damaged."""
        if (self.folder / "index.json").exists():
            self.entry.hold()
        self._known = self._read_index()
        for block in {self._block(*place) for place in self._known}:
            if (fault := block.fault()) is not None:
                lost = [place for place in self._known if self._block(*place) is block]
                logger.warning("%s %s; making its %d rows again", block.path, fault, len(lost))
                for place in lost:
                    del self._known[place]

    def __contains__(self, place: tuple[int, int]) -> bool:
        return place in self._known

    def seconds(self, member: int, epoch: int) -> float:
        """What making a row took."""
        return self._known[member, epoch][1]

    def epochs(self, member: int) -> list[int]:
        """Epochs of a member that are there, ascending."""
        return sorted(epoch for own, epoch in self._known if own == member)

    def read(self, member: int, epoch: int) -> Tensor:
        """Return one row (P,); its CRC is checked the first time.

        A damaged one is made anew, with a warning, if there is a ``repair``.

        Raises:
            ArtifactError: the row is damaged; it is forgotten, so that it is made again.
            InputError: it is not there.
        """
        try:
            return self._read(member, epoch)
        except ArtifactError as error:
            if self.repair is None:
                raise
            tell_damage(error, "training that part again")
        self.repair(member, epoch)
        return self._read(member, epoch)

    def _read(self, member: int, epoch: int) -> Tensor:
        if (place := (member, epoch)) not in self._known:
            raise InputError(
                f"epoch is {epoch}, which expert {member} has not kept; ask for it in epochs "
                f"(kept are {_briefly(self.epochs(member))})"
            )
        block = self._block(*place)
        row = block.read(member % MEMBERS, epoch % EPOCHS)
        if row is None or (
            place not in self._checked and zlib.crc32(content(row)) != self._known[place][0]
        ):
            self._forget(place)
            raise ArtifactError(
                f"{block.path} is damaged at expert {member}, epoch {epoch}; run the same command "
                "again, which makes just that part anew"
            )
        self._checked.add(place)
        return row

    def write(self, member: int, epoch: int, row: Tensor, seconds: float) -> None:
        """Write one row (P,) in place; it counts from the next :meth:`flush` on.

        Raises:
            StorageError: the disk is full or not to be written.
        """
        row, block = row.detach().to("cpu", torch.float32).contiguous(), self._block(member, epoch)
        assert row.shape == (self.columns,)
        self._known.pop((member, epoch), None)
        if block.path not in self._dirty and block.fault() is not None:
            block.make()
        try:
            block.write(member % MEMBERS, epoch % EPOCHS, row)
        except OSError as error:
            raise self._unwritable(block.path, error) from error
        self._dirty.add(block.path)
        self._known[member, epoch] = (zlib.crc32(content(row)), round(seconds, 3))
        self._checked.add((member, epoch))
        self._spent += seconds

    def flush(self, every: float = 0.0) -> None:
        """Bring rows and then the index to the disk, unless it was done ``every`` seconds ago.

        Raises:
            StorageError: the disk is full or not to be written.
        """
        if not self._dirty or time.monotonic() - self._flushed < every:
            return
        for path in self._dirty:
            try:
                with path.open("rb+") as file:
                    os.fsync(file.fileno())
            except OSError as error:
                raise self._unwritable(path, error) from error
        self._write_index()
        self.entry.note(self._spent)
        self._dirty.clear()
        self._spent = 0.0
        self._flushed = time.monotonic()

    def unpack(self, row: Tensor) -> dict[str, Tensor]:
        """Return views of a row (P,) by name."""
        sizes = [shape.numel() for shape in self.layout.values()]
        parts = zip(self.layout.items(), row.split(sizes), strict=True)
        return {name: part.view(shape) for (name, shape), part in parts}

    def pack(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return the row (P,) of tensors by name, a copy."""
        return torch.cat([tensors[name].detach().reshape(-1).float() for name in self.layout])

    def require_space(self, rows: int, what: str, reserve: int = 0) -> None:
        """Refuse to begin what cannot be kept, with ``reserve`` bytes that follow it.

        Raises:
            StorageError: fewer bytes are free than ``rows`` rows need.
        """
        needed, free = 4 * self.columns * rows + reserve, shutil.disk_usage(self.folder).free
        if needed > free:
            raise StorageError(
                f"{what} needs {_size(needed)} in {self.folder}, where {_size(free)} are free; "
                f"{_ELSEWHERE}"
            )

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the folder for one process; another one waits, then sees what was made.

        Raises:
            StorageError: the folder cannot be written.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.entry.hold()
            try:
                self._lock.acquire(timeout=0)
            except Timeout:
                logger.warning("another process is at work in %s; waiting for it", self.folder)
                self._lock.acquire()
        except OSError as error:
            raise self._unwritable(self.folder, error) from error
        try:
            self.reload()
            yield
        finally:
            try:
                self.flush()
            finally:
                self._lock.release()

    def _forget(self, place: tuple[int, int]) -> None:
        """Take a row out of the index, unless another process is at work on it."""
        del self._known[place]
        with suppress(Timeout, OSError), self._lock.acquire(timeout=0):
            known, self._known = self._known, self._read_index()
            self._known.pop(place, None)
            self._write_index()
            self._known = known

    def _block(self, member: int, epoch: int) -> Block:
        key = (member // MEMBERS * MEMBERS, epoch // EPOCHS * EPOCHS)
        if key not in self._blocks:
            names = (f"{k}-{b:03d}-{b + n - 1:03d}" for k, b, n in
                     zip(("experts", "epochs"), key, (MEMBERS, EPOCHS), strict=True))  # fmt: skip
            path = self.folder / ("-".join(names) + ".safetensors")
            self._blocks[key] = Block(path, (MEMBERS, EPOCHS, self.columns), self.facts)
        return self._blocks[key]

    def _read_index(self) -> dict[tuple[int, int], tuple[int, float]]:
        path = self.folder / "index.json"
        if not path.exists():
            return {}
        try:
            index = read_json(path, "making its rows again")
            check = index.pop("check", None)  # version 0.1 had none; its rows have theirs
            if check is not None and check != content_check({}, index):
                raise ValueError("its content has changed")
            facts, known = dict(index["facts"]), {}
            for member, row in index["rows"].items():
                for epoch, (crc, seconds) in row.items():
                    known[int(member), int(epoch)] = (int(crc), float(seconds))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OSError):
            logger.warning("%s is damaged; making its rows again", path)
            return {}
        for name, value in self.facts.items():
            if facts.get(name) != value:
                raise ArtifactError(
                    f"{self.folder} holds experts whose {name} is {in_short(facts.get(name))}, not "
                    f"{in_short(value)}; delete that folder or choose another $POTSTILL_CACHE"
                )
        return known

    def _write_index(self) -> None:
        rows: dict[str, dict[str, tuple[int, float]]] = {}
        for (member, epoch), cell in sorted(self._known.items()):
            rows.setdefault(str(member), {})[str(epoch)] = cell
        index = json.loads(json.dumps({"facts": self.facts, "rows": rows}))
        text = json.dumps(index | {"check": content_check({}, index)}) + "\n"
        write_bytes(self.folder / "index.json", text.encode())

    def _unwritable(self, path: Path, error: OSError) -> StorageError:
        return StorageError(
            f"cannot write {path}: {error.strerror or error}; {_ELSEWHERE}, and run the same "
            "command again (finished epochs are kept)"
        )


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.2f} MB"


def _briefly(epochs: Sequence[int]) -> str:
    if len(epochs) < 9:
        return ", ".join(map(str, epochs)) or "none"
    return f"{len(epochs)} from {epochs[0]} to {epochs[-1]}"


def in_short(value: Any) -> str:
    """JSON of ``value``, cut to 60 characters for a sentence."""
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
