"""Lines over the classes, from the largest to the smallest: accuracies, norms, soft labels."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from potstill.reports.style import COLOURS, NAMED, class_width, name_classes, name_ends, plot

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from torch import Tensor

__all__ = ["accuracy_lines", "classifier_norms", "has_long_names", "label_confidence"]

_ORDER = ("head", "tail", "second", "medium", "third", "plain")
_DASHES = ("-", "--", ":", "-.")
_MARKED = 20  # classes up to which each has a marker
_HEIGHT, _WIDE = 3.2, 8.0  # inches; the second where names of lines are long
_SHORT, _LONGEST = 16, 36  # letters of a name beside a narrow figure, and at all

# Per line: mean of each class and, where known, its standard deviation; NaN leaves a gap.
Lines = Mapping[str, tuple[Sequence[float], Sequence[float] | None]]


def accuracy_lines(
    records: Mapping[str, Mapping[str, Any]],
    counts: Sequence[int],
    classes: Sequence[str],
    path: Path | None = None,
    name: str = "accuracy-lines",
) -> bytes:
    """Draw class-wise accuracies of several runs (LAD fig. 7c): a line per run, spread as a band.

    Args:
        records: by the name of the line, score records with ``per_class`` {"mean", "std"}, percent.
        counts: real training images per class; the order of the classes.
        name: keeps element names apart where a page has several of these figures.
    """
    lines: dict[str, tuple[list[float], list[float] | None]] = {}
    for title, record in records.items():
        known = record.get("per_class") or {}
        runs = len((record.get("accuracy") or {}).get("values") or ()) or record.get("runs")
        spread = None if runs == 1 else known.get("std")
        lines[title] = (_gaps(known.get("mean") or []), _gaps(spread) if spread else None)
    highest = max((v for means, _ in lines.values() for v in means if v == v), default=100.0)
    limits = (0, 104 if highest > 50 else None)
    return _draw(name, lines, counts, classes, "accuracy, %", limits, path)


def classifier_norms(
    norms: Mapping[str, Sequence[float]],
    counts: Sequence[int],
    classes: Sequence[str],
    path: Path | None = None,
    name: str = "norms",
) -> bytes:
    """Draw the length of each class's classifier row, a line per kind of network (LAD fig. 2).

    Args:
        norms: by kind ("representation", "classifier"), mean over the experts, C values.
        counts: real training images per class.
    """
    lines = {name: (_gaps(values), None) for name, values in norms.items()}
    return _draw(name, lines, counts, classes, "row norm", (0, None), path)


def label_confidence(
    soft_labels: Tensor,
    labels: Tensor,
    counts: Sequence[int],
    classes: Sequence[str],
    path: Path | None = None,
) -> bytes:
    """Draw how sure the soft labels are, class by class (LAD fig. 5).

    The largest entry, and the entry of the image's own class; means over the images of a class.

    Args:
        soft_labels: (n, K) probabilities, or (n, v, K) of v tiles. labels: (n,). counts: real
            training images per class.
    """
    rows = range(len(labels))
    values = {"largest": soft_labels.amax(-1), "own class": soft_labels[rows, ..., labels]}
    lines = {}
    for name, each in values.items():
        of = [each[labels == label].double() for label in range(len(classes))]
        means = [float(v.mean()) if len(v) else math.nan for v in of]
        spread = [float(v.std(correction=0)) if len(v) else math.nan for v in of]
        lines[name] = (means, spread)
    return _draw("soft-labels", lines, counts, classes, "probability", (0, 1.04), path)


def has_long_names(names: Iterable[str]) -> bool:
    """Whether some name needs a figure wider than half the page."""
    return any(len(name) > _SHORT for name in names)


def _gaps(values: Sequence[Any]) -> list[float]:
    """Numbers; whatever is missing becomes NaN, a gap in the line."""
    return [float(v) if isinstance(v, (int, float)) else math.nan for v in values]


def _smooth(heights: Sequence[float], around: int) -> list[float]:
    """Mean with up to ``around`` neighbours on each side, as far as they are known."""
    smooth = []
    for place in range(len(heights)):
        near = heights[max(0, place - around) : place + around + 1]
        known = [height for height in near if math.isfinite(height)]
        smooth.append(sum(known) / len(known) if known else math.nan)
    return smooth


def _draw(
    name: str,
    lines: Lines,
    counts: Sequence[int],
    classes: Sequence[str],
    unit: str,
    limits: tuple[float | None, float | None],
    path: Path | None,
) -> bytes:
    order = sorted(range(len(classes)), key=lambda label: (-counts[label], label))
    marker = "o" if len(order) <= _MARKED else ""

    around = len(order) // 40 if len(order) > NAMED else 0  # neighbours on each side to average

    def draw(axes: Axes) -> None:
        ends = []
        for index, (title, (means, spread)) in enumerate(lines.items()):
            colour = COLOURS[_ORDER[index % len(_ORDER)]]
            dash = _DASHES[index // len(_ORDER) % len(_DASHES)]
            heights = [means[k] for k in order]
            if around:
                axes.plot(heights, color=colour, linewidth=0.6, alpha=0.35)
                heights = _smooth(heights, around)
            axes.plot(heights, dash, marker=marker, markersize=3.5, color=colour, linewidth=1.7)
            if spread and not around:
                low = [means[k] - spread[k] for k in order]
                high = [means[k] + spread[k] for k in order]
                places = range(len(order))
                axes.fill_between(places, low, high, color=colour, alpha=0.13, linewidth=0)
            known = [height for height in heights if math.isfinite(height)]
            ends += [(known[-1], title, colour)] if known else []
        name_classes(axes, [classes[k] for k in order])
        if around:
            axes.set_xlabel(f"{axes.get_xlabel()}; thick: mean over {2 * around + 1} classes")
        axes.margins(x=0.02)
        axes.set_ylim(*limits)
        axes.set_ylabel(unit)
        name_ends(axes, ends, limit=_LONGEST)

    width = max(class_width(len(order)), _WIDE if has_long_names(lines) else 0.0)
    return plot(name, (width, _HEIGHT), draw, path)
