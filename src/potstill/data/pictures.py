"""One picture, as bytes, file, array or tensor: opened within limits and brought to grey or RGB."""

from __future__ import annotations

import io
import sys
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from potstill.data.files import Place
from potstill.data.reading import MOST_PIXELS, Reading, colour_of
from potstill.data.values import Values
from potstill.run import InputError

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["Opened", "as_numpy", "brief", "channels_last", "flatten", "is_file", "open_picture"]

# Formats that only decode: none runs another program (EPS), refers to other files or draws text.
_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "PPM", "JPEG2000", "AVIF")
_NAMES = "PNG, JPEG, WebP, GIF, BMP, TIFF, PPM, JPEG 2000 or AVIF"
_HEIC = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1")
_MAYBE_GREY = ("1", "L", "LA", "La", "P", "PA")
_PLANAR, _BITS = 284, 258  # tags of a TIFF


class Opened(NamedTuple):
    """A decoded picture, upright."""

    content: Image | np.ndarray  # 8 bits of any mode; or (h, w), (h, w, c) of any number type
    format: str | None  # of its file, to be tried first with the next one
    several: bool  # the file holds more pictures, which are left out


def open_picture(item: Any, title: str, kind: str | None = None) -> Opened:
    """Decode one picture; ``kind`` is the file format to try first.

    Raises:
        InputError: it cannot be read, is no picture or too large.
    """
    from PIL import Image

    try:
        if isinstance(item, bytes) or is_file(item):
            return _decompress(_content(item), title, kind)
        if isinstance(item, Image.Image):
            item.load()
            return Opened(_plain(item), None, False)
    except InputError:
        raise
    except Exception as error:  # decoders raise whatever they like on damaged files
        raise InputError(
            f"{title} cannot be read as an image ({brief(error)}); replace or remove it"
        ) from error
    if isinstance(item, np.ndarray | torch.Tensor):
        return Opened(_from_array(item, title), None, False)
    raise InputError(f"{title} is a {type(item).__name__}; give a picture, array or tensor")


def is_file(item: Any) -> bool:
    """Whether a picture is a file whose content is still to be read."""
    return hasattr(item, "read_bytes")


def _content(item: Any) -> bytes:
    if isinstance(item, Path):
        return Place(item).read(item)
    content: bytes = item if isinstance(item, bytes) else item.read_bytes()
    return content


@cache
def _formats() -> tuple[str, ...]:
    from PIL import Image

    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def _header(content: bytes, title: str, kind: str | None) -> Any:
    """An open file; asking every format in turn would cost more than decoding a small picture."""
    from PIL import Image, UnidentifiedImageError

    picture = None
    for formats in ([(kind,)] if kind else []) + [_formats()]:
        try:
            picture = Image.open(io.BytesIO(content), formats=formats)
            break
        except UnidentifiedImageError:
            continue
        except Image.DecompressionBombError:
            raise InputError(
                f"{title} has more than {MOST_PIXELS} pixels; shrink it first"
            ) from None
    if picture is None:
        what = f"it is no {_NAMES}" if content else "it is empty"
        if content[4:8] == b"ftyp" and content[8:12] in _HEIC:
            what = "it is a HEIC picture, which nothing here decodes; convert it to JPEG or PNG"
        raise InputError(f"{title} cannot be read as an image ({what}); replace or remove it")
    if picture.width * picture.height > MOST_PIXELS:
        raise InputError(
            f"{title} has {picture.width}x{picture.height} pixels, more than {MOST_PIXELS}; "
            "shrink it first"
        )
    return picture


def _decompress(content: bytes, title: str, kind: str | None) -> Opened:
    picture = _header(content, title, kind)
    several = picture.format != "MPO" and _several(picture)
    form = "JPEG" if picture.format == "MPO" else picture.format
    if picture.format == "TIFF":
        _check_tiff(picture, title)
    wide = _wide(picture)
    if not wide:
        picture.load()
        return Opened(_plain(picture), form, several)
    halves = []
    for rawmode in wide:  # Pillow keeps one byte of two: ask for each
        half = _header(content, title, form)
        half.tile = [
            part._replace(args=rawmode if isinstance(part.args, str) else (rawmode, *part.args[1:]))
            for part in half.tile
        ]
        half.load()
        halves.append(np.asarray(_upright(half)).astype(np.uint16))
    if len(halves) == 1:  # grey with alpha: two values of two bytes are four channels
        return Opened(halves[0][..., 0::2] << 8 | halves[0][..., 1::2], form, several)
    return Opened(halves[0] << 8 | halves[1], form, several)


def _several(picture: Any) -> bool:
    try:
        return bool(getattr(picture, "is_animated", False))
    except Exception:  # what follows the first picture is damaged
        return True


