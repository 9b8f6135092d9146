"""Images as pictures for people: 8-bit views, and grids with one row per class."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from potstill.run.checkpoint import write_bytes

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["encode", "grid", "rounded", "to_uint8"]

TILE = 64  # pixels that small images are enlarged to, by a whole factor
LARGEST = 96  # pixels that large images are reduced to
FEW_CLASSES = 20  # with more rows than this, tiles are half as large
GAP = 4
MOST_CLASSES = 100  # rows; of more classes an even choice is shown
_INK = (140, 130, 120, 255)  # readable on white and on black: the ground is transparent


def to_uint8(images: Tensor) -> Tensor:
    """Clip float images, RGB 0-1, and round to 0-255; uint8 images are returned as they are."""
    if images.dtype == torch.uint8:
        return images
    return (images.detach().clamp(0, 1) * 255).round().to(torch.uint8)


def rounded(images: Tensor) -> Tensor:
    """Clip float images, RGB 0-1, and round to n / 255: what 8 bits make of them, float32."""
    return to_uint8(images).to(torch.float32) / 255


def encode(image: Tensor) -> bytes:
    """Return one image (c, h, w), uint8, c 1 or 3, as PNG."""
    stream = io.BytesIO()
    _picture(image).save(stream, format="PNG")
    return stream.getvalue()


def grid(
    images: Tensor,
    labels: Tensor,
    classes: Sequence[str],
    path: str | Path | None = None,
    columns: int = 10,
) -> bytes:
    """Lay out images with one row per class, enlarged so that 8 x 8 pixels can be seen.

    Args:
        images: (n, c, h, w), uint8 or float RGB 0-1. labels: (n,). classes: names by label.
        path: where to write the picture as well. columns: at most this many images per class.

    Returns:
        A PNG with transparent ground; of more than 100 classes an even choice is shown.
    """
    from PIL import Image, ImageDraw

    labels = labels.cpu()
    shown: Sequence[int] = range(len(classes))
    if len(classes) > MOST_CLASSES:
        shown = torch.linspace(0, len(classes) - 1, MOST_CLASSES).round().long().tolist()
    rows = [(label, (labels == label).nonzero().flatten()[:columns]) for label in shown]
    shrink = 1 if len(rows) <= FEW_CLASSES else 2
    width, height = _tile(images.shape[-1], images.shape[-2], TILE // shrink, LARGEST // shrink)
    longest = max((len(places) for _, places in rows), default=0)
    margin = _margin([classes[label] for label, _ in rows])
    size = (margin + longest * (width + GAP), len(rows) * (height + GAP))
    sheet = Image.new("RGBA", (max(size[0], 1), max(size[1], 1)), (0, 0, 0, 0))
    pen, font = ImageDraw.Draw(sheet), _font()
    for row, (label, places) in enumerate(rows):
        top = row * (height + GAP) + GAP // 2
        pen.text(
            (margin - 8, top + height // 2), _short(classes[label]), _INK, font=font, anchor="rm"
        )
        for column, image in enumerate(to_uint8(images[places.to(images.device)]).cpu()):
            picture = _picture(image)
            if picture.size != (width, height):
                enlarge = width >= picture.size[0]
                how = Image.Resampling.NEAREST if enlarge else Image.Resampling.LANCZOS
                picture = picture.resize((width, height), how)
            sheet.paste(picture, (margin + column * (width + GAP), top))
    stream = io.BytesIO()
    sheet.save(stream, format="PNG")
    if path is not None:
        write_bytes(Path(path), stream.getvalue())
    return stream.getvalue()


def _picture(image: Tensor) -> Image.Image:
    from PIL import Image

    pixels = image.cpu().permute(1, 2, 0).contiguous().numpy()
    return Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)


def _tile(width: int, height: int, wanted: int, largest: int) -> tuple[int, int]:
    """Size at which an image is shown."""
    side = max(width, height)
    if side > largest:
        return max(1, width * largest // side), max(1, height * largest // side)
    factor = max(1, round(wanted / side))
    return width * factor, height * factor


def _font():  # type: ignore[no-untyped-def]
    from PIL import ImageFont

    return ImageFont.load_default(size=14)


def _short(name: str, limit: int = 18) -> str:
    name = "".join(letter if letter.isprintable() else " " for letter in name)
    return name if len(name) <= limit else name[: limit - 1] + "…"


def _margin(names: Sequence[str]) -> int:
    font = _font()
    return 16 + max((int(font.getlength(_short(name))) for name in names), default=0)
