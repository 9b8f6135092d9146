"""Hyper-parameter tables of docs/methods, written from the code and from nothing else.

    python benchmarks/method_tables.py [NAME ...]    rewrite the tables of all methods or of some
    python benchmarks/method_tables.py --check       write nothing, fail if one of them is stale
    python benchmarks/method_tables.py --more        what the rows say that the comments do not

A page holds ``<!-- fields -->`` and ``<!-- /fields -->``. Between them stand the values at each
budget and the comment beside the field; the last column, where a value comes from and what else is
known of it, is written by hand and kept. Fields that the page names as without effect have no row.

A page without the marks has its table from before, ``description · source`` in one column. The
source is kept; the description is kept in front of it as long as it has words that the comment has
not, and goes when the comment has been completed.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
import sys
from pathlib import Path
from typing import Any

from potstill.methods import CATALOGUE
from potstill.run.comments import comments_of

ROOT = Path(__file__).parents[1]
BUDGETS = ("paper", "standard", "quick")
HEAD = ("field", *BUDGETS, "what it is", "source")
BLOCK = re.compile(r"(?<=<!-- fields -->\n).*?(?=<!-- /fields -->)", re.DOTALL)
BEFORE = re.compile(r"^\| field \|.*\n\|[-| ]+\|\n(?:\|.*\n)+", re.MULTILINE)  # no marks yet
ROW = re.compile(r"^\| `(\w+)` \| (.*) \|$", re.MULTILINE)
INERT = re.compile(r"^Without effect unless .*? is above 0: (.*)\.$", re.MULTILINE)
WORD = re.compile(r"\w{4,}|\d+")
QUOTED = re.compile(r'"([^\s"]+)"')  # a value in a comment


def fields_of(name: str) -> dict[str, dict[str, Any]]:
    """Values of each field at each budget; the method's own fields stand first."""
    values = {budget: CATALOGUE[name].budget(budget).fields() for budget in BUDGETS}
    names = list(dict.fromkeys(field for one in values.values() for field in one))
    names.sort(key=lambda field: field not in vars(CATALOGUE[name]).get("__annotations__", {}))
    return {field: {b: values[b][field] for b in BUDGETS if field in values[b]} for field in names}


def comments(owner: Any) -> dict[str, str]:
    """Comments of a method's fields and of those of its parts; a nearer owner's word counts."""
    parts = [getattr(owner, field.name) for field in dataclasses.fields(owner)]
    found: dict[str, str] = {}
    for part in parts:
        if dataclasses.is_dataclass(part):
            found |= comments(part)
    return found | comments_of(type(owner))


def comment_of(name: str, field: str) -> str:
    """What stands beside a field, at the largest budget that has it."""
    for budget in BUDGETS:
        found = comments(CATALOGUE[name].budget(budget)).get(field)
        if found:
            return QUOTED.sub(r"`\1`", found).replace("|", r"\|")
    return ""


def shown(value: object) -> str:
    """A value as it stands in a table."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str):
        return f"`{value}`"
    return f"{value:g}" if isinstance(value, float) else str(value)


def by_hand(text: str) -> dict[str, str]:
    """The hand-written cell of each row of a page, with or without marks."""
    marked = BLOCK.search(text)
    block = marked or BEFORE.search(text)
    rows = ROW.findall(block[0]) if block else []
    cells = {field: re.split(r" *(?<!\\)\| *", rest)[-1] for field, rest in rows}
    return cells if marked else {f: c if " · " in c else f"{c} · " for f, c in cells.items()}


def kept(cell: str, comment: str) -> tuple[str, str]:
    """(description that says more than the comment, source) of a hand-written cell."""
    description, source = cell.split(" · ", 1) if " · " in cell else ("", cell)
    more = set(WORD.findall(description.lower())) - set(WORD.findall(comment.lower()))
    return (description if more else ""), source


def table(name: str, text: str) -> str:
    """The table of a method, Markdown; ``text`` is its page."""
    inert = INERT.search(text)
    without = set(re.findall(r"`(\w+)`", inert[1])) if inert else set()
    written = by_hand(text)
    lines = [f"| {' | '.join(HEAD)} |", "|---" * len(HEAD) + "|"]
    for field, values in fields_of(name).items():
        if field not in without:
            sizes = [shown(values[b]) if b in values else "–" for b in BUDGETS]
            comment = comment_of(name, field)
            last = " · ".join(filter(None, kept(written.get(field, ""), comment)))
            cells = [f"`{field}`", *sizes, comment, last]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n" if len(lines) > 2 else "None.\n"


def renewed(name: str, text: str) -> str:
    """The page with its table as the code has it now."""
    new = table(name, text)
    if BLOCK.search(text):
        return BLOCK.sub(lambda _: new, text)
    head, mark, rest = text.partition("## Hyper-parameters\n\n")
    before = BEFORE.search(rest.partition("\n## ")[0] + "\n")
    old = before[0] if before else "None.\n"
    return head + mark + rest.replace(old, f"<!-- fields -->\n{new}<!-- /fields -->\n", 1)


def more(name: str, text: str) -> list[str]:
    """Rows whose hand-written description says more than the comment, for a person to look at."""
    found = []
    for field, cell in by_hand(text).items():
        comment = comment_of(name, field)
        description = kept(cell, comment)[0]
        if description:
            found.append(f"{name}.{field}\n    page:    {description}\n    comment: {comment}")
    return found


PARTS = re.compile(r"(?<=<!-- parts -->\n).*?(?=<!-- /parts -->)", re.DOTALL)


def guide(text: str) -> str:
    """The guide with its table of which kinds of parts go together, by method."""
    rooms = ("canvas", "labels", "networks")
    lines = [f"| method | {' | '.join(f'`--{room}`' for room in rooms)} |", "|---" * 4 + "|"]
    for name, kind in CATALOGUE.items():
        pairs, own = getattr(kind, "pairs", {}), kind.budget("paper").fields()
        if "canvas" in pairs:
            cells = [
                ", ".join(f"**{k}**" if k == own[room] else k for k in pairs[room])
                for room in rooms
            ]
            lines.append(f"| `{name}` | {' | '.join(cells)} |")
    return PARTS.sub(lambda _: "\n".join(lines) + "\n", text)


def main() -> int:
    """Rewrite, check or compare; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", default=list(CATALOGUE), metavar="NAME")
    parser.add_argument("--check", action="store_true", help="fail if a table is stale")
    parser.add_argument("--more", action="store_true", help="show what the comments do not say")
    options, status = parser.parse_args(), 0
    page = ROOT / "docs" / "guide.md"
    text = page.read_text("utf-8") if page.exists() else ""
    if options.check and guide(text) != text:
        print(f"{page} is stale; run python benchmarks/method_tables.py")
        status = 1
    elif text and not options.check and not options.more:
        page.write_text(guide(text), "utf-8")
    for name in options.names:
        page = ROOT / "docs" / "methods" / f"{name}.md"
        text = page.read_text("utf-8")
        if options.more:
            print("".join(f"{row}\n" for row in more(name, text)), end="")
        elif options.check:
            stale = renewed(name, text) != text
            status |= stale
            if stale:
                print(f"{page} is stale; run python benchmarks/method_tables.py {name}")
        elif (new := renewed(name, text)) != text:
            page.write_text(new, "utf-8")
            for field in sorted(by_hand(text).keys() - by_hand(new).keys()):
                print(f"{name}.{field} has no row any more: {by_hand(text)[field]}")
    return status


if __name__ == "__main__":
    sys.exit(main())
