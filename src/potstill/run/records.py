"""The one reader of small files that may hold anything: JSON, JSON lines, TOML.

Every file that tells what a run, a cache or a recipe is goes through here, whoever wrote it. Only
regular files are opened (a FIFO would be waited on for ever), no more than a stated size is read,
and nesting, digits of whole numbers and the type at the top are bounded, so that whatever is wrong
with a file is one sentence that names it.
"""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import re
import stat
import tomllib
from collections.abc import Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from potstill.run.errors import ArtifactError

__all__ = [
    "fits",
    "parse_json",
    "parse_toml",
    "read_json",
    "read_regular",
    "require_regular",
    "type_fault",
]

DEPTH = 32  # lists and objects within each other
DIGITS = 19  # of a whole number: those of 2**63
SIZE = 256 << 20  # bytes
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def read_regular(path: Path, most: int = SIZE) -> bytes:
    """Return the content of a regular file (after links), at most ``most`` bytes.

    Raises:
        OSError: it cannot be opened or read. ValueError: no regular file, or larger.
    """
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    with open(handle, "rb") as file:  # noqa: PTH123  (a descriptor)
        facts = os.fstat(handle)
        if stat.S_ISDIR(facts.st_mode):
            raise IsADirectoryError(21, "Is a directory")
        if not stat.S_ISREG(facts.st_mode):
            raise ValueError("no regular file")
        if facts.st_size > most:
            raise ValueError(f"{facts.st_size} bytes, more than {most}")
        content = file.read(most + 1)
    if len(content) > most:  # it grew
        raise ValueError(f"more than {most} bytes")
    return content


def require_regular(path: Path) -> None:
    """Raise ValueError unless ``path`` is a regular file, OSError where it cannot be read."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise ValueError("no regular file")
    if not os.access(path, os.R_OK):  # safetensors calls such a file not found
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def parse_json(text: str | bytes) -> Any:
    """Return the value of a JSON text within the bounds of this module.

    Raises:
        ValueError: no JSON, not UTF-8, nested too deeply, a number with too many digits, or text
            that is no Unicode.
    """
    text = text.decode("utf-8") if isinstance(text, bytes) else text
    try:
        value = json.loads(text, parse_int=_whole)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    _shallow(value)
    if _SURROGATE.search(text):  # halves of a pair cannot be written anywhere
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    return value


def parse_toml(text: str | bytes) -> dict[str, Any]:
    """Return the tables of a TOML text within the bounds of this module; raises ValueError."""
    text = text.decode("utf-8") if isinstance(text, bytes) else text
    try:
        value = tomllib.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    _shallow(value)
    return value


def _whole(digits: str) -> int:
    if len(digits.lstrip("-")) > DIGITS:
        raise ValueError(f"a whole number of {len(digits)} digits")
    return int(digits)


def _shallow(value: Any) -> None:
    level = [value]
    for _ in range(DEPTH + 1):
        inner: list[Any] = []
        for one in level:
            parts = one.values() if isinstance(one, dict) else one if isinstance(one, list) else ()
            inner += [part for part in parts if isinstance(part, (dict, list))]
        if not inner:
            return
        level = inner
    raise ValueError(f"nested more than {DEPTH} deep")


def read_json(path: Path, fix: str, *, missing: Any = None) -> dict[str, Any]:
    """Return the JSON object in a file.

    Args:
        fix: what the sentence about a damaged file ends with, e.g. "distil again with --force".
        missing: returned where there is no file; ``None``: that is an error, too.

    Raises:
        ArtifactError: it is missing, damaged, may not be read, or holds something else.
    """
    try:
        value = parse_json(read_regular(path))
    except FileNotFoundError:
        if missing is not None:
            return missing
        raise ArtifactError(f"{path} does not exist; {fix}") from None
    except OSError as error:
        raise ArtifactError(
            f"{path} cannot be read ({error.strerror or error}); make it a readable file"
        ) from error
    except ValueError as error:
        reason = type(error).__name__ if isinstance(error, UnicodeError) else str(error)
        raise ArtifactError(f"{path} is damaged ({_brief(reason)}); {fix}") from error
    if not isinstance(value, dict):
        raise ArtifactError(f"{path} is damaged (no JSON object); {fix}")
    return value


def _brief(text: str) -> str:
    return text.splitlines()[0][:120] if text else "no reason given"


def fits(value: Any, kind: Any) -> bool:
    """Whether a JSON or TOML value is of a type; whole numbers are numbers, truths are not.

    >>> fits(3, float), fits(True, int), fits([1, "a"], list[int]), fits(None, int | None)
    (True, False, False, True)
    """
    origin, args = get_origin(kind), get_args(kind)
    if kind is Any:
        return True
    if origin in (UnionType, Union):
        return any(fits(value, one) for one in args)
    if origin is Literal:
        return value in args and type(value) in {type(arg) for arg in args}
    if origin is list:
        return isinstance(value, list) and all(fits(item, args[0]) for item in value)
    if origin is tuple:
        return isinstance(value, (list, tuple))
    if origin in (dict, Mapping):
        return isinstance(value, dict)
    if isinstance(value, bool):
        return kind is bool
    if kind in (None, NoneType):
        return value is None
    return isinstance(value, (int, float) if kind is float else kind)


def type_fault(record: Any, kind: type) -> str | None:
    """What keeps a JSON object from being the fields of a dataclass, in words; None if nothing.

    An unknown name, a missing field without a default, or a value of another type.
    """
    if not isinstance(record, dict):
        return f"a {type(record).__name__} stands where an object is expected"
    hints = get_type_hints(kind)
    known = {field.name: field for field in dataclasses.fields(kind)}
    for name, value in record.items():
        if name not in known:
            return f"field {name[:40]!r} is unknown"
        if not fits(value, hints[name]):
            return f"{name} is {json.dumps(value, default=str)[:40]}"
    for name, field in known.items():
        absent = field.default is dataclasses.MISSING
        if absent and field.default_factory is dataclasses.MISSING and name not in record:
            return f"field {name!r} is missing"
    return None
