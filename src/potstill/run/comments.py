"""What the comments beside the fields of a dataclass say, for tables and help texts.

    steps: Steps = 20_000  # optimisation steps, all classes together in each
    # student networks; with a probe protocol backbones
    network: str | None = None

A trailing comment goes on in comment lines directly below it, unless they stand directly above a
field that has no trailing comment: then they are that field's.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import io
import textwrap
import tokenize
from typing import Any

__all__ = ["comments_of"]


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
