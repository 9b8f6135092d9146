"""CIFAR's batches, which are pickles, as data: nothing of them is executed or imported.

A pickle is a program that builds objects. This reader knows the few instructions with which plain
values are built, and NumPy's arrays of bytes, for which it builds an array itself; the name of any
other thing that a program wants to call ends the reading. No class is looked up, no function
called, and nothing is built that is larger than the file.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["plain_content"]

_ARRAYS = ("numpy.core.multiarray _reconstruct", "numpy._core.multiarray _reconstruct")
_NAMES = {*_ARRAYS, "numpy ndarray", "numpy dtype"}
_VALUES = {
    *("SHORT_BINSTRING", "BINSTRING", "BINUNICODE", "SHORT_BINUNICODE", "BININT", "BININT1"),
    *("BININT2", "BINBYTES", "SHORT_BINBYTES", "LONG1", "INT", "LONG", "STRING", "UNICODE"),
    *("BINUNICODE8", "BINBYTES8"),
}
_MARK: Any = object()
_FIXED: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "MARK": lambda: _MARK,
}


@dataclass
class _Named:
    """Something that the program names and would call; here it is only told apart."""

    name: str
    state: Any = None


def plain_content(content: bytes, *keys: str) -> dict[str, Any]:
    """Return the values under ``keys`` in the dictionary that a pickle describes, if it has them.

    They are text, numbers, lists of such, or arrays of uint8.

    Raises:
        ValueError: it wants anything else, or is damaged.
    """
    try:
        found = {_word(key): value for key, value in _built(content).items()}
        return {key: _plain(found[key]) for key in keys if key in found}
    except (LookupError, TypeError, AttributeError, RecursionError, OverflowError) as wrong:
        raise ValueError(f"it is damaged ({type(wrong).__name__})") from wrong


def _built(content: bytes) -> Any:
    """The value that a program leaves, with :class:`_Named` in the place of arrays."""
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    value: Any
    for code, value, _ in pickletools.genops(content):
        name = code.name
        if name == "STOP":
            return stack.pop()
        if name in _VALUES:
            stack.append(value)
        elif name in _FIXED:
            stack.append(_FIXED[name]())
        elif name in ("BINPUT", "LONG_BINPUT", "PUT", "MEMOIZE"):
            memo[len(memo) if value is None else value] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET", "GET"):
            stack.append(memo[value])
        elif name == "GLOBAL":
            stack.append(_named(str(value)))
        elif name not in ("PROTO", "FRAME"):
            _joined(name, stack)
    raise ValueError("it ends too early")


def _joined(name: str, stack: list[Any]) -> None:
    """Do an instruction that makes one value of those that are on the stack."""
    if name in ("TUPLE", "LIST", "DICT"):
        made: dict[str, Callable[[Any], Any]] = {"TUPLE": tuple, "LIST": list, "DICT": _pairs}
        stack.append(made[name](_since_mark(stack)))
    elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
        stack[-int(name[-1]) :] = [tuple(stack[-int(name[-1]) :])]
    elif name in ("APPEND", "APPENDS"):
        items = [stack.pop()] if name == "APPEND" else _since_mark(stack)
        list.extend(stack[-1], items)
    elif name in ("SETITEM", "SETITEMS"):
        items = [stack.pop(-2), stack.pop()] if name == "SETITEM" else _since_mark(stack)
        dict.update(stack[-1], _pairs(items))
    elif name == "STACK_GLOBAL":
        stack[-2:] = [_named(f"{stack[-2]} {stack[-1]}")]
    elif name == "REDUCE":
        arguments = stack.pop()
        stack[-1] = _called(stack[-1], arguments)
    elif name == "BUILD":
        state = stack.pop()
        if not isinstance(stack[-1], _Named):
            raise ValueError("it sets the state of something that is no array")
        stack[-1].state = state
    else:
        raise ValueError(f"it holds the instruction {name}")


def _since_mark(stack: list[Any]) -> list[Any]:
    """Take off what was put on the stack after the last mark, and the mark."""
    at = max(index for index, value in enumerate(stack) if value is _MARK)
    items = stack[at + 1 :]
    del stack[at:]
    return items


def _named(name: str) -> _Named:
    if name not in _NAMES:
        raise ValueError(f"it wants to call {name[:80]!r}")
    return _Named(name)


def _called(what: Any, arguments: Any) -> Any:
    """What a call would give: an array or a type, whose state comes later."""
    name = what.name if isinstance(what, _Named) else ""
    if name in _ARRAYS and isinstance(arguments[0], _Named):
        return _Named("array")
    if name == "numpy dtype" and arguments[0] in ("u1", b"u1", "|u1"):
        return _Named("uint8")
    raise ValueError("it wants to build something else than arrays of bytes")


def _pairs(items: list[Any]) -> dict[Any, Any]:
    return dict(zip(items[::2], items[1::2], strict=True))


def _plain(value: Any) -> Any:
    """An array in the place of what stands for it."""
    if isinstance(value, list) and all(isinstance(held, str | bytes | int) for held in value):
        return value
    if not isinstance(value, _Named):
        raise ValueError(f"it holds a {type(value).__name__} in the place of an array or a list")
    _, shape, kind, fortran, content = value.state
    if value.name != "array" or kind.name != "uint8":
        raise ValueError("it holds an array that is none of bytes")
    raw = content.encode("latin1") if isinstance(content, str) else content
    return np.frombuffer(raw, np.uint8).reshape(shape, order="F" if fortran else "C")


def _word(key: Any) -> str:
    return key.decode("latin1") if isinstance(key, bytes) else str(key)
