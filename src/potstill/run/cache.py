"""Everything that can be made again, in one place: what it is named by, stored, listed, removed.

An entry is a folder ``<cache>/<kind>/<key>/``. The key is a digest of all that determines the
content (:func:`key_facts`), so equal keys mean equal content and nothing is ever out of date. Files
carry their check and their entry's key, and are made again where either fails
(:mod:`potstill.run.recall`).

``entry.json`` says for people what an entry is and what it took; when it was touched last, the
entry was used last. It vouches for nothing: an entry without one is merely nameless.

A process at work with an entry shares a lock on its folder (:meth:`Cached.hold`), which leaves no
file and ends with the process; :func:`remove` takes only what nobody holds.
"""

from __future__ import annotations

import copy
import fcntl
import os
import re
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from potstill.run.checkpoint import digest, save_state, write_json
from potstill.run.context import Run
from potstill.run.errors import ArtifactError, StorageError
from potstill.run.recall import recall
from potstill.run.records import read_json
from potstill.run.replace import remove_owned

__all__ = ["KINDS", "Cached", "Found", "found_in", "hold_folder", "key_facts", "remove"]

T = TypeVar("T")
KINDS = {
    "decoded": "decoded images",
    "pools": "networks for matching",
    "realside": "class means of real images",
    "experts": "networks after each epoch",
    "features": "features of a backbone",
    "heads": "classifiers on backbones",
    "backbones": "backbones trained here",
    "scores": "scores of references",
}
ENTRY = "entry.json"
_NAME = re.compile(r"[0-9a-f]{16}(\.safetensors|\.json)?|\.part-\w+")  # files: of version 0.1
_OWNED = re.compile(r"\.lock|[\w-]+\.(safetensors|json|npy|f16)|\.[\w.-]+\.part")


def key_facts(
    kind: str, run: Run, data: str, *, threads: bool = True, **own: Any
) -> dict[str, Any]:
    """Return what determines an entry, JSON-like.

    Args:
        kind: what it is, with a version that is raised when the making changes.
        data: checksum of the real set. threads: whether sums depend on how many threads share them.
        own: whatever else; it wins over what is said of the run, where that differs or is nothing.
    """
    facts: dict[str, Any] = {
        "kind": kind,
        "data": data,
        "seed": run.seed,
        "device": run.device.split(":")[0],
        "precision": run.precision,
        "torch": torch.__version__,
    }
    if threads:
        facts["threads"] = 0 if run.on_gpu else torch.get_num_threads()
    return facts | own


class Cached:
    """One entry, whether it is there yet or not.

    Args:
        root: the cache. kind: one of :data:`KINDS`. facts: what determines the content.
        what: the same for people, in a few words.
    """

    def __init__(self, root: Path, kind: str, facts: Mapping[str, Any], what: str) -> None:
        assert kind in KINDS
        self.facts, self.key, self.what = dict(facts), digest(facts), what
        self.kind, self.folder = kind, root / kind / self.key
        self._held, self._unsaid = False, 0.0  # seconds that are not written down yet

    def recall(
        self, name: str, again: str, read: Callable[[dict[str, Tensor], dict[str, Any]], T]
    ) -> T | None:
        """Return what ``read`` makes of a file, None where it has to be made; see :func:`recall`.

        What :meth:`save` was told it took is among the facts as "seconds".
        """
        if not (self.folder / name).exists():
            return None
        self.hold()
        return recall(self.folder / name, again, read, key=f"{self.key}/{name}")

    def save(
        self, name: str, tensors: Mapping[str, Tensor], facts: Mapping[str, Any], seconds: float
    ) -> None:
        """Write a file with its check and this entry's key.

        Raises:
            StorageError: it cannot be written.
        """
        about = {"key": f"{self.key}/{name}", "seconds": seconds}
        save_state(self.folder / name, tensors, {**facts, **about})
        self.note(seconds)
        self.hold()

    def hold(self) -> None:
        """Make the folder, and keep it from being removed as long as this object lives."""
        if not self._held:
            self._held = True
            hold_folder(self.folder, self)
            self.note()

    def at(self, folder: Path) -> Cached:
        """The same entry in the making, in a folder that will take its place in one step."""
        other = copy.copy(self)
        other.folder, other._held = folder, False
        return other

    def note(self, seconds: float = 0.0) -> None:
        """Write down what this is, that it is used now, and that ``seconds`` went into it.

        Parts of a second are written with the next ones: a rewrite waits for the disk.
        """
        path = self.folder / ENTRY
        about = _about(path)
        with suppress(OSError):  # nothing depends on it
            self._unsaid += seconds
            if about and self._unsaid < 1:
                os.utime(path)
                return
            about = about or {"kind": self.kind, "what": self.what, "created": time.time()}
            about["seconds"] = round(_number(about.get("seconds"), 0.0) + self._unsaid, 3)
            write_json(path, about)
            self._unsaid = 0.0


