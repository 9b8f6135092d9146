"""Files that are wholly old or wholly new: atomic writes, state as safetensors and JSON."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor

from potstill.run.errors import ArtifactError, StorageError

__all__ = ["atomic", "digest", "load_state", "save_state", "write_bytes", "write_json"]


def atomic(path: Path, write: Callable[[Path], None]) -> None:
    """Let ``write`` fill a temporary file beside ``path``, then put it in place in one step.

    Raises:
        StorageError: writing failed; an older file at ``path`` is untouched.
    """
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
        os.close(handle)
        temporary = Path(name)
        temporary.chmod(0o644)
        write(temporary)
        with temporary.open("rb+") as stream:
            os.fsync(stream.fileno())
        temporary.replace(path)
    except OSError as error:
        reason = error.strerror or str(error)
        raise StorageError(
            f"cannot write {path}: {reason}; free space or choose another folder "
            "(what was saved before is untouched)"
        ) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Write ``content`` to ``path`` atomically."""

    def write(temporary: Path) -> None:
        temporary.write_bytes(content)

    atomic(path, write)


def write_json(path: Path, content: Any) -> None:
    """Write ``content`` as indented JSON to ``path`` atomically."""
    write_bytes(path, (json.dumps(content, indent=2, sort_keys=False) + "\n").encode())


def digest(content: Any) -> str:
    """Return 16 hexadecimal digits that identify a JSON-like value."""
    text = json.dumps(content, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def save_state(path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Write tensors and JSON-like facts to one safetensors file, atomically."""
    flat = {name: value.detach().contiguous().cpu() for name, value in tensors.items()}
    content = to_bytes(flat, metadata={"potstill": json.dumps(dict(facts))})
    write_bytes(path, content)


def load_state(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what :func:`save_state` wrote.

    Raises:
        ArtifactError: the file is truncated or not ours.
    """
    try:
        with safe_open(path, framework="pt") as file:
            facts = json.loads((file.metadata() or {})["potstill"])
            names = file.keys()
            return {name: torch.clone(file.get_tensor(name)) for name in names}, facts
    except (SafetensorError, KeyError, ValueError, OSError) as error:
        raise ArtifactError(
            f"{path} is damaged or not a potstill state ({type(error).__name__}); "
            "delete it to start again"
        ) from error
