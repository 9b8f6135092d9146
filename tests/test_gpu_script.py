"""The command for a GPU's first hour: its plan and its parts, without a GPU."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from potstill.evaluation import find_protocol
from potstill.methods import find
from potstill.run.signals import Terminated, ending_signals

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--device", "cuda"], "finds no NVIDIA GPU; use --device cpu"),
        (["--data", "/no/such/folder"], "does not exist"),
        (["--minutes", "-1"], "minutes is -1; use more than 0"),
        (["--only", "everything"], "only is 'everything'; use tests, cpu"),
    ],
)
def test_what_cannot_be_run_is_one_sentence(script, tmp_path, monkeypatch, capsys, words, said):
    gpu = script("gpu")
    monkeypatch.setattr(gpu, "machine", lambda: {"gpu": False})
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--out", str(tmp_path), *words])
    assert gpu.main() == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and said in error


def test_the_plan_says_what_is_missing_and_where_no_gpu_is(script, tmp_path):
    plan = script("gpu_parts").plan
    order = ["tests", "cpu", "step-csdm", "step-ncfm", "step-lad", "step-sfm", "students",
             "experts"]  # fmt: skip
    cells = [f"{m}-lt{f}" for m in ("csdm", "sdm", "ncfm", "lad", "sfm") for f in (200, 10)]
    parts = {part.name: part for part in plan("full", "cuda", Path("c10"), tmp_path)}
    assert list(parts) == order + cells
    assert not any(part.refusal for part in parts.values())
    lacking = {p.name: p.refusal for p in plan("full", "cuda", None, tmp_path, ["pytest", "timm"])}
    assert {name: said for name, said in lacking.items() if said} == {
        "tests": "pytest is missing; install pytest",
        "step-sfm": "timm is missing; install timm",
    }
    assert "csdm-lt50" in lacking and "csdm-lt200" not in lacking  # digits have few images
    small = {part.name: part.refusal for part in plan("small", "cpu", None, tmp_path, ["timm"])}
    assert {name: said for name, said in small.items() if said} == {"tests": "no GPU"}
    for name in ("students", "experts"):  # the question is what stacking gives
        assert parts[name].words[-2:] == ("--backend", "stacked")


@pytest.mark.parametrize("size", ["small", "full"])
def test_every_part_is_understood_by_its_script(script, tmp_path, monkeypatch, size):
    helped = {}
    for part in script("gpu_parts").plan(size, "cuda", None, tmp_path):
        path, *words = part.words
        name = Path(path).stem
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *words, "--help"])
        out = io.StringIO()
        with contextlib.redirect_stdout(out), pytest.raises(SystemExit) as stop:
            script(name).main()  # values are parsed before help is printed
        assert stop.value.code == 0
        helped[name] = out.getvalue()
        for flag in [word for word in words if word.startswith("--")]:
            assert f"{flag} " in helped[name] or f"{flag}\n" in helped[name], (name, flag)
    assert len(helped) == 8


@pytest.mark.parametrize("size", ["small", "full"])
def test_every_cell_has_a_method_and_protocols(script, tmp_path, size):
    rows = list(script("gpu_parts").cells(size, "cuda", Path("c10"), tmp_path))
    assert len(rows) == 10
    for row in rows:
        words = dict(zip(row.words[1::2], row.words[2::2], strict=True))
        kind = find(words["--method"])
        assert words["--budget"] in kind.sizes and words["--ipc"] == "10"
        kind.budget(words["--budget"], **json.loads(words["--fields"])).check()
        for _, protocol, changes in json.loads(words["--scores"]):
            assert find_protocol(protocol).with_(**changes)
        assert row.settings["size"] == size


def cell_options(cell: ModuleType, folder: Path, **changes: Any) -> argparse.Namespace:
    fields = {"network": "convnet-d2-w8-in", "members": 1, "pool_epochs": 1, "entries": 2,
              "batch_real": 8, "frequencies": 16, "steps": 8}  # fmt: skip
    scores = [["convnet-d2-w8-in", "quick-noflip", {"epochs": 1}]]
    folder.mkdir(exist_ok=True)
    known = {"method": "csdm", "factor": 20.0, "folder": folder, "data": "digits", "ipc": 3,
             "budget": "quick", "runs": 1, "device": "cpu", "fields": json.dumps(fields),
             "scores": json.dumps(scores)}  # fmt: skip
    return argparse.Namespace(**known | changes)


def told(capsys) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_a_cell_that_was_ended_ends_with_the_same_images(script, tmp_path, monkeypatch, capsys):
    from potstill.run.log import Metrics
    from potstill.synthetic import SyntheticSet

    cell = script("cell")
    cell.work(cell_options(cell, tmp_path / "whole"))
    lines = told(capsys)
    assert lines[-1]["figure"].endswith(")") and "(start " in lines[-1]["figure"]
    assert (tmp_path / "whole.png").read_bytes().startswith(b"\x89PNG")
    write = Metrics.write

    def ends(self: Metrics, **record: Any) -> None:
        write(self, **record)
        if record["step"] == 4:
            os.kill(os.getpid(), signal.SIGTERM)  # what the script does when the time is over

    folder = tmp_path / "ended"
    with monkeypatch.context() as patch, ending_signals(), pytest.raises(Terminated):
        patch.setattr(Metrics, "write", ends)
        cell.work(cell_options(cell, folder))
    assert told(capsys)[-1]["figure"] == "about step 5 of 8"
    assert (folder / "checkpoint.safetensors").exists() and not (folder / "synthetic").exists()
    cell.work(cell_options(cell, folder))
    both = [SyntheticSet.load(place).checksum for place in (tmp_path / "whole", folder)]
    assert both[0] == both[1]
    assert not list(folder.glob("checkpoint*"))
    assert [line["step"] for line in map(json.loads, (folder / "metrics.jsonl").open())] == [
        *range(8)
    ]


def test_scores_of_a_cell_are_not_measured_twice(script, tmp_path, monkeypatch, capsys):
    cell = script("cell")
    options = cell_options(cell, tmp_path / "c", method="random", fields="{}")
    cell.work(options)
    first = told(capsys)[-1]
    monkeypatch.setattr(cell, "evaluate", lambda *_, **__: pytest.fail("measured again"))
    cell.work(options)
    assert told(capsys)[-1] == first
    cell.work(cell_options(cell, tmp_path / "d", method="random", budget="large"))
    assert told(capsys) == [{"skipped": "random has no budget of the name 'large'"}]


BLOCKS = """
import sys

