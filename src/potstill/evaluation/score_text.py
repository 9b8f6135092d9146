"""How a score looks where it is printed: two lines of text, and a small table in a notebook."""

from __future__ import annotations

import html
from collections.abc import Mapping
from typing import Any

__all__ = ["html_table", "two_lines"]

_GROUPS = ("head", "medium", "tail")
_BESIDE = {
    "start": "its start", "quantized": "8-bit view", "random": "random real", "mosaic": "mosaics",
    "full": "all real", "ceiling": "ceiling",
}  # fmt: skip


def _spread(facts: Mapping[str, Any] | None) -> str:
    if not facts or facts.get("mean") is None:
        return "–"
    std = facts.get("std")
    return f"{facts['mean']:.1f}" if std is None else f"{facts['mean']:.1f} ± {std:.1f}"


def two_lines(record: Mapping[str, Any]) -> str:
    """Return a score in two lines: what was scored, and what it reached beside its references."""
    protocol = record["protocol"]
    runs = record["runs"]
    first = (
        f"Score of {record['artifact']}: {record['network']}, {protocol.get('name')} "
        f"[{protocol.get('hash')}], {runs} student{'s' if runs != 1 else ''}"
    )
    groups = [f"{name} {_spread(record['groups'].get(name))}" for name in _GROUPS]
    known = [title for key, title in _BESIDE.items() if record.get(key)]
    beside = [
        f"{title} {_spread(record[key]['accuracy'])}"
        for key, title in _BESIDE.items()
        if title in known
    ]
    second = [f"{_spread(record['accuracy'])} %", *(groups if record["groups"] else []), *beside]
    return f"{first}\n  {'; '.join(second)}"


def html_table(record: Mapping[str, Any]) -> str:
    """Return the same as a table with a row for each training set, for ``_repr_html_``."""
    rows = [("distilled" if not record.get("chosen") else "chosen", record)]
    rows += [(title, record[key]) for key, title in _BESIDE.items() if record.get(key)]
    groups = [name for name in _GROUPS if record["groups"].get(name)]
    head = "".join(f"<th>{name}</th>" for name in ("trained on", "accuracy, %", *groups))
    body = ""
    for title, facts in rows:
        own = facts.get("groups") or {}
        cells = [title, _spread(facts["accuracy"]), *(_spread(own.get(name)) for name in groups)]
        body += f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in cells)}</tr>"
    first = html.escape(two_lines(record).split("\n")[0])
    return f"<p>{first}</p><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
