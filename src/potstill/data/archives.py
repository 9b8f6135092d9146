"""Arrays inside an ``.npz`` file: header first, then rows in pieces. Nothing is unpickled.

An archive may declare more than fits in memory, truly or as a trap. So images are read a piece at a
time and never as a whole, and what has to be whole (labels, names) is refused above a limit.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy

from potstill.data.files import Place
from potstill.data.pictures import brief
from potstill.run import InputError

__all__ = ["Member", "members"]

_PIECE = 1 << 20  # bytes read at once
_WHOLE = 1 << 28  # most bytes of an array that is read as a whole
_HEADERS: dict[tuple[int, int], Callable[[Any], tuple[tuple[int, ...], bool, np.dtype[Any]]]] = {
    (1, 0): npy.read_array_header_1_0,
    (2, 0): npy.read_array_header_2_0,
}


@dataclass(frozen=True)
class Member:
    """One array of an archive; its header has been read and agrees with its size."""

    place: Place
    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran: bool
    offset: int  # bytes before the values

    @property
    def title(self) -> str:
        """What the array is called in messages."""
        return f"{self.name} of source {self.place.root}"

    def whole(self) -> np.ndarray:
        """All values; raises InputError if they are too many to be held at once."""
        size = math.prod(self.shape) * self.dtype.itemsize
        if size > _WHOLE:
            why = " in Fortran order; save np.ascontiguousarray(...) of it" if self.fortran else ""
            raise InputError(
                f"{self.title} has {size} bytes, more than {_WHOLE} that are read as a whole{why}"
            )
        with _stream(self.place, self.name) as (stream, _):
            stream.read(self.offset)
            values = np.frombuffer(_exactly(stream, size), self.dtype)
            stream.read(1)  # the end, where zipfile compares checksums
        return values.reshape(self.shape, order="F" if self.fortran else "C")

    def rows(self, wanted: np.ndarray) -> Iterator[np.ndarray]:
        """Rows at ascending positions, read in pieces up to the last one."""
        if self.fortran:
            values = self.whole()
            yield from (values[row] for row in wanted)
            return
        size = math.prod(self.shape[1:]) * self.dtype.itemsize
        step = max(1, _PIECE // max(1, size))
        with _stream(self.place, self.name) as (stream, _):
            stream.read(self.offset)
            for start in range(0, self.shape[0], step):
                count = min(step, self.shape[0] - start)
                first, last = np.searchsorted(wanted, (start, start + count))
                if first == len(wanted):
                    return
                piece = np.frombuffer(_exactly(stream, count * size), self.dtype)
                yield from piece.reshape(count, *self.shape[1:])[wanted[first:last] - start]
            stream.read(1)


def members(place: Place) -> dict[str, Callable[[], Member]]:
    """Arrays of an archive by name; the function reads the header.

    Raises:
        InputError: damaged, or no archive; the functions: objects, or a size that does not fit.
    """
    with _archive(place) as archive:
        names = [name for name in archive.namelist() if name.endswith(".npy")]
    return {name.removesuffix(".npy"): partial(_header, place, name) for name in names}


def _header(place: Place, name: str) -> Member:
    with _stream(place, name) as (stream, size):
        version = npy.read_magic(stream)
        shape, fortran, dtype = _HEADERS[version](stream)
        offset = stream.tell()
    if dtype.hasobject or dtype.names:
        raise _damage(place, f"{name} holds Python objects")
    if size != offset + math.prod(shape) * dtype.itemsize:
        raise _damage(place, f"{name} has {size} bytes for an array of shape {shape}")
    return Member(place, name, shape, dtype, fortran and len(shape) > 1, offset)


def _exactly(stream: IO[bytes], size: int) -> bytes:
    content = stream.read(size)
    if len(content) != size:
        raise EOFError("it ends too early")
    return content


@contextmanager
def _archive(place: Place) -> Iterator[zipfile.ZipFile]:
    try:
        with place.open(place.root) as file, zipfile.ZipFile(file) as archive:
            yield archive
    except InputError:
        raise
    except Exception as error:  # zip, compression, header and value errors
        raise _damage(place, brief(error)) from error


@contextmanager
def _stream(place: Place, name: str) -> Iterator[tuple[IO[bytes], int]]:
    with _archive(place) as archive, archive.open(name) as stream:
        yield stream, archive.getinfo(name).file_size


def _damage(place: Place, why: str) -> InputError:
    return InputError(
        f"source {place.root} cannot be read ({why}); save plain arrays with np.savez"
    )
