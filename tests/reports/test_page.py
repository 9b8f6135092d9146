"""The page: self-contained, escaped, and useful at every stage of a run."""

from __future__ import annotations

import json
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch

from potstill.data.transform import Normalize
from potstill.reports import read_run, report, write_card
from potstill.run import ArtifactError, InputError, StorageError
from potstill.synthetic import SyntheticSet, grid

EVIL = "<script>alert(1)</script>"
NAMES = (EVIL, '"><img src=x onerror=alert(1)>', "$\\frac{$", "{{ 7 * 7 }}")
COUNTS = [40, 12, 6, 3]


class Page(HTMLParser):
    """Tags, attributes and text of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, Any]]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "br", "path"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if self.open and self.open[-1] == tag:
            self.open.pop()

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def all(self, tag: str) -> list[dict[str, Any]]:
        return [attrs for name, attrs in self.tags if name == tag]


def synthetic(**provenance: Any) -> SyntheticSet:
    facts = {
        "method": {"name": "csdm", "fields": {"steps": 50, "kernel": EVIL}},
        "data": {"source": EVIL, "counts": COUNTS, "classes": list(NAMES),
                 "imbalance_factor": 40 / 3},
        "ipc": 2, "seconds": 252.0, "device": "Some CPU", "indices": list(range(1000)),
    }  # fmt: skip
    return SyntheticSet(
        images=torch.rand(8, 1, 8, 8, generator=torch.Generator().manual_seed(0)),
        labels=torch.arange(8) // 2,
        classes=NAMES,
        transform=Normalize(torch.tensor([0.5]), torch.tensor([0.2])),
        provenance=facts | provenance,
    )


def score(mean: float = 71.25, **changes: Any) -> dict[str, Any]:
    parts = {"per_class": {"mean": [90.0, 80.0, 70.0, None], "std": [1.0, 1.0, 1.0, None]}}
    return {
        "network": "convnet-d1-w8-in",
        "protocol": {"name": "quick", "hash": "1f3c9a20", "selection": "last",
                     "description": "quick [1f3c9a20]: 9 epochs",
                     "training": {"epochs": 9, "augment": {"ops": ["crop"]}}},
        "label_tier": "hard", "runs": 3, "seed": 0, "artifact": "x", "receiver_bytes": 2300,
        "accuracy": {"mean": mean, "std": 0.5, "values": [1, 2, 3]}, **parts,
        "groups": {"head": {"mean": 90.0, "std": 1.0}, "tail": {"mean": 33.0, "std": 2.0}},
        "classes": list(NAMES), "train_counts": COUNTS, "seconds": 3.2, "device": EVIL,
        "threads": 1, "date": "2026-01-02",
        "test": {"source": "x", "images": 359, "sentence": "held out, " + EVIL},
        "quantized": {"accuracy": {"mean": 70.5, "std": 0.4}},
        "random": {"accuracy": {"mean": 55.0, "std": 2.0}, **parts, "groups": {}},
        "full": {"accuracy": {"mean": 88.0, "std": 0.1},
                 "protocol": {"name": "full", "hash": "beef"}},
    } | changes  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A finished run without scores."""
    place = tmp_path / "run"
    made = synthetic()
    made.save(place / "synthetic")
    job = {
        "method": "csdm", "budget": "quick", "ipc": 2, "seed": 0, "test_note": "held out",
        "data": {"data": EVIL, "imbalance_factor": 13.0, "profile": "exponential", "test": None},
    }  # fmt: skip
    (place / "run.json").write_text(json.dumps({"status": "finished", "job": job}))
    lines = [
        {"step": s, "loss": {"match": 2.0 - s / 50}, "classes": {"distance": [1.0, 2.0, 3.0, 4.0]}}
        for s in range(0, 50, 5)
    ]
    (place / "metrics.jsonl").write_text(
        "".join(json.dumps(line) + "\n" for line in lines) + "{cut"
    )
    for step in (0, 10, 20, 30, 40, 50):
        grid(made.images, made.labels, NAMES, place / "pictures" / f"step-{step:06d}.png")
    grid(made.images, made.labels, NAMES, place / "pictures" / "real.png")
    return place


