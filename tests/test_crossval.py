"""Cross-validation: folds are runs like any other, pooled once all of them are there."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import numpy as np
import pytest

import potstill
from potstill.app import scoring
from potstill.app.cli import main
from potstill.app.crossval import cross_validate, pooled
from potstill.evaluation import PROTOCOLS
from potstill.methods import CATALOGUE, Random
from potstill.run import InputError, Run

WORDS = (
    "crossval random --folds 3 --ipc 2 --student mlp-w8 --protocol quick --runs 2 --device cpu"
    " --quiet"
)


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three uneven classes that a small network tells apart; no test split."""
    quick = PROTOCOLS["quick"]
    monkeypatch.setitem(PROTOCOLS, "quick", quick.with_(epochs=3, name="quick"))
    labels = np.repeat([0, 1, 2], [14, 9, 4])
    noise = np.random.default_rng(0).integers(0, 60, (len(labels), 8, 8))
    images = (noise + 90 * labels[:, None, None]).astype(np.uint8)
    np.savez(tmp_path / "set.npz", images=images, labels=labels, classes=["ant", "bee", "fly"])
    return tmp_path / "set.npz"


def start(source: Path, *more: str) -> int:
    out = source.parent / "cv"
    return main([*shlex.split(WORDS), "--data", str(source), "--out", str(out), *more])


def test_every_image_is_tested_once_and_folds_are_ordinary_runs(source, capsys):
    assert start(source, "--fold-seed", "3", "--full") == 0
    out = source.parent / "cv"
    tested: list[int] = []
    for number in (1, 2, 3):
        place = out / f"fold-{number}-of-3"
        job = json.loads((place / "run.json").read_text())["job"]
        assert (job["data"]["fold"], job["data"]["fold_seed"]) == (f"{number}/3", 3)
        _, held, note = potstill.load_pair(source, fold=(number, 3), seed=3)
        tested += held.indices.tolist()
        (score,) = json.loads((place / "scores.json").read_text())["scores"]
        assert score["test_checksum"] == held.checksum and score["test"]["sentence"] == note
        assert score["test"]["fold"] == f"{number}/3"
        history = json.loads((place / "synthetic" / "provenance.json").read_text())["data"]
        assert history["history"][0]["op"] == "fold"
        assert "look at all folds" in (place / "report.html").read_text()
    assert sorted(tested) == list(range(27))
    pool = json.loads((out / "crossval.json").read_text())
    (score,) = pool["scores"]
    assert pool["folds"] == [f"fold-{k}-of-3" for k in (1, 2, 3)] and pool["method"] == "random"
    assert score["test"]["images"] == 27 and score["test"]["smallest"] == 4
    assert len(score["accuracy"]["values"]) == 3 and score["students"] == 2
    said = capsys.readouterr().out
    assert "every one of 27 images is tested once" in said and "folds" in said.splitlines()[0]
    assert "few test images (4 of a class)" in said and "full real" in said


def test_finished_folds_are_not_repeated_and_the_pool_is_the_same(source, monkeypatch, capsys):
    seen = []
    evaluate_run = scoring.evaluate_run

    def watched(folder: Path, run: Run, **options: object) -> list[object]:
        if len(seen) == stop:
            raise KeyboardInterrupt
        seen.append(folder.name)
        return evaluate_run(folder, run, **options)

    monkeypatch.setattr(scoring, "evaluate_run", watched)
    stop = 1
    assert start(source) == 130
    assert "the same command goes on where this one was" in capsys.readouterr().err
    path = source.parent / "cv" / "crossval.json"
    assert seen == ["fold-1-of-3"] and not path.exists()
    stop = 99
    assert start(source) == 0
    assert seen == ["fold-1-of-3", "fold-2-of-3", "fold-3-of-3"]
    before = path.read_bytes()
    assert start(source) == 0
    assert len(seen) == 3 and path.read_bytes() == before


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--fold", "1/3"], "fold is '1/3'; crossval runs all folds"),
        (["--test", "digits"], "test is 'digits'; crossval tests on the folds"),
        (["--folds", "1"], "--folds is 1; use a whole number from 2 to 1000"),
        (["--folds", "5"], "class 'fly' has 4 image(s), too few for one in each fold; use at most"),
        (["--protocol", "quik"], "did you mean 'quick'"),
        (["--student", "mlb-w8"], "mlb-w8"),
    ],
)
def test_mistakes_are_one_sentence_before_anything_is_written(more, said, source, capsys):
    assert start(source, *more) == 2
    error = capsys.readouterr().err
    assert said in error and "Traceback" not in error
    assert not list((source.parent / "cv").rglob("run.json"))


