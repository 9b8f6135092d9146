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
import ast
import dataclasses
import functools
import inspect
import io
import re
import sys
import textwrap
import tokenize
from pathlib import Path
from typing import Any

from potstill.methods import CATALOGUE

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"(?<=<!-- fields -->\n).*?(?=<!-- /fields -->)", re.DOTALL)
BEFORE = re.compile(r"^\| field \|.*\n\|[-| ]+\|\n(?:\|.*\n)+", re.MULTILINE)  # no marks yet
ROW = re.compile(r"^\| `(\w+)` \| (.*) \|$", re.MULTILINE)
INERT = re.compile(r"^Without effect unless .*? is above 0: (.*)\.$", re.MULTILINE)
WORD = re.compile(r"\w{4,}|\d+")
QUOTED = re.compile(r'"([^\s"]+)"')  # a value in a comment


# A trailing comment goes on in comment lines directly below it, unless they stand directly above a
# field that has no trailing comment: then they are that field's.


def comments_of(cls: type[Any]) -> dict[str, str]:
    """Return the comment of each field of a dataclass, in the order of the fields.

    The nearest class that writes one wins, so a field whose default alone is changed keeps what its
    base says. Fields without a comment, or whose source is not at hand, are left out.
    """
    written: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        written |= _own(base)
    return {f.name: written[f.name] for f in dataclasses.fields(cls) if f.name in written}


@functools.cache
def _own(cls: type[Any]) -> dict[str, str]:
    """Comments in the body of one class, by annotated name."""
    if cls.__module__ == "builtins" or "__annotations__" not in vars(cls):
        return {}
    try:
        source = textwrap.dedent(inspect.getsource(cls))
    except (OSError, TypeError):  # made at run time, or typed at a prompt
        return {}
    comments, alone = _comments(source)
    body = ast.parse(source).body[0]
    assert isinstance(body, ast.ClassDef)
    fields = [node for node in body.body if isinstance(node, ast.AnnAssign)]
    trailing = {node: _joined(range(node.lineno, _end(node) + 1), comments) for node in fields}
    bare = {node.lineno for node in fields if not trailing[node]}
    found = {}
    for node in fields:
        if trailing[node]:
            below = _block(_end(node) + 1, 1, alone)
            lines = [] if below and below[-1] + 1 in bare else below
            text = f"{trailing[node]} {_joined(lines, comments)}".strip()
        else:
            text = _joined(reversed(_block(node.lineno - 1, -1, alone)), comments)
        if text and isinstance(node.target, ast.Name):
            found[node.target.id] = text
    return found


def _comments(source: str) -> tuple[dict[int, str], set[int]]:
    """Comments by line, without the mark, and the lines that hold nothing else."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    comments = [token for token in tokens if token.type == tokenize.COMMENT]
    alone = {token.start[0] for token in comments if token.line.lstrip().startswith("#")}
    return {token.start[0]: token.string.lstrip("#").strip() for token in comments}, alone


def _end(node: ast.stmt) -> int:
    return node.end_lineno or node.lineno


def _block(first: int, direction: int, alone: set[int]) -> list[int]:
    """Lines from ``first`` on, up or down, as long as they are comments and nothing else."""
    lines = []
    while first in alone:
        lines.append(first)
        first += direction
    return lines


def _joined(lines: Any, comments: dict[int, str]) -> str:
    return " ".join(comments[line] for line in lines if line in comments)


def budgets_of(name: str) -> tuple[str, ...]:
    """Budgets of a method, the largest first."""
    return tuple(reversed(CATALOGUE[name].budgets()))


def fields_of(name: str) -> dict[str, dict[str, Any]]:
    """Values of each field at each budget; the method's own fields stand first."""
    budgets = budgets_of(name)
    values = {budget: CATALOGUE[name].budget(budget).fields() for budget in budgets}
    names = list(dict.fromkeys(field for one in values.values() for field in one))
    names.sort(key=lambda field: field not in vars(CATALOGUE[name]).get("__annotations__", {}))
    return {field: {b: values[b][field] for b in budgets if field in values[b]} for field in names}


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
    for budget in budgets_of(name):
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
    budgets = budgets_of(name)
    head = ("field", *budgets, "what it is", "source")
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for field, values in fields_of(name).items():
        if field not in without:
            sizes = [shown(values[b]) if b in values else "–" for b in budgets]
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
