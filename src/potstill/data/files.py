"""The gate to the files of a source: what is listed, where links may lead, what is opened.

Everything below a source is listed by :class:`Place` and opened through it: regular files only, and
after following links only those inside the source, so that no link, table or list of a foreign data
set brings in a file from elsewhere. Nothing here waits for a pipe or a device.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from operator import attrgetter
from pathlib import Path
from typing import BinaryIO

from potstill.data.entries import (
    check_name,
    ended,
    facts_of,
    identity,
    leads_nowhere,
    reason,
    refusal,
    visible,
)
from potstill.run import InputError, logger

__all__ = ["File", "Place"]

_MOST = 1 << 30  # bytes of one picture; more is no picture but a mistake or a trap
_FLAGS = os.O_RDONLY | sum(getattr(os, flag, 0) for flag in ("O_NONBLOCK", "O_CLOEXEC", "O_NOCTTY"))
_ALLOW = "use follow_links if files outside of it may be read, too"


@dataclass(frozen=True)
class Place:
    """A source on disk: a file or a folder. Only regular files inside it are ever opened.

    ``root`` may itself be a link. Without ``follow_links`` a link below it whose target lies
    elsewhere is refused rather than skipped, because a class would be lost without a word.

    Raises:
        InputError: from every method: no permission, a link that leaves the source, a name that is
            not UTF-8, something that is no regular file; the sentence names it.
    """

    root: Path
    follow_links: bool = False
    _told: set[Path] = field(default_factory=set, init=False, repr=False, compare=False)

    def files(self, folder: Path | None = None, *, deep: bool = True) -> list[Path]:
        """Regular files below ``folder`` in a fixed order, without hidden and system files.

        Files of a folder come before its sub-folders (which are left out unless ``deep``), each
        sorted by name; linked folders come last, and no folder twice. Links that lead nowhere,
        pipes, sockets and devices are left out with one warning.
        """
        skipped: dict[Path, str] = {}
        found = list(self._walk(self.root if folder is None else folder, skipped, deep))
        self._tell(skipped)
        return found

    def any_file(self, folder: Path, suffixes: frozenset[str], *, deep: bool = True) -> bool:
        """Whether a file in ``folder`` (and below, if ``deep``) has one of these suffixes."""
        return any(path.suffix.lower() in suffixes for path in self._walk(folder, {}, deep))

    def folders(self, folder: Path | None = None) -> list[Path]:
        """Visible sub-folders of ``folder``, linked ones too, sorted by name.

        A link without a suffix that leads nowhere counts as a folder: entering it is refused.
        Folders that contain ``folder`` are left out with a warning.
        """
        folder = self.root if folder is None else folder
        found: list[Path] = []
        skipped: dict[Path, str] = {}
        around = self._around(folder)
        for path, kind in self._entries(folder, {}, leaving=True):
            if kind == "folder" and path.is_symlink() and identity(path) in around:
                skipped[path] = "a link in a circle"
            elif kind == "folder" or (kind == "dead link" and not path.suffix):
                found.append(path)
        self._tell(skipped)
        return found

    def resolve(self, name: str | Path) -> Path:
        """The regular file that a table or list names, relative to the root or absolute."""
        title = f"source {self.root} names {str(name)[:200]!r}"
        base = self.root if self.root.is_dir() else self.root.parent
        try:
            real = Path(os.path.realpath(base / name))
            if not self._holds(str(real)):
                raise InputError(f"{title}, a file outside of it; {_ALLOW}")
            regular = stat.S_ISREG(real.stat().st_mode)
        except (OSError, ValueError) as error:  # InputError is a ValueError, too
            if isinstance(error, InputError):
                raise
            raise InputError(f"{title}, which {reason(error)}; correct the name") from error
        if not regular:
            raise InputError(f"{title}, which is no regular file; correct the name")
        return real

    def open(self, path: Path) -> BinaryIO:
        """Open a regular file for reading, without ever waiting for a writer at its other end."""
        try:
            handle = -1
            if stat.S_ISREG(path.stat().st_mode):  # opening a device can already do something
                handle = os.open(path, _FLAGS)
                if not self._holds(_opened(handle)):  # no /proc, or really outside
                    self._checked(path)
                if stat.S_ISREG(os.fstat(handle).st_mode):
                    return os.fdopen(handle, "rb")
            raise InputError(f"{path} is no regular file (a pipe, a device, a folder); remove it")
        except (OSError, InputError) as error:
            if handle >= 0:
                os.close(handle)
            if isinstance(error, InputError):
                raise
            raise refusal(path, error) from error

    def read(self, path: Path, limit: int | None = None) -> bytes:
        """Content of a regular file; more than ``limit`` bytes (by default 1 GiB) are refused."""
        most = _MOST if limit is None else limit
        with self.open(path) as file:
            size = os.fstat(file.fileno()).st_size
            if size > most:
                raise InputError(
                    f"{path} has {size} bytes, more than the {most} that one file may have; "
                    "remove it or make it smaller"
                )
            try:
                return file.read(size)
            except OSError as error:
                raise refusal(path, error) from error

    def stamp(self, folders: Iterable[Path] | None = None) -> list[tuple[str | int, ...]]:
        """Identity of every file that reading could use: path below the root, size, times, inode.

        Only of files below ``folders``, if given. Of a link the target counts, so that another
        target is another identity.
        """
        skipped: dict[Path, str] = {}
        places = (self.root,) if folders is None else folders
        found = self.stamp_of(path for place in places for path in self._walk(place, skipped))
        self._tell(skipped)
        return found

    def stamp_of(self, paths: Iterable[Path]) -> list[tuple[str | int, ...]]:
        """As :meth:`stamp`, of these files."""
        found: list[tuple[str | int, ...]] = []
        for path in paths:
            facts = facts_of(path)
            times = facts.st_mtime_ns, facts.st_ctime_ns
            name = str(path).removeprefix(ended(str(self.root)))
            found.append((name, facts.st_size, *times, facts.st_ino))
        return found

    @cached_property
    def _real(self) -> str:
        return os.path.realpath(self.root)

    def _holds(self, real: str) -> bool:
        """Whether a path without links may be read."""
        return self.follow_links or real == self._real or real.startswith(ended(self._real))

    def _checked(self, path: Path) -> Path:
        """``path``, if following its links does not leave the source."""
        if not self._holds(real := os.path.realpath(path)):
            raise InputError(f"{path} leads to {real}, outside the source {self.root}; {_ALLOW}")
        return path

    def _walk(self, folder: Path, skipped: dict[Path, str], deep: bool = True) -> Iterator[Path]:
        """Files below ``folder`` as they are found; others go to ``skipped`` with the reason."""
        if folder == self.root and not folder.is_dir():
            yield folder
            return
        pending, links, walked = [folder], list[Path](), self._around(folder)
        while pending or links:
            below: list[Path] = []
            here = pending.pop() if pending else links.pop(0)
            if here != folder:
                if (known := identity(here)) in walked:
                    skipped[here] = "a link to a folder that is read anyway"
                    continue
                walked.add(known)
            for path, kind in self._entries(here, skipped):
                if kind == "file":
                    yield path
                elif kind == "dead link":
                    skipped[path] = "a link that leads nowhere"
                else:
                    (links if path.is_symlink() else below).append(path)
            if not deep:
                return
            pending += reversed(below)

    def _around(self, folder: Path) -> set[tuple[int, int]]:
        """``folder``, which may be entered, and all folders that contain it."""
        facts_of(self._checked(folder))
        real = Path(os.path.realpath(folder))
        return {identity(path) for path in (real, *real.parents, *folder.absolute().parents)}

    def _entries(
        self, folder: Path, skipped: dict[Path, str], leaving: bool = False
    ) -> Iterator[tuple[Path, str]]:
        """Visible entries, sorted by name: "file", "folder" or "dead link".

        Links that leave the source are refused unless ``leaving``.
        """
        try:
            with os.scandir(folder) as entries:
                shown = sorted(
                    (entry for entry in entries if visible(entry.name)), key=attrgetter("name")
                )
        except OSError as error:
            raise refusal(folder, error) from error
        for entry in shown:
            path = folder / entry.name
            if not entry.name.isascii():
                check_name(path)
            if entry.is_symlink():
                if leads_nowhere(path):
                    yield path, "dead link"
                    continue
                if not leaving:
                    self._checked(path)
            if entry.is_file():
                yield path, "file"
            elif entry.is_dir():
                yield path, "folder"
            else:
                skipped[path] = "a pipe, socket or device"

    def _tell(self, skipped: dict[Path, str]) -> None:
        """One warning about what was left out, unless it was said before."""
        new = [path for path in skipped if path not in self._told]
        self._told.update(new)
        if new:
            several = (
                f"{len(new)} files are left out, the first is " if len(new) > 1 else "left out: "
            )
            logger.warning("%s: %s%s (%s)", self.root, several, new[0], skipped[new[0]])


@dataclass(frozen=True)
class File:
    """A file of a source that is opened when its content is wanted."""

    place: Place
    path: Path

    def __str__(self) -> str:
        return str(self.path)

    def read_bytes(self) -> bytes:
        """As :meth:`Place.read`."""
        return self.place.read(self.path)


def _opened(handle: int) -> str:
    """Where an open file lies, or nothing on systems that do not say."""
    try:
        return str(Path(f"/proc/self/fd/{handle}").readlink())
    except OSError:
        return ""