def hold_folder(folder: Path, holder: object) -> None:
    """Make ``folder`` and share a lock on it while ``holder`` lives, where there are such locks."""
    held = False
    with suppress(OSError):
        while not held:
            folder.mkdir(parents=True, exist_ok=True)
            handle = os.open(folder, os.O_RDONLY)
            try:
                fcntl.flock(handle, fcntl.LOCK_SH)
                # otherwise it was removed while we waited
                held = folder.exists() and os.path.samestat(os.fstat(handle), folder.stat())
            finally:
                if held:
                    weakref.finalize(holder, os.close, handle)
                else:
                    os.close(handle)


@dataclass(frozen=True)
class Found:
    """An entry that lies in the cache."""

    path: Path
    kind: str
    what: str
    size: int  # bytes on the disk
    created: float  # seconds since 1970
    used: float
    seconds: float | None  # what making it took, if known


def found_in(root: Path) -> list[Found]:
    """Return all entries of a cache, the least recently used first, and nothing else."""
    found: list[Found] = []
    for kind in KINDS:
        with suppress(OSError):
            for path in (root / kind).iterdir():
                if _NAME.fullmatch(path.name) and not path.is_symlink():
                    found += _found(path, kind)
    return sorted(found, key=lambda one: (one.used, one.path))


def _found(path: Path, kind: str) -> Iterator[Found]:
    files = list(_owned(path))
    if not files:
        return
    about = _about(path / ENTRY)
    newest, oldest = max(f.st_mtime for _, f in files), min(f.st_mtime for _, f in files)
    used = next((f.st_mtime for file, f in files if file == path / ENTRY and about), newest)
    what = about.get("what")
    text = what if isinstance(what, str) else "unfinished" if path.name[0] == "." else ""
    yield Found(
        path=path,
        kind=kind,
        what="".join(c if c.isprintable() else "?" for c in text[:100]),
        size=sum(512 * f.st_blocks for _, f in files),  # few of a sparse file
        created=_number(about.get("created"), oldest),
        used=used,
        seconds=_number(about.get("seconds"), None),
    )


def _owned(path: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """Our files of an entry, with what the system knows of them; some may vanish meanwhile."""
    with suppress(OSError):
        if path.is_file():
            yield path, path.stat()
            return
        for file in path.iterdir():
            with suppress(OSError):
                if _OWNED.fullmatch(file.name) and not file.is_dir():
                    yield file, file.lstat()


def _about(path: Path) -> dict[str, Any]:
    """What an ``entry.json`` says; {} where it says nothing."""
    try:
        return read_json(path, "", missing={})
    except (ArtifactError, StorageError):
        return {}


def _number(value: Any, otherwise: Any) -> Any:
    """A finite number that is no truth value, or something else."""
    plain = isinstance(value, int | float) and not isinstance(value, bool)
    return value if plain and abs(value) < 1e15 else otherwise


def remove(entry: Found, *, dry: bool = False) -> bool:
    """Remove an entry's files; False, and nothing happens, where a process is at work with it.

    ``dry``: only say whether it would be removed. Files that are not ours stay, with their folder.

    Raises:
        StorageError: it may not be removed.
    """
    handle = None
    try:
        try:
            handle = os.open(entry.path, os.O_RDONLY)
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:  # no such locks here, or it is gone
            pass
        if not dry and entry.path.is_dir():
            remove_owned(entry.path, _OWNED)
        elif not dry:
            entry.path.unlink(missing_ok=True)
        return True
    except OSError as error:
        raise StorageError(
            f"cannot remove {entry.path}: {error.strerror or error}; change its permissions"
        ) from error
    finally:
        if handle is not None:
            os.close(handle)
