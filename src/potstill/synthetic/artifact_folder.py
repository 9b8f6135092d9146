"""The folder of a synthetic set: exact tensors, and views of them for people and other software.

    synthetic.safetensors   the stored form, exact; the only file that ``SyntheticSet.load`` needs
    provenance.json         where it comes from, and the checksum of the tensors it belongs to
    start.safetensors       8-bit images and labels before step 0, where a method moved them
    README.md               data set card; its front matter names the Parquet file
    preview.png             the stored images, one row per class
    images/000_cat/000.png  8-bit view of the decoded images (what a receiver trains on)
    data/train-*.parquet    the same decoded 8-bit images, one to one, with soft labels and weights
    data/views-*.parquet    where labels of views are stored: each epoch's views and what they are

Class folders carry the zero-padded label because ImageFolder takes classes in alphabetical order.
"""

from __future__ import annotations

import json
import os
import re
import unicodedata
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from potstill.canvas import for_people
from potstill.run import ArtifactError, InputError, StorageError, logger
from potstill.run.records import read_json
from potstill.run.replace import alone, hidden, recover, remove_owned, replace_folder
from potstill.synthetic import eight_bit as pictures
from potstill.synthetic.card import PARQUET, VIEWS_PARQUET, card
from potstill.synthetic.started import START, write_start
from potstill.synthetic.tensors import to_file

if TYPE_CHECKING:
    from potstill.labels import ViewLabels
    from potstill.synthetic.artifact import SyntheticSet

__all__ = ["TENSORS", "class_folder", "find", "read_provenance", "write"]

TENSORS = "synthetic.safetensors"
PROVENANCE = "provenance.json"
# Paths in the folder that are ours to replace; a slash at the end marks a folder to look into.
OWNED = re.compile(
    rf"{re.escape(TENSORS)}|{re.escape(PROVENANCE)}|{re.escape(START)}|README\.md|preview\.png"
    r"|data/((train|views)-\d{5}-of-\d{5}\.parquet)?|images/(\d{3,}_[^/]+/(\d{3,}\.png)?)?"
)
_COLUMNS = {"values": "log_probability", "classes": "label"}  # names that differ from ours
_ROWS = 500  # rows of the Parquet file encoded at a time


def write(synthetic: SyntheticSet, folder: Path) -> Path:
    """Write all files into a hidden folder beside ``folder``, then put it in place.

    Two that write at the same time do so one after the other.
    """
    folder = folder.expanduser().resolve()
    _refuse_foreign(folder)
    part = hidden(folder, "part")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with alone(folder):
            try:
                recover(folder, OWNED)
                part.mkdir()
                _fill(part, synthetic, folder.name)
                replace_folder(part, folder, OWNED)
            finally:
                with suppress(OSError):
                    remove_owned(part, OWNED)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise StorageError(
            f"cannot write {folder}: {reason}; free space or choose another folder "
            "(what was saved before is untouched)"
        ) from error
    return folder


def _refuse_foreign(folder: Path) -> None:
    """Never replace a folder that is not an artifact."""
    if folder.is_dir() and ((folder / TENSORS).exists() or not any(folder.iterdir())):
        return
    if folder.exists():
        raise InputError(f"folder is {folder}, which holds other files; use a new or empty folder")


def _fill(part: Path, synthetic: SyntheticSet, name: str) -> None:
    _durable(part / TENSORS, to_file(synthetic))
    provenance = {
        **synthetic.provenance,
        "artifact": {
            "checksum": synthetic.checksum,
            "images": len(synthetic),
            "shape": list(synthetic.shape),
            "label_tier": synthetic.label_tier,
            "bytes": synthetic.nbytes,
        },
    }
    text = json.dumps(provenance, indent=2, default=str) + "\n"
    _durable(part / PROVENANCE, text.encode("utf-8", "replace"))
    write_start(part, synthetic)
    (part / "README.md").write_bytes(card(synthetic, name).encode("utf-8", "replace"))
    shown = for_people(synthetic.images, synthetic.labels, synthetic.decode)
    preview = pictures.grid(*shown, synthetic.classes)
    (part / "preview.png").write_bytes(preview)
    decoded, labels, soft_labels, weights = synthetic.decoded()
    images = pictures.to_uint8(decoded).cpu()
    _write_tree(part / "images", images, labels, synthetic.classes)
    beside = {
        "soft_label": soft_labels,
        "regression_target": synthetic.decoded_targets(),
        "weight": weights,
    }
    told = {name: values for name, values in beside.items() if values is not None}
    rows = _rows(part / "images", labels, synthetic.classes, told)
    _write_parquet(part / PARQUET, rows, synthetic, told)
    if synthetic.view_labels is not None:
        _write_views(part / VIEWS_PARQUET, synthetic.view_labels, synthetic.classes)


