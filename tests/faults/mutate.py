"""Seeded damage: to bytes as disks, copies and attackers do it, and to JSON and TOML by grammar."""

from __future__ import annotations

import copy
import json
import random
import re
from collections.abc import Callable, Sequence
from typing import Any

MARK = "<script>potstill()</script>"  # never to be found unescaped on a page
# JSON texts that take the place of a value; no Python value is written as some of them
HOSTILE = (
    "null", "true", "false", "0", "-1", "1.5", "1e308", "-1e999", "NaN", "Infinity", "1e-320",
    "2", "9223372036854775807", "9223372036854775808", "1" + "0" * 30, "9" * 5000,
    '""', '"x"', '"\\ud800"', '"\\u0000"', '"../../../etc/passwd"', '"/dev/zero"', '"nan"', '"1"',
    json.dumps(MARK), json.dumps("x\nTraceback (most recent call last):"), json.dumps("ü" * 300),
    json.dumps("x" * 1_000_000), "[]", "{}", "[null]", "[[]]", "[1, 2]", '["a", "a"]', '{"a": 1}',
    '{"": null}', "[" * 33 + "]" * 33, "[" * 5000 + "]" * 5000, '{"a":' * 5000 + "1" + "}" * 5000,
)  # fmt: skip
_RAW = re.compile(r'"@raw(\d+)@"')


def damaged(content: bytes, draw: random.Random, others: Sequence[bytes] = ()) -> tuple[str, bytes]:
    """Return what was done in words, and the content after it (always another one)."""
    while True:
        what, after = draw.choice(_DAMAGES)(content, draw, others)
        if after != content:
            return what, after


def _place(content: bytes, draw: random.Random) -> int:
    """Anywhere, but half of the time near the beginning, where headers are."""
    most = len(content) if draw.random() < 0.5 else min(len(content), 400)
    return draw.randrange(most) if most else 0


def _flip(content: bytes, draw: random.Random, others: Sequence[bytes]) -> tuple[str, bytes]:
    after, places = bytearray(content), []
    for _ in range(draw.choice((1, 1, 1, 2, 8))):
        if content:
            places.append(_place(content, draw))
            after[places[-1]] ^= 1 << draw.randrange(8)
    return f"flip bits at {places}", bytes(after)


def _overwrite(content: bytes, draw: random.Random, others: Sequence[bytes]) -> tuple[str, bytes]:
    place = _place(content, draw)
    new = draw.choice((b"\0", b"\xff", b"{", b'"', b"9", b"\0" * 64, b"\xff" * 8, b"\0" * 512))
    return f"{new[:2]!r}... over {place}", content[:place] + new + content[place + len(new) :]


def _insert(content: bytes, draw: random.Random, others: Sequence[bytes]) -> tuple[str, bytes]:
    place, count = _place(content, draw), draw.choice((1, 1, 2, 8, 100))
    return f"insert {count} at {place}", content[:place] + draw.randbytes(count) + content[place:]


def _delete(content: bytes, draw: random.Random, others: Sequence[bytes]) -> tuple[str, bytes]:
    place, count = _place(content, draw), draw.choice((1, 1, 2, 8, 100))
    return f"delete {count} at {place}", content[:place] + content[place + count :]


def _truncate(content: bytes, draw: random.Random, others: Sequence[bytes]) -> tuple[str, bytes]:
    length = draw.choice((0, 1, 7, 8, 9, len(content) - 1, _place(content, draw)))
    return f"cut to {length}", content[: max(length, 0)]


def _repeat(content: bytes, draw: random.Random, others: Sequence[bytes]) -> tuple[str, bytes]:
    place, count = _place(content, draw), draw.choice((8, 100, 1000))
    block = content[place : place + count]
    return f"repeat {count} at {place}", content[:place] + block + content[place:]


def _append(content: bytes, draw: random.Random, others: Sequence[bytes]) -> tuple[str, bytes]:
    count = draw.choice((1, 8, 4096))
    return f"append {count}", content + draw.randbytes(count)


def _splice(content: bytes, draw: random.Random, others: Sequence[bytes]) -> tuple[str, bytes]:
    other = draw.choice(others) if others else b""
    place = draw.choice((0, _place(content, draw), _place(other, draw)))
    return f"another file's bytes from {place}", content[:place] + other[place:]


_DAMAGES: tuple[Callable[..., tuple[str, bytes]], ...] = (
    _flip, _flip, _flip, _overwrite, _insert, _delete, _truncate, _repeat, _append, _splice,
)  # fmt: skip


