"""Figures: they show what is in the records, whatever names and gaps the records have."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree

import pytest

from potstill.reports import figures
from potstill.reports.style import COLOURS

NAMES = ["a $x$ <b>", "猫\x00", "plain", "a name much longer than sixteen letters"]
COUNTS = [5, 40, 400, 20]


def metrics(classes: int = 4):
    return [
        {
            "step": step,
            "loss": {"match": 10.0 / (step + 1), "calibration": 0.1},
            "classes": {
                "distance": [float(label + step) for label in range(classes)],
                "amplitude_syn": [0.2] * classes,
                "amplitude_real": [0.3] * classes,
            },
        }
        for step in range(4)
    ]


def record():
    return {
        "per_class": {"mean": [10.0, 50.0, None, 30.0], "std": [1.0, 2.0, None, 3.0]},
        "train_counts": COUNTS,
        "classes": NAMES,
        "random": {"per_class": {"mean": [5.0, 40.0, 70.0, 20.0]}},
    }


def texts(svg: bytes) -> list[str]:
    tree = ElementTree.fromstring(svg)
    return ["".join(node.itertext()) for node in tree.iter() if node.tag.endswith("}text")]


def paths(svg: bytes, colour: str, dashed: bool = False) -> int:
    strokes = re.findall(rb'style="fill: none;([^"]*)stroke: ' + colour.encode(), svg)
    return sum((b"dasharray" in stroke) == dashed for stroke in strokes)


def test_classes_of_about_one_size_have_no_groups():
    about = record() | {"train_counts": [128, 132, 127, 133]}
    for svg in (figures.per_class_bars(about), figures.counts_bar([128, 132, 127, 133], NAMES)):
        assert not {"head", "medium", "tail"} & set(texts(svg))
        assert COLOURS["plain"].encode() in svg and COLOURS["tail"].encode() not in svg


def test_classes_below_random_carry_a_triangle():
    assert "below random" not in texts(figures.per_class_bars(record()))
    worse = record() | {"random": {"per_class": {"mean": [5.0, 61.0, 70.0, 20.0]}}}
    assert "below random" in texts(figures.per_class_bars(worse))
    worse = record() | {"mosaic": {"per_class": {"mean": [5.0, 61.0, 70.0, 31.0]}}}
    found = texts(figures.per_class_bars(worse))
    assert "below random" in found and "random mosaic" in found


def test_loss_curves_name_each_term_and_repeat_exactly():
    svg = figures.loss_curves(metrics())
    assert {"match", "calibration", "step"} <= set(texts(svg))
    assert svg == figures.loss_curves(metrics())
    assert svg != figures.loss_curves(metrics()[:3])


def test_class_curves_draw_classes_group_means_and_the_real_amplitude():
    svg = figures.class_curves(metrics(), "distance", COUNTS)
    assert {"head", "medium", "tail"} <= set(texts(svg))
    assert paths(svg, COLOURS["medium"]) == 3  # two classes and their mean
    svg = figures.class_curves(metrics(), "amplitude_syn", COUNTS)
    assert paths(svg, COLOURS["tail"], dashed=True) == 1
    balanced = figures.class_curves(metrics(), "distance")
    assert "class mean" in texts(balanced) and paths(balanced, COLOURS["plain"]) == 5
    many = figures.class_curves(metrics(60), "distance")
    assert paths(many, COLOURS["plain"]) == 1  # a line per class would be a smear


def test_per_class_bars_stand_in_order_of_counts_with_their_colours():
    svg = figures.per_class_bars(record())
    found = texts(svg)
    assert "a $x$ <b>" in found  # neither mathematics nor markup
    assert "a name much lon…" in found and "random real" in found and "full real" not in found
    assert found.index("plain") < found.index("猫 ") < found.index("a $x$ <b>")
    bars = re.findall(rb'style="fill: (#\w+)"', svg)
    assert [c.decode() for c in bars] == [COLOURS[g] for g in ("head", "medium", "medium", "tail")]


def test_counts_bar_shows_the_numbers():
    found = texts(figures.counts_bar(COUNTS, NAMES))
    assert {"400", "40", "20", "5"} <= set(found)
    assert "50 classes, most real images first" in texts(figures.counts_bar([3] * 50, ["x"] * 50))


@pytest.mark.parametrize(
    "draw", [figures.loss_curves, lambda m: figures.class_curves(m, "distance")]
)
def test_gaps_in_the_metrics_are_left_out(draw):
    broken = [
        *metrics(),
        {"step": 9},
        {
            "step": 10,
            "loss": {"match": float("nan")},
            "classes": {"distance": [None, float("inf")]},
        },
        {"loss": {"match": 1.0}},
    ]
    assert draw(broken) == draw(metrics())
    assert draw([]).startswith(b"<?xml")


def test_other_formats_by_suffix(tmp_path):
    figures.counts_bar(COUNTS, NAMES, tmp_path / "a.png")
    figures.counts_bar(COUNTS, NAMES, tmp_path / "a.pdf")
    assert (tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG"
    assert (tmp_path / "a.pdf").read_bytes()[:4] == b"%PDF"


def test_no_global_state_is_left(make_blobs):
    import sys

    import matplotlib

    before = dict(matplotlib.rcParams)
    figures.counts_bar(COUNTS, NAMES)
    assert dict(matplotlib.rcParams) == before
    assert (
        "matplotlib.pyplot" not in sys.modules or not sys.modules["matplotlib.pyplot"].get_fignums()
    )
