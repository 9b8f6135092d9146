"""From whatever a source holds (files, bytes, arrays, tensors) to uint8 blocks of one shape."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from potstill.data.files import File
from potstill.data.images import check_labels, check_size
from potstill.data.reading import Reading
from potstill.run import InputError, progress

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["MixedModes", "Rows", "blocks", "brief", "channels_last"]

_BLOCK = 256  # pictures decoded between two writes
_CHUNK = 16  # pictures per task of the thread pool
# Below this many pixels Pillow holds the interpreter lock most of the time and threads lose 1.3 to
# 1.8 times (32-pixel WebP 71 -> 130 us a picture); above they win. Files wait for the disk anyway.
_THREADED_PIXELS = 128 * 128

Pictures = Callable[[np.ndarray], Iterable[Any]]  # ascending row numbers (k,) to k pictures


@dataclass(frozen=True)
class Rows:
    """One split of a source before decoding: pictures with labels, in order."""

    name: str  # of the source, for messages
    count: int
    pairs: Callable[[], Iterator[tuple[Any, int]]]  # from the beginning at each call
    classes: tuple[str, ...] | None  # None: "0".."C-1" after the labels
    pictures: Pictures | None = None  # some rows; None: only all of them in turn
    labels: np.ndarray | None = None  # int64 (count,); None: known only with the pictures

    def __post_init__(self) -> None:
        # Before hours of decoding rather than after.
        check_size(self.count, 2 if self.classes is None else len(self.classes), self.name)

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


def blocks(rows: Rows, form: Reading, *, quiet: bool) -> Iterator[tuple[np.ndarray, list[int]]]:
    """Yield uint8 (b, c, h, w) and b labels, in order, until ``rows`` is used up.

    The first picture decides the shape where ``form`` leaves it open.

    Raises:
        MixedModes: the first picture is grey, a later one is not, and ``form`` does not say.
        InputError: a damaged or foreign file, another size, values out of range; names the picture.
    """
    bar = progress(rows.pairs(), label=f"decode {rows.name}", quiet=quiet, total=rows.count)
    pairs, done = iter(bar), 0
    workers = min(16, os.cpu_count() or 1)
    with ThreadPoolExecutor(workers) as pool:
        frame: _Frame | None = None
        while block := list(islice(pairs, _BLOCK)):
            items = [item for item, _ in block]
            frame = frame or _Frame.of(items[0], rows.name, form)
            out = np.empty((len(items), *frame.shape), np.uint8)
            step = _CHUNK if frame.threaded else _BLOCK
            at = range(0, len(items), step)
            parts = [items[i : i + step] for i in at], [done + i for i in at]
            run = pool.map if frame.threaded else map
            list(run(frame.fill, *parts, [out[i : i + step] for i in at]))
            done += len(items)
            if done > rows.count:
                break
            yield out, [label for _, label in block]
    if done != rows.count:
        raise InputError(
            f"source {rows.name!r} announces {rows.count} images but gives {done}; make them agree"
        )


@dataclass(frozen=True)
class _Frame:
    """The common shape of all pictures, taken from the first one."""

    name: str
    form: Reading
    shape: tuple[int, int, int]  # (c, h, w)
    first: str  # what the first picture is called
    kind: str | None  # its file format, likely that of the others
    threaded: bool

    @staticmethod
    def of(item: Any, name: str, form: Reading) -> _Frame:
        title = _title(item, 0, name)
        picture = _open(item, title)
        channels = form.channels or (1 if picture.mode == "L" else 3)
        large = picture.width * picture.height >= _THREADED_PIXELS
        width, height = _resize(picture, form).size
        threaded = isinstance(item, File) or (large and isinstance(item, bytes))
        return _Frame(name, form, (channels, height, width), title, _kind(item), threaded)

    def fill(self, items: Sequence[Any], start: int, out: np.ndarray) -> None:
        """Decode ``items``, the first of which is number ``start``, into ``out`` (b, c, h, w)."""
        channels, height, width = self.shape
        mode = "L" if channels == 1 else "RGB"
        for row, item in enumerate(items):
            title = _title(item, start + row, self.name)
            picture = _open(item, title, self.kind)
            if channels == 1 and picture.mode == "RGB" and self.form.channels is None:
                raise MixedModes
            picture = picture if picture.mode == mode else picture.convert(mode)
            picture = _resize(picture, self.form)
            if picture.size != (width, height):
                raise InputError(
                    f"image_size is not given but sizes differ: {self.first} is {width}x{height} "
                    f"and {title} is {picture.width}x{picture.height}; "
                    f"use image_size={min(width, height)} or another size for all"
                )
            pixels = np.asarray(picture)
            out[row] = pixels if channels == 1 else pixels.transpose(2, 0, 1)


def _title(item: Any, number: int, name: str) -> str:
    return str(item) if isinstance(item, File) else f"image {number} of {name}"


def _open(item: Any, title: str, kind: str | None = None) -> Image:
    """Decode one picture to mode L or RGB, upright; ``kind`` is the file format to try first."""
    from PIL import Image, ImageOps

    try:
        if isinstance(item, bytes | File):
            picture = _decompress(item if isinstance(item, bytes) else item.read_bytes(), kind)
        elif isinstance(item, Image.Image):
            picture = item
        elif isinstance(item, np.ndarray | torch.Tensor):
            return _from_array(item, title)
        else:
            raise InputError(f"{title} is a {type(item).__name__}; give a picture, array or tensor")
        if picture.info.get("exif"):
            picture = ImageOps.exif_transpose(picture)
    except InputError:
        raise
    except Exception as error:  # decoders raise whatever they like on damaged files
        raise InputError(
            f"{title} cannot be read as an image ({brief(error)}); replace or remove it"
        ) from error
    if picture.mode in ("L", "RGB"):
        return picture
    if picture.mode == "1":
        return picture.convert("L")
    if picture.mode == "P":  # straight to RGB, Pillow warns about transparency
        return picture.convert("RGBA").convert("RGB")
    if picture.mode.startswith("I"):  # 16-bit grey, which convert() would clip to white
        levels = np.asarray(picture).astype(np.int64).clip(0, 65535) >> 8
        return Image.fromarray(levels.astype(np.uint8))
    return picture.convert("RGB")


def _decompress(content: bytes, kind: str | None) -> Image:
    """Decode a file's content. Asking every format in turn would cost more than a small picture."""
    from PIL import Image, UnidentifiedImageError

    try:
        picture = Image.open(io.BytesIO(content), formats=(kind,) if kind else None)
    except UnidentifiedImageError:
        picture = Image.open(io.BytesIO(content))
    picture.load()
    return picture


