"""Score tables: rows from score records, and four ways to write them.

Every row names its protocol and the protocol's hash, so numbers under different protocols never
stand in a column unmarked; so do label tiers, and a score that was the best of several looks at the
test set says so.
"""

from __future__ import annotations

import csv as csv_format
import io
import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from itertools import zip_longest
from typing import Any

from potstill.data.longtail import size_groups
from potstill.evaluation.record import few_test_images, of_ceiling
from potstill.reports.source import part

__all__ = [
    "csv",
    "fitted",
    "latex",
    "markdown",
    "plain",
    "protocol_label",
    "score_table",
    "size",
]

Row = dict[str, Any]
GROUPS = ("head", "medium", "tail")
SHOTS = ("many", "medium", "few")  # above 100 training images, 20 to 100, below 20
# Context columns that a record may carry (``{**record, "method": ..., "data": ..., "ipc": ...}``)
CONTEXT = ("method", "data", "imbalance_factor", "ipc")


def protocol_label(protocol: Any) -> str:
    """Return ``name [hash]``, marked where the test set chose the epoch."""
    if not isinstance(protocol, Mapping):
        return str(protocol or "")
    label = f"{protocol.get('name', '?')} [{protocol.get('hash', '?')}]"
    test_max = str(protocol.get("selection")).startswith("test_max")
    return label + (" TEST-MAX" if test_max else "")


def score_table(records: Iterable[Any]) -> list[Row]:
    """Return one row per record and training set: distilled, its 8-bit view, random, mosaic, all.

    What a classifier inherited from the sender reaches has rows and a label tier of its own.

    Args:
        records: entries of ``scores.json``, or what ``evaluate`` returned. A record may also carry
            "method", "data", "imbalance_factor" and "ipc" to tell runs apart.

    Returns:
        Rows with the same keys; scores stay ``{"mean", "std"}`` in percent. Bytes and seconds
        belong to the distilled set; "of_ceiling" is the accuracy in percent of the ceiling's,
        where that was measured. Columns without any value are left out, and "balanced" where
        it equals the accuracy everywhere. "mark" warns of few test images. Head, medium and tail
        are given where the real classes differ enough in size to have them, see
        :func:`potstill.data.longtail.size_groups`.
    """
    rows: list[Row] = []
    for entry in records:
        record = entry if isinstance(entry, Mapping) else entry.to_json()
        shared: Row = {key: record.get(key) for key in CONTEXT}
        shared["network"] = record.get("network")
        tier = record.get("label_tier")
        few, made = few_test_images(record), "chosen" if record.get("chosen") else "distilled"
        mark = None if few is None else f"few test images ({few} of a class)"
        variants = [
            (made, dict(record), tier),
            (f"{made}, 8-bit", part(record, "quantized"), tier),
            ("its start", part(record, "start"), tier),
            ("random real", part(record, "random"), "hard"),
            ("random mosaic", part(record, "mosaic"), "hard"),
            (_whole_title(record, "full", "full real"), part(record, "full"), "hard"),
            (_whole_title(record, "ceiling", "ceiling"), _ceiling(record), "hard"),
            ("distilled, KD from the head", part(record, "kd"), "online"),
            (_inherited_title(part(record, "inherited")), part(record, "inherited"), "inherited"),
            *_inherited_beside(part(record, "inherited")),
        ]
        for name, facts, labels in variants:
            if part(facts, "accuracy"):
                protocol = facts.get("protocol") or record.get("protocol")
                rows.append(
                    {"trained_on": name, **shared, "protocol": protocol_label(protocol)}
                    | _scores(facts, facts.get("label_tier", labels), record)
                    | {"mark": mark}
                )
    even = all(_same(row["balanced"] or row["accuracy"], row["accuracy"]) for row in rows)
    for place, row in enumerate(rows):
        if even:
            row["balanced"] = None  # a balanced test set: the mean over classes says nothing new
        else:  # first, for the mean over images is that of the classes which a test has most of
            first = ("trained_on", *CONTEXT, "network", "protocol", "labels", "balanced")
            rows[place] = {k: row[k] for k in first if k in row} | row
    used = {key for row in rows for key, value in row.items() if value not in (None, "")}
    return [{key: value for key, value in row.items() if key in used} for row in rows]