def with_scores(folder: Path, *records: Any) -> Path:
    (folder / "scores.json").write_text(json.dumps({"scores": list(records)}))
    return folder


def test_page_is_self_contained_and_runs_nothing(folder):
    path = report(with_scores(folder, score()))
    assert path == folder / "report.html"
    page = Page(path)
    assert not page.all("script") and not page.all("link") and not page.all("iframe")
    for name, attrs in page.tags:
        assert not [key for key in attrs if key.startswith("on")], (name, attrs)
        for key in ("src", "href", "xlink:href"):
            assert str(attrs.get(key, "data:")).startswith(("data:", "#")), (name, attrs)
    policy = next(m["content"] for m in page.all("meta") if "http-equiv" in m)
    assert policy.startswith("default-src 'none'")
    assert path.read_text().count("<style>") == 1 and "prefers-color-scheme" in path.read_text()


def test_what_users_named_appears_as_text(folder):
    page = Page(report(with_scores(folder, score())))
    text = page.text
    assert f"{EVIL}, distilled by csdm" in text
    assert f"held out, {EVIL}" in text and "{{ 7 * 7 }}" in text
    assert len(page.all("img")) == 2 + 4  # synthetic, real, four steps


def test_scores_stand_beside_random_full_and_8_bit(folder):
    text = Page(report(with_scores(folder, score(40.0), score()))).text
    for expected in (
        "Accuracy 71.2 ± 0.5 %",
        "Random real images 55.0 ± 2.0 %",
        "All real images 88.0 ± 0.1 %",
        "distilled, 8-bit 70.5 ± 0.4",
        "quick [1f3c9a20]",
        "full [beef]",
        "label tier hard",
        "2.3 kB",
        "61 real images became 8 synthetic ones, 2 per class. The real set is cut to imbalance "
        "factor 13 (exponential profile) and has factor 13.33: 3 to 40 images per class.",
        "Imbalance factor 13.33 largest / smallest class; asked for 13, exponential profile",
        "held out, <script>",
        "training.epochs 9",
        "Some CPU",
        "4 min 12 s",
    ):
        assert expected in text, expected
    assert text.index("distilled 71.2 ± 0.5") < text.index("distilled 40.0 ± 0.5")  # newest first
    assert "best of several looks" not in text
    assert "potstill evaluate" not in text


def test_a_score_chosen_on_the_test_set_is_marked(folder):
    best = score()
    best["protocol"] = best["protocol"] | {"selection": "test_max"}
    assert "best of several looks at the test set" in Page(report(with_scores(folder, best))).text


def test_without_scores_the_page_says_how_to_get_them(folder):
    text = Page(report(folder)).text
    assert f"potstill evaluate {folder}" in text and "has not been evaluated yet" in text
    assert "Real images by class" in text and "Loss by term" in text


def test_every_stage_of_a_run_has_a_page(folder, tmp_path):
    (folder / "run.json").write_text(json.dumps({"status": "running", "job": {"method": "csdm"}}))
    (folder / "synthetic").rename(tmp_path / "aside")
    assert "running, step 45" in Page(report(folder)).text
    (tmp_path / "aside").rename(folder / "synthetic")
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "run.json").write_text(json.dumps({"status": "running", "job": {"method": "csdm"}}))
    assert "A synthetic set, distilled by csdm" in Page(report(bare)).text
    alone = synthetic().save(tmp_path / "alone")
    page = Page(report(alone, tmp_path / "elsewhere" / "page.html"))
    assert "distilled by csdm" in page.text and len(page.all("img")) == 1
    assert not (alone / "report.html").exists()


def test_figures_follow_the_theme_and_keep_their_names_apart(folder):
    path = report(with_scores(folder, score()))
    page = Page(path)
    svgs = [attrs for attrs in page.all("svg") if attrs.get("role") == "img"]
    assert len(svgs) == 4 and all("width" not in attrs for attrs in svgs)
    assert "#2b6a8a" not in path.read_text().split("</style>", 1)[1]
    assert "fill: var(--head)" in path.read_text()


def test_long_lists_are_cut(folder):
    text = Page(report(folder)).text
    assert "(1,000 in all)" in text and "23, … (" in text and ", 500," not in text


