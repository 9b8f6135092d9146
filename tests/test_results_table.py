"""Tables in the documents come from the recipes, all of them, and a stale one is found."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from potstill.app.recipe import method_of, read_recipe
from potstill.evaluation import PROTOCOLS
from potstill.run import InputError

ROOT = Path(__file__).parents[1]
RECIPE = """[about]
title = "a cell"
paper_accuracy = 48.9
paper_protocol = "dsa | balanced"
fingerprint = "f1"

[data]
data = "cifar10"
imbalance_factor = 200

[distill]
method = "{method}"
ipc = 10
budget = "quick"

[evaluate]
network = ["convnet-w32-in"]
protocol = "quick"
runs = 5
"""
MEASURED = """
[[measured]]
date = "2026-11-2{day}"
device = "EPYC"
seconds = 121.6
accuracy = {accuracy}
std = 0.44
runs = 5
head = 40.04
medium = 31.0
tail = 20.96
random_accuracy = 25.25
random_std = 1.0
network = "convnet-d3-w32-in"
protocol = "quick"
protocol_hash = "{hash}"
"""


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


results, record = script("results_table"), script("record")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for method in ("csdm", "dm", "random"):
        (tmp_path / "recipes" / method).mkdir(parents=True)
        text = RECIPE.format(method=method)
        if method != "random":
            accuracy = {"csdm": 38.05, "dm": 30}[method]
            text += MEASURED.format(day=1, accuracy=11, hash="aaaa0000")
            text += MEASURED.format(day=2, accuracy=accuracy, hash="aaaa0000")
        (tmp_path / "recipes" / method / "cell.toml").write_text(text)
    (tmp_path / "docs" / "methods").mkdir(parents=True)
    block = "<!-- results{} -->\nold\n<!-- /results -->\n"
    (tmp_path / "README.md").write_text("before\n" + block.format("") + "after\n")
    (tmp_path / "docs" / "results.md").write_text(block.format(""))
    (tmp_path / "docs" / "methods" / "dm.md").write_text(block.format(" dm"))
    return tmp_path


def test_rows_hold_the_newest_measurement_in_the_order_of_the_catalogue(root):
    assert results.main([], root) == 0
    lines = (root / "docs" / "results.md").read_text().splitlines()
    rows = [line for line in lines if line.startswith("| ")]
    assert [row.split(" | ")[0] for row in rows] == ["| method", "| ---", "| dm", "| csdm"]
    assert rows[3] == (
        "| csdm | cifar10 | 200 | 10 | quick | convnet-d3-w32-in | quick `aaaa0000` | "
        "38.0 ± 0.4 (5) | 40.0 / 31.0 / 21.0 | 25.2 ± 1.0 | not measured | "
        "48.9 (dsa \\| balanced) | EPYC, 2026-11-22 | 122 |"
    )
    assert "Written but not measured yet: `random/cell`." in lines
    text = (root / "README.md").read_text()
    assert text.startswith("before\n<!-- results -->\n") and text.endswith("-->\nafter\n")
    assert "old" not in text and "1 recipes (docs/results.md)" in text


def test_a_method_page_holds_its_own_rows_only(root):
    results.main([], root)
    page = (root / "docs" / "methods" / "dm.md").read_text()
    assert "| dm |" in page and "csdm" not in page and "random/" not in page


def column(table: str, title: str) -> list[str]:
    rows = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("|")]
    return [row[rows[0].index(title)] for row in rows[2:]]


def test_mosaics_stand_beside_tiled_rows_only(root):
    (root / "recipes" / "mosaic").mkdir()
    path, csdm = root / "recipes" / "mosaic" / "cell.toml", root / "recipes" / "csdm" / "cell.toml"
    same = RECIPE.format(method="mosaic") + MEASURED.format(day=2, accuracy=33, hash="aaaa0000")
    path.write_text(same)
    # dm stores one image in one; csdm tiles at 32 pixels, like the mosaics themselves
    assert column(results.table(root, None), "mosaic") == ["33.0 ± 0.4", "–", "33.0 ± 0.4"]
    for other in (same.replace("aaaa0000", "bbbb0000"), same.replace("= 200", "= 10"),
                  same.replace("EPYC", "GPU"), same.replace("runs = 5", "runs = 3")):  # fmt: skip
        path.write_text(other)
        assert column(results.table(root, "csdm"), "mosaic") == ["not measured"]
    csdm.write_text(csdm.read_text() + "mosaic_accuracy = 44.4\nmosaic_std = 1.0\nviews = 4\n")
    assert column(results.table(root, "csdm"), "mosaic") == ["44.4 ± 1.0"]
    csdm.write_text(csdm.read_text().replace("views = 4", "views = 1"))  # as on 8-pixel images
    assert "mosaic" not in results.table(root, "csdm").splitlines()[0]


def test_the_factor_of_the_set_stands_beside_the_one_asked_for(root):
    path = root / "recipes" / "dm" / "cell.toml"
    path.write_text(path.read_text() + "imbalance_factor = 208.3333\n")
    assert column(results.table(root, "dm"), "imbalance") == ["208.3 (asked for 200)"]
    path.write_text(path.read_text().replace("208.3333", "200.0"))
    assert column(results.table(root, "dm"), "imbalance") == ["200"]


def test_the_full_set_names_its_epochs_and_hash(root):
    path = root / "recipes" / "dm" / "cell.toml"
    path.write_text(path.read_text() + "full_accuracy = 71.25\n")
    assert column(results.table(root, "dm"), "full") == ["71.2"]
    path.write_text(path.read_text() + 'full_epochs = 39\nfull_hash = "cafe0000"\n')
    assert column(results.table(root, "dm"), "full") == ["71.2 (39 epochs, `cafe0000`)"]


def test_rows_under_another_protocol_or_device_stand_beside_the_old_one(root):
    path = root / "recipes" / "dm" / "cell.toml"
    path.write_text(path.read_text() + MEASURED.format(day=3, accuracy=50.0, hash="bbbb0000"))
    table = results.table(root, "dm")
    assert "30.0 ± 0.4" in table and "50.0 ± 0.4" in table and "11.0" not in table


def test_check_fails_when_stale_and_writes_nothing(root, capsys):
    before = (root / "README.md").read_text()
    assert results.main(["--check"], root) == 1
    assert "README.md is stale" in capsys.readouterr().err
    assert (root / "README.md").read_text() == before
    results.main([], root)
    assert results.main(["--check"], root) == 0


def test_a_measurement_without_its_protocol_is_refused(root):
    path = root / "recipes" / "dm" / "cell.toml"
    path.write_text(path.read_text().replace('protocol_hash = "aaaa0000"\n', "", 1))
    with pytest.raises(InputError, match=r"dm/cell.toml: \[\[measured\]\] 1 lacks protocol_hash"):
        results.table(root, None)


def fake_run(folder: Path, recipe: Path, **changes: Any) -> Path:
    """A run folder with the two files that ``record`` reads."""
    wanted = read_recipe(recipe)
    job = {"method": "dm", "ipc": 10, "seed": 0, "fields": method_of(wanted).fields()}
    job |= {"data": {"data": "elsewhere", "imbalance_factor": 200}, "train_checksum": "t1"}
    data = {"fingerprint": changes.pop("fingerprint", "f1"), "checksum": "t1"}
    changed = changes.pop("score", {})
    job |= changes
    group = {"mean": 40.123, "std": 1.0}
    score = {
        "date": "2026-11-21", "device": 'a "fast" one', "threads": 2, "runs": 5, "artifact": "ab",
        "accuracy": {"mean": 33.456, "std": 0.5}, "groups": {"head": group, "tail": group},
        "network": "convnet-d3-w32-in", "protocol": PROTOCOLS["quick"].to_json(),
        "random": {"accuracy": {"mean": 25.0, "std": 1.25}},
    } | changed  # fmt: skip
    later = score | {"artifact": "another", "accuracy": {"mean": 99.0, "std": 0.5}}
    (folder / "synthetic").mkdir(parents=True)
    run = {"job": job, "seconds": 12.34, "status": "finished", "artifact": "ab"}
    (folder / "run.json").write_text(json.dumps(run))
    (folder / "scores.json").write_text(json.dumps({"scores": [{}, score, later]}))
    made = {"artifact": {"checksum": "ab", "shape": [3, 32, 32]}, "data": data}
    (folder / "synthetic" / "provenance.json").write_text(json.dumps(made))
    return folder


def test_a_ceiling_serves_every_row_of_its_data_and_student(root):
    assert "% of ceiling" not in results.table(root, "dm")
    more = {"ceiling_accuracy": 70.0, "ceiling_std": 0.25, "ceiling_epochs": 60,
            "ceiling_hash": "c0de0000", "ceiling_prior": "balanced_softmax"}  # fmt: skip
    path = root / "recipes" / "random" / "cell.toml"
    path.parent.mkdir(exist_ok=True)
    whole = RECIPE.format(method="random") + MEASURED.format(day=1, accuracy=28.0, hash="other000")
    path.write_text(
        whole + "".join(f"{key} = {json.dumps(value)}\n" for key, value in more.items())
    )
    assert column(results.table(root, "random"), "ceiling") == [
        "70.0 ± 0.2 (balanced_softmax, 60 epochs, `c0de0000`)"
    ]
    assert column(results.table(root, "random"), "% of ceiling") == ["40.0"]
    (own,) = column(results.table(root, "dm"), "accuracy")
    assert column(results.table(root, "dm"), "% of ceiling") == [
        f"{100 * float(own.split(' ')[0]) / 70:.1f}"
    ]
    path.write_text(path.read_text().replace("imbalance_factor = 200", "imbalance_factor = 10"))
    assert "% of ceiling" not in results.table(root, "dm")


def test_record_appends_what_the_table_needs(root):
    recipe = root / "recipes" / "dm" / "cell.toml"
    record.record(fake_run(root / "run", recipe), recipe)
    row = tomllib.loads(recipe.read_text())["measured"][-1]
    assert row["accuracy"] == 33.46 and row["steps"] == 600 and row["seed"] == 0
    assert row["device"] == 'a "fast" one' and row["tail"] == 40.12 and row["random_std"] == 1.25
    assert "33.5 ± 0.5 (5)" in results.table(root, "dm")
    assert row["views"] == 1 and "imbalance_factor" not in row and "mosaic_accuracy" not in row


def test_record_keeps_mosaics_the_full_protocol_and_the_factor_of_the_set(root):
    recipe = root / "recipes" / "dm" / "cell.toml"
    full = {"name": "quick-full", "hash": "cafe0000", "training": {"epochs": 39}}
    more = {
        "mosaic": {"accuracy": {"mean": 30.0, "std": 1.0}, "views": 4},
        "full": {"accuracy": {"mean": 71.25, "std": None}, "protocol": full},
        "ceiling": {"accuracy": {"mean": 75.0, "std": None}, "protocol": full | {"prior": "crt"}},
    }  # fmt: skip
    place = fake_run(root / "run", recipe, score=more)
    path = place / "synthetic" / "provenance.json"
    made = json.loads(path.read_text())
    made["data"]["imbalance_factor"] = 208.333333
    path.write_text(json.dumps(made))
    record.record(place, recipe)
    row = tomllib.loads(recipe.read_text())["measured"][-1]
    assert (row["mosaic_accuracy"], row["mosaic_std"], row["views"]) == (30.0, 1.0, 4)
    assert (row["full_epochs"], row["full_hash"]) == (39, "cafe0000")
    assert (row["ceiling_accuracy"], row["ceiling_prior"]) == (75.0, "crt")
    assert "full_prior" not in row and row["ceiling_epochs"] == 39
    assert row["imbalance_factor"] == 208.33


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"ipc": 1}, "ipc"),
        ({"fields": {"steps": 7}}, "fields"),
        ({"data": {"data": "cifar10", "imbalance_factor": 10}}, "imbalance_factor"),
        ({"data": {"imbalance_factor": 200, "image_size": 16}}, "image_size"),
        ({"fingerprint": "f2"}, "fingerprint"),
        ({"train_checksum": "t2"}, "train_checksum"),
    ],
)
def test_record_refuses_the_run_of_another_job(root, changes, name):
    recipe = root / "recipes" / "dm" / "cell.toml"
    before = recipe.read_text()
    with pytest.raises(InputError, match=f"differs from .* in {name}; give its own run"):
        record.record(fake_run(root / "run", recipe, **changes), recipe)
    assert recipe.read_text() == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"network": "convnet-d3-w128-in"}, "the network of the recipe"),
        ({"protocol": {"name": "quick", "hash": "cccc0000"}}, "the protocol of the recipe"),
        ({"runs": 1}, "the runs of the recipe"),
        ({"train_checksum": "t2"}, "the train_checksum of the recipe"),
        ({"artifact": "old"}, "no score of the run's artifact ab"),
    ],
)
def test_record_refuses_a_score_taken_otherwise(root, change, message):
    recipe = root / "recipes" / "dm" / "cell.toml"
    with pytest.raises(InputError, match=message):
        record.record(fake_run(root / "run", recipe, score=change), recipe)


def test_seeds_of_one_recipe_stand_in_one_row(root):
    recipe = root / "recipes" / "dm" / "cell.toml"
    scores = {0: (50.0, 1.0), 1: (52.0, 2.0), 2: (51.0, 2.0)}
    for seed, (mean, std) in scores.items():
        score = {"accuracy": {"mean": mean, "std": std}}
        record.record(fake_run(root / f"run{seed}", recipe, score=score, seed=seed), recipe)
    # students: mean of squares (1 + 4 + 4) / 3; of the means 50, 52 and 51: 1
    assert f"| 51.0 ± {(3 * 4 / 5 + 1) ** 0.5:.1f} (3 x 5) |" in results.table(root, "dm")
    again = {"accuracy": {"mean": 53.0, "std": 2.0}}
    record.record(fake_run(root / "run3", recipe, score=again, seed=2), recipe)
    assert "| 51.7 ±" in results.table(root, "dm")  # the newest of each seed
    text = recipe.read_text()
    kept, _, last = text.rpartition("[[measured]]")  # a version of the method with other fields
    fields = tomllib.loads(text)["measured"][-1]["fields"]
    recipe.write_text(f"{kept}[[measured]]{last.replace(fields, 'ffff0000')}")
    assert "| 53.0 ± 2.0 (5) |" in results.table(root, "dm")


def test_a_single_student_has_no_spread(root):
    recipe = root / "recipes" / "dm" / "cell.toml"
    text = recipe.read_text()
    recipe.write_text(text.replace("runs = 5\n", "runs = 1\n", 1))
    alone = {"runs": 1, "accuracy": {"mean": 33.4, "std": None}}
    record.record(fake_run(root / "run", recipe, score=alone), recipe)
    assert "std" not in tomllib.loads(recipe.read_text())["measured"][-1]
    assert "| 33.4 (1) |" in results.table(root, "dm")
    alone["accuracy"]["mean"] = 36.4
    record.record(fake_run(root / "run1", recipe, score=alone, seed=1), recipe)
    assert "| 34.9 ± 2.1 (2 x 1) |" in results.table(root, "dm")  # 3 / sqrt(2)


def step_script() -> ModuleType:
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        return script("step")
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))


def test_the_whole_job_counts_the_entries_that_its_steps_look_at(run):
    step = step_script()
    few = step.entries_looked_at(run, 50)
    assert 40 <= few <= 50  # of a window of 200: hardly any twice
    assert 600 < step.entries_looked_at(run) <= 699  # 200 + 499 shifts of the window


def test_uncached_reports_pooling_apart(monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    words = ["uncached.py", "--real", "4", "--width", "4", "--repeats", "1"]
    monkeypatch.setattr(sys, "argv", words)
    script("uncached").main()
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["benchmark"].split("loop ")[1] for line in lines] == [
        "with the same pooling", "with torch's average pooling",
    ]  # fmt: skip


def test_benchmarks_that_know_a_device_are_given_it():
    said = subprocess.run(
        ["make", "-n", "bench", "DEVICE=cuda:7"], cwd=ROOT, capture_output=True, text=True,
        check=True,
    ).stdout  # fmt: skip
    given = [line for line in said.splitlines() if "--device cuda:7" in line]
    named = set(re.findall(r"\b(?:machine|data|memory|uncached|step|students)\b", given[0]))
    assert len(given) == 1 and named == {"uncached", "step", "students"}


def test_the_plain_side_can_be_frozen(run):
    step = step_script()
    method = step.CSDM.budget("quick", members=1, pool_epochs=0, network="convnet-d2-w8-in")
    real = step.fake_cifar(4)
    objective, networks = method.begin(real, 1, run)
    for frozen in (False, True):
        plain = step.PlainNCFM(networks, real, objective.canvas.images.detach(), run, 8, frozen)
        weights = [*plain.net.parameters(), *plain.judge.parameters()]
        assert all(weight.requires_grad != frozen for weight in weights)


def test_students_are_timed_over_a_hundred_epochs(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    seen: list[Any] = []
    students = script("students")
    monkeypatch.setattr(students, "measure", lambda *_, **facts: seen.append(facts) or facts)
    monkeypatch.setattr(sys, "argv", ["students.py"])
    students.main()
    assert [facts["epochs"] for facts in seen] == [100, 100]
    assert seen[0]["precision"] == "fp32" and seen[0]["channels_last"] is False
