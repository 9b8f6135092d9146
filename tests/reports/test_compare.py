"""The comparison: every number with its conditions, unlike conditions marked, names as text."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from potstill.reports import compare
from potstill.run import ArtifactError, InputError, StorageError

EVIL = "<script>alert(1)</script>"
CLASSES = ["crow", "wren", EVIL]


class Page(HTMLParser):
    """Tags with attributes, and text, of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, Any]]] = []
        self.words: list[str] = []
        self.styled = False
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append((tag, dict(attrs)))
        self.styled = tag == "style"

    def handle_data(self, data: str) -> None:
        self.words += [] if self.styled else [data]
        self.styled = False

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def all(self, tag: str) -> list[dict[str, Any]]:
        return [attrs for name, attrs in self.tags if name == tag]


def score(mean: Any, network: str = "convnet-in", **changes: Any) -> dict[str, Any]:
    middle = mean if isinstance(mean, float) else 50.0
    spread = {"mean": [middle + 9, middle, middle - 9], "std": [1.0, 2.0, 3.0]}
    return {
        "network": network,
        "protocol": {"name": "lad", "hash": "aaaa0001", "selection": "last"},
        "label_tier": "hard", "runs": 3, "artifact": "one", "receiver_bytes": 2300,
        "accuracy": {"mean": mean, "std": 0.5, "values": [1, 2, 3]}, "per_class": spread,
        "classes": CLASSES, "train_counts": [3, 40, 9], "device": "Some CPU",
        "test_checksum": "t1", "train_checksum": "r1",
        "random": {"accuracy": {"mean": 55.0, "std": 2.0, "values": [1, 2, 3]}},
    } | changes  # fmt: skip


def made(place: Path, *scores: Any, method: str = "csdm", **fields: Any) -> Path:
    """A finished run with these scores."""
    (place / "synthetic").mkdir(parents=True)
    (place / "synthetic" / "synthetic.safetensors").write_bytes(b"not read")
    job = {"method": method, "fields": fields, "ipc": 2, "seed": 0,
           "data": {"data": EVIL, "imbalance_factor": 13.0}}  # fmt: skip
    facts = {"artifact": {"checksum": "one"}, "seconds": 61.0, "device": "Some CPU"}
    run = {"status": "finished", "job": job, "artifact": "one"}
    (place / "run.json").write_text(json.dumps(run))
    (place / "synthetic" / "provenance.json").write_text(json.dumps(facts))
    (place / "scores.json").write_text(json.dumps({"scores": list(scores)}))
    return place


def test_a_ceiling_measured_beside_one_run_serves_all_of_its_data(tmp_path):
    ceiling = {"accuracy": {"mean": 80.0, "std": None}, "protocol": {"name": "c", "hash": "c1"}}
    a = made(tmp_path / "a", score(40.0, ceiling=ceiling), score(50.0, "vgg11-in"))
    b = made(tmp_path / "b", score(60.0), method="lad")
    c = made(tmp_path / "c", score(72.0, test_checksum="t2"), method="dm")
    text = Page(compare([a, b, c], tmp_path / "page.html")).text
    assert "40.0 ± 0.5 50.0 % of the ceiling" in text and "60.0 ± 0.5 75.0 % of the" in text
    assert text.count("% of the ceiling") == 2 and "debiased (ceiling) c [c1]" in text


def test_groups_and_the_start_stand_with_a_score(tmp_path):
    groups = {
        name: {"mean": 10.0 * k, "std": 1.0} for k, name in enumerate(("head", "medium", "tail"))
    }
    start = {"accuracy": {"mean": 31.5, "std": 0.5, "values": [31, 32]}}
    a = made(tmp_path / "a", score(40.0, groups=groups, start=start))
    b = made(tmp_path / "b", score(50.0), method="lad")
    text = Page(compare([a, b], tmp_path / "page.html")).text
    assert "40.0 ± 0.5 0.0 / 10.0 / 20.0 +8.5" in text and "over its start (31.5 ± 0.5)" in text
    assert text.count(" / ") == 2


