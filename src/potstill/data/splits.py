"""What splits are called: which of a source's parts is for training, which for testing."""

from __future__ import annotations

import re
from collections.abc import Collection
from itertools import chain

from potstill.run import InputError

__all__ = [
    "NoSplitError",
    "UnlabelledError",
    "find_split",
    "is_exact",
    "split_role",
    "split_roles",
    "splits_to_test",
]

# Exact names, in order of preference; validation images stand in where test images are missing.
_NAMES = {
    "train": ("train", "training", "trainval"),
    "test": ("test", "testing"),
    "validation": ("validation", "valid", "val", "dev", "eval", "evaluation"),
}
_ROLES = {name: role for role, names in _NAMES.items() for name in names}
_AFFIXES = "sets?|splits?|data|datasets?|seg|images?|imgs?|pictures?|folders?|files?"
_AFFIX = re.compile(_AFFIXES)
_GLUED = re.compile(rf"(?:{_AFFIXES})?({'|'.join(_ROLES)})(?:{_AFFIXES})?")
_WORD = re.compile(r"[^\W\d_]+|\d+")
_CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])")


class NoSplitError(InputError):
    """The source has no split of that name."""


class UnlabelledError(InputError):
    """A split whose labels are hidden or missing, as in some public test splits."""


def split_roles(names: Collection[str]) -> dict[str, str]:
    """Which names are those of splits, and whether of "train", "test" or "validation".

    Case, separators, numbers at the end and words like set, split or images do not matter. Other
    words do, unless another name has the same for another role (``asl_train`` and ``asl_test``).
    """
    found = {name: pair for name in names if (pair := split_role(name))}
    stems: dict[tuple[str, ...], set[str]] = {}
    for role, stem in found.values():
        stems.setdefault(stem, set()).add(role)
    return {name: role for name, (role, stem) in found.items() if not stem or len(stems[stem]) > 1}


def split_role(name: str) -> tuple[str, tuple[str, ...]] | None:
    """The role that a word of ``name`` tells, and its words that tell something else.

    >>> split_role("trainingSet2"), split_role("bullet_train")
    (('train', ()), ('train', ('bullet',)))
    """
    roles: set[str] = set()
    rest: list[str] = []
    words = chain.from_iterable(_CAMEL.split(part) for part in _WORD.findall(name))
    for word in map(str.lower, words):
        if glued := _GLUED.fullmatch(word):
            roles.add(_ROLES[glued[1]])
        elif not _AFFIX.fullmatch(word) and not (word.isdecimal() and roles):
            rest.append(word)
    if roles == {"train", "validation"}:
        roles = {"train"}
    return (roles.pop(), tuple(rest)) if len(roles) == 1 else None


def is_exact(name: str) -> bool:
    """Whether ``name`` is one of the usual names of splits, and not only like one."""
    return name.lower() in _ROLES


def find_split(wanted: str, names: Collection[str], source: str) -> str:
    """The source's own name for a split.

    Raises:
        NoSplitError: it has none.
        InputError: several could be meant.
    """
    if wanted in names:
        return wanted
    found = splits_to_test(names) if wanted == "test" else _ranked(names, wanted)
    if not found:
        raise NoSplitError(
            f"split is {wanted!r}, but source {source!r} only has {', '.join(map(repr, names))}; "
            "choose one of them, or a source that has it"
        )
    if wanted != "test" and len(found) > 1 and not is_exact(found[0]):
        raise InputError(
            f"source {source!r} has several splits for {wanted} ({', '.join(found)}); name the one "
            f"that is meant {wanted!r}"
        )
    return found[0]


def splits_to_test(names: Collection[str]) -> list[str]:
    """Names of splits to test on, the best one first."""
    return [*_ranked(names, "test"), *_ranked(names, "validation")]


def _ranked(names: Collection[str], role: str) -> list[str]:
    """Names of one role: exact ones in order of preference, then others as they come."""
    order = _NAMES.get(role, ())
    found = [name for name, other in split_roles(names).items() if other == role]
    return sorted(found, key=lambda n: order.index(n.lower()) if n.lower() in order else len(order))
