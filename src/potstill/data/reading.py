"""How a source is read: one set of options for Python, flags, recipes and ``run.json``."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Annotated, Any

from potstill.run.fields import OneOf, Range, check_fields

__all__ = ["Reading"]

Side = Annotated[int, Range(1, 2**13)]
Channels = Annotated[int, OneOf(1, 3)]
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
    subset: str | None = None  # classes: imagenet-nette, or positions or names joined by commas
    follow_links: bool = False  # read what links inside a source folder lead to outside of it

    def __post_init__(self) -> None:
        check_fields(self)

    def reading_facts(self) -> dict[str, Any]:
        """Options that differ from the defaults, JSON-like: they decide what is decoded."""
        own = {field.name: field.default for field in fields(Reading)}
        return {
            key: value for key, value in asdict(self).items() if key in own and value != own[key]
        }