def test_methods_stand_in_rows_and_networks_in_columns(tmp_path):
    a = made(tmp_path / "a", score(40.0), score(61.25), score(30.0, "vgg11-in"), steps=5, span=2)
    b = made(tmp_path / "b", score(70.0), score(20.0, "alexnet"), method="lad", steps=9, tau=1.0)
    path = compare([a, b], tmp_path / "deep" / "page.html")
    assert path == tmp_path / "deep" / "page.html"
    page = Page(path)
    text = page.text
    header = "Method, protocol convnet-in vgg11-in alexnet labels receiver needs scored on"
    assert header in text
    # the newest score of a network; a dash where a run has none
    assert "csdm lad [aaaa0001] 61.2 ± 0.5 30.0 ± 0.5 – hard 2.3 kB 3 students Some CPU" in text
    assert "lad lad [aaaa0001] 70.0 ± 0.5 – 20.0 ± 0.5 hard 2.3 kB 3 students Some CPU" in text
    assert "40.0" not in text
    # equal references once, beside both
    assert text.count("random real images") == 1 and "beside csdm, lad" in text
    assert "other " not in text and "Not all rows" not in text
    best = [attrs for attrs in page.all("td") if "best" in attrs.get("class", "")]
    assert len(best) == 1  # only convnet-in has two scores
    # settings: what both have and differs, nothing else
    assert "steps 5" in text and "steps 9" in text
    assert "span" not in text and "tau" not in text
    assert (
        "cut to imbalance factor 13 (exponential profile) and has factor 13.33: 3 to 40 images per "
        "class. 2 stored images per class; csdm; made in 1 min 01 s"
    ) in text


def test_page_is_self_contained_and_names_are_text(tmp_path):
    path = compare([made(tmp_path / "a", score(1.0), method=EVIL)], tmp_path / "page.html")
    page = Page(path)
    assert not page.all("script") and not page.all("link") and EVIL in page.text
    for name, attrs in page.tags:
        for key in ("src", "href", "xlink:href"):
            assert str(attrs.get(key, "data:")).startswith(("data:", "#")), (name, attrs)
    policy = next(m["content"] for m in page.all("meta") if "http-equiv" in m)
    assert policy.startswith("default-src 'none'")


@pytest.mark.parametrize(
    ("changes", "mark", "differ"),
    [
        ({"protocol": {"name": "lad", "hash": "aaaa0002"}}, "other protocol", "Protocols"),
        ({"test_checksum": "t2"}, "other test images", "Test images"),
        ({"train_checksum": "r2"}, "other training images", "Training images"),
        ({"label_tier": "static"}, "other label tier", "Label tiers"),
    ],
)
def test_unlike_conditions_are_marked(changes, mark, differ, tmp_path):
    a = made(tmp_path / "a", score(50.0))
    b = made(tmp_path / "b", score(99.0, **changes), method="lad")
    page = Page(compare([a, b], tmp_path / "page.html"))
    assert page.text.count(mark) == 1 and f"{mark} 99.0" in page.text
    assert f"Not all rows can be compared. {differ} differ" in page.text
    assert not [t for t in page.all("td") if "best" in t.get("class", "")]


def test_scores_under_two_protocols_are_two_rows(tmp_path):
    best = {"name": "lad-published", "hash": "bbbb0001", "selection": "test_max_iterates"}
    one = {"mean": 77.0, "std": 0.0, "values": [77.0]}
    a = made(tmp_path / "a", score(50.0), score(0, protocol=best, accuracy=one, runs=1))
    text = Page(compare([a], tmp_path / "page.html")).text
    assert "csdm lad [aaaa0001] 50.0 ± 0.5 hard" in text
    assert (
        "csdm lad-published [bbbb0001] TEST-MAX other protocol 77.0 hard 2.3 kB 1 student " in text
    )
    assert "csdm, lad " in text and "csdm, lad-published " in text  # lines of the figure


def test_runs_of_one_method_are_told_apart(tmp_path):
    same = [made(tmp_path / "x" / "r", score(1.0)), made(tmp_path / "y" / "r", score(2.0))]
    other = made(tmp_path / "z", score(3.0))
    text = Page(compare([*same, other], tmp_path / "page.html")).text
    assert f"csdm ({tmp_path / 'x' / 'r'})" in text and f"csdm ({tmp_path / 'y' / 'r'})" in text
    assert "csdm (z)" in text


def test_references_that_differ_are_kept_apart(tmp_path):
    lower = {"accuracy": {"mean": 44.0, "std": 1.0, "values": [1, 2]}}
    a = made(tmp_path / "a", score(50.0))
    b = made(tmp_path / "b", score(60.0, random=lower), score(1, "alexnet"), method="lad")
    text = Page(compare([a, b], tmp_path / "page.html")).text
    assert text.count("random real images") == 2 and "44.0 ± 1.0" in text


