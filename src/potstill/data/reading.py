"""How a source is read: one set of options for Python, flags, recipes and ``run.json``."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from typing import Annotated, Any

from potstill.run import InputError
from potstill.run.fields import OneOf, Range, check_fields

__all__ = ["MOST_PIXELS", "Reading", "colour_of"]

MOST_PIXELS = 89_478_485  # of one picture as it is read: 0.27 GB in RGB
Side = Annotated[int, Range(1, 2**13)]
Channels = Annotated[int, OneOf(1, 3)]
Level = Annotated[float, Range(-1e12, 1e12)]  # beyond the integers of 32 bits
Resize = Annotated[str, OneOf("crop", "stretch", "pad")]


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How a source is read; ``None`` keeps what the source has.

    Raises:
        InputError: a value that cannot be used.
    """

    image_size: Side | None = None  # resize to this many pixels; needed when sizes differ
    resize: Resize = "crop"  # "crop" (short side, centre), "stretch" or "pad" (with black)
    channels: Channels | None = None  # force 1 (grey) or 3 (RGB)
    labels: str | None = None  # label column, for tables with several
    image_column: str | None = None  # column of the pictures, for tables with several
    # folder of the pictures that a list (CSV, JSON lines, text) names; default: that of the list
    image_root: str | None = None
    subset: str | None = None  # classes: imagenet-nette, or positions or names joined by commas
    follow_links: bool = False  # read what links inside a source folder lead to outside of it
    # which values are black and white; without it 8 bits are 0-255, and deeper values are read by
    # the range that the train split shows
    value_range: tuple[Level, Level] | None = None
    background: str = "white"  # under transparency: a colour (black, "#808080"), or none: ignore it

    def __post_init__(self) -> None:
        if self.value_range is not None:
            object.__setattr__(self, "value_range", _range(self.value_range))
        check_fields(self)
        colour_of(self.background)

    def reading_facts(self) -> dict[str, Any]:
        """Options that differ from the defaults, JSON-like: they decide what is decoded."""
        own = {field.name: field.default for field in fields(Reading)}
        return {
            key: value for key, value in asdict(self).items() if key in own and value != own[key]
        }


def _range(wanted: Any) -> tuple[float, float]:
    """A pair of numbers, the lower first."""
    try:
        low, high = map(float, wanted)
    except (TypeError, ValueError, OverflowError):
        low = high = math.nan
    if not low < high:
        raise InputError(
            f"value_range is {wanted!r}; use two numbers, black before white, such as (0, 4095)"
        )
    return low, high


def colour_of(name: str) -> tuple[int, int, int]:
    """RGB 0-255 of a background colour; that of "none" is never seen."""
    if name in ("white", "black", "none"):
        return (255, 255, 255) if name == "white" else (0, 0, 0)
    from PIL import ImageColor

    try:
        red, green, blue = ImageColor.getrgb(name)[:3]
    except (ValueError, AttributeError):
        raise InputError(
            f"background is {name!r}; use a colour such as white, black or '#808080', or none to "
            "ignore transparency"
        ) from None
    return red, green, blue
