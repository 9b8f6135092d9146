"""Figures of a run: image grids (Pillow) and curves and bars (matplotlib, drawn without a display).

Every plot returns its SVG and, given a path, writes the format of the path's suffix (.svg, .png,
.pdf). Colours are few and fixed; the report page exchanges them for its light and dark themes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

from potstill.data.longtail import size_groups
from potstill.evaluation.record import below
from potstill.reports.source import part
from potstill.reports.style import (
    COLOURS,
    NAMED,
    NARROW,
    class_width,
    log_scale,
    name_classes,
    name_ends,
    plot,
)
from potstill.synthetic.eight_bit import grid

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "class_curves",
    "counts_bar",
    "grid",
    "loss_curves",
    "per_class_bars",
]

_LINES = ("plain", "head", "second", "third", "medium", "tail")
_TITLES = {
    "distance": "Distance to the real class",
    "amplitude_share": "Share of the amplitude in the distance",
    "amplitude_syn": "Amplitude |φ| (dashed: real)",
    "calibration": "Calibration loss",
}
_THIN = 30  # classes that get a thin line of their own


def loss_curves(
    metrics: Sequence[Mapping[str, Any]], path: Path | None = None, quantity: str = "loss"
) -> bytes:
    """Draw each term of the loss over the steps; logarithmic where all values are positive.

    Or of "imbalance": how many times longer the gradient of one class's images is than another's.
    """
    names = list(dict.fromkeys(name for record in metrics for name in part(record, quantity)))
    series = {
        name: _series(metrics, [part(r, quantity).get(name) for r in metrics]) for name in names
    }

    def draw(axes: Axes) -> None:
        ends = []
        for index, (name, (steps, values)) in enumerate(series.items()):
            colour = COLOURS[_LINES[index % len(_LINES)]]
            axes.plot(steps, values, color=colour, linewidth=1.6)
            ends += [(values[-1], name, colour)] if steps else []
        values = [v for _, line in series.values() for v in line]
        if values and min(values) > 0 and max(values) > 3 * min(values):
            log_scale(axes, values)
        _finish_curves(axes, ends)

    return plot(quantity, (NARROW, 3.0), draw, path)


def class_curves(
    metrics: Sequence[Mapping[str, Any]],
    quantity: str,
    counts: Sequence[int] = (),
    path: Path | None = None,
) -> bytes:
    """Draw a per-class quantity over the steps: thin lines are classes, thick ones group means.

    Args:
        metrics: records with ``classes[quantity]``, one value per class.
        quantity: "distance", "amplitude_share", "amplitude_syn" (dashed beside it: real), ...
        counts: training images per class, for head, medium and tail.
    """
    members = size_groups(counts)
    ends: list[tuple[float, str, str]] = []

    def lines(axes: Axes, name: str, dashed: bool) -> None:
        known = [r for r in metrics if isinstance(part(r, "classes").get(name), list)]
        table = [part(r, "classes")[name] for r in known]
        width = max(map(len, table), default=0)
        for group, labels in (members or {"plain": tuple(range(width))}).items():
            for label in labels if not dashed and width <= _THIN else ():
                steps, values = _series(known, [_mean(row, [label]) for row in table])
                axes.plot(steps, values, color=COLOURS[group], linewidth=0.6, alpha=0.35)
            steps, values = _series(known, [_mean(row, labels) for row in table])
            look = ("--", 1.2) if dashed else ("-", 2.0)
            axes.plot(steps, values, look[0], color=COLOURS[group], linewidth=look[1])
            if steps and not dashed:
                title = "class mean" if group == "plain" else group
                ends.append((values[-1], title, COLOURS[group]))

    def draw(axes: Axes) -> None:
        lines(axes, quantity, dashed=False)
        if quantity == "amplitude_syn":
            lines(axes, "amplitude_real", dashed=True)
        if "share" in quantity:
            axes.set_ylim(0, 1)
        _finish_curves(axes, ends)

    return plot(quantity, (NARROW, 3.0), draw, path)


def curve_title(quantity: str) -> str:
    """Heading of a figure of :func:`class_curves`."""
    if quantity.startswith("pull_"):
        return f"Pull of the {quantity[5:].replace('_', ' ')} loss on the images"
    return _TITLES.get(quantity, quantity.replace("_", " ").capitalize())


def per_class_bars(record: Mapping[str, Any], path: Path | None = None) -> bytes:
    """Draw accuracy per class, head first, beside random real images and the full set.

    Classes that came out worse than random real images (as many, or at equal storage) carry a
    triangle.
    """
    means = part(record, "per_class").get("mean") or []
    spread = part(record, "per_class").get("std") or [None] * len(means)
    counts = record.get("train_counts") or [0] * len(means)
    names = record.get("classes") or [str(label) for label in range(len(means))]
    order = sorted(range(len(means)), key=lambda label: (-counts[label], label))
    colours = _colours(counts)
    small = 1 if len(order) <= NAMED else 0.5
    marks = [
        ("random real", "random", "o", 5 * small),
        ("random mosaic", "mosaic", "s", 4.5 * small),
        ("full real", "full", "_", 9 * small),
        ("ceiling", "ceiling", "x", 4 * small),
    ]
    worse = {*below(record, "random"), *below(record, "mosaic")}

    def draw(axes: Axes) -> None:
        places = range(len(order))
        axes.bar(
            places,
            [means[k] or 0.0 for k in order],
            yerr=[spread[k] or 0.0 for k in order],
            color=[colours[k] for k in order],
            error_kw={"ecolor": COLOURS["ink"], "elinewidth": 0.8},
            width=0.72,
        )
        for label, key, marker, diameter in marks:
            other = part(part(record, key), "per_class").get("mean")
            if other and len(other) == len(order):
                heights = [math.nan if other[k] is None else other[k] for k in order]
                axes.plot(
                    places, heights, marker, color=COLOURS["ink"], markerfacecolor="none",
                    markersize=diameter, markeredgewidth=1.3, label=label,
                )  # fmt: skip
        if worse:
            spots = [place for place, k in enumerate(order) if k in worse]
            axes.plot(
                spots, [105.0] * len(spots), "v", color=COLOURS["ink"], markersize=6 * small,
                markeredgewidth=0, label="below random",
            )  # fmt: skip
        name_classes(axes, [names[k] for k in order])
        axes.set_ylim(0, 109 if worse else 104)
        axes.set_ylabel("accuracy, %")
        _legend(axes, counts, marks=True)

    return plot("per-class", (class_width(len(order)), 3.2), draw, path)


def counts_bar(counts: Sequence[int], classes: Sequence[str], path: Path | None = None) -> bytes:
    """Draw the real training images per class on a logarithmic scale, head first."""
    order = sorted(range(len(counts)), key=lambda label: (-counts[label], label))
    colours = _colours(counts)

    def draw(axes: Axes) -> None:
        heights = [counts[k] for k in order]
        bars = axes.bar(range(len(order)), heights, color=[colours[k] for k in order], width=0.72)
        if heights and min(heights) > 0 and max(heights) > min(heights):
            log_scale(axes, heights)
            axes.set_ylim(0.6 * min(heights), 1.9 * max(heights))
        if len(order) <= 16:
            axes.bar_label(bars, fontsize=8.5, color=COLOURS["muted"], padding=2)
        name_classes(axes, [classes[k] for k in order])
        axes.set_ylabel("real images (log)" if axes.get_yscale() == "log" else "real images")
        _legend(axes, counts, marks=False)

    return plot("counts", (class_width(len(order)), 3.2), draw, path)


def _colours(counts: Sequence[int]) -> list[str]:
    by_label = {label: name for name, labels in size_groups(counts).items() for label in labels}
    return [COLOURS[by_label.get(label, "plain")] for label in range(len(counts))]


def _legend(axes: Axes, counts: Sequence[int], *, marks: bool) -> None:
    from matplotlib.patches import Patch

    handles: list[Any] = [Patch(color=COLOURS[group], label=group) for group in size_groups(counts)]
    handles += axes.get_legend_handles_labels()[0] if marks else []
    if handles:
        axes.legend(
            handles=handles, loc="lower left", bbox_to_anchor=(0, 1.0),
            ncols=len(handles) if len(handles) <= 5 else 4,
            handlelength=1.0, columnspacing=1.1, borderpad=0, handletextpad=0.5,
        )  # fmt: skip


def _finish_curves(axes: Axes, ends: Sequence[tuple[float, str, str]]) -> None:
    axes.set_xlabel("step")
    axes.margins(x=0.02)
    name_ends(axes, ends)


def _series(
    records: Sequence[Mapping[str, Any]], values: Sequence[Any]
) -> tuple[list[float], list[float]]:
    """Steps and values, without what is missing or not finite."""
    pairs = [(record.get("step"), value) for record, value in zip(records, values, strict=True)]
    kept = [(s, v) for s, v in pairs if _finite(s) and _finite(v)]
    return [s for s, _ in kept], [v for _, v in kept]


def numbers(values: Any, length: int) -> bool:
    """Whether these are as many finite numbers as expected."""
    return isinstance(values, list) and len(values) == length and all(map(_finite, values))


def _finite(value: Any) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _mean(values: Sequence[Any], labels: Sequence[int]) -> float | None:
    known = [values[label] for label in labels if label < len(values) and _finite(values[label])]
    return sum(known) / len(known) if known else None