def test_unreadable_pictures_are_left_out(folder):
    (folder / "pictures" / "step-000000.png").write_bytes(b"not a picture")
    (folder / "pictures" / "real.png").write_bytes(b"GIF89a")
    assert len(Page(report(folder)).all("img")) == 1 + 3


@pytest.mark.parametrize("name", ["run.json", "scores.json", "synthetic/provenance.json"])
@pytest.mark.parametrize("content", ["{", "[]", "[" * 9000, "\xff"])
def test_damaged_files_are_named(folder, name, content):
    (folder / name).write_bytes(content.encode("latin-1"))
    with pytest.raises(ArtifactError, match=name) as caught:
        report(folder)
    assert "\n" not in str(caught.value)


def test_incomplete_score_records_do_not_stop_the_page(folder):
    odd = [{}, {"accuracy": {"mean": 1.5}}]
    assert "71.2" in Page(report(with_scores(folder, *odd, score()))).text
    text = Page(report(with_scores(folder, score(), *odd))).text
    assert "Accuracy 1.5 %" in text and "71.2" in text


WRONG = [
    (None, "record is null, not a table"),
    (3, "record is 3, not a table"),
    ({"accuracy": 3}, "accuracy is 3, not a table"),
    ({"accuracy": {"mean": "x"}}, 'accuracy.mean is "x", not a number'),
    (score(71.0, per_class={"mean": [1.0, 2.0, 3.0, "x"]}), 'per_class.mean.3 is "x"'),
    (score(71.0, train_counts=["many"] * 4), 'train_counts.0 is "many", not a whole number'),
    (score(71.0, test=None), "test is null, not a table"),
]


@pytest.mark.parametrize(("record", "said"), WRONG)
def test_wrong_types_in_the_scores_are_one_sentence(folder, record, said):
    for act in (report, write_card):
        with pytest.raises(ArtifactError, match=rf"scores\.json is damaged \(record 2: {said}"):
            act(with_scores(folder, score(), record))


def test_scores_that_came_with_an_artifact_are_left_out_where_they_are_wrong(folder):
    path = folder / "synthetic" / "provenance.json"
    facts = json.loads(path.read_text())
    path.write_text(json.dumps(facts | {"scores": [*(record for record, _ in WRONG), score()]}))
    assert "71.2" in Page(report(folder)).text
    path.write_text(json.dumps(facts | {"scores": 3}))
    assert "has not been evaluated yet" in Page(report(folder)).text
    (folder / "scores.json").write_text('{"scores": {}}')
    with pytest.raises(ArtifactError, match=r"scores is no list"):
        report(folder)


def test_strange_provenance_does_not_stop_the_page(folder):
    (folder / "metrics.jsonl").unlink()
    path = folder / "synthetic" / "provenance.json"
    deep: Any = "end"
    for _ in range(300):
        deep = {"d": deep}
    for odd in ({"data": "text", "method": 3}, {"run": [], "seconds": "long", "artifact": 4}):
        path.write_text(json.dumps(odd))
        report(folder)
    path.write_text(json.dumps(deep))
    with pytest.raises(ArtifactError, match=r"provenance\.json is damaged \(nested more than 32"):
        report(folder)


def test_no_run_and_no_place_to_write(folder, tmp_path):
    with pytest.raises(
        InputError, match=r"does not exist; give the folder that `potstill distill`"
    ):
        report(tmp_path / "nowhere")
    with pytest.raises(InputError, match="holds neither a run nor a synthetic set"):
        report(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError):
        report(folder, tmp_path / "file" / "page.html")


def test_same_run_same_page(folder):
    with_scores(folder, score())
    assert report(folder).read_bytes() == report(folder).read_bytes()