class Blocks:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("tyro", "datasets"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocks())
"""


def test_the_smallest_parts_run_on_a_cpu_with_few_libraries(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(BLOCKS)
    wanted, out = ["tests", "step-lad", "csdm-lt10"], tmp_path / "out"
    command = [sys.executable, str(BENCHMARKS / "gpu.py"), "--out", str(out)]
    command += ["--minutes", "3", "--device", "cpu", "--only", *wanted]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    states = dict(line.split()[:2] for line in done.stdout.splitlines()[-18:])
    assert [states.pop(name) for name in wanted] == ["skipped", "finished", "finished"]
    assert set(states.values()) == {"waiting"} and len(states) == 15
    record = json.loads((out / "step-lad.json").read_text())
    assert record["settings"] == {"size": "small"} and record["words"][-2:] == ["--device", "cpu"]
    assert [fact["cosine_of_image_gradients"] > 0.9 for fact in record["found"]] == [True, True]
    assert record["figure"].startswith(f"{record['found'][0]['ratio']} x")
    assert json.loads((out / "csdm-lt10.json").read_text())["settings"]["size"] == "small"
    assert (out / "csdm-lt10.png").exists() and not list(out.rglob("checkpoint*"))


def test_the_device_is_compared_with_the_cpu(script, monkeypatch, capsys):
    against = script("against_cpu")
    words = ["against_cpu.py", "--device", "cpu", "--width", "4", "--real", "8", "--only"]
    monkeypatch.setattr(sys, "argv", [*words, "csdm", "sfm"])
    assert against.main() == 0
    assert [line["relative_error"] for line in told(capsys)] == [0.0, 0.0]
    find_gradient, calls = against.gradient, []

    def off(*given: Any) -> Any:  # a device that computes something else
        calls.append(given)
        found = find_gradient(*given)
        return found if len(calls) == 1 else found.flip(0)

    monkeypatch.setattr(against, "gradient", off)
    monkeypatch.setattr(sys, "argv", [*words, "csdm"])
    assert against.main() == 1
    output = capsys.readouterr()
    assert json.loads(output.out)["agrees"] is False
    assert output.err.startswith("the device and the CPU disagree (csdm fp32: cosine ")
