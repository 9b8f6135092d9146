"""What a list of pictures holds, as columns: CSV, JSON lines, or lines of a path and a class."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from potstill.data.decode import brief
from potstill.data.files import Place
from potstill.data.tree import PICTURES
from potstill.run import InputError, nearest
from potstill.run.records import parse_json

__all__ = ["SUFFIXES", "Columns", "naming_column", "read_list", "text_of", "typed"]

SUFFIXES = frozenset({".csv", ".tsv", ".jsonl", ".txt", ".lst"})
_MOST = 1 << 28  # bytes of a list
_IMAGES = (
    *("file_name", "filename", "file", "filepath", "image_path", "img_path", "path", "image"),
    *("img", "image_name", "img_name", "picture", "photo", "image_id", "img_id", "id"),
)  # columns that name pictures, in order of preference
_WHOLE = re.compile(r"0|-?[1-9][0-9]{0,17}")
_SUFFIX = re.compile(rf".*({'|'.join(re.escape(suffix) for suffix in PICTURES if suffix)})", re.I)
Columns = dict[str, list[Any]]


def read_list(place: Place, path: Path, columns: Sequence[str]) -> Columns:
    """Cells of a list by column; those of CSV and text are text."""
    try:
        text = place.read(path, _MOST).decode("utf-8-sig")
        if path.suffix.lower() == ".jsonl":
            found = _json_lines(text)
        else:
            found = _lines(text, path.suffix.lower() in (".csv", ".tsv"), columns)
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text ({brief(error)}); save it as UTF-8") from error
    except (ValueError, csv.Error) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} is no list of pictures ({brief(error)}); correct it") from error
    if not any(found.values()):
        raise InputError(f"{path} names no pictures; it needs a row for each, with its class")
    return found


def _lines(text: str, separated: bool, columns: Sequence[str]) -> Columns:
    """Columns of CSV, or of lines of a path and a label."""
    head = text.partition("\n")[0]
    mark = max(",;\t|", key=head.count)
    if separated or mark in head:
        rows = [row for row in csv.reader(io.StringIO(text, newline=""), delimiter=mark) if row]
    else:
        rows = [line.rsplit(None, 1) for line in text.splitlines() if line.strip()]
    if not rows:
        return {}
    width = len(rows[0])
    bare = bool(columns) or any(_SUFFIX.fullmatch(cell.strip()) for cell in rows[0])
    if bare or not separated:
        at = next((k for k, cell in enumerate(rows[0]) if _SUFFIX.fullmatch(cell.strip())), 0)
        names = [f"column {k + 1}" for k in range(width)]
        names[at], names[1 - at if width == 2 else (0 if at else width - 1)] = "image", "label"
        names = [*columns, *names[len(columns) :]]
    else:
        names, rows = [name.strip() for name in rows[0]], rows[1:]
    for number, row in enumerate(rows, 1):
        if len(row) != width:
            raise ValueError(f"row {number} has {len(row)} of {width} cells")
    if not len({*names}) == len(names) == width > 1:
        raise ValueError(f"its columns are {', '.join(names)[:80]}; two of different names")
    return {name: [row[at].strip() for row in rows] for at, name in enumerate(names)}


def _json_lines(text: str) -> Columns:
    rows = [parse_json(line) for line in text.splitlines() if line.strip()]
    if not all(isinstance(row, dict) for row in rows):
        raise ValueError("a line is no object")
    names = dict.fromkeys(name for row in rows for name in row)
    content = {name: [row.get(name) for row in rows] for name in names}
    plain = str | int | float | None
    return {k: cells for k, cells in content.items() if all(isinstance(c, plain) for c in cells)}


def naming_column(content: Columns, path: Path, wanted: str | None) -> str:
    """The column that names pictures."""
    if wanted is not None:
        if wanted not in content:
            raise InputError(f"image_column is {wanted!r}{nearest(wanted, list(content))}")
        return wanted
    lower = {name.lower(): name for name in reversed(content)}
    if usual := next((lower[name] for name in _IMAGES if name in lower), None):
        return usual
    shown = {k: [text_of(cell) for cell in cells[:20]] for k, cells in content.items()}
    found = [name for name, cells in shown.items() if all(map(_SUFFIX.fullmatch, cells))]
    if len(found) != 1:
        raise InputError(
            f"{path} has columns {', '.join(content)[:200]}; say with image_column=NAME which one "
            "names the pictures"
        )
    return found[0]


def text_of(cell: Any) -> str:
    """A cell as text; "" where nothing stands."""
    return "" if cell is None else str(cell)


def typed(cells: list[Any]) -> Any:
    """A column of whole numbers, real numbers or text; what is empty is missing."""
    import pyarrow as pa

    texts = [text_of(cell) for cell in cells]
    given = [text for text in texts if text]
    kinds: list[tuple[Any, Callable[[str], Any]]] = [(pa.string(), str)]
    if given and all(map(_WHOLE.fullmatch, given)):
        kinds.insert(0, (pa.int64(), int))
    elif given and not any(map(_WHOLE.fullmatch, given)):
        kinds.insert(0, (pa.float64(), float))
    for kind, read in kinds:
        try:
            return pa.array([read(text) if text else None for text in texts], kind)
        except (ValueError, OverflowError):
            continue
    raise AssertionError("text fits everything")