def test_write_card_puts_scores_into_card_and_provenance(folder):
    before = SyntheticSet.load(folder)
    card = write_card(with_scores(folder, score()))
    assert "71.2 ± 0.5" in card.read_text() and "55.0 ± 2.0" in card.read_text()
    after = SyntheticSet.load(folder)
    assert after.checksum == before.checksum and after.provenance["scores"] == [score()]
    assert read_run(folder / "synthetic").scores == [score()]
    after.save(folder / "synthetic")
    assert "71.2 ± 0.5" in card.read_text()


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({"status": "running"}, "A newer run in this folder is not finished"),
        ({"status": "finished", "artifact": "0" * 16}, "made another artifact"),
    ],
)
def test_an_earlier_artifact_is_not_shown_as_the_newer_job(folder, record, said):
    with_scores(folder, score(), score(12.3, artifact=read_run(folder).artifact["checksum"]))
    job = {"method": "dm", "ipc": 50, "data": {"data": "digits", "imbalance_factor": 99.0}}
    (folder / "run.json").write_text(json.dumps(record | {"job": job}))
    text = Page(report(folder)).text
    assert said in text and "earlier artifact" in text
    assert f"{EVIL}, distilled by csdm" in text and "2 per class" in text
    assert "99" not in text.split("Scores")[0] and "step 45" not in text
    assert "12.3 ± 0.5" in text and "71.2" not in text
    write_card(folder)
    assert "12.3 ± 0.5" in (folder / "synthetic" / "README.md").read_text()


def test_a_single_student_has_no_spread_on_the_page(folder):
    one = {"mean": 71.2, "std": 0.0, "values": [71.2]}  # as older versions wrote it
    page = Page(report(with_scores(folder, score(accuracy=one, runs=1))))
    assert "Accuracy 71.2 %" in page.text and "71.2 ±" not in page.text