def test_scores_of_an_earlier_artifact_are_left_out(tmp_path):
    a = made(tmp_path / "a", score(50.0), score(99.0, artifact="two"))
    assert "99.0" not in Page(compare([a], tmp_path / "page.html")).text


def test_what_cannot_be_compared_is_one_sentence(tmp_path):
    good = made(tmp_path / "good", score(1.0))
    bare = made(tmp_path / "bare")
    with pytest.raises(InputError, match=r"bare has no scores; .*potstill evaluate .*bare$"):
        compare([good, bare], tmp_path / "page.html")
    with pytest.raises(InputError, match="has no scores"):
        compare([made(tmp_path / "old", score(1.0, artifact="two"))], tmp_path / "page.html")
    with pytest.raises(InputError, match="does not exist"):
        compare([tmp_path / "nowhere"], tmp_path / "page.html")
    with pytest.raises(InputError, match="given twice"):
        compare([good, good], tmp_path / "page.html")
    with pytest.raises(InputError, match="no run to compare"):
        compare([], tmp_path / "page.html")
    (bare / "scores.json").write_text("{")
    with pytest.raises(ArtifactError, match=r"scores\.json is damaged"):
        compare([bare], tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError):
        compare([good], tmp_path / "file" / "page.html")


def test_incomplete_records_do_not_stop_the_page(tmp_path):
    odd = [{"accuracy": {"mean": 1.5}}, score(2.0, per_class={"mean": [1]})]
    odd += [{k: v for k, v in score(3.0).items() if k not in ("classes", "train_counts")}]
    for index, record in enumerate(odd):
        compare([made(tmp_path / str(index), {}, record)], tmp_path / f"{index}.html")


@pytest.mark.parametrize(
    ("record", "said"),
    [
        (None, "record is null, not a table"),
        (score(2.0, random=3), "random is 3, not a table"),
        (score(3.0, classes=None), "classes is null, not a list"),
        (score(4.0, train_counts="3"), 'train_counts is "3", not a list'),
        (score("high"), 'accuracy.mean is "high", not a number'),
    ],
)
def test_wrong_types_are_one_sentence(record, said, tmp_path):
    a = made(tmp_path / "a", {**score(1.0)}, record)
    with pytest.raises(ArtifactError, match=rf"scores\.json is damaged \(record 2: {said}\)"):
        compare([a], tmp_path / "page.html")


def test_mosaics_and_classes_below_the_references_are_named(tmp_path):
    low, high = [60.0, 45.0, 41.0], [59.0, 51.0, 44.0]
    beside = {
        "random": {"accuracy": {"mean": 48.7, "std": 2.0}, "per_class": {"mean": low}},
        "mosaic": {
            "accuracy": {"mean": 51.3, "std": 2.0}, "per_class": {"mean": high}, "views": 4,
        },
    }  # fmt: skip
    a = made(tmp_path / "a", score(50.0, **beside))
    text = Page(compare([a], tmp_path / "page.html")).text
    assert "50.0 ± 0.5 1 of 3 classes below random 2 of 3 classes below random mosaics" in text
    assert "random real mosaics of equal storage lad [aaaa0001] 51.3 ± 2.0" in text
    # score() has 59, 50 and 41
    said = "csdm: Worse than random real images in 1 of 3 classes, in points: crow (-1.0)."
    assert said in text  # without spreads of the reference, no error
    assert f"in 2 of 3 classes, in points: {EVIL} (-3.0), wren (-1.0)." in text
    assert "2 stored images per class, 4 training images in each" in text


def test_few_test_images_mark_the_row(tmp_path):
    few = score(50.0, test={"source": "x", "images": 12, "smallest": 4})
    text = Page(compare([made(tmp_path / "a", few)], tmp_path / "page.html")).text
    assert "csdm lad [aaaa0001] few test images: 4 of a class 50.0" in text
    assert "one image is 25 points of its accuracy" in text


def test_classes_of_another_data_set_are_not_drawn_into_one_figure(tmp_path):
    a = made(tmp_path / "a", score(50.0))
    b = made(tmp_path / "b", score(60.0, classes=["x", "y", "z"]), method="lad")
    page = Page(compare([a, b], tmp_path / "page.html"))
    figure = page.text.split("Accuracy by class")[1].split("Settings")[0]
    drawn, _, said = figure.partition("Not drawn, because their classes are others: ")
    assert "csdm" in drawn and "lad" not in drawn and "wren" in drawn and "lad." in said