def _whole_title(record: Mapping[str, Any], key: str, title: str) -> str:
    """All real images; with the epochs, where they are not those of the students."""
    protocol = part(part(record, key), "protocol")
    epochs, prior = part(protocol, "training").get("epochs"), protocol.get("prior")
    same = protocol.get("hash") == part(record, "protocol").get("hash")
    title += f" ({prior})" if prior else ""
    return title if same or epochs is None else f"{title}, {epochs} epochs"


def _ceiling(record: Mapping[str, Any]) -> dict[str, Any]:
    """The ceiling, {} where it is the full set: all classes are equally large."""
    found, full = part(record, "ceiling"), part(record, "full")
    return {} if found.get("protocol") == full.get("protocol") else found


def _inherited_title(facts: Mapping[str, Any]) -> str:
    """The map was fitted on the distilled images, unless both backbones are one."""
    return "inherited head alone" if facts.get("same_backbone") else "distilled + inherited head"


def _inherited_beside(facts: Mapping[str, Any]) -> list[tuple[str, dict[str, Any], str]]:
    """The same head behind maps that were fitted on real images."""
    return [
        ("random real + inherited head", part(facts, "random"), "inherited"),
        ("all real + inherited head (ceiling of the map)", part(facts, "whole"), "inherited"),
    ]


def _scores(facts: Mapping[str, Any], labels: Any, record: Mapping[str, Any]) -> Row:
    accuracy = facts["accuracy"]
    runs = len(accuracy.get("values") or ()) or record.get("runs")
    # older files have a spread of 0.0 for one student
    single = {"std": None} if runs == 1 else {}
    counts = record.get("train_counts")  # older records have groups of any set that is not equal
    grouped = not counts or bool(size_groups(counts))
    groups = {g: part(part(facts, "groups"), g) if grouped else {} for g in GROUPS}
    return {
        "labels": labels,
        "folds" if record.get("folds") else "runs": runs,
        "accuracy": accuracy | single,
        "of_ceiling": of_ceiling(facts, part(record, "ceiling")),
        **{
            key: value | single if value else None
            for key, value in {"balanced": part(facts, "balanced"), **groups}.items()
        },
        **{f"{g}_shot": (part(facts, "shots").get(g) if grouped else None) for g in SHOTS},
        "calibration_error": part(facts, "calibration") or None,
        "updates": facts.get("updates"),
        "bytes": facts.get("receiver_bytes"),
        "seconds": facts.get("seconds"),
    }


def size(count: Any) -> str:
    """Bytes for people: "33.1 kB"."""
    if not isinstance(count, (int, float)):
        return ""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{count / scale:.1f} {unit}"
    return f"{count:.0f} B"


def _cell(key: str, value: Any, pm: str = " ± ") -> str:
    """One value as text; a score as mean and standard deviation."""
    if value is None:
        return ""
    if isinstance(value, Mapping):
        mean, std = value.get("mean"), value.get("std")
        if mean is None:
            return ""
        return f"{mean:.1f}" if std is None else f"{mean:.1f}{pm}{std:.1f}"
    if key == "bytes":
        return size(value)
    if isinstance(value, float):
        return f"{value:.1f}" if key in ("seconds", "of_ceiling") else f"{value:g}"
    return str(value)


