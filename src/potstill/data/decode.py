"""From whatever a source holds (files, bytes, arrays, tensors) to uint8 blocks of one shape."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from potstill.data.classes import check_labels, check_names, check_size
from potstill.data.pictures import brief, channels_last, flatten, is_file, open_picture
from potstill.data.reading import Reading
from potstill.data.values import OtherRange, Values
from potstill.data.variety import Variety
from potstill.run import InputError, logger, progress
from potstill.run.memory import Budget

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["MixedModes", "OtherRange", "Rows", "blocks", "brief", "channels_last"]

_BLOCK = 256  # pictures decoded between two writes, fewer where they take more than
_BLOCK_BYTES = 32 << 20  # or the budget's share
_WORKERS = min(16, os.cpu_count() or 1)
_CHUNK = 16  # pictures per task of the thread pool
# Below this many pixels Pillow holds the interpreter lock most of the time and threads lose 1.3 to
# 1.8 times (32-pixel WebP 71 -> 130 us a picture); above they win. Files wait for the disk anyway.
_THREADED_PIXELS = 128 * 128
_HUGE_PIXELS = 1 << 24  # 64 MB and more while it is decoded: one at a time

_MOST_RESIZED = 1 << 24  # pixels of a picture before its centre is cut out

Pictures = Callable[[np.ndarray], Iterable[Any]]  # ascending row numbers (k,) to k pictures


@dataclass(frozen=True)
class Rows:
    """One split of a source before decoding: pictures with labels, in order."""

    name: str  # of the source, for messages
    count: int
    pairs: Callable[[], Iterator[tuple[Any, int]]]  # from the beginning at each call
    classes: tuple[str, ...] | None  # None: "0".."C-1" after the labels
    pictures: Pictures  # some rows
    labels: np.ndarray | None = None  # int64 (count,); None: known only with the pictures

    def __post_init__(self) -> None:
        # Before hours of decoding rather than after.
        check_size(self.count, 2 if self.classes is None else len(self.classes), self.name)
        check_names(self.classes or (), self.name)

    @staticmethod
    def of(
        name: str,
        pictures: Pictures,
        labels: np.ndarray,
        classes: tuple[str, ...] | None,
    ) -> Rows:
        """Rows whose labels (n,) are known beforehand; raises InputError if one is out of range."""
        numbers = labels.astype(np.int64)

        def pairs() -> Iterator[tuple[Any, int]]:
            return zip(pictures(np.arange(len(numbers))), numbers.tolist(), strict=True)

        rows = Rows(name, len(numbers), pairs, classes, pictures, numbers)
        size = len(classes) if classes else int(numbers.max()) + 1
        check_labels(torch.from_numpy(numbers), size, name)
        return rows


class MixedModes(Exception):
    """Colour turned up after grey pictures: begin again with ``channels=3``."""


def blocks(
    rows: Rows,
    how: Reading,
    *,
    quiet: bool,
    memory_gb: float = 4.0,
    values: Values | None = None,
    found: dict[str, Any] | None = None,
) -> Iterator[tuple[np.ndarray, list[int]]]:
    """Yield uint8 (b, c, h, w) and b labels, in order, until ``rows`` is used up.

    The first picture decides the shape where ``how`` leaves it open. ``values`` brings a scale
    along; what was found out on the way is in ``found`` at the end: "tops", the scale of values
    beyond 8 bits, and what :class:`Variety` says about constant and equal pictures.

    Raises:
        MixedModes: the first picture is grey, a later one is not, and ``how`` does not say.
        OtherRange: deeper values than those that the scale was guessed from.
        InputError: a damaged or foreign file, another size, values that show no range; names
            the picture.
    """
    values = values or Values(rows.name, how.value_range)
    variety, several, done = Variety(), 0, 0
    label = f"decode {rows.name}"
    pairs = iter(progress(rows.pairs(), label=label, quiet=quiet, total=rows.count))
    most = min(_BLOCK_BYTES, Budget(memory_gb).decoding)
    with ThreadPoolExecutor(_WORKERS) as pool:
        frame, size = None, 1  # the first picture says how many make a block
        while block := list(islice(pairs, size)):
            items, labels = map(list, zip(*block, strict=True))
            # Pillow's remarks on odd metadata; on errors and sizes we have our own words
            with warnings.catch_warnings(action="ignore"):
                frame = frame or _Frame.of(items[0], rows.name, how, values)
                out = np.empty((len(items), *frame.shape), np.uint8)
                several += frame.fill_all(items, done, out, pool)
            done += len(items)
            size = max(1, min(_BLOCK, most // out[0].nbytes))
            if done > rows.count:
                break
            if not values.exceeded:
                variety.look(out, labels)
                yield out, labels
            del block, items, out  # before the next one is read
    if done != rows.count:
        raise InputError(
            f"source {rows.name!r} announces {rows.count} images but gives {done}; make them agree"
        )
    tops = values.settle()
    if several:
        logger.warning(
            "%d files of %s hold several pictures; the first of each is used", several, rows.name
        )
    if found is not None:
        found |= {"tops": tops, **variety.settle(rows.classes)}


@dataclass(frozen=True)
class _Frame:
    """The common shape of all pictures, taken from the first one."""

    name: str
    how: Reading
    values: Values
    shape: tuple[int, int, int]  # (c, h, w)
    first: str  # what the first picture is called
    kind: str | None  # its file format, likely that of the others
    threaded: bool

    @staticmethod
    def of(item: Any, name: str, how: Reading, values: Values) -> _Frame:
        title = _title(item, 0, name)
        opened = open_picture(item, title)
        picture = flatten(opened, values, how, title)
        channels = how.channels or (1 if picture.mode == "L" else 3)
        pixels = picture.width * picture.height
        large, huge = pixels >= _THREADED_PIXELS, pixels > _HUGE_PIXELS
        width, height = _resize(picture, how).size
        threaded = (is_file(item) or (large and isinstance(item, bytes))) and not huge
        shape = channels, height, width
        return _Frame(name, how, values, shape, title, opened.format, threaded)

    def fill_all(self, items: list[Any], start: int, out: np.ndarray, pool: Executor) -> int:
        """As :meth:`fill`, in threads where that is quicker."""
        step = min(_CHUNK, -(-len(items) // _WORKERS)) if self.threaded else len(items)
        at = range(0, len(items), step)
        parts = [items[i : i + step] for i in at], [start + i for i in at]
        run = pool.map if self.threaded else map
        return sum(run(self.fill, *parts, [out[i : i + step] for i in at]))

    def fill(self, items: Sequence[Any], start: int, out: np.ndarray) -> int:
        """Decode ``items``, the first of which is number ``start``, into ``out`` (b, c, h, w).

        Returns how many of their files hold more pictures.
        """
        channels, height, width = self.shape
        mode = "L" if channels == 1 else "RGB"
        several = 0
        for row, item in enumerate(items):
            title = _title(item, start + row, self.name)
            opened = open_picture(item, title, self.kind)
            several += opened.several
            picture = flatten(opened, self.values, self.how, title)
            if self.values.exceeded:
                continue  # only the range is wanted now
            if channels == 1 and picture.mode == "RGB" and self.how.channels is None:
                raise MixedModes
            picture = picture if picture.mode == mode else picture.convert(mode)
            picture = _resize(picture, self.how)
            if picture.size != (width, height):
                raise InputError(
                    f"image_size is not given but sizes differ: {self.first} is {width}x{height} "
                    f"and {title} is {picture.width}x{picture.height}; "
                    f"use image_size={min(width, height)} or another size for all"
                )
            pixels = np.asarray(picture)
            out[row] = pixels if channels == 1 else pixels.transpose(2, 0, 1)
        return several


def _title(item: Any, number: int, name: str) -> str:
    return str(item) if is_file(item) else f"image {number} of {name}"


def _resize(picture: Image, how: Reading) -> Image:
    """Bring to ``image_size`` (square) with antialiased bilinear filtering, as torchvision does."""
    from PIL import Image, ImageOps

    size, bilinear = how.image_size, Image.Resampling.BILINEAR
    width, height = picture.size
    if size is None or (width, height) == (size, size):
        return picture
    if how.resize == "stretch":
        return picture.resize((size, size), bilinear)
    if how.resize == "pad":
        if 2 * size * min(width, height) <= max(width, height):  # a line thinner than a pixel
            line = (size, 1) if width > height else (1, size)
            picture = picture.resize(line, bilinear)
        return ImageOps.pad(picture, (size, size), bilinear, color=0)
    short = min(width, height)
    wide, high = int(width * size / short), int(height * size / short)
    left, top = round((wide - size) / 2), round((high - size) / 2)
    if wide * high > _MOST_RESIZED:  # only what is kept, equal up to rounding
        across, down = width / wide, height / high
        right, bottom = min((left + size) * across, width), min((top + size) * down, height)
        box = left * across, top * down, right, bottom
        return picture.resize((size, size), bilinear, box)
    picture = picture.resize((wide, high), bilinear)
    return picture.crop((left, top, left + size, top + size))