def test_a_run_folder_is_not_taken_for_that_of_the_folds(source, capsys):
    (source.parent / "cv").mkdir()
    (source.parent / "cv" / "run.json").write_text("{}")
    assert start(source) == 2
    assert "holds a run of its own" in capsys.readouterr().err


def test_the_python_side_takes_what_the_command_takes(source, run):
    data = potstill.Data(data=str(source), imbalance_factor=2)
    (found,) = cross_validate(
        Random(), data, out=source.parent / "py", folds=2, ipc=1, run=run, networks=["mlp-w8"],
        protocol="quick", runs=1,
    )  # fmt: skip
    assert found["test"]["images"] == 27  # test images are not cut
    assert max(found["train_counts"]) == 7
    with pytest.raises(InputError, match="crossval runs all folds"):
        cross_validate(Random(), potstill.Data(fold="1/2"), out=source.parent / "py")


def fold(mean: float, per_class: list[float | None], counts: list[int], images: int) -> dict:
    part = {
        "accuracy": {"mean": mean}, "balanced": {"mean": mean + 1},
        "per_class": {"mean": per_class}, "calibration": {"mean": mean / 10},
    }  # fmt: skip
    return part | {
        "network": "mlp", "protocol": {"name": "quick", "hash": "x"}, "label_tier": "hard",
        "classes": ["a", "b", "c"], "chosen": False, "receiver_bytes": 9, "runs": 5,
        "train_counts": counts, "artifact": "0", "seconds": 1.5, "random": part, "mosaic": None,
        "quantized": None, "ceiling": {"protocol": {"name": "c", "hash": "y"}} | part,
        "full": part | {"protocol": {"name": "f", "hash": str(mean), "training": {"epochs": 9}}},
        "test": {"source": "s", "images": images, "smallest": 2, "sentence": ""},
    }  # fmt: skip


def test_means_and_spreads_are_over_folds():
    found = pooled(
        [
            fold(80.0, [90.0, None, 10.0], [40, 20, 4], 9),
            fold(60.0, [70.0, 50.0, 30.0], [41, 21, 4], 8),
        ]
    )
    assert found["accuracy"] == {"mean": 70.0, "std": pytest.approx(200**0.5), "values": [80, 60]}
    assert found["balanced"]["mean"] == 71.0
    assert found["per_class"]["mean"] == [80.0, None, 20.0]
    assert found["groups"]["tail"]["mean"] == 20.0 and found["train_counts"] == [40, 20, 4]
    assert found["shots"]["few"]["mean"] == 20.0 and found["calibration"]["values"] == [8.0, 6.0]
    assert found["random"]["accuracy"]["mean"] == 70.0 and found["mosaic"] is None
    assert found["full"]["protocol"]["hash"] == "one for each fold"
    assert found["ceiling"]["protocol"]["name"] == "c" and found["of_ceiling"] == 100
    assert found["test"]["images"] == 17 and found["test"]["smallest"] == 4


@pytest.mark.parametrize("name", CATALOGUE)
def test_every_method_can_be_cross_validated(name, capsys):
    """Flags of students and those of the method's own networks have names of their own."""
    assert main(["crossval", name, "--help"]) == 0
    text = capsys.readouterr().out
    assert "--student" in text and "--folds" in text
    if "network" in CATALOGUE[name].budget("quick").fields():
        assert "--network STR" in text
