"""Where a JSON-like value departs from the types that a dataclass or TypedDict gives it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import is_dataclass
from types import NoneType, UnionType
from typing import (
    Annotated,
    Any,
    Required,
    Union,
    get_args,
    get_origin,
    get_type_hints,
    is_typeddict,
)

from potstill.run.records import fits

__all__ = ["misfit"]

_WORDS = {float: "a number", int: "a whole number", str: "a text", bool: "true or false"}
_MOST = 1e300  # NaN, infinity and whole numbers that no float can hold are no numbers here


def misfit(value: Any, hint: Any, name: str) -> str:
    """Return what does not fit about ``value``, with the dotted name of the part; "" if all does.

    Args:
        value: what a JSON file held. name: what to call it.
        hint: a type, a list or dict of one, a union, a TypedDict or a dataclass (whose fields may
            be missing unless Required, and further ones are let through), or
            Annotated[dict[str, Any], such a one]. Numbers have to be finite.
    """
    kind, inner = get_origin(hint), get_args(hint)
    if kind is Annotated:
        return misfit(value, inner[1], name)
    if kind in (UnionType, Union):
        tried = [misfit(value, one, name) for one in inner if one is not NoneType]
        nothing = value is None and NoneType in inner
        return "" if nothing or "" in tried else tried[0]
    if is_typeddict(hint) or is_dataclass(hint) or kind is dict:
        return _table(value, hint, name)
    if kind is list:
        if not isinstance(value, list):
            return _wrong(name, value, "a list")
        found = (misfit(one, inner[0], f"{name}.{i}") for i, one in enumerate(value))
        return next((text for text in found if text), "")
    if fits(value, hint) and (hint is not float or -_MOST < value < _MOST):
        return ""
    return _wrong(name, value, _WORDS[hint])


def _table(value: Any, hint: Any, name: str) -> str:
    """The same for what has named parts."""
    if not isinstance(value, Mapping):
        return _wrong(name, value, "a table")
    if get_origin(hint) is dict:
        hints = dict.fromkeys(value, get_args(hint)[1])
    else:
        hints = get_type_hints(hint, include_extras=True)
    for key, one in hints.items():
        needed = get_origin(one) is Required
        if key in value:
            inner = get_args(one)[0] if needed else one
            text = misfit(value[key], inner, key if is_dataclass(hint) else f"{name}.{key}")
            if text:
                return text
        elif needed:
            return f"{name} lacks {key}"
    return ""


def _wrong(name: str, value: Any, wanted: str) -> str:
    text = json.dumps(value, default=str)
    return f"{name} is {text if len(text) <= 40 else text[:39] + '…'}, not {wanted}"