def _kind(item: Any) -> str | None:
    """The file format of an encoded picture that is known to be readable."""
    from PIL import Image

    if not isinstance(item, bytes | File):
        return None
    content = item if isinstance(item, bytes) else item.read_bytes()
    with Image.open(io.BytesIO(content)) as picture:
        return picture.format


def _from_array(values: Any, title: str) -> Image:
    """An array (h, w), (h, w, c) or (c, h, w), uint8 or float 0-1, as a picture."""
    from PIL import Image

    tensor = isinstance(values, torch.Tensor)
    array = values.detach().cpu().numpy() if tensor else values
    if array.ndim == 3:
        array = channels_last(array, channels_first=tensor, title=title)
    if array.ndim != 2 and not (array.ndim == 3 and array.shape[2] in (1, 3)):
        raise InputError(
            f"{title} has shape {tuple(values.shape)}; "
            "give (h, w), (h, w, c) or (c, h, w) with c = 1 or 3"
        )
    if array.dtype.kind == "f":
        low, high = float(array.min()), float(array.max())
        if not (low >= 0 and high <= 1):  # also true for NaN
            raise InputError(
                f"{title} has values from {low:.3g} to {high:.3g}; give uint8, or floats from 0 "
                "to 1 without normalisation (it is fitted later)"
            )
        array = (array * 255).round().astype(np.uint8)
    if array.dtype != np.uint8:
        raise InputError(f"{title} has dtype {array.dtype}; give uint8, or floats from 0 to 1")
    return Image.fromarray(
        np.ascontiguousarray(array.squeeze(2) if array.shape[2:] == (1,) else array)
    )


def channels_last(array: np.ndarray, *, channels_first: bool, title: str) -> np.ndarray:
    """View of (..., h, w, c) or (..., c, h, w) as (..., h, w, c).

    The axis of length 1 or 3 is the channel; if both ends could be, ``channels_first`` decides.
    """
    first, last = array.shape[-3] in (1, 3), array.shape[-1] in (1, 3)
    if not (first or last):
        raise InputError(
            f"{title} has shape {tuple(array.shape)}; its first or last image axis must be the "
            "channel, of length 1 or 3"
        )
    return np.moveaxis(array, -3, -1) if first and (channels_first or not last) else array


def _resize(picture: Image, form: Reading) -> Image:
    """Bring to ``image_size`` (square) with antialiased bilinear filtering, as torchvision does."""
    from PIL import Image, ImageOps

    size, bilinear = form.image_size, Image.Resampling.BILINEAR
    width, height = picture.size
    if size is None or (width, height) == (size, size):
        return picture
    if form.resize == "stretch":
        return picture.resize((size, size), bilinear)
    if form.resize == "pad":
        return ImageOps.pad(picture, (size, size), bilinear, color=0)
    short = min(width, height)
    wide, high = int(width * size / short), int(height * size / short)
    picture = picture.resize((wide, high), bilinear)
    left, top = round((wide - size) / 2), round((high - size) / 2)
    return picture.crop((left, top, left + size, top + size))


def brief(error: BaseException) -> str:
    """The first line of an error's text, or its kind."""
    lines = str(error).strip().splitlines()
    return lines[0][:160] if lines else type(error).__name__
