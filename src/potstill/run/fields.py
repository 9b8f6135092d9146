"""What a field may be stands beside it, as data; one validator refuses everything else.

    steps: Steps = 20_000
    optimizer: Annotated[str, OneOf("adam", "sgd")] = "adam"
    image_size: Annotated[int, Range(1, 16_384)] | None = None

A subclass that declares a field again with its plain type changes the default and keeps the bounds.
Every number has an upper bound, generous but far below what hangs, fills memory or overflows.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import types
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from potstill.run.errors import InputError
from potstill.run.records import fits

__all__ = [
    "Checked", "OneOf", "Range", "admits", "check_fields", "check_value", "fields_of", "wanted",
]  # fmt: skip


_LARGEST = 1e300  # NaN and infinities are not below it


@dataclass(frozen=True)
class Range:
    """Numbers from ``least`` to ``most``; NaN is in no range."""

    least: float
    most: float
    above: bool = False  # ``least`` itself is too small
    below: bool = False  # ``most`` itself is too large

    def __contains__(self, value: Any) -> bool:
        low = self.least < value or (value == self.least and not self.above)
        return low and (value < self.most or (value == self.most and not self.below))

    def __str__(self) -> str:
        least, most = (n if isinstance(n, int) else f"{n:.12g}" for n in (self.least, self.most))
        if self.above and self.below:
            return f"above {least} and below {most}"
        if self.above:
            return f"above {least}, at most {most}"
        return f"from {least} to {'below ' if self.below else ''}{most}"


class OneOf:
    """The choices of a field."""

    def __init__(self, *choices: Any) -> None:
        self.choices = choices

    def __contains__(self, value: Any) -> bool:
        return value in self.choices

    def __str__(self) -> str:
        return f"one of {', '.join(map(str, self.choices))}"


Steps = Annotated[int, Range(0, 10**9)]  # passed one at a time, never listed
Every = Annotated[int, Range(1, 10**9)]  # steps from one event to the next
Epochs = Annotated[int, Range(1, 10**6)]
Epoch = Annotated[int, Range(0, 10**6)]  # a place in a training, or its length if it may be none
Count = Annotated[int, Range(1, 10**4)]  # things that are made or listed one by one
Copies = Annotated[int, Range(1, 10**3)]  # copies of every image
Runs = Annotated[int, Range(1, 10**3)]  # networks that are trained beside each other
Students = Annotated[int, Range(0, 10**3)]
Batch = Annotated[int, Range(1, 10**6)]
BatchOrAll = Annotated[int, Range(0, 10**6)]  # images of a batch; 0 = all of them
Seed = Annotated[int, Range(0, 2**63 - 1)]
Positive = Annotated[float, Range(0, 1e9, above=True)]
NotNegative = Annotated[float, Range(0, 1e9)]
Signed = Annotated[float, Range(-1e9, 1e9)]
Share = Annotated[float, Range(0, 1)]  # of a whole, or a probability
PositiveShare = Annotated[float, Range(0, 1, above=True)]
Inside = Annotated[float, Range(0, 1, above=True, below=True)]
Decay = Annotated[float, Range(0, 1, below=True)]


def check_fields(owner: Any) -> None:
    """Refuse a dataclass with a field that its annotation does not admit.

    Raises:
        InputError: names the field, its value and what to use.
    """
    for name, hint in fields_of(owner.__class__).items():
        check_value(name, getattr(owner, name), hint)


class Checked:
    """To be mixed into a dataclass: its fields are checked when one is made."""

    def __post_init__(self) -> None:
        check_fields(self)


def check_value(name: str, value: Any, hint: Any) -> None:
    """Refuse one value by the annotation of what it is for; see :func:`check_fields`."""
    if not admits(hint, value):
        long = isinstance(value, int) and value.bit_length() > 256  # Python may refuse to print it
        shown = f"a number of {value.bit_length()} bits" if long else repr(value)
        shown = shown if len(shown) <= 100 else f"{shown[:97]}..."
        raise InputError(f"{name} is {shown}; use {wanted(hint)}")


@functools.cache
def fields_of(kind: Any) -> dict[str, Any]:
    """Return the annotation of each field of a dataclass, with inherited bounds."""
    found: dict[str, Any] = {}
    bare: dict[str, Any] = {}
    for base in reversed(kind.__mro__):
        full, plain = get_type_hints(base, include_extras=True), get_type_hints(base)
        for name in vars(base).get("__annotations__", {}):
            if name not in found or full[name] != plain[name] or plain[name] != bare[name]:
                found[name], bare[name] = full[name], plain[name]
    return {field.name: found[field.name] for field in dataclasses.fields(kind)}


def admits(hint: Any, value: Any) -> bool:
    """Whether a value is of this annotation; whole numbers are numbers, truths are not."""
    origin, args = get_origin(hint), get_args(hint)
    if origin is Annotated:
        bounds = [bound for bound in args[1:] if isinstance(bound, Range | OneOf)]
        return admits(args[0], value) and all(value in bound for bound in bounds)
    if origin in (Union, types.UnionType):
        return any(admits(one, value) for one in args)
    if origin in (list, tuple):
        if not isinstance(value, list | tuple):
            return False
        if origin is list or args[-1] is Ellipsis:
            return all(admits(args[0], item) for item in value)
        return len(value) == len(args) and all(map(admits, args, value))
    if hint is Path:
        return isinstance(value, str | os.PathLike)
    if hint in (int, float):
        return fits(value, hint) and abs(value) <= (_LARGEST if hint is float else 2**63 - 1)
    return fits(value, hint) if isinstance(hint, type) or origin is Literal else True


def wanted(hint: Any) -> str:
    """Return in words what :func:`admits` asks for."""
    origin, args = get_origin(hint), get_args(hint)
    if origin is Annotated:
        for bound in args[1:]:
            if isinstance(bound, OneOf):
                return str(bound)
            if isinstance(bound, Range):
                return f"{_WORDS[args[0]]} {bound}"
        return wanted(args[0])
    if origin in (Union, types.UnionType):
        words = [wanted(one) for one in args if one is not type(None)]
        return " or ".join([*words, *(["leave it out"] if type(None) in args else [])])
    if origin is Literal:
        return str(OneOf(*args))
    if origin in (list, tuple):
        return f"a list of {' and '.join(wanted(one) for one in args if one is not ...)}"
    return _WORDS.get(hint, getattr(hint, "__name__", str(hint)))


_WORDS = {int: "a whole number", float: "a number", bool: "True or False", str: "a text"}
