"""Layouts of sets for finding objects, which hold no class per picture: a sentence says so."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from potstill.data.files import Place

__all__ = ["detection_layout"]

_CUT = "cut the objects out of the pictures, one folder for each class, or give a list of pictures"


def detection_layout(place: Place) -> str:
    """Return what a folder is and what to do, if it is laid out as COCO, YOLO or Pascal VOC."""
    try:
        below = list(_below(place.root))
    except OSError:
        return ""
    names = {path.relative_to(place.root).as_posix() for path in below}
    last = {path.name for path in below}
    coco = [name for name in sorted(names) if _is_coco(name)]
    pairs = [name for name in names if name.endswith("labels") and f"{name[:-6]}images" in names]
    if coco:
        kind, shown = "COCO", coco[0]
    elif {"JPEGImages", "Annotations"} <= last:
        kind, shown = "Pascal VOC", "JPEGImages and Annotations"
    elif pairs and ({"data.yaml", "data.yml", "dataset.yaml"} & last or _boxes(place, min(pairs))):
        kind, shown = "YOLO", f"{min(pairs)} beside images"
    else:
        return ""
    return (
        f"source {place.root} is laid out as {kind} ({shown}): boxes of objects, and no class for "
        f"a picture; {_CUT} with their classes (CSV)"
    )


def _is_coco(name: str) -> bool:
    file = name.rpartition("/")[2]
    coco = file.startswith(("instances_", "_annotations.coco"))
    return coco and file.endswith(".json")


def _below(folder: Path, levels: int = 2) -> Iterator[Path]:
    """Entries of two levels, by name only; of many the first hundred."""
    for path in sorted(folder.iterdir())[:100]:
        yield path
        if levels > 1 and path.is_dir() and not path.is_symlink():
            yield from _below(path, levels - 1)


def _boxes(place: Place, name: str) -> bool:
    return any(path.suffix == ".txt" for path in _below(place.root / name))