def _same(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    return _cell("", a) == _cell("", b)


def _title(key: str) -> str:
    return "% of ceiling" if key == "of_ceiling" else key.replace("_", " ")


def markdown(rows: Sequence[Row]) -> str:
    """Return a Markdown table; numbers to the right."""
    if not rows:
        return ""
    keys = list(rows[0])
    lines = [
        "| " + " | ".join(map(_title, keys)) + " |",
        "|" + "|".join("---:" if _numeric(rows, key) else "---" for key in keys) + "|",
    ]
    lines += ["| " + " | ".join(_escaped(_cell(k, row[k])) for k in keys) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def _escaped(cell: str) -> str:
    return re.sub(r"([|\\`*_<>\[\]])", r"\\\1", " ".join(cell.split()))


def plain(rows: Sequence[Row]) -> str:
    """Return columns aligned with spaces, for a terminal."""
    if not rows:
        return ""
    keys = list(rows[0])
    table = [[_title(key) for key in keys]]
    table += [[" ".join(_cell(key, row[key]).split()) for key in keys] for row in rows]
    widths = [max(len(line[column]) for line in table) for column in range(len(keys))]
    right = [_numeric(rows, key) for key in keys]
    lines = [
        "  ".join(
            cell.rjust(width) if flush else cell.ljust(width)
            for cell, width, flush in zip(line, widths, right, strict=True)
        ).rstrip()
        for line in table
    ]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines) + "\n"


def fitted(rows: Sequence[Row], columns: int = 100) -> str:
    """As :func:`plain`, the longest cells broken until no line is longer than ``columns``."""
    if not rows:
        return ""
    keys = list(rows[0])
    cells = [[" ".join(_cell(key, row[key]).split()) for key in keys] for row in rows]
    titles = [_title(key) for key in keys]
    widths = [max(map(len, column)) for column in zip(titles, *cells, strict=True)]
    while sum(widths) + 2 * (len(widths) - 1) > columns and max(widths) > 8:
        widths[widths.index(max(widths))] -= 1
    lines = [titles, ["-" * width for width in widths]]
    for row in cells:
        broken = [textwrap.wrap(cell, width) for cell, width in zip(row, widths, strict=True)]
        lines += [list(line) for line in zip_longest(*broken, fillvalue="")]
    said = ["  ".join(map(str.ljust, line, widths)).rstrip() for line in lines]
    return "\n".join(said) + "\n"


def csv(rows: Sequence[Row]) -> str:
    """Return comma-separated values with plain numbers: a score takes two columns."""
    scores = {key for row in rows for key, value in row.items() if isinstance(value, Mapping)}
    flat: list[Row] = [{} for _ in rows]
    for row, line in zip(rows, flat, strict=True):
        for key, value in row.items():
            if key in scores:
                line |= {key: (value or {}).get("mean"), f"{key}_std": (value or {}).get("std")}
            else:
                line[key] = _no_formula(value)
    stream = io.StringIO()
    writer = csv_format.DictWriter(stream, list(flat[0]) if flat else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return stream.getvalue()


def _no_formula(value: Any) -> Any:
    """Keep spreadsheets from running a name that begins like a formula."""
    return f"'{value}" if isinstance(value, str) and value[:1] in "=+-@\t\r" and value else value


_LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#",
    "_": r"\_", "%": r"\%", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
}  # fmt: skip


def latex(rows: Sequence[Row]) -> str:
    r"""Return a ``tabular`` with booktabs rules; scores in math mode."""
    if not rows:
        return ""
    keys = list(rows[0])
    columns = "".join("r" if _numeric(rows, key) else "l" for key in keys)
    body = [" & ".join(_tex_cell(key, row[key]) for key in keys) for row in rows]
    head = " & ".join(_tex(_title(key)) for key in keys)
    lines = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", head + r" \\", r"\midrule"]
    lines += [line + r" \\" for line in body]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def _tex_cell(key: str, value: Any) -> str:
    score = _cell(key, value, r" \pm ")
    return f"${score}$" if isinstance(value, Mapping) and score else _tex(score)


def _tex(cell: str) -> str:
    return "".join(_LATEX.get(letter, letter) for letter in cell)


def _numeric(rows: Sequence[Row], key: str) -> bool:
    values = [row[key] for row in rows if row[key] is not None]
    return bool(values) and all(isinstance(v, (int, float, Mapping)) for v in values)
