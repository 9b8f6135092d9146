"""Tables: every number with its protocol, in four formats that survive hostile names."""

from __future__ import annotations

import csv
import io
from typing import Any

from potstill.reports import table_text as tables
from potstill.reports.remarks import printed


def record(name: str = "default", digits: str = "1f3c9a20", mean: float = 61.25, **changes: Any):
    return {
        "network": "convnet-d3", "protocol": {"name": name, "hash": digits, "selection": "last"},
        "label_tier": "static", "runs": 3, "receiver_bytes": 30408, "seconds": 12.34,
        "accuracy": {"mean": mean, "std": 0.5, "values": [1, 2, 3]},
        "balanced": {"mean": mean, "std": 0.5},
        "groups": {"head": {"mean": 80.0, "std": 1.0}, "tail": {"mean": 20.0, "std": 2.0}},
        "random": {"accuracy": {"mean": 50.0, "std": 1.5}, "groups": {}},
    } | changes  # fmt: skip


def test_one_row_per_training_set_and_empty_columns_left_out():
    view = {"accuracy": {"mean": 61.0, "std": 0.5}}
    full = {"accuracy": {"mean": 90.0, "std": 0.1}, "protocol": {"name": "full", "hash": "beef"}}
    rows = tables.score_table([record(quantized=view, full=full)])
    names = ["distilled", "distilled, 8-bit", "random real", "full real"]
    assert [row["trained_on"] for row in rows] == names
    assert [row["labels"] for row in rows] == ["static", "static", "hard", "hard"]
    assert [row["bytes"] for row in rows] == [30408, None, None, None]
    assert rows[0]["head"] == {"mean": 80.0, "std": 1.0} and rows[2]["head"] is None
    assert rows[3]["protocol"] == "full [beef]" and rows[2]["protocol"] == "default [1f3c9a20]"
    assert "method" not in rows[0] and "medium" not in rows[0]
    assert all(row.keys() == rows[0].keys() for row in rows)
    assert "method" in tables.score_table([record(method="dm")])[0]


def test_scores_of_different_protocols_are_marked_in_every_format():
    rows = tables.score_table([record(), record("idc", "77aa88bb", 70.0)])
    for write in (tables.plain, tables.markdown, tables.csv, tables.latex):
        for line in write(rows).splitlines():
            if "61.2" in line:
                assert "1f3c9a20" in line and "77aa88bb" not in line
            if "70.0" in line:
                assert "77aa88bb" in line


def test_a_score_chosen_on_the_test_set_says_so():
    best = record()
    best["protocol"] = best["protocol"] | {"selection": "test_max"}
    assert "TEST-MAX" in tables.plain(tables.score_table([best]))
    assert "TEST-MAX" not in tables.plain(tables.score_table([record()]))


def test_balanced_accuracy_only_where_it_differs():
    assert "balanced" not in tables.score_table([record()])[0]
    uneven = record(balanced={"mean": 40.0, "std": 1.0})
    assert tables.score_table([uneven])[0]["balanced"]["mean"] == 40.0


def test_plain_text_is_aligned():
    lines = tables.plain(tables.score_table([record(), record("a-longer-name", mean=5.0)]))
    lines = lines.splitlines()
    ends = {line.index("±") for line in lines if "±" in line}
    assert len(ends) == 1 and set(lines[1]) == {"-", " "}
    assert "61.2 ± 0.5" in lines[2] and "30.4 kB" in lines[2]
    assert tables.plain([]) == ""


def test_csv_has_plain_numbers_and_no_formulas():
    rows = tables.score_table([record(network="=cmd|' /C calc'!A0")])
    read = list(csv.DictReader(io.StringIO(tables.csv(rows))))
    assert float(read[0]["accuracy"]) == 61.25 and float(read[0]["accuracy_std"]) == 0.5
    assert read[0]["bytes"] == "30408" and read[1]["head"] == ""
    assert read[0]["network"].startswith("'=")


def test_markdown_and_latex_escape_names():
    rows = tables.score_table([record(network="a|b_50%\n<i> & $x$")])
    line = tables.markdown(rows).splitlines()[2]
    assert r"a\|b\_50% \<i\> & $x$" in line
    assert line.replace(r"\|", "").count("|") == len(rows[0]) + 1
    text = tables.latex(rows)
    assert r"b\_50\%" in text and r"\& \$x\$" in text and r"$61.2 \pm 0.5$" in text
    assert text.count(r"\\") == len(rows) + 1