def _durable(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with path.open("rb+") as stream:
        os.fsync(stream.fileno())


def class_folder(label: int, classes: tuple[str, ...]) -> str:
    """Return a safe folder name whose alphabetical order is the order of the labels."""
    digits = max(3, len(str(len(classes) - 1)))
    plain = unicodedata.normalize("NFC", classes[label])
    slug = re.sub(r"[^\w.]+", "-", plain)[:40].strip("-._")
    return f"{label:0{digits}d}_{slug or 'class'}"


def _places(labels: Tensor, classes: tuple[str, ...]) -> list[Path]:
    """Where each decoded image lies, relative to ``images/``."""
    values = labels.tolist()
    folders = [class_folder(label, classes) for label in range(len(classes))]
    seen = [0] * len(classes)
    digits = max(3, len(str(len(values))))
    places = []
    for label in values:
        places.append(Path(folders[label]) / f"{seen[label]:0{digits}d}.png")
        seen[label] += 1
    return places


def _write_tree(root: Path, images: Tensor, labels: Tensor, classes: tuple[str, ...]) -> None:
    # A class without images keeps its (empty) folder: ImageFolder then stops with a clear message
    # instead of shifting every later label by one.
    for label in range(len(classes)):
        (root / class_folder(label, classes)).mkdir(parents=True)
    for image, place in zip(images, _places(labels, classes), strict=True):
        (root / place).write_bytes(pictures.encode(image))


def _rows(
    root: Path,
    labels: Tensor,
    classes: tuple[str, ...],
    told: Mapping[str, Tensor],
) -> Iterator[dict[str, list[Any]]]:
    """Columns of the Parquet file, some rows at a time; images are the files of the tree."""
    places, values = _places(labels, classes), labels.tolist()
    for first in range(0, len(values), _ROWS):
        some = slice(first, first + _ROWS)
        columns: dict[str, list[Any]] = {
            "image": [
                {"bytes": (root / place).read_bytes(), "path": place.as_posix()}
                for place in places[some]
            ],
            "label": values[some],
        }
        yield columns | {name: own[some].tolist() for name, own in told.items()}


def _write_parquet(
    path: Path,
    rows: Iterator[dict[str, list[Any]]],
    synthetic: SyntheticSet,
    told: Mapping[str, Tensor],
) -> None:
    """Typed as ``datasets`` types it; written by pyarrow, which needs no cache and draws no bar."""
    import pyarrow
    from datasets import ClassLabel, Features, Image, List, Value
    from pyarrow import parquet

    columns: dict[str, Any] = {
        "image": Image(),
        "label": ClassLabel(names=_distinct(synthetic.classes)),
    }
    row = List(Value("float32"), length=synthetic.num_classes)
    columns |= {n: row if own.ndim == 2 else Value("float32") for n, own in told.items()}
    schema = Features(columns).arrow_schema
    path.parent.mkdir()
    with parquet.ParquetWriter(path, schema, write_page_checksum=True) as writer:
        for some in rows:
            writer.write_table(pyarrow.Table.from_pydict(some, schema=schema))


def _write_views(path: Path, labels: ViewLabels, classes: tuple[str, ...]) -> None:
    """One row per epoch and training image: what was drawn for its view, and what it is."""
    import pyarrow
    from datasets import ClassLabel, Features, List, Value
    from pyarrow import parquet

    kinds = {"values": Value("float16"), "classes": ClassLabel(names=_distinct(classes))}
    named = labels.tensors()
    columns: dict[str, Any] = {"epoch": Value("int32"), "image": Value("int32")}
    for name, own in named.items():
        kind = kinds.get(name) or Value(str(own.dtype).removeprefix("torch."))
        columns[_COLUMNS.get(name, name)] = (
            kind if own.ndim == 2 else List(kind, length=own.shape[2])
        )
    schema = Features(columns).arrow_schema
    with parquet.ParquetWriter(path, schema, write_page_checksum=True) as writer:
        for epoch in range(labels.epochs):
            images = range(labels.values.shape[1])
            parts = [pyarrow.array([epoch] * len(images), "int32"), pyarrow.array(images, "int32")]
            for own in named.values():
                flat = pyarrow.array(own[epoch].reshape(-1).numpy())
                wide = own.shape[2] if own.ndim == 3 else 0
                parts.append(pyarrow.FixedSizeListArray.from_arrays(flat, wide) if wide else flat)
            plain = pyarrow.Table.from_arrays(parts, names=[*columns])
            writer.write_table(plain.cast(schema))


def _distinct(classes: tuple[str, ...]) -> list[str]:
    """Class names as ClassLabel wants them: no two alike."""
    if len(set(classes)) == len(classes):
        return list(classes)
    return [f"{label} {name}" for label, name in enumerate(classes)]


def find(folder: Path) -> Path:
    """Return the artifact's folder for itself, its tensors file, or the run folder around it."""
    folder = folder.expanduser()
    if folder.name == TENSORS and folder.is_file():
        return folder.parent
    if folder.is_file():
        raise ArtifactError(
            f"{folder} is not a potstill artifact; give the folder that holds {TENSORS} "
            "(pickle files such as .pt are never opened)"
        )
    for named in (folder, folder / "synthetic"):
        # A save that was killed between two renames has left the artifact under a hidden name.
        for place in (named, hidden(named.absolute(), "old")):
            if (place / TENSORS).is_file():
                if named != folder and _unfinished(folder / "run.json"):
                    logger.warning("%s is of an earlier run; the newer one is not finished", place)
                return place
    what = f"holds no {TENSORS}" if folder.is_dir() else "does not exist"
    raise ArtifactError(
        f"{folder} {what}; give the folder of a finished run or of a saved synthetic set"
    )


def _unfinished(path: Path) -> bool:
    """Whether ``run.json`` is there and tells of a run that has not finished."""
    with suppress(ArtifactError):  # whoever reads it complains
        return read_json(path, "", missing={}).get("status") not in (None, "finished")
    return False


def read_provenance(place: Path, checksum: str) -> dict[str, Any]:
    """Return the provenance beside the tensors of that checksum; {} where the file is missing."""
    path = place / PROVENANCE
    content = read_json(path, "delete it to load the tensors without it", missing={})
    artifact = content.pop("artifact", None)
    if isinstance(artifact, dict) and artifact.get("checksum") not in (None, checksum):
        raise ArtifactError(
            f"{path} belongs to other tensors (checksum {str(artifact['checksum'])[:40]}, "
            f"not {checksum}); copy the folder again as a whole"
        )
    return content
