"""Which columns of a table hold pictures and classes, and what the classes are called."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from potstill.data.decode import brief
from potstill.data.files import File
from potstill.data.splits import UnlabelledError
from potstill.run import InputError, nearest
from potstill.run.records import parse_json

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = [
    "PLAIN",
    "Table",
    "class_names",
    "image_column",
    "kind_of",
    "label_column",
    "refuse_other_shards",
]

_IMAGES = ("image", "img", "images", "picture", "photo")
# Columns of these names hold the classes, whatever their type and whatever stands beside them.
_LABELS = (
    {"label", "labels"},
    {"target", "targets", "class", "classes", "category", "y", "dx", "fine_label"}
    | {f"{what}_{form}" for what in ("class", "category", "label") for form in ("id", "name")},
)
_INDEX = re.compile(r"(__index_level_\d+__|unnamed: ?\d+|index|idx|id|row)?")
PLAIN = ("text", "whole", "truth")  # kinds that are classes without a usual name, too
_FEW = 5  # classes that a small table may have beyond half as many as rows


@dataclass(frozen=True)
class Table:
    """One split of a table: its columns, and their cells batch by batch."""

    name: str  # of the source, for messages
    shards: Mapping[str, pa.Schema]  # columns of each of its files
    cells: Callable[[str, np.ndarray | None], Iterator[pa.Array]]  # all, or those of some rows
    locate: Callable[[str], File]  # the picture that a cell names by its path; may refuse
    named: Mapping[str, tuple[str, ...]]  # class names per column that stand beside the table

    @property
    def schema(self) -> pa.Schema:
        """Columns of the first file."""
        return next(iter(self.shards.values()))


def kind_of(schema: pa.Schema, column: str) -> str:
    """What the cells of a column are: "text", "whole", "truth", "real", "image", "list", ..."""
    return _kind_of(schema.field(column).type)


def _kind_of(held: pa.DataType) -> str:
    import pyarrow as pa

    t = pa.types
    while t.is_dictionary(held) or isinstance(held, pa.BaseExtensionType):
        held = held.value_type if t.is_dictionary(held) else held.storage_type
    if t.is_struct(held):
        fields = [held.field(at) for at in range(held.num_fields)]
        once = len({field.name for field in fields}) == len(fields)
        content = [_kind_of(field.type) for field in fields if field.name == "bytes"]
        return "image" if once and content == ["bytes"] else "struct"
    kinds = {
        "text": (t.is_string, t.is_large_string, t.is_string_view),
        "whole": (t.is_integer,),
        "truth": (t.is_boolean,),
        "real": (t.is_floating,),
        "nothing": (t.is_null,),
        "bytes": (t.is_binary, t.is_large_binary, t.is_binary_view, t.is_fixed_size_binary),
        "list": (t.is_list, t.is_large_list, t.is_fixed_size_list, t.is_list_view),
    }
    return next((kind for kind, tests in kinds.items() if any(test(held) for test in tests)), "?")


def image_column(table: Table, wanted: str | None = None) -> str:
    """The column of the pictures: ``wanted``, else by name where there are several.

    Raises:
        InputError: there is none, or several could be meant.
    """
    names = table.schema.names
    if wanted is not None:
        if wanted not in names:
            raise InputError(f"image_column is {wanted!r}{nearest(wanted, names)}")
        return wanted
    kinds = {column: kind_of(table.schema, column) for column in names}
    found = [column for column in names if kinds[column] == "image"]
    found = found or [column for column in names if kinds[column] == "bytes"]
    for usual in _IMAGES:
        if called := [column for column in found if column.lower() == usual]:
            return called[0]
    if len(found) == 1:
        return found[0]
    if found:
        raise InputError(
            f"source {table.name!r} has several image columns ({_listed(found)}); "
            f"choose one with image_column={found[0]!r}"
        )
    texts = [column for column in names if column.lower() in _IMAGES and kinds[column] == "text"]
    why = f" ({texts[0]!r} holds text: a path is no picture)" if texts else ""
    raise InputError(
        f"source {table.name!r} has columns {_listed(names)}, none of which holds images{why}; "
        "choose a data set with an image column"
    )


def label_column(table: Table, image: str, wanted: str | None) -> str:
    """The column that holds the classes: ``wanted``, else by name, else the only one that could.

    Raises:
        UnlabelledError: there is none.
        InputError: several could be meant.
    """
    names = [column for column in table.schema.names if column != image]
    if wanted is not None:
        if wanted not in names:
            raise UnlabelledError(f"labels is {wanted!r}{nearest(wanted, names)}")
        return wanted
    kinds = {column: kind_of(table.schema, column) for column in names}
    single = {*PLAIN, "real", "nothing"}
    for usual in _LABELS:
        called = [column for column in names if column.strip().lower() in usual]
        if found := [column for column in called if kinds[column] in single]:
            return _only(table, found)
        if called:
            return called[0]  # lists or bytes: refused by what they hold, not passed over
    found = [column for column in names if kinds[column] in PLAIN and not _index(table, column)]
    if not found:
        raise UnlabelledError(
            f"source {table.name!r} has columns {_listed(table.schema.names)} but no class labels; "
            "name the label column with labels= (--label-column)"
        )
    return _only(table, found)


def _only(table: Table, found: list[str]) -> str:
    if len(found) > 1:
        raise InputError(
            f"source {table.name!r} has several label columns ({_listed(found)}); choose one with "
            f"labels={found[0]!r} (--label-column {_listed(found[:1])})"
        )
    return found[0]


def _index(table: Table, column: str) -> bool:
    """Whether a column without a usual name numbers or describes rows instead of classing them."""
    if _INDEX.fullmatch(column.strip().lower()):
        return True
    if class_names(table, table.schema, column):
        return False
    count, seen = 0, set[int]()
    for batch in table.cells(column, None):
        count += len(batch)
        seen |= {hash(value) for value in batch.to_pylist()}
    return len(seen) == count or len(seen) > max(count / 2, _FEW)


def class_names(table: Table, schema: pa.Schema, column: str) -> tuple[str, ...] | None:
    """Class names from the table's own metadata, as the ``datasets`` library writes them.

    Not read by that library: a ``ClassLabel`` may name a file of its choice to read them from, or
    a number of classes that would be built.
    """
    try:
        text = (schema.metadata or {}).get(b"huggingface", b"{}")
        features = parse_json(text).get("info", {}).get("features") or {}
        feature = features.get(column) or {}
        found = feature.get("names") if feature.get("_type") == "ClassLabel" else None
        names = tuple(map(str, found)) if isinstance(found, list) else ()
    except (ValueError, AttributeError, TypeError) as error:
        raise InputError(
            f"source {table.name!r} has metadata that cannot be read ({brief(error)}); write the "
            "table again"
        ) from error
    names = names or table.named.get(column, ())
    if len(set(names)) < len(names):
        raise InputError(
            f"labels column {column!r} of source {table.name!r} has two classes called "
            f"{Counter(names).most_common(1)[0][0]!r}; rename one"
        )
    return names or None


def refuse_other_shards(table: Table, column: str) -> None:
    """Shards of one split agree about a column that is read, and about its class names."""
    forms = {
        file: column in schema.names
        and (kind_of(schema, column), class_names(table, schema, column))
        for file, schema in table.shards.items()
    }
    (first, form), *others = forms.items()
    for file, other in others:
        if other != form:
            raise InputError(
                f"{file} of source {table.name!r} has no column {column!r}, or not in the form "
                f"that it has in {first}; write both anew"
            )


def _listed(names: list[str], most: int = 8) -> str:
    """Names in a sentence, not a page."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    shown = ", ".join(name[:60] for name in names[:most])
    return "".join(letter if letter.isprintable() else "?" for letter in shown) + more
