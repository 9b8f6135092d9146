"""Parts: small frozen dataclasses of which a method is put together, each chosen by its name.

    class CanvasSpec(Part, room=True): ...        # a room: kinds to choose from
    class Tiled(CanvasSpec, kind="tiled"): ...    # one kind, with fields of its own

To the outside (flags, recipes, JSON, identity) a method is one flat table: the fields of its parts
stand beside its own, and a part stands there by the name of its kind. Within one method no two
parts have a field of the same name; a test sees to it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Self

from potstill.run.errors import InputError, nearest
from potstill.run.fields import OneOf, check_fields, fields_of

__all__ = ["Part", "changed", "check_parts", "flat", "flat_hints", "parts_of"]


@dataclass(frozen=True, kw_only=True)
class Part:
    """One part of a method; equal parts are equal values."""

    kind: ClassVar[str] = ""
    kinds: ClassVar[dict[str, type[Part]]] = {}  # of its room, by name

    def __init_subclass__(cls, *, room: bool = False, kind: str = "", **more: Any) -> None:
        super().__init_subclass__(**more)
        if room:
            cls.kinds = {}
        if kind:
            cls.kind = kind
            cls.kinds[kind] = cls

    def check(self, method: Any, real: Any = None) -> None:
        """Refuse what does not go together with the method's other parts, or with the real set.

        Raises:
            InputError: naming the field, its value and what to use.
        """

    def turned(self, kind: str, room: str) -> Self:
        """Return the part of another kind; fields that both kinds have keep their values.

        Raises:
            InputError: there is no such kind.
        """
        if kind not in self.kinds:
            raise InputError(f"{room} is {kind!r}{nearest(str(kind), self.kinds)}")
        if kind == self.kind:
            return self
        other: Any = self.kinds[kind]
        names = {field.name for field in dataclasses.fields(other)}
        own = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return other(**{name: value for name, value in own.items() if name in names})


def parts_of(owner: Any) -> Iterator[tuple[str, Part]]:
    """Yield the parts of a dataclass object by the names of their fields."""
    for field in dataclasses.fields(owner):
        value = getattr(owner, field.name)
        if isinstance(value, Part):
            yield field.name, value


def flat(owner: Any) -> dict[str, Any]:
    """Return the flat table of a dataclass object and its parts, in the order of their fields."""
    return {name: value for name, _, value in _entries(owner)}


def flat_hints(owner: Any) -> dict[str, Any]:
    """Return the annotation of each entry of :func:`flat`."""
    return {name: hint for name, hint, _ in _entries(owner)}


def _entries(owner: Any) -> Iterator[tuple[str, Any, Any]]:
    """Yield name, annotation and value of each entry of the flat table."""
    for name, hint in fields_of(owner.__class__).items():
        value = getattr(owner, name)
        if not isinstance(value, Part):
            yield name, hint, value
            continue
        if len(value.kinds) > 1:
            yield name, Annotated[str, OneOf(*value.kinds)], value.kind
        yield from _entries(value)


def changed(owner: Any, values: Mapping[str, Any], of: str = "") -> Any:
    """Return ``owner`` with some entries of its flat table replaced.

    Args:
        of: what the owner is called in messages.

    Raises:
        InputError: there is no such entry, or no such kind of part.
    """
    left, new = dict(values), {}
    for name, part in parts_of(owner):
        if name in left and len(part.kinds) > 1:
            part = part.turned(left.pop(name), name)
        own = {key: left.pop(key) for key in flat(part) if key in left}
        new[name] = dataclasses.replace(part, **own)
    for field in dataclasses.fields(owner):
        if field.name in left and field.name not in new:
            new[field.name] = left.pop(field.name)
    result = dataclasses.replace(owner, **new)
    for name in left:
        raise InputError(
            f"{of or type(owner).__name__} has no field {name!r}{_where(result, name)}"
        )
    return result


def _where(owner: Any, name: str) -> str:
    """The kind of part that has a field, or the nearest name."""
    for room, part in parts_of(owner):
        fitting = getattr(owner, "pairs", {}).get(room, tuple(part.kinds))
        for kind, other in part.kinds.items():
            if kind in fitting and name in {field.name for field in dataclasses.fields(other)}:
                return f" with {room} {part.kind!r}; use {room}={kind}"
    return nearest(name, flat(owner))


def check_parts(owner: Any, real: Any = None) -> None:
    """Refuse a bad value anywhere in an object with parts, then what does not go together."""
    check_fields(owner)
    for _, part in parts_of(owner):
        check_fields(part)
    for _, part in parts_of(owner):
        part.check(owner, real)
