"""What a reader of scores has to know besides the numbers: in sentences below a table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from potstill.data.testing import few_words, lacking_words
from potstill.evaluation.record import below, error_of_difference, few_test_images, gain, part
from potstill.reports.table_text import plain, protocol_label, score_table

__all__ = ["REFERENCES", "printed", "remarks"]

REFERENCES = {"random": "random real images", "mosaic": "random real mosaics of equal storage"}
_NAMED = 10  # classes that a remark names
# columns for which a terminal is too narrow
_ON_THE_PAGE = ("many_shot", "medium_shot", "few_shot", "calibration_error", "updates")


def remarks(record: Any) -> list[str]:
    """Return what a reader of a score has to know besides the numbers, in sentences.

    That classes have no test images, or few, and which classes came out worse than random real
    images: as many of them, or as many as the storage of a tiled set holds.
    """
    record = record if isinstance(record, Mapping) else record.to_json()
    names, said = record.get("classes") or [], []
    few = few_test_images(record)
    if lacks := part(record, "test").get("lacks"):
        said.append(lacking_words(lacks, len(names)))
    if few:
        said.append(f"{few_words(few)}.")
    if (better := gain(record)) is not None:
        points, error = better
        spread = "points" if error is None else f"± {error:.1f} points (standard error of students)"
        said.append(f"Over its start, the same set before step 0: {points:+.1f} {spread}.")
    for key, title in REFERENCES.items():
        worse = sorted(below(record, key).items(), key=lambda item: -item[1])
        if worse:
            shown = ", ".join(
                f"{names[k] if k < len(names) else k} (-{gap:.1f}{_error(record, key, k)})"
                for k, gap in worse[:_NAMED]
            )
            more = f" and {len(worse) - _NAMED} more" if len(worse) > _NAMED else ""
            said.append(
                f"Worse than {title} in {len(worse)} of {len(names)} classes, in points"
                f"{' ± standard error' if '±' in shown else ''}: {shown}{more}."
            )
    return said


def _error(record: Mapping[str, Any], reference: str, label: int) -> str:
    """Standard error of the difference of two means of a class, where both have a spread."""
    means = []
    for facts in (record, part(record, reference)):
        spread = part(facts, "per_class").get("std") or []
        students = len(part(facts, "accuracy").get("values") or ())
        means.append((students, spread[label] if label < len(spread) else None))
    error = error_of_difference(*means)
    return "" if error is None else f" ± {error:.1f}"


def printed(records: Iterable[Any]) -> str:
    """Return the table of scores for a terminal, and below it what there is to remark."""
    records = [r if isinstance(r, Mapping) else r.to_json() for r in records]
    protocols, lines = [protocol_label(about.get("protocol")) for about in records], []
    for about, protocol in zip(records, protocols, strict=True):
        where = f"{about.get('network')}: " if len(records) > 1 else ""
        where = f"{protocol}, {where}" if len({*protocols}) > 1 else where
        lines += [where + remark for remark in remarks(about)]
    rows = [
        {key: row[key] for key in row if key not in _ON_THE_PAGE} for row in score_table(records)
    ]
    return plain(rows) + "".join(f"\n{line}" for line in dict.fromkeys(lines))