def test_mosaic_marks_and_full_epochs_have_their_place():
    full = {"accuracy": {"mean": 90.0, "std": 0.1}}
    full["protocol"] = {"name": "default-full", "hash": "beef", "training": {"epochs": 39}}
    mosaic = {"accuracy": {"mean": 58.0, "std": 1.0}}
    few = {"source": "x", "images": 9, "smallest": 3}
    rows = tables.score_table([record(full=full, mosaic=mosaic, test=few, classes=["a", "b"])])
    assert [row["trained_on"] for row in rows] == [
        "distilled", "random real", "random mosaic", "full real, 39 epochs"
    ]  # fmt: skip
    assert {row["mark"] for row in rows} == {"few test images (3 of a class)"}
    for write in (tables.plain, tables.markdown, tables.csv, tables.latex):
        assert "few test images" in write(rows)
    assert "mark" not in tables.score_table([record()])[0]


def test_the_ceiling_has_a_row_and_everything_its_share_of_it():
    protocol = {"hash": "c0de", "prior": "balanced_softmax", "training": {"epochs": 60}}
    ceiling = {"accuracy": {"mean": 70.0, "std": 0.2}, "protocol": protocol}
    full = {"accuracy": {"mean": 63.0, "std": 0.1}, "protocol": {"hash": "beef"}}
    rows = tables.score_table([record(full=full, ceiling=ceiling, of_ceiling=1.0)])
    assert [row["trained_on"] for row in rows[2:]] == [
        "full real", "ceiling (balanced_softmax), 60 epochs"
    ]  # fmt: skip
    shares = [87.5, 100 * 50 / 70, 90.0, 100.0]
    assert [round(row["of_ceiling"], 9) for row in rows] == [round(share, 9) for share in shares]
    for write, title in (
        (tables.plain, "% of ceiling"), (tables.markdown, "% of ceiling"),
        (tables.latex, r"\% of ceiling"), (tables.csv, "of_ceiling"),
    ):  # fmt: skip
        assert title in write(rows) and "71.4" in write(rows)
    one = tables.score_table([record(full=full, ceiling=full)])  # classes of one size
    assert [row["trained_on"] for row in one] == ["distilled", "random real", "full real"]
    assert "of_ceiling" not in tables.score_table([record()])[0]


def test_groups_of_classes_of_one_size_are_not_shown():
    assert "head" in tables.score_table([record(train_counts=[40, 20])])[0]
    assert "head" not in tables.score_table([record(train_counts=[133, 128])])[0]


def test_the_printed_table_names_classes_below_random():
    worse = record(
        classes=["cat", "dog", "owl"],
        per_class={"mean": [60.0, 50.0, 40.0]},
        random={"accuracy": {"mean": 50.0, "std": 1.0}, "per_class": {"mean": [61.5, 49.0, 45.0]}},
    )
    text = printed([worse])
    assert text.startswith(tables.plain(tables.score_table([worse])))
    assert text.splitlines()[-1] == (
        "Worse than random real images in 2 of 3 classes, in points: owl (-5.0), cat (-1.5)."
    )
    both = printed([worse, worse | {"network": "mlp"}])
    assert "\nconvnet-d3: Worse than" in both and "\nmlp: Worse than" in both
    many = record(
        classes=[str(k) for k in range(12)],
        per_class={"mean": [0.0] * 12},
        random={"accuracy": {"mean": 1.0}, "per_class": {"mean": [1.0] * 12}},
    )
    assert "9 (-1.0) and 2 more." in printed([many])
    assert printed([record()]) == tables.plain(tables.score_table([record()]))
    more = record(updates=400, calibration={"mean": 5.0, "std": 1.0})
    assert "updates" in tables.score_table([more])[0] and "updates" not in printed([more])


def test_any_rows_can_be_printed():
    rows = [{"name": "dm", "year": 2023}, {"name": "csdm", "year": 2025}]
    assert tables.plain(rows).splitlines()[2:] == ["dm    2023", "csdm  2025"]


def test_size_in_words():
    assert [tables.size(n) for n in (12, 30408, 5e6, None)] == ["12 B", "30.4 kB", "5.0 MB", ""]


def test_a_single_student_has_no_spread():
    for std in (None, 0.0):  # 0.0: as older versions wrote it
        alone = {"mean": 61.25, "std": std, "values": [61.25]}
        groups = {"head": {"mean": 80.0, "std": std}}
        rows = tables.score_table(
            [record(accuracy=alone, balanced=alone, groups=groups, random={})]
        )
        for write in (tables.plain, tables.markdown, tables.latex):
            assert "61.2" in write(rows) and "80.0" in write(rows)
            assert "±" not in write(rows) and "pm" not in write(rows)
