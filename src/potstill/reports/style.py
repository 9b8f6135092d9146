"""The look of all plots: few colours, thin rules, plain numbers."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from potstill.run.checkpoint import write_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "COLOURS",
    "NAMED",
    "NARROW",
    "class_width",
    "log_scale",
    "name_classes",
    "name_ends",
    "plot",
    "short",
]

NARROW = 5.2  # inches; half of the page, and readable on a phone
NAMED = 40  # classes whose names still fit under their bars

COLOURS = {  # told apart by colour-blind readers and in grey print
    "ink": "#2a2420",
    "muted": "#857a6f",
    "rule": "#e2d9cd",
    "head": "#2b6a8a",
    "medium": "#c58a17",
    "tail": "#b8452b",
    "plain": "#9a5b2e",
    "second": "#4f7d4a",
    "third": "#7a5aa0",
}


def plot(
    name: str, inches: tuple[float, float], draw: Callable[[Axes], None], path: Path | None
) -> bytes:
    """Draw on fresh axes; return SVG, and write ``path`` in the format of its suffix.

    No pyplot: nothing global is left behind.
    """
    import matplotlib
    from matplotlib.figure import Figure

    # The salt makes element names repeatable and different between figures on one page.
    style: Any = {"svg.fonttype": "none", "svg.hashsalt": name, "font.size": 9.5}
    style |= {"font.family": "sans-serif", "font.sans-serif": ["DejaVu Sans"]}  # matplotlib's own
    style |= {"axes.edgecolor": COLOURS["muted"], "text.color": COLOURS["ink"]}
    style |= {f"axes.spines.{side}": False for side in ("top", "right", "left")}
    style |= {f"{axis}tick.color": COLOURS["muted"] for axis in "xy"}
    style |= {"axes.labelcolor": COLOURS["muted"], "grid.color": COLOURS["rule"]}
    style |= {"axes.grid": True, "axes.grid.axis": "y", "axes.axisbelow": True}
    style |= {"ytick.major.size": 0, "ytick.minor.size": 0, "legend.frameon": False}
    with matplotlib.rc_context(style), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # the reader's fonts decide
        figure = Figure(figsize=inches, layout="constrained")
        draw(figure.add_subplot())
        stream = io.BytesIO()
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
        if path is not None:
            suffix = Path(path).suffix[1:].lower() or "svg"
            other = io.BytesIO()
            figure.savefig(other, format=suffix, dpi=200)
            write_bytes(Path(path), other.getvalue())
    return stream.getvalue()


def log_scale(axes: Axes, values: Sequence[float]) -> None:
    """Logarithmic, with plain numbers at 1, 2, 5 where few decades leave room for them."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    few = max(values) < 300 * min(values)
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if few else (1,)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(NullLocator())


def short(name: Any, limit: int = 16) -> str:
    """A class name that neither XML nor the layout stumbles over."""
    name = "".join(letter if letter.isprintable() else " " for letter in str(name))
    return name if len(name) <= limit else name[: limit - 1] + "…"


def class_width(bars: int) -> float:
    """Inches: half the page up to 12 bars, then growing to the whole."""
    return NARROW if bars <= 12 else min(11.0, max(NARROW, 1.4 + 0.32 * bars))


def name_classes(axes: Axes, names: Sequence[str]) -> None:
    """Write class names under the bars, or only how many classes there are."""
    if len(names) > NAMED:
        axes.set_xticks([])
        axes.margins(x=0.01)
        axes.set_xlabel(f"{len(names)} classes, most real images first")
        return
    turned = max((len(n) for n in names), default=0) > 3
    axes.set_xticks(
        range(len(names)), [short(name) for name in names], parse_math=False,
        rotation=38 if turned else 0, ha="right" if turned else "center", rotation_mode="anchor",
    )  # fmt: skip
    axes.tick_params(axis="x", length=0)


def name_ends(axes: Axes, ends: Sequence[tuple[float, str, str]], limit: int = 16) -> None:
    """Name each line where it ends (value, name, colour), moved apart where names would touch."""
    to_axes = axes.transData + axes.transAxes.inverted()
    left = axes.get_xlim()[0]
    lowest, apart = -math.inf, 0.075  # of the height of the axes: one line of text
    for value, name, colour in sorted(ends):
        lowest = max(float(to_axes.transform((left, value))[1]), lowest + apart)
        axes.annotate(
            short(name, limit), (1, lowest), xycoords="axes fraction", xytext=(4, 0), color=colour,
            textcoords="offset points", va="center", parse_math=False, annotation_clip=False,
        )  # fmt: skip
