"""How a source is read: one set of options for Python, flags, recipes and ``run.json``."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

from potstill.run import InputError, nearest

__all__ = ["Reading"]

_RESIZE = ("crop", "stretch", "pad")


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How a source is read; ``None`` keeps what the source has.

    Raises:
        InputError: a value that cannot be used.
    """

    image_size: int | None = None  # resize to this many pixels; needed when sizes differ
    resize: str = "crop"  # "crop" (short side, centre), "stretch" or "pad" (with black)
    channels: int | None = None  # force 1 (grey) or 3 (RGB)
    labels: str | None = None  # label column, for tables with several
    subset: str | None = None  # classes: imagenet-nette, or positions or names joined by commas
    follow_links: bool = False  # read what links inside a source folder lead to outside of it

    def __post_init__(self) -> None:
        if self.image_size is not None and self.image_size < 1:
            raise InputError(f"image_size is {self.image_size}; use a positive number of pixels")
        if self.resize not in _RESIZE:
            raise InputError(f"resize is {self.resize!r}{nearest(str(self.resize), _RESIZE)}")
        if self.channels not in (None, 1, 3):
            raise InputError(f"channels is {self.channels}; use 1 (grey), 3 (RGB) or leave it out")

    def reading_facts(self) -> dict[str, Any]:
        """Options that differ from the defaults, JSON-like: they decide what is decoded."""
        own = {field.name: field.default for field in fields(Reading)}
        return {
            key: value for key, value in asdict(self).items() if key in own and value != own[key]
        }