def test_terms_without_classes_and_unknown_quantities_have_their_curves(folder):
    lines = [
        {"step": s, "loss": {"trajectory": 1.0 - s / 50}, "classes": {"pull_trajectory": [1.0] * 4}}
        for s in range(0, 50, 5)
    ]
    lines += [{"step": 50, "loss": {"trajectory": 0.5}}, {"step": 51, "loss": {}, "classes": []}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    text = Page(report(folder)).text
    assert "Loss by term" in text and "Pull of the trajectory loss on the images" in text
    assert "Distance to the real class" not in text


def learned(folder: Path, norms: Any) -> Path:
    """The run again, as a method with experts, soft labels and a learned step size leaves it."""
    made = replace(
        synthetic(experts={"key": "k", "members": 2, "classifier_norms": norms}),
        soft_labels=torch.full((8, 4), 0.1) + 0.6 * torch.eye(4)[torch.arange(8) // 2],
        syn_lr=0.01234567,
    )
    made.save(folder / "synthetic")
    return folder


def test_experts_soft_labels_and_step_size_are_shown_where_they_are_known(folder):
    before = Page(report(folder)).text
    assert "What the tail does" not in before and "Student step size" not in before
    norms = {"representation": [4.0, 3.0, 2.0, 1.0], "classifier": [2.0] * 4}
    text = Page(report(learned(folder, norms))).text
    assert "Student step size 0.01235 learned with the images" in text
    assert "Classifier norms" in text and "representation" in text
    assert "Soft labels" in text and "own class" in text


@pytest.mark.parametrize("norms", [None, 3, {}, {"classifier": [1.0]}, {"x": ["a"] * 4}])
def test_norms_that_cannot_be_drawn_are_left_out(norms, folder):
    text = Page(report(learned(folder, norms))).text
    assert "Classifier norms" not in text and "Soft labels" in text


def test_damaged_tensors_are_named(folder):
    path = folder / "synthetic" / "synthetic.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ArtifactError, match=r"synthetic\.safetensors is damaged"):
        report(folder)


def test_the_best_of_iterates_is_marked_and_not_the_headline(folder):
    protocol = {"name": "lad-published", "hash": "beef0001", "selection": "test_max_iterates"}
    looks = {"best": 500, "looks": 21, "accuracies": {"500": 81.5, "last": 79.0}}
    random = {"accuracy": {"mean": 54.0, "std": 2.0}, "protocol": {"name": "lad", "hash": "cafe"}}
    best = score(81.5, protocol=protocol, iterates=looks, random=random, runs=1)
    text = Page(report(with_scores(folder, score(), best))).text
    assert "Accuracy 71.2 ± 0.5 % convnet-d1-w8-in · quick [1f3c9a20]" in text
    assert "The best of 21 iterates of the distillation: step 500, one student each." in text
    assert "best of several looks" in text and "One student, seed 0" in text
    assert "lad [cafe]" in text and "TEST-MAX" in text
    text = Page(report(with_scores(folder, best))).text  # no other to show
    assert "Accuracy 81.5" in text and "lad-published [beef0001] TEST-MAX" in text
    assert "Random real images 54.0 ± 2.0 % same number; protocol lad [cafe]" in text


def uncut(folder: Path, counts: list[int], history: Any = ()) -> Path:
    """The run again, on real data of these sizes that nobody cut; options as older files have."""
    data = {"source": "birds", "counts": counts, "classes": list(NAMES), "history": list(history),
            "imbalance_factor": max(counts) / min(counts)}  # fmt: skip
    options = {"data": "birds", "imbalance_factor": 1.0, "profile": "exponential"}
    synthetic(data=data, data_options=options).save(folder / "synthetic")
    run = json.loads((folder / "run.json").read_text())
    run["job"]["data"] = options
    (folder / "run.json").write_text(json.dumps(run))
    return folder


def test_a_set_that_nobody_cut_is_called_as_it_is(folder):
    place = with_scores(uncut(folder, [40, 12, 6, 3]), score())
    page, card = Page(report(place)).text, write_card(place).read_text()
    assert "as it is: 3 to 40 images per class, imbalance factor 13.33." in page
    assert "Imbalance factor 13.33 largest / smallest class; as it is" in page
    assert "as it is: 3 to 40 images per class, imbalance factor 13.33" in card
    for text in (page, card):
        assert "exponential" not in text and "cut to" not in text


def test_classes_of_about_one_size_have_no_head_and_no_tail(folder):
    sizes = [133, 128, 131, 130]
    place = with_scores(uncut(folder, sizes), score(train_counts=sizes))
    text = Page(report(place)).text
    assert "as it is: 128 to 133 images per class, imbalance factor 1.039." in text
    for group in ("head", "medium", "tail"):
        assert group not in text.split("Protocol")[0], group
    assert "long-tailed" not in write_card(place).read_text()
    even = with_scores(uncut(folder, [9, 9, 9, 9]), score(train_counts=[9] * 4))
    text = Page(report(even)).text
    assert "The real set is as it is: 9 images per class." in text
    assert "Imbalance factor" not in text.split("The images")[0]


def test_mosaics_stand_beside_and_classes_below_are_named(folder):
    mosaic = {
        "accuracy": {"mean": 60.0, "std": 1.0, "values": [1, 2, 3]}, "images": 25, "views": 4,
        "per_class": {"mean": [95.0, 70.0, 70.5, None], "std": [1.0] * 3 + [None]},
    }  # fmt: skip
    random = score()["random"] | {"images": 7}
    place = with_scores(folder, score(mosaic=mosaic, random=random))
    text = Page(report(place)).text
    assert "Random real mosaics 60.0 ± 1.0 % same storage: 4 small images in each, 25 diff" in text
    assert "Random real images 55.0 ± 2.0 % 7: small classes have no more; same protocol" in text
    assert "random mosaic 60.0 ± 1.0" in text
    said = "Worse than random real mosaics of equal storage in 2 of 4 classes, in points ± "
    assert f"{said}standard error: {EVIL} (-5.0 ± 0.8), $\\frac{{$ (-0.5 ± 0.8)." in text
    assert "Worse than random real images" not in text  # equal is not worse
    card = write_card(place).read_text()
    lines = [line for line in card.split("## Scores")[1].splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in lines}) == 1 and "\n".join(lines) in card
    assert "random mosaics, same storage" in lines[0] and "| 60.0 ± 1.0 |" in lines[2]


def test_few_test_images_are_marked_everywhere(folder):
    place = with_scores(folder, score(test={"source": "x", "images": 12, "smallest": 3}))
    text = Page(report(place)).text
    assert "few test images, 3 of a class" in text and "few test images: 3 of a class" in text
    assert "one image is 33 points of its accuracy" in text
    note = "Held out. Few test images: 3 of the smallest class, so ..."
    test = {"source": "x", "images": 12, "smallest": 3, "sentence": note}
    text = Page(report(with_scores(folder, score(test=test)))).text
    assert text.count("Few test images: 3 of") == 1  # not twice
    assert "few: 3 of a class" in write_card(place).read_text()


def test_the_full_set_names_its_epochs_and_its_own_protocol(folder):
    protocol = {"name": "quick-full", "hash": "beef0002", "training": {"epochs": 5}}
    full = {
        "accuracy": {"mean": 88.0, "std": None, "values": [88.0]}, "protocol": protocol,
        "images": 61,
    }  # fmt: skip
    text = Page(report(with_scores(folder, score(full=full)))).text
    assert "All real images 88.0 % 61 images, 5 epochs; protocol quick-full [beef0002]" in text
    assert "full real, 5 epochs 88.0" in text and "Full real: one student." in text


def test_the_page_shows_the_percent_of_the_ceiling(folder):
    protocol = {
        "name": "ceiling", "hash": "beef0003", "prior": "balanced_softmax",
        "training": {"epochs": 60},
    }  # fmt: skip
    ceiling = {"accuracy": {"mean": 89.0, "std": 0.2}, "protocol": protocol, "images": 61}
    place = with_scores(folder, score(ceiling=ceiling, of_ceiling=80.06))
    text = Page(report(place)).text
    assert "quick [1f3c9a20] · 80.1 % of the ceiling" in text and "% of ceiling" in text
    about = "all real images, balanced_softmax; 61 images, 60 epochs; protocol ceiling [beef0003]"
    assert f"Ceiling 89.0 ± 0.2 % {about}" in text
    assert "ceiling (balanced_softmax), 60 epochs 89.0 ± 0.2 100.0" in text
    card = write_card(place).read_text()
    assert "| ceiling | % of ceiling |" in card
    assert r"| 89.0 ± 0.2 (balanced\_softmax) | 80.1 |" in card
    assert "ceiling |" not in write_card(with_scores(folder, score())).read_text()


def test_a_protocol_lists_what_it_does_for_older_files_too(folder):
    old = score()
    old["protocol"]["training"] = {
        "epochs": 9, "optimizer": "adamw", "momentum": 0.9, "schedule": "cosine", "gamma": 1.0,
        "augment": {"ops": ["crop"], "crop": 0.125, "flip": 0.5},
    }  # fmt: skip
    text = Page(report(with_scores(folder, old))).text
    assert "training.augment.crop 0.125" in text
    for absent in ("augment.flip", "training.momentum", "training.gamma"):
        assert absent not in text


def test_what_was_chosen_is_not_called_distilled(folder):
    synthetic(method={"name": "random", "family": "selection"}).save(folder / "synthetic")
    run = json.loads((folder / "run.json").read_text())
    run["job"]["method"] = "random"
    (folder / "run.json").write_text(json.dumps(run))
    place = with_scores(folder, score(chosen=True))
    page, card = Page(report(place)).text, write_card(place).read_text()
    assert "Of 61 real images, random chose 8, 2 per class." in page
    for text in (page, card):
        assert "chosen by random" in text and "istilled by" not in text
    assert "chosen, 8-bit 70.5" in page and "look like noise" not in card


def test_norms_of_students_and_the_imbalance_of_gradients_are_drawn(folder):
    """LAD's figures 2 and 3; records without them, or with nonsense, have no figure."""
    known = score(classifier_norms=[2.0, 1.5, 1.0, 0.5])
    known["random"]["classifier_norms"] = [1.0, 1.0, 1.0, 1.0]
    known["full"]["classifier_norms"] = [1.0]
    titles = ("Classifier norms of students", "Gradient of the images")
    for record, lines, there in (
        (score(), "", False),
        (known, '{"step": 0, "loss": {}, "imbalance": {"match": 3.5}}\n', True),
    ):
        (folder / "scores.json").write_text(json.dumps({"scores": [record]}))
        with (folder / "metrics.jsonl").open("w") as file:
            file.write(lines + '{"step": 5, "loss": {}, "imbalance": "many"}\n')
        text = Page(report(folder)).text
        assert all((title in text) == there for title in titles)
    assert "synthetic" in text and "random" in text
