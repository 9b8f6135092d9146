"""Files that are wholly old or wholly new: atomic writes, state as safetensors and JSON."""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import stat
import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from functools import cache
from pathlib import Path
from typing import Any

import torch
import xxhash
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor

from potstill.run.errors import ArtifactError, StorageError
from potstill.run.records import parse_json, require_regular
from potstill.run.signals import uninterrupted

__all__ = [
    "UncheckedError",
    "atomic",
    "content_check",
    "digest",
    "load_state",
    "save_state",
    "under",
    "write_bytes",
    "write_json",
]

logger = logging.getLogger("potstill")


class UncheckedError(ArtifactError):
    """A state of version 0.1, which has no check of its content."""


def atomic(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a temporary file beside ``path``, then put it in place in one step.

    Raises:
        StorageError: writing failed; an older file at ``path`` is untouched.
    """
    temporary: Path | None = None
    held: int | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with uninterrupted():  # a file that nobody knows of would stay
            held, temporary = _unfinished(path)
        temporary.chmod(0o644)
        write(temporary)
        with temporary.open("rb+") as stream:
            os.fsync(stream.fileno())
        with uninterrupted():
            temporary.replace(path)
            temporary = None  # the name may be another process's from here on
    except OSError as error:
        reason = error.strerror or str(error)
        raise StorageError(
            f"cannot write {path}: {reason}; free space or choose another folder "
            "(what was saved before is untouched)"
        ) from error
    finally:
        if temporary is not None:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
        if held is not None:
            os.close(held)


def _unfinished(path: Path) -> tuple[int | None, Path]:
    """Make the file that becomes ``path``; return what holds its lock, if it has one, and the file.

    It has one name, so that the next write uses and puts away what a killed process left. Where
    another process holds it, or the system has no such locks, a name of its own is found.
    """
    usual = path.with_name(f".{path.name}.part")
    with suppress(OSError), ExitStack() as refused:  # the other way meets what is really wrong
        handle = os.open(usual, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o644)
        refused.callback(os.close, handle)
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        ours, there = os.fstat(handle), usual.lstat()  # it may have been put in place
        if os.path.samestat(ours, there) and stat.S_ISREG(ours.st_mode):
            os.ftruncate(handle, 0)
            refused.pop_all()
            return handle, usual
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    os.close(handle)
    return None, Path(name)


def write_bytes(path: Path, content: bytes) -> None:
    """Write ``content`` to ``path`` atomically."""
    atomic(path, lambda temporary: temporary.write_bytes(content))


def write_json(path: Path, content: Any) -> None:
    """Write ``content`` as indented JSON to ``path`` atomically."""
    write_bytes(path, (json.dumps(content, indent=2, sort_keys=False) + "\n").encode())


def digest(content: Any) -> str:
    """Return 16 hexadecimal digits that identify a JSON-like value."""
    text = json.dumps(content, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class _Stored(dict[str, Any]):
    """What a file holds by name; a name that it lacks is an ArtifactError, not a KeyError."""

    def __init__(self, path: Path, values: Mapping[str, Any]) -> None:
        super().__init__(values)
        self.path = path

    def __missing__(self, name: str) -> Any:
        raise ArtifactError(f"{self.path} is damaged (it lacks {name!r}); delete it to start again")


def content_check(tensors: Mapping[str, Tensor], facts: Any) -> str:
    """16 hexadecimal digits over facts and over names, types, shapes and bytes of tensors."""
    total = xxhash.xxh3_64(json.dumps(facts, sort_keys=True).encode())
    for name in sorted(tensors):
        value = tensors[name]
        total.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        total.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors whose names begin with ``prefix``, by the rest of their names."""
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}


def save_state(path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Write tensors and JSON-like facts to one safetensors file with a check, atomically."""
    flat = {name: value.detach().contiguous().cpu() for name, value in tensors.items()}
    stored = json.loads(json.dumps(dict(facts)))
    about = {"check": content_check(flat, stored), "facts": stored}
    # One metadata key only: safetensors writes several in an order that changes.
    write_bytes(path, to_bytes(flat, metadata={"potstill": json.dumps(about)}))


@cache
def _tell_unchecked(path: Path) -> None:
    logger.warning("%s is of potstill 0.1 and has no check of its content", path)


def load_state(
    path: Path, *, unchecked: bool = False, fix: str = "delete it to start again"
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what :func:`save_state` wrote; a name that is not there raises ArtifactError, too.

    Args:
        unchecked: take a file of version 0.1, which has no check, with a warning; only for what
            cannot be made again.
        fix: what the sentence about a damaged file ends with.

    Raises:
        ArtifactError: the file is truncated, altered, or is not ours.
        StorageError: it may not be read.
        UncheckedError: it is of version 0.1.
    """
    try:
        require_regular(path)
        with safe_open(path, framework="pt") as file:
            about = parse_json((file.metadata() or {})["potstill"])
            # Copies: a tensor that stays mapped would crash when the file is written over.
            tensors = {name: torch.clone(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118
        if "check" not in about and not ("facts" in about and len(about) == 2):
            if not unchecked:
                raise UncheckedError(
                    f"{path} is of potstill 0.1 and has no check of its content; {fix}"
                )
            _tell_unchecked(path)
            return _Stored(path, tensors), _Stored(path, about)
        if content_check(tensors, about["facts"]) != about["check"] or len(about) != 2:
            raise ValueError("its content has changed")
        return _Stored(path, tensors), _Stored(path, about["facts"])
    except UncheckedError:
        raise
    except PermissionError as error:  # no damage: nothing may be made again in its place
        raise StorageError(
            f"{path} cannot be read ({error.strerror}); change its permissions"
        ) from error
    except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError, OSError) as error:
        reason = str(error) if type(error) is ValueError else type(error).__name__
        raise ArtifactError(
            f"{path} is damaged or not a potstill state ({reason}); {fix}"
        ) from error
