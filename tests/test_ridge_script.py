"""benchmarks/ridge.py on a few steps of the digits: its lines, made once, and the table."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "ridge.py"


@pytest.fixture
def script(monkeypatch):
    spec = importlib.util.spec_from_file_location("ridge", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "tune_allocator", lambda: None)

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["ridge.py", *map(str, words)])
        module.main()

    module.run = run
    return module


def test_four_losses_of_one_seed_are_made_once_and_tabled(script, tmp_path, capsys, monkeypatch):
    out = tmp_path / "lines.jsonl"
    words = ("--out", out, "--methods", "kip", "--seeds", 1, "--students", 0)
    script.run(*words, "--set", json.dumps({"steps": 30, "batch_real": 64}))
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line["loss"] for line in lines] == list(script.LOSSES)
    assert len({json.dumps(line["start"]) for line in lines}) == 1  # one start, four ways on
    assert len({json.dumps(line["regression"]) for line in lines}) > 1
    assert all(set(line["regression"]) == {"all", "head", "medium", "tail"} for line in lines)
    assert min(line["start"]["all"] for line in lines) > 50  # ten classes
    monkeypatch.setattr(script, "measure", lambda *_: pytest.fail("it is there"))
    script.run(*words, "--set", json.dumps({"steps": 30, "batch_real": 64}))
    capsys.readouterr()
    script.run("--out", out, "--table")
    told = capsys.readouterr().out
    gain = lines[3]["regression"]["all"] - lines[0]["regression"]["all"]
    assert "digits, factor 50, IPC 5: kip" in told and "students   Platt" in told
    assert f"{gain:+.1f} over natural" in told
