"""Counts what a process does to files, and lets it die or fail at the k-th of these operations.

Counted: opening for writing, writing, syncing, truncating, renaming, replacing, linking, removing
and making files and folders, the exchange of two folders. What C++ writes by itself (Parquet) is
not seen. To be installed in a forked child only: nothing is put back.
"""

from __future__ import annotations

import builtins
import errno
import io
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

NAMES = (
    "mkdir", "rmdir", "rename", "replace", "unlink", "remove", "link", "symlink", "fsync",
    "truncate", "ftruncate", "write", "chmod",
)  # fmt: skip
FREEING = ("rmdir", "unlink", "remove", "chmod")  # work on a full disk
KILL, FULL = "kill", "full"


class Operations:
    """Counts; at number ``fail_at`` (from 0) ``how`` happens.

    ``how``: ``kill`` ends the process at once, half of what it was writing being written; a name of
    ``errno`` fails that one operation; ``full`` fails all that need space from then on (ENOSPC).
    Only paths below ``root`` and open files count.
    """

    def __init__(self, root: Path, fail_at: int = -1, how: str = KILL) -> None:
        self.root, self.fail_at, self.how = str(root), fail_at, how
        self.count = 0
        self.log: list[str] = []
        self.lock = threading.Lock()
        self.owner = os.getpid()

    def install(self) -> Operations:
        """Take the place of the functions of ``os`` and of ``open``."""
        for name in NAMES:
            setattr(os, name, self._counting(name, getattr(os, name)))
        os.open = self._opening(os.open)  # type: ignore[assignment]
        builtins.open = io.open = self._opening_file(io.open)  # type: ignore[assignment]
        self._exchange()
        return self

    def _exchange(self) -> None:
        """The exchange of folders goes through ctypes, so it is counted where it is called."""
        from potstill.run import replace

        replace._exchanged = self._counting("exchange", replace._exchanged)

    def at(self, name: str, path: Any, half: Callable[[], None] = lambda: None) -> None:
        """Count one operation, or let it be the last; ``half`` does a part of it first."""
        with self.lock:
            number = self.count
            self.count += 1
            self.log.append(f"{name} {_shown(path)}")
        if number < self.fail_at or self.fail_at < 0:
            return
        if number == self.fail_at and self.how == KILL:
            half()
            os._exit(9)
        if self.how == FULL:
            if name not in FREEING:
                half()
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), _shown(path))
        elif number == self.fail_at and self.how != KILL:
            code = getattr(errno, self.how)
            raise OSError(code, os.strerror(code), _shown(path))

    def ours(self, path: Any, directory: Any = None) -> bool:
        if isinstance(path, int) or directory is not None:
            return True
        try:
            return str(os.path.abspath(os.fsdecode(path))).startswith(self.root)  # noqa: PTH100
        except (TypeError, ValueError):
            return False

    def _counting(self, name: str, before: Callable[..., Any]) -> Callable[..., Any]:
        def counted(path: Any, *rest: Any, **options: Any) -> Any:
            standard = isinstance(path, int) and path <= 2
            if not standard and self.ours(path, options.get("dir_fd")):
                self.at(name, path)
            return before(path, *rest, **options)

        return counted

    def _opening(self, before: Callable[..., int]) -> Callable[..., int]:
        def counted(path: Any, flags: int, *rest: Any, **options: Any) -> int:
            writing = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC)
            if writing and self.ours(path, options.get("dir_fd")):
                self.at("open", path)
            return before(path, flags, *rest, **options)

        return counted

    def _opening_file(self, before: Callable[..., Any]) -> Callable[..., Any]:
        def counted(path: Any, mode: str = "r", *rest: Any, **options: Any) -> Any:
            if not set(mode) & set("wax+") or not self.ours(path):
                return before(path, mode, *rest, **options)
            if not isinstance(path, int):
                self.at("open", path)
            return _Writing(before(path, mode, *rest, **options), self, path)

        return counted


class _Writing:
    """A file open for writing whose writes are counted."""

    def __init__(self, file: Any, operations: Operations, path: Any) -> None:
        self._file, self._operations, self._path = file, operations, path

    def write(self, content: Any) -> Any:
        def half() -> None:
            self._file.write(content[: len(content) // 2])
            self._file.flush()

        self._operations.at("write", self._path, half)
        return self._file.write(content)

    def truncate(self, *size: int) -> Any:
        self._operations.at("truncate", self._path)
        return self._file.truncate(*size)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> _Writing:
        self._file.__enter__()
        return self

    def __exit__(self, *what: Any) -> Any:
        return self._file.__exit__(*what)

    def __iter__(self) -> Any:
        return iter(self._file)


def _shown(path: Any) -> str:
    return f"file {path}" if isinstance(path, int) else os.fsdecode(path)
