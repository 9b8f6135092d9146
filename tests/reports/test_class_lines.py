"""Lines over classes: largest class first, the values of the records, gaps where none is known."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree

import pytest
import torch

from potstill.reports import class_lines
from potstill.reports.style import COLOURS

COUNTS = [3, 40, 9]
NAMES = ["a", "b", "c"]


def texts(svg: bytes) -> list[str]:
    tree = ElementTree.fromstring(svg)
    return ["".join(node.itertext()) for node in tree.iter() if node.tag.endswith("}text")]


def heights(svg: bytes, colour: str) -> list[float]:
    """Vertical places of the line of a colour, upward, from class to class."""
    line = re.search(rb'<path d="([^"]*)"[^>]*style="fill: none; stroke: ' + colour.encode(), svg)
    assert line, colour
    return [-float(y) for _, y in re.findall(rb"[ML] ([\d.]+) ([\d.]+)", line[1])]


def test_norms_are_drawn_from_the_largest_class_to_the_smallest():
    norms = {"representation": [1.0, 3.0, 2.0], "classifier": [2.0, 2.0, 2.0]}
    svg = class_lines.classifier_norms(norms, COUNTS, NAMES)
    assert {"representation", "classifier"} <= set(texts(svg))
    assert [t for t in texts(svg) if t in NAMES] == ["b", "c", "a"]
    high, middle, low = heights(svg, COLOURS["head"])  # 3, 2, 1 in this order
    assert high - middle == pytest.approx(middle - low, rel=1e-3) and high > low
    flat = heights(svg, COLOURS["tail"])
    assert flat == pytest.approx([flat[0]] * 3) and flat[0] == pytest.approx(middle, rel=1e-3)


def test_confidence_is_the_mean_of_the_largest_and_of_the_own_entry():
    soft = torch.tensor(
        [[0.2, 0.8, 0.0], [0.6, 0.2, 0.2], [0.0, 1.0, 0.0], [0.1, 0.1, 0.8], [0.3, 0.4, 0.3]]
    )
    labels = torch.tensor([0, 0, 1, 2, 2])
    svg = class_lines.label_confidence(soft, labels, COUNTS, NAMES)
    largest, own = heights(svg, COLOURS["head"]), heights(svg, COLOURS["tail"])
    # largest: b 1, c 0.6, a 0.7; own class: b 1, c 0.55, a 0.4
    assert largest[0] == pytest.approx(own[0])
    unit = (largest[0] - largest[1]) / 0.4
    assert (largest[0] - largest[2]) / unit == pytest.approx(0.3, abs=1e-3)
    assert (own[0] - own[1]) / unit == pytest.approx(0.45, abs=1e-3)
    assert (own[0] - own[2]) / unit == pytest.approx(0.6, abs=1e-3)


def test_a_class_without_images_or_score_is_a_gap():
    soft, labels = torch.eye(3)[:2], torch.tensor([0, 1])
    assert len(heights(class_lines.label_confidence(soft, labels, COUNTS, NAMES), "#2b6a8a")) == 2
    records = {"x": {"per_class": {"mean": [1.0, 2.0, None], "std": [0.1, 0.1, None]}}}
    svg = class_lines.accuracy_lines(records, [9, 40, 3], NAMES)
    assert len(heights(svg, COLOURS["head"])) == 2


def test_spread_is_a_band_unless_there_was_one_student():
    record = {"per_class": {"mean": [10.0, 50.0, 30.0], "std": [1.0, 2.0, 3.0]}, "runs": 3}
    band = b"fill-opacity: 0.13"
    assert band in class_lines.accuracy_lines({"x": record}, COUNTS, NAMES)
    assert band not in class_lines.accuracy_lines({"x": record | {"runs": 1}}, COUNTS, NAMES)


def test_many_lines_and_many_classes_stay_apart(tmp_path):
    records = {f"run {i}": {"per_class": {"mean": [float(i)] * 100}} for i in range(9)}
    path = tmp_path / "lines.png"
    svg = class_lines.accuracy_lines(records, list(range(100)), [str(i) for i in range(100)], path)
    assert {f"run {i}" for i in range(9)} <= set(texts(svg))
    assert "100 classes, most real images first; thick: mean over 5 classes" in texts(svg)
    assert path.read_bytes().startswith(b"\x89PNG")
    assert b"stroke-dasharray" in svg  # colours come again, dashed


def test_many_classes_are_averaged_with_their_neighbours():
    """A line per class, thin, and a thick one; no band, which would be a smear."""
    means: list[float | None] = [0.0, 10.0] * 25
    record = {"per_class": {"mean": means, "std": [1.0] * 50}}
    names = [str(i) for i in range(50)]
    svg = class_lines.accuracy_lines({"x": record}, list(range(50, 0, -1)), names)
    assert b"fill-opacity: 0.13" not in svg
    lines = re.findall(rb'<path d="([^"]*)"[^>]*style="fill: none; stroke: #2b6a8a', svg)
    raw, smooth = ([float(y) for _, y in re.findall(rb"[ML] ([\d.]+) ([\d.]+)", d)] for d in lines)
    assert max(smooth) - min(smooth) < 0.6 * (max(raw) - min(raw))
    ten = (max(raw) - min(raw)) / 10
    # 10 classes in order of counts: means of (0, 10), (0, 10, 0), (10, 0, 10), ...
    expected = [5.0, 10 / 3, 20 / 3]
    assert [(max(raw) - y) / ten for y in smooth[:3]] == pytest.approx(expected, abs=0.02)
    means[1] = None
    svg = class_lines.accuracy_lines({"x": record}, list(range(50, 0, -1)), names)
    assert b"nan" not in svg