def altered(value: Any, draw: random.Random) -> tuple[str, str]:
    """Return what was done in words, and a JSON text that differs from ``value`` somewhere."""
    text, what = "", ""
    tree = {"top": copy.deepcopy(value)}
    for _ in range(draw.choice((1, 1, 1, 2, 4))):
        holder, key = _node(tree, draw)
        what += (", " if what else "") + _alter(holder, key, draw)
    text = json.dumps(tree.get("top"))
    text = _RAW.sub(lambda found: HOSTILE[int(found[1])], text)
    if draw.random() < 0.1 and text.startswith("{") and len(text) > 2:  # a key stands there twice
        name = json.dumps(draw.choice(sorted(tree["top"]))) if tree.get("top") else '"a"'
        what, text = f"{what}, {name} twice", f"{text[:-1]}, {name}: {draw.choice(HOSTILE)}}}"
    return what, text


def _node(tree: dict[str, Any], draw: random.Random) -> tuple[Any, Any]:
    """A place in the tree: the container and the key or index; the top rarely."""
    holder, key = tree, next(iter(tree), "top")
    while isinstance(holder.get(key) if isinstance(holder, dict) else holder[key], (dict, list)):
        inner = holder[key]
        if not inner or draw.random() < 0.15:
            break
        holder = inner
        key = draw.choice(sorted(inner, key=str)) if isinstance(inner, dict) else draw.randrange(
            len(inner)
        )  # fmt: skip
    return holder, key


def _alter(holder: Any, key: Any, draw: random.Random) -> str:
    how = draw.choice(("value", "value", "value", "value", "drop", "rename", "wrap", "near"))
    if how == "drop" and not (isinstance(holder, dict) and "top" in holder):
        holder.pop(key)
        return f"drop {key!r}"
    if how == "rename" and isinstance(holder, dict) and key != "top":
        holder[draw.choice(("x", key.upper(), key + " ", ""))] = holder.pop(key)
        return f"rename {key!r}"
    if how == "wrap":
        holder[key] = [holder[key]]
        return f"wrap {key!r}"
    if how == "near" and isinstance(holder[key], (int, float, str)):
        old = holder[key]
        holder[key] = str(old) + draw.choice(" x0") if isinstance(old, str) else old + draw.choice(
            (1, -1, 0.5, 1e6)
        )  # fmt: skip
        return f"{key!r} nearly"
    number = draw.randrange(len(HOSTILE))
    holder[key] = f"@raw{number}@"
    return f"{key!r} = {HOSTILE[number][:24]}"


_TOML = (
    '"x"', '""', "0", "-1", "1.5", "nan", "inf", "1e308", "true", "[]", "{}", "9223372036854775808",
    "9" * 5000, "[" * 40 + "]" * 40, "[" * 5000 + "]" * 5000, "1979-05-27", "07:32:00",
    "'''a\nb'''", '"\\u0000"', '"/dev/zero"', "[1, 2]", '["x", "x"]', "{ a = 1 }", '"csdm"', "2",
    "[[]]", '"' + "y" * 100_000 + '"',
)  # fmt: skip


def altered_toml(text: str, draw: random.Random) -> tuple[str, str]:
    """Return what was done in words, and a TOML text (or nearly) that differs somewhere."""
    lines = text.splitlines()
    places = [i for i, line in enumerate(lines) if line.strip() and not line.startswith("#")]
    what = []
    for _ in range(draw.choice((1, 1, 2))):
        place = draw.choice(places)
        name, equals, _ = lines[place].partition("=")
        how = draw.choice(("value", "value", "value", "value", "drop", "twice", "rename", "top"))
        if how == "value" and equals:
            value = draw.choice(_TOML)
            lines[place] = f"{name}= {value}"
            what.append(f"{name.strip()} = {value[:24]}")
        elif how == "drop":
            what.append(f"drop {lines[place][:30]!r}")
            lines[place] = ""
        elif how == "twice":
            what.append(f"twice {lines[place][:30]!r}")
            lines[place] += "\n" + lines[place]
        elif how == "rename":
            what.append(f"rename {lines[place][:30]!r}")
            lines[place] = "x" + lines[place] if equals else lines[place].replace("[", "[x", 1)
        else:
            top = f"{draw.choice(('info', 'data', 'method', 'evaluate'))} = {draw.choice(_TOML)}"
            what.append(f"first {top[:24]}")
            lines[0] = f"{top}\n{lines[0]}"
    return ", ".join(what), "\n".join(lines) + "\n"
