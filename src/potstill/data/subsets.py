"""Some classes of a source: named lists of ImageNet's classes, positions or class names.

A subset is a text: the name of a list in :data:`SUBSETS`, or at least two classes joined by commas,
as positions in the source's classes (``"3,5,7"``) or as class names (``"cat,dog"``). Where every
word is a class name, names are meant: a source whose classes are called "0", "1", "10", "2" keeps
what they are called. Label = position in the list. Images of other classes are never decoded.

The lists are those that LGM's released code uses (Cazenavette et al., NeurIPS 2025, arXiv
2511.16674). Their numbers are those of ImageNet-1k in its usual order, that of the sorted WordNet
numbers: folders named n01440764, n01443537, ... have it, folders named in English have not.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch

from potstill.data.classes import check_labels, plain_names
from potstill.data.decode import Rows
from potstill.run import InputError, nearest

__all__ = ["SUBSETS", "class_positions", "keep_classes"]

_IMAGENET = 1000  # classes of the sets that the lists are about

SUBSETS: dict[str, tuple[int, ...]] = {
    "imagenet-100": (
        452, 64, 374, 236, 993, 176, 882, 904, 503, 74, 57, 959, 953, 508, 872, 228, 122, 421,
        599, 858, 157, 449, 994, 608, 151, 209, 15, 876, 246, 766, 455, 857, 131, 119, 234, 90,
        45, 936, 479, 272, 665, 653, 659, 158, 960, 765, 908, 703, 407, 560, 317, 938, 724, 748,
        331, 619, 120, 267, 155, 708, 368, 772, 167, 494, 180, 431, 342, 854, 305, 54, 268, 667,
        166, 277, 662, 798, 313, 498, 299, 222, 682, 593, 775, 674, 592, 137, 758, 717, 606, 281,
        796, 211, 620, 830, 544, 275, 242, 570, 99, 169,
    ),
    "imagenet-birds": (84, 130, 88, 144, 145, 22, 96, 9, 100, 89),
    "imagenet-fruits": (953, 954, 949, 950, 951, 957, 952, 945, 943, 948),
    "imagenet-cats": (281, 282, 283, 284, 285, 291, 292, 290, 289, 287),
    "imagenet-nette": (0, 217, 482, 491, 497, 566, 569, 571, 574, 701),
    "imagenet-woof": (193, 182, 258, 162, 155, 167, 159, 273, 207, 229),
    "imagenet-a": (255, 376, 984, 364, 500, 986, 333, 576, 148, 135),
    "imagenet-b": (129, 916, 90, 275, 995, 874, 102, 259, 685, 139),
    "imagenet-c": (565, 94, 554, 535, 92, 392, 291, 136, 324, 11),
    "imagenet-d": (9, 258, 13, 262, 19, 339, 321, 24, 93, 322),
    "imagenet-e": (816, 96, 100, 145, 739, 713, 783, 76, 688, 326),
}  # fmt: skip


def class_positions(subset: str, classes: Sequence[str], source: str) -> tuple[int, ...]:
    """Return the positions in ``classes`` that a subset keeps, in its order.

    Class names that hold commas themselves ("tench, Tinca tinca") are recognised as well.

    Raises:
        InputError: a list of ImageNet's classes for a source with another number of them, an
            unknown word, a position out of range, a class twice, or fewer than two classes.
    """
    if subset.strip() in SUBSETS:
        if len(classes) != _IMAGENET:
            raise InputError(
                f"subset is {subset!r}, a list of ImageNet's {_IMAGENET} classes, but source "
                f"{source!r} has {len(classes)}; name its own classes instead"
            )
        return SUBSETS[subset.strip()]
    words = [word.strip() for word in subset.split(",")]
    found, wrong = _named(words, classes)
    if wrong is not None and all(re.fullmatch(r"-?[0-9]+", word) for word in words):
        found, wrong = [int(word) for word in words], None
        if not 0 <= min(found) <= max(found) < len(classes):
            raise InputError(
                f"subset is {subset!r}, but source {source!r} has {len(classes)} classes; use "
                f"positions from 0 to {len(classes) - 1}"
            )
    if wrong is not None:
        raise InputError(
            f"subset is {subset!r}, but source {source!r} has no class {wrong!r}"
            f"{_hint(wrong, classes, single=len(words) == 1)}"
        )
    for position, times in Counter(found).items():
        if times > 1:
            raise InputError(
                f"subset is {subset!r}, which has class {classes[position]!r} {times} times; name "
                "each class once"
            )
    if len(found) < 2:
        raise InputError(f"subset is {subset!r}, which is a single class; name at least 2")
    return tuple(found)


def _named(words: list[str], classes: Sequence[str]) -> tuple[list[int], str | None]:
    """Positions of the classes that ``words`` are, some of them several; the first that is none."""
    known = {_joined(name.split(",")): position for position, name in enumerate(classes)}
    longest = 1 + max(name.count(",") for name in known)
    found: list[int] = []
    start = 0
    while start < len(words):
        for stop in range(min(start + longest, len(words)), start, -1):
            name = _joined(words[start:stop])
            if name in known:
                found.append(known[name])
                start = stop
                break
        else:
            return found, words[start]
    return found, None


def _joined(words: Sequence[str]) -> str:
    return ",".join(word.strip() for word in words)


def _hint(wrong: str, classes: Sequence[str], single: bool) -> str:
    """What to write instead of a word that is no class."""
    hint = nearest(wrong, [*SUBSETS, *classes] if single else classes)
    if hint.startswith("; choose"):  # a sentence, not a page
        hint = (
            f"; join positions or names of its {len(classes)} classes by commas, or give a list "
            "such as imagenet-nette"
        )
    return hint


def keep_classes(rows: Rows, subset: str, *, partial: bool = False) -> tuple[Rows, tuple[int, ...]]:
    """Return the rows of a subset's classes, labelled by it, and their numbers in ``rows``.

    Other pictures are not read. Only a torch data set, which tells a label with its picture, is
    gone through once for the labels; nothing of that is kept.

    Raises:
        InputError: as :func:`class_positions`, or a class without images, unless ``partial``.
    """
    labels, pictures = rows.labels, rows.pictures
    if labels is None:
        labels = np.fromiter((label for _, label in rows.pairs()), np.int64, rows.count)
    numbered = torch.from_numpy(labels)
    classes = rows.classes or plain_names(numbered, rows.name, gaps=True)
    asked = [int(word) + 1 for word in re.findall(r"\d{1,6}", subset)]
    if partial and rows.classes is None and asked:  # it may lack the last classes
        classes = tuple(map(str, range(max(len(classes), *asked))))
    check_labels(numbered, len(classes), rows.name)
    chosen = class_positions(subset, classes, rows.name)
    place = np.full(len(classes), -1)
    place[list(chosen)] = np.arange(len(chosen))
    own = place[labels]
    numbers = np.flatnonzero(own >= 0)
    empty = set(range(len(chosen))) - set(own.tolist())
    if empty and not partial:
        name = classes[chosen[min(empty)]]
        raise InputError(
            f"subset is {subset!r}, but class {name!r} of source {rows.name!r} has no images; "
            "leave it out"
        )
    kept = Rows.of(
        rows.name,
        lambda some: pictures(numbers[some]),
        own[numbers],
        tuple(classes[position] for position in chosen),
    )
    return kept, tuple(numbers.tolist())
