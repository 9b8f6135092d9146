"""Folders that are replaced as a whole, and what potstill may take away in them: its own files.

A folder that potstill wrote may meanwhile hold things of other people (``.git``, notes). Those are
never deleted: they are carried over to the folder that comes in its place.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import chain, count
from pathlib import Path

from potstill.run.log import logger
from potstill.run.signals import uninterrupted

__all__ = ["alone", "carry_over", "recover", "remove_owned", "replace_folder"]

KEPT = "kept"  # folder for other people's files that lay among ours
_EXCHANGE, _HERE = 2, -100  # RENAME_EXCHANGE and AT_FDCWD of Linux
_UNKNOWN = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP)  # the kernel or the file system has it not


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Wait until nobody else replaces a folder beside ``folder``, then keep others waiting.

    The lock is on the folder that contains it, leaves no file, and ends with the process. Systems
    that have no such locks go on without.
    """
    handle = None
    with suppress(OSError):
        handle = os.open(folder.parent, os.O_RDONLY)
        fcntl.flock(handle, fcntl.LOCK_EX)
    try:
        yield
    finally:
        if handle is not None:
            os.close(handle)


def hidden(folder: Path, kind: str) -> Path:
    """Where a folder is made ("part") or waits while another takes its place ("old")."""
    return folder.with_name(f".{folder.name}.{kind}")


def remove_owned(root: Path, owned: re.Pattern[str]) -> bool:
    """Delete the files below ``root`` whose relative path ``owned`` matches, and emptied folders.

    Returns whether nothing is left, ``root`` itself included.
    """
    return _empty(root, None, owned, "")


def carry_over(old: Path, new: Path, owned: re.Pattern[str]) -> None:
    """Empty ``old``: files of ours are deleted, others move to ``new``.

    What lay at the top keeps its place; what lay among our files moves below ``kept/``, where
    nobody takes it for one of the new ones. A name that is taken gets a number.
    """
    if not _empty(old, new, owned, ""):
        logger.warning(
            "%s holds files that potstill did not write and that have no place in %s; look there",
            old, new,
        )  # fmt: skip


def _empty(old: Path, new: Path | None, owned: re.Pattern[str], prefix: str) -> bool:
    """Delete what is owned in ``old``, move the rest to ``new`` if there is one."""
    if not old.is_dir() or old.is_symlink():
        return not os.path.lexists(old)
    for entry in old.iterdir():
        name, is_folder = prefix + entry.name, entry.is_dir() and not entry.is_symlink()
        if owned.fullmatch(name) and not is_folder:
            entry.unlink()
        elif is_folder and owned.fullmatch(name + "/"):
            inner = None if new is None else new / entry.name if prefix else new / KEPT / entry.name
            _empty(entry, inner, owned, name + "/")
        elif new is not None:
            new.mkdir(parents=True, exist_ok=True)
            entry.rename(_free(new / entry.name))
    with suppress(OSError):  # something stays
        old.rmdir()
        return True
    return False


def _free(path: Path) -> Path:
    """The path itself, or with the first number behind it that makes it a new one."""
    numbered = (path.with_name(f"{path.name}.{number}") for number in count(2))
    return next(p for p in chain([path], numbered) if not os.path.lexists(p))


def _exchanged(a: Path, b: Path) -> bool:
    """Let two folders take each other's place in one step; False where the system cannot."""
    if not sys.platform.startswith("linux"):
        return False
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    if rename(_HERE, os.fsencode(a), _HERE, os.fsencode(b), _EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in _UNKNOWN:
        return False
    raise OSError(number, os.strerror(number), str(b))


def recover(folder: Path, owned: re.Pattern[str]) -> None:
    """Finish what a killed :func:`replace_folder` left, whatever it was doing; else do nothing."""
    part, old = hidden(folder, "part"), hidden(folder, "old")
    if old.is_dir() and not os.path.lexists(folder):  # between two renames
        old.rename(folder)
    for left in (old, part):
        if left.is_dir():
            if folder.is_dir():
                carry_over(left, folder, owned)
            else:
                remove_owned(left, owned)


def replace_folder(part: Path, folder: Path, owned: re.Pattern[str]) -> None:
    """Put ``part`` in the place of ``folder``, which at every moment is the old or the new one.

    Where the system exchanges two folders in one step there is no moment between them; elsewhere
    the old one has a hidden name for a moment, under which :func:`recover` finds it.
    """
    with uninterrupted():
        if not os.path.lexists(folder):
            part.rename(folder)
            return
        if _exchanged(part, folder):
            carry_over(part, folder, owned)
            return
        old = hidden(folder, "old")
        folder.rename(old)
        try:
            part.rename(folder)
        except OSError:
            old.rename(folder)
            raise
        carry_over(old, folder, owned)
