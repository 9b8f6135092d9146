"""``--help`` of a command: its flags in groups, as tyro reads them, without what only types say."""

from __future__ import annotations

import re
import shutil
import textwrap
from dataclasses import is_dataclass
from typing import Annotated, Any, get_args, get_origin

from potstill.run.fields import fields_of

__all__ = ["WIDE", "entries", "grouped"]

WIDE = 9_000  # columns at which tyro breaks no line
_TITLES = {
    "job": "run", "taught": "what students learn from", "how": "teacher", "budget": "run",
}  # fmt: skip
_FIRST = ("", "run", "data", "options")
_COLUMN, _MOST = 26, 100  # where explanations begin; widest page


def entries(text: str) -> dict[str, tuple[str, str]]:
    """Return the invocation and the explanation of each flag in tyro's help, by its first name.

    Args:
        text: printed at :data:`WIDE` columns.
    """
    found: dict[str, tuple[str, str]] = {}
    name = ""
    for line in text.splitlines():
        inside = line[1:].rstrip("│ ") if line.startswith("│") else ""
        if inside.startswith("   ") and name:
            found[name] = (found[name][0], f"{found[name][1]} {inside.strip()}".strip())
        elif inside.strip("─ "):
            said, _, about = inside.strip().partition("  ")
            name = said.split(",")[0].split()[0]
            found[name] = (said, about.strip())
    return found


def grouped(kind: Any, text: str) -> str:
    """Return tyro's help of an options class again: flags under headings, defaults shown."""
    table = entries(text)
    groups: dict[str, list[str]] = {"": []}
    known = _groups(kind, "options")
    for name, (said, about) in table.items():
        title = known.get(name, "") if name.startswith("-") else ""
        if name == "-h":
            continue
        groups.setdefault(title, []).append(_entry(said, about))
    place = {title: rank for rank, title in enumerate(_FIRST)} | {"machine": len(_FIRST) + 1}
    order = sorted(groups, key=lambda title: place.get(title, len(_FIRST)))
    top = text.split("╭")[0].rstrip()
    width = min(shutil.get_terminal_size().columns, _MOST)
    usage, _, about = top.partition("\n")
    parts = [usage, textwrap.fill(" ".join(about.split()), width)]
    for title in order:
        if groups[title]:
            heading = f"{title}:\n" if title else ""
            parts.append(heading + "\n".join(groups[title]))
    return "\n\n".join(parts) + "\n"


def _groups(kind: Any, title: str) -> dict[str, str]:
    """Return the heading of each flag: the name of the nested dataclass that it stands in."""
    found: dict[str, str] = {}
    hints = fields_of(kind)
    own: Any = (*get_args(hints.get("method")), None)[0]  # of a method: beside it, its parts
    parted: Any = own if is_dataclass(own) else None
    rooms: dict[str, Any] = fields_of(parted) if parted else {}
    for name, hint in hints.items():
        inner, *marks = get_args(hint) if get_origin(hint) is Annotated else (hint,)
        if is_dataclass(inner):
            found |= _groups(inner, _TITLES.get(name, name))
            continue
        named = next((mark.name for mark in marks if getattr(mark, "name", None)), name)
        others = [one for mark in marks for one in getattr(mark, "aliases", None) or ()]
        inside = _TITLES.get(name, name if name in rooms else title)
        found |= dict.fromkeys(["--" + named.replace("_", "-"), *others], inside)
    return found


def _entry(said: str, about: str) -> str:
    """One flag with its explanation; a flag that is off by default has no other form."""
    said = re.sub(r"\{None\}\|\{\[(.*?)\]\}", r"\1", said)
    said = re.sub(r"\{None\}\|\{?([^{}]*)\}?", r"\1", said)
    about = about.replace(" (default: None)", "").replace("(default: None)", "")
    if about.endswith("(default: False)"):
        said, about = said.split(",")[0], about.removesuffix("(default: False)").rstrip()
    about = about.replace("(default: True)", "(default: yes)")
    width = min(shutil.get_terminal_size().columns, _MOST)
    indent = " " * _COLUMN
    lines = textwrap.wrap(about, max(20, width - _COLUMN)) or [""]
    head = f"  {said}"
    if len(head) > _COLUMN - 2:
        return "\n".join([head, *(indent + line for line in lines)])
    return "\n".join([(head.ljust(_COLUMN) + lines[0]).rstrip(), *(indent + x for x in lines[1:])])