def _check_tiff(picture: Any, title: str) -> None:
    """Refuse what Pillow would fill with black or read wrongly."""
    covered = sum((x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in (t.extents for t in picture.tile))
    if covered < picture.width * picture.height:
        raise InputError(
            f"{title} cannot be read as an image (strips of it are missing); replace or remove it"
        )
    planes = picture.tag_v2.get(_PLANAR) == 2 and len(picture.getbands()) > 1
    if planes and max(picture.tag_v2.get(_BITS, (8,))) > 8:
        raise InputError(
            f"{title} keeps 16-bit colours plane by plane; convert it to PNG or to TIFF with "
            "interleaved colours"
        )


def _wide(picture: Any) -> tuple[str, ...]:
    """Raw modes that give the bytes of 16-bit colour, high bytes first; empty: it is none."""
    if picture.mode not in ("RGB", "RGBA") or not picture.tile:
        return ()
    args = picture.tile[0].args
    rawmode = (args if isinstance(args, str) else args[0]) if args else None
    if not isinstance(rawmode, str) or ";16" not in rawmode:
        return ()
    if rawmode == "LA;16B":
        return ("RGBA",)
    if not rawmode.startswith(("RGB;", "RGBA;", "RGBX;")):
        return ()  # premultiplied colours: their high bytes
    native = "L" if sys.byteorder == "little" else "B"
    order = native if rawmode[-1] == "N" else rawmode[-1]
    return rawmode, rawmode[:-1] + ("L" if order == "B" else "B")


def _upright(picture: Image) -> Image:
    from PIL import ImageOps

    return ImageOps.exif_transpose(picture) if picture.info.get("exif") else picture


def _plain(picture: Image) -> Image | np.ndarray:
    """Upright; what is deeper than 8 bits as an array."""
    picture = _upright(picture)
    return np.asarray(picture) if picture.mode[0] in "IF" else picture


def flatten(opened: Opened, values: Values, how: Reading, title: str) -> Image:
    """A picture of mode L or RGB: 8 bits, without palette, transparency and colour model.

    Raises:
        InputError: values that show no usual range, or a mode that cannot be converted.
    """
    picture = opened.content
    if isinstance(picture, np.ndarray):
        colours, alpha = picture, None
        if picture.ndim == 3 and picture.shape[2] in (2, 4):
            colours, alpha = picture[..., :-1], (picture[..., -1:] >> 8).astype(np.uint8)
        levels = values.levels(colours, title)
        picture = _image(levels if alpha is None else np.concatenate([levels, alpha], 2))
    if picture.mode not in ("L", "RGB") or "transparency" in picture.info:
        try:
            picture = _opaque(picture, how.background)
        except ValueError as error:  # no conversion from this mode
            raise InputError(
                f"{title} has colours of mode {picture.mode}, which cannot be converted "
                f"({brief(error)}); save it as RGB"
            ) from error
    if how.value_range is not None and not isinstance(opened.content, np.ndarray):
        table = values.levels(np.arange(256, dtype=np.uint8), title).tolist()
        picture = picture.point(table * len(picture.getbands()))
    return picture


def _image(pixels: np.ndarray) -> Image:
    """A picture of uint8 (h, w) or (h, w, c)."""
    from PIL import Image

    return Image.fromarray(
        np.ascontiguousarray(pixels.squeeze(2) if pixels.shape[2:] == (1,) else pixels)
    )


def _opaque(picture: Image, background: str) -> Image:
    """Composite on ``background``; grey stays grey."""
    from PIL import Image

    if picture.has_transparency_data:
        seen = picture.convert("RGBA")
        flat = seen.convert("RGB")
        if background != "none":
            flat = Image.new("RGB", picture.size, colour_of(background))
            flat.paste(seen.convert("RGB"), mask=seen.getchannel("A"))
    elif picture.mode in ("1", "L"):
        return picture.convert("L")
    else:
        flat = picture.convert("RGB")
    if picture.mode in _MAYBE_GREY:
        pixels = np.asarray(flat)
        if (pixels[..., :1] == pixels).all():
            return flat.getchannel("R")
    return flat


def _from_array(values: Any, title: str) -> Image | np.ndarray:
    """An array (h, w), (h, w, c) or (c, h, w) of any number type, channels last."""
    tensor = isinstance(values, torch.Tensor)
    array = as_numpy(values)
    if array.ndim == 3:
        array = channels_last(array, channels_first=tensor, title=title)
    if array.ndim != 2 and not (array.ndim == 3 and array.shape[2] in (1, 3)):
        raise InputError(
            f"{title} has shape {tuple(values.shape)}; "
            "give (h, w), (h, w, c) or (c, h, w) with c = 1 or 3"
        )
    if not array.size:
        raise InputError(f"{title} has shape {tuple(values.shape)}, no pixels; remove it")
    return _image(array) if array.dtype == np.uint8 else array


def as_numpy(values: Any) -> np.ndarray:
    """An array of a tensor or of anything that NumPy takes."""
    if not isinstance(values, torch.Tensor):
        return np.asarray(values)
    plain = values.detach().cpu()
    array: np.ndarray = (plain.float() if plain.dtype == torch.bfloat16 else plain).numpy()
    return array


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


def brief(error: BaseException) -> str:
    """The first line of an error's text, or its kind."""
    lines = str(error).strip().splitlines()
    return lines[0][:160] if lines else type(error).__name__
