"""How a folder of pictures is laid out: class folders, splits of class folders, or wrappers of it.

Splits never become classes: as soon as folders at some level are called like splits, those beside
them are no classes either. They are ignored with a warning, or, where names and content leave both
readings open, the source is refused. Folders that only wrap what is meant are looked through.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from potstill.data.files import Place
from potstill.data.splits import is_exact, split_role, split_roles
from potstill.run import InputError, logger

__all__ = ["PICTURES", "Split", "find_splits", "unnumbered"]

_NAMES = (
    *(".png", ".apng", ".bmp", ".dib", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm"),
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".jp2", ".j2k", ".webp", ".avif", ""),
)
PICTURES = frozenset(_NAMES)  # what the names of pictures end in; their content decides
_DEEP = 5  # levels of wrappers that are looked through
_NUMBERED = re.compile(r"(\d+)_(.+)")
Roles = dict[Path, str]  # folders and what kind of split they are


@dataclass(frozen=True)
class Split:
    """One split: the folder that its class folders are in, or why it has none."""

    folder: Path
    role: str  # "train", "test" or "validation"
    unlabelled: str = ""
    listed: Path | None = None  # the file that tells the classes of its pictures (Tiny ImageNet)


def find_splits(place: Place) -> dict[str, Split]:
    """Splits of a folder by their names in lower case; without splits it is "train" as a whole.

    Raises:
        InputError: a folder may be a split or a class, or several may be meant for training.
    """
    level = _level(place, place.root, _DEEP)
    if level is None:
        if (top := _unwrapped(place, place.root)) != place.root:
            logger.warning("source %s: its class folders are those of %s", place.root, top)
        return {"train": Split(top, "train")}
    here, roles = level
    train = _train(place, here, roles)
    used = [folder for folder in roles if folder == train or roles[folder] != "train"]
    splits: dict[str, Split] = {}
    for folder in used:
        split = Split(_unwrapped(place, folder), roles[folder])
        if folder != train and train is not None:
            split = _checked_test(place, split, train)
        splits[_key(folder.name, split.role, splits)] = split
    if ignored := _beside(place, here) + [f for f in place.folders(here) if f not in used]:
        logger.warning(
            "source %s: read as splits %s; ignored beside them: %s",
            *(place.root, ", ".join(splits), _list(ignored)),
        )
    return splits


def unnumbered(names: Sequence[str]) -> tuple[str, ...] | None:
    """Names without the ``000_`` that keeps an order, if all have one and they count up."""
    parts = [match for name in names if (match := _NUMBERED.fullmatch(name))]
    plain = tuple(part[2] for part in parts)
    counted = [int(part[1]) for part in parts] == list(range(len(names)))
    same = len({len(part[1]) for part in parts}) == 1
    return plain if counted and same and len(set(plain)) == len(names) else None


def _key(name: str, role: str, taken: Collection[str]) -> str:
    """What a split is asked for as: its name in lower case, or the role if that says more."""
    first = name.lower() if split_roles([name.lower()]) else role
    return next(key for key in (first, name, f"{name} (2)") if key not in taken)


def _level(place: Place, here: Path, deep: int) -> tuple[Path, Roles] | None:
    """The level at which folders are called like splits: ``here`` or inside its only wrapper."""
    folders = place.folders(here)
    if roles := _roles(place, folders):
        return here, roles
    inner = {
        folder: found
        for folder in folders
        if deep and not place.any_file(folder, PICTURES, deep=False)
        if (found := _level(place, folder, deep - 1)) and place.any_file(folder, PICTURES)
    }
    others = [f for f in folders if f not in inner and inner and place.any_file(f, PICTURES)]
    if len(inner) == 1 and not others:
        return next(iter(inner.values()))
    if sure := [folder for folder, (_, roles) in inner.items() if _are_splits(place, roles)]:
        beside = [f for f in (*inner, *others) if f != sure[0]]
        raise InputError(
            f"source {place.root} holds splits in {sure[0]} and other pictures beside it, in "
            f"{_list(beside)}; give the folder that is meant as the source"
        )
    return None


def _roles(place: Place, folders: Sequence[Path]) -> Roles:
    """Which folders are splits by their names; what the content has to say is asked for some."""
    names = [folder.name for folder in folders]
    told = split_roles(names)
    if unnumbered(names) is None or all(map(split_role, names)):
        for folder in folders:  # "birds_train" is one if it holds class folders, "bullet_train" not
            role = None if folder.name in told else split_role(folder.name)
            if role and len(_full(place, folder)) > 1:
                told[folder.name] = role[0]
    return {folder: told[folder.name] for folder in folders if folder.name in told}


def _are_splits(place: Place, roles: Roles) -> bool:
    """Whether content or company show that it is not class folders that are called like that."""
    trains = [folder for folder, role in roles.items() if role == "train"]
    several = len(set(roles.values())) > 1
    return bool(trains) and (several or any(_full(place, folder) for folder in trains))


def _train(place: Place, here: Path, roles: Roles) -> Path | None:
    """The folder to train on, if there is one."""
    trains = [folder for folder, role in roles.items() if role == "train"]
    trains = [folder for folder in trains if is_exact(folder.name)] or trains
    if len(trains) > 1:
        raise InputError(
            f"source {here} has several folders for training ({_list(trains)}); give one of them "
            "as the source, or put their content into one"
        )
    others = [folder for folder in place.folders(here) if folder not in roles]
    clear = trains and len(set(roles.values())) > 1 and _full(place, _unwrapped(place, trains[0]))
    if not clear and any(place.any_file(folder, PICTURES) for folder in others):
        names = sorted(folder.name for folder in (*roles, *others))
        as_class = ", ".join(f"{number:03d}_{name}" for number, name in enumerate(names[:2]))
        as_split = f"give {trains[0]}" if trains else "put the others into a folder named train"
        raise InputError(
            f"source {here} has {_list(roles)} beside {_list(others)}, which may be splits or "
            f"classes; if they are classes, number all folders ({as_class}, ...), if they are "
            f"splits, {as_split}"
        )
    if trains:
        _refuse_nested(place, _unwrapped(place, trains[0]))
    return trains[0] if trains else None


def _refuse_nested(place: Place, top: Path) -> None:
    """Refuse a split that holds splits again; one class called "train" is none."""
    folders = _full(place, top, most=None)
    roles = split_roles([folder.name for folder in folders])
    inside = [folder for folder in folders if folder.name in roles]
    several = "train" in roles.values() and len(set(roles.values())) > 1
    if several or any(len(_full(place, folder)) > 1 for folder in inside):
        raise InputError(f"{top} holds splits itself ({_list(inside)}); give it as the source")


def _checked_test(place: Place, split: Split, train: Path) -> Split:
    """``split``, with a word if its folders are not the classes of ``train``."""
    found = _full(place, split.folder)
    known = {folder.name for folder in place.folders(_unwrapped(place, train))}
    listed = split.folder / f"{split.folder.name}_annotations.txt"
    if len(found) < 2 and listed.is_file():
        return Split(split.folder, split.role, listed=listed)
    if len(found) < 2 and not {folder.name for folder in found} & known:
        return Split(split.folder, split.role, f"{split.folder} has no class folders")
    return split


def _unwrapped(place: Place, folder: Path) -> Path:
    """``folder``, or the first one in it that has several folders, if each step there has one."""
    here = folder
    while not place.any_file(here, PICTURES, deep=False) and (folders := place.folders(here)):
        if len(folders) > 1:
            return here
        here = folders[0]
    return folder


def _full(place: Place, folder: Path, most: int | None = 2) -> list[Path]:
    """Sub-folders with pictures in or below them, not more than are asked for."""
    found: list[Path] = []
    for path in place.folders(folder):
        if len(found) != most and place.any_file(path, PICTURES):
            found.append(path)
    return found


def _beside(place: Place, here: Path) -> list[Path]:
    """Folders beside the wrappers that lead to ``here``."""
    steps = [step for step in (here, *here.parents) if place.root in step.parents]
    return [path for step in steps for path in place.folders(step.parent) if path != step]


def _list(folders: Iterable[Path]) -> str:
    names = [folder.name for folder in folders]
    return ", ".join(names[:5]) + f" and {len(names) - 5} more" * (len(names) > 5)
