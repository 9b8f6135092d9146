"""Errors a user can act on: one sentence that names the argument, the value and the fix."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

__all__ = [
    "ArtifactError",
    "DivergedError",
    "InputError",
    "PotstillError",
    "StorageError",
    "nearest",
    "system_refusals",
]

_LONGEST = 1500  # characters of a sentence


class PotstillError(Exception):
    """Base of all errors raised on purpose; the command line prints them without traceback."""

    exit_code = 2

    def __str__(self) -> str:
        """The sentence on one line and of a length to be read, whatever files bring into it.

        Control characters are written out; of very long ones the middle is left out.
        """
        said = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in super().__str__())
        if len(said) > _LONGEST:
            said = f"{said[: _LONGEST // 2]} ... {said[-_LONGEST // 4 :]}"
        return said


class InputError(PotstillError, ValueError):
    """An argument, a file or a data set that cannot be used as given (exit code 2)."""


class ArtifactError(InputError):
    """A stored result that is damaged, hostile or of another version (exit code 2)."""


class DivergedError(PotstillError, ArithmeticError):
    """A loss or gradient became NaN or infinite; the last good checkpoint is kept (exit code 3)."""

    exit_code = 3


class StorageError(PotstillError, OSError):
    """Writing failed (disk full, no permission); older files are untouched (exit code 4)."""

    exit_code = 4


@contextmanager
def system_refusals() -> Iterator[None]:
    """Turn what the system refuses (permissions, a full disk, memory) into one sentence.

    The places that know better say more; this is for everything that is opened or written.

    Raises:
        StorageError: an OSError, with the file that it is about. InputError: a MemoryError.
    """
    try:
        yield
    except (PotstillError, BrokenPipeError, BlockingIOError):
        raise
    except MemoryError as error:
        raise InputError("memory is exhausted; lower memory_gb or use smaller data") from error
    except OSError as error:
        if error.errno is None:  # not the system's: some library's own
            raise
        what = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, str | bytes) else ""
        raise StorageError(
            f"{what}{error.strerror}; check its permissions and the free space"
        ) from error


def nearest(name: str, options: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the option most like ``name``, or all options."""
    options = list(options)
    close = difflib.get_close_matches(name.lower(), options, n=1, cutoff=0.5)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; choose one of {', '.join(sorted(options))}"
