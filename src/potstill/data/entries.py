"""Single files and folders of a source: what is known, and a sentence where that is refused."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from potstill.run import InputError

__all__ = [
    "check_name",
    "ended",
    "facts_of",
    "identity",
    "leads_nowhere",
    "reason",
    "refusal",
    "visible",
]

_SYSTEM = {
    *("thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx", "__pycache__", "@eadir"),
    *("lost+found", "$recycle.bin", "system volume information"),
}  # what operating systems leave in folders, in lower case


def visible(name: str) -> bool:
    """Whether an entry is neither hidden nor the system's own."""
    return not name.startswith(".") and name.lower() not in _SYSTEM


def ended(folder: str) -> str:
    """A folder's path as the beginning of those below it."""
    return folder if folder.endswith(os.sep) else folder + os.sep


def facts_of(path: Path) -> os.stat_result:
    """What the system knows about a file, links followed; raises InputError."""
    try:
        return path.stat()
    except OSError as error:
        raise refusal(path, error) from error


def leads_nowhere(link: Path) -> bool:
    """Whether nothing is behind a link; raises InputError if that may not be known."""
    try:
        link.stat()
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            raise refusal(link, error) from error
        return True
    return False


def identity(path: Path) -> tuple[int, int]:
    """The same for all names of one file or folder."""
    facts = facts_of(path)
    return facts.st_dev, facts.st_ino


def check_name(path: Path) -> None:
    """Refuse names that are not UTF-8: they could not be written to records and pages."""
    try:
        path.name.encode()
    except UnicodeEncodeError:
        name = ascii(os.fsencode(path.name))[1:]
        raise InputError(
            f"the name {name} in {ascii(str(path.parent))[1:-1]} is not UTF-8; rename it "
            "(convmv does so for whole folders)"
        ) from None


def reason(error: Exception) -> str:
    """What happened, as the end of a sentence about a file."""
    if isinstance(error, PermissionError):
        return "may not be read"
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return "is not there"
    return f"cannot be read ({getattr(error, 'strerror', None) or error})"


def refusal(path: Path, error: OSError) -> InputError:
    """What the system refused, as a sentence with the fix."""
    fix = "change its permissions" if isinstance(error, PermissionError) else "restore or remove it"
    if path.is_symlink() and not isinstance(error, PermissionError):
        return InputError(f"{path} is a link to {path.readlink()}, which leads nowhere; {fix}")
    return InputError(f"{path} {reason(error)}; {fix}")
