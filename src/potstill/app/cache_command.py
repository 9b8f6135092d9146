"""The command ``potstill cache``: what lies in the cache, and what of it is to go."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from potstill.app.flags import parse
from potstill.reports.table_text import plain, size
from potstill.run.cache import KINDS, Found, found_in, remove
from potstill.run.context import cache_folder
from potstill.run.errors import InputError, nearest

__all__ = ["command"]

_USAGE = """usage:
  potstill cache                                              what lies there
  potstill cache prune --older-than 30d --larger-than 5GB     remove what was not used for long
  potstill cache clear                                        remove everything

The cache is {root}; $POTSTILL_CACHE moves it. Everything in it can be made again, and is
when it is needed. What a running process is at work with stays."""

_SECONDS = {"s": 1, "min": 60, "h": 3600, "d": 86_400, "w": 604_800}
_BYTES = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


def command(words: list[str]) -> Iterator[str]:
    """Run the command; yield what it prints."""
    kinds: dict[str, Callable[[list[str]], Iterator[str]]] = {"prune": _prune, "clear": _clear}
    if not words:
        yield from _show(cache_folder())
    elif words[0] in ("-h", "--help"):
        yield _USAGE.format(root=cache_folder())
    elif words[0] in kinds:
        yield from kinds[words[0]](words[1:])
    else:
        raise InputError(f"potstill cache is followed by {words[0]!r}{nearest(words[0], kinds)}")


@dataclass(kw_only=True)
class _Prune:
    """Remove what was not used for longest, until what is said holds of the rest."""

    older_than: str | None = None  # not used for so long: 12h, 30d, 8w
    larger_than: str | None = None  # all together on the disk: 500MB, 5GB
    dry_run: bool = False  # only say what would go


@dataclass(kw_only=True)
class _Clear:
    """Remove everything that potstill keeps to be quicker the next time."""

    dry_run: bool = False  # only say what would go


def _show(root: Path) -> Iterator[str]:
    found = found_in(root)
    yield f"cache {root}"
    if found:
        yield plain([_row(one) for one in found])
    for kind in KINDS:
        own = [one for one in found if one.kind == kind]
        if own:
            yield f"{kind}: {_total(own)} ({KINDS[kind]})"
    yield f"total: {_total(found)}"


def _prune(words: list[str]) -> Iterator[str]:
    with parse(_Prune, words, "cache prune") as chosen:
        age = _quantity("older_than", chosen.older_than, _SECONDS, "30d")
        most = _quantity("larger_than", chosen.larger_than, _BYTES, "5GB")
        if age is None and most is None:
            raise InputError(
                "older_than and larger_than are not given; say what is to go, such as "
                "older_than=30d, or use potstill cache clear"
            )
        before = -math.inf if age is None else time.time() - age
        yield from _remove(before, math.inf if most is None else most, chosen.dry_run)


def _clear(words: list[str]) -> Iterator[str]:
    with parse(_Clear, words, "cache clear") as chosen:
        yield from _remove(math.inf, 0, chosen.dry_run)


def _remove(before: float, most: float, dry: bool) -> Iterator[str]:
    """Remove what was used last ``before`` a time, and more while over ``most`` bytes are left."""
    found, gone, busy = found_in(cache_folder()), list[Found](), list[Found]()
    left = sum(one.size for one in found)
    try:
        for one in found:  # the least recently used first
            if one.used < before or left > most:
                went = remove(one, dry=dry)
                left -= one.size if went else 0
                (gone if went else busy).append(one)
    finally:  # what is gone is said even where another may not be removed
        yield from _told(gone, busy, dry)


def _told(gone: Sequence[Found], busy: Sequence[Found], dry: bool) -> Iterator[str]:
    """What went and what stayed."""
    if gone:
        yield plain([_row(one) for one in gone])
    yield f"{'would remove' if dry else 'removed'} {_total(gone)} from {cache_folder()}"
    if busy:
        yield f"left {_total(busy)} that a running process is at work with:"
        yield plain([_row(one) for one in busy])


def _row(one: Found) -> dict[str, str]:
    now = time.time()
    return {
        "kind": one.kind,
        "what": one.what,
        "size": size(one.size),
        "took": "" if one.seconds is None else f"{one.seconds:.0f} s",
        "age": _ago(now - one.created),
        "last use": _ago(now - one.used),
        "key": one.path.name.partition(".")[0] or one.path.name,
    }


def _total(found: Sequence[Found]) -> str:
    entries = "1 entry" if len(found) == 1 else f"{len(found)} entries"
    return f"{entries}, {size(sum(one.size for one in found))}"


def _ago(seconds: float) -> str:
    """A time span for people: "3 d"."""
    for unit in ("d", "h", "min"):
        if seconds >= _SECONDS[unit]:
            return f"{seconds / _SECONDS[unit]:.0f} {unit}"
    return f"{max(0, seconds):.0f} s"


def _quantity(name: str, text: str | None, units: dict[str, int], example: str) -> float | None:
    """A number with its unit, such as "30d"."""
    if text is None:
        return None
    found = re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?) ?([a-zA-Z]+)", text, re.ASCII)
    scales = {unit.lower(): scale for unit, scale in units.items()}
    if not found or found[2].lower() not in scales:
        shown = repr(text) if len(text) <= 40 else f"{text[:37]!r}..."
        raise InputError(
            f"{name} is {shown}; use a number with {', '.join(units)}, such as {example}"
        )
    return float(found[1]) * scales[found[2].lower()]
