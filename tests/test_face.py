"""What a user sees: help in groups, fast; completion; logs of lines."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from potstill.app.cli import COMMANDS, main
from potstill.app.completion_command import command as completion
from potstill.data import ImageSet, Normalize, load
from potstill.evaluation.metrics import mean_std
from potstill.evaluation.score_text import html_table, two_lines
from potstill.methods import CATALOGUE
from potstill.run import InputError, Run
from potstill.run.log import progress
from potstill.run.trackers import TRACKERS, replay, tracker
from potstill.synthetic import SyntheticSet


def helped(words: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("COLUMNS", "100")
    assert main([*words.split(), "--help"]) == 0
    return capsys.readouterr().out


def test_help_stands_in_groups_with_defaults(capsys, monkeypatch):
    text = helped("distill csdm", capsys, monkeypatch)
    groups = dict(part.split(":\n", 1) for part in text.split("\n\n")[2:])
    assert {"run", "data", "canvas", "networks", "method", "machine"} <= groups.keys()
    assert list(groups)[:2] == ["run", "data"] and list(groups)[-1] == "machine"
    assert "--ipc INT" in groups["run"] and "(default: 10)" in groups["run"]
    assert "--imbalance-factor FLOAT" in groups["data"] and "--threads" in groups["machine"]
    assert "--factor INT" in groups["canvas"] and "--alpha-head" in groups["method"]
    assert max(map(len, text.splitlines())) <= 100
    random = helped("distill random", capsys, monkeypatch).split("\n\n")
    assert "--labels STR, --label-column STR" in next(p for p in random if p.startswith("data:"))


@pytest.mark.parametrize("words", ["distill lgm", "evaluate", "relabel", "recipe", "compare"])
def test_help_has_no_types_of_python(words, capsys, monkeypatch):
    text = helped(words, capsys, monkeypatch)
    assert "--out" in text or "--network" in text
    for noise in ("{None}", "(default: None)", "{[", "│", "(default: False)"):
        assert noise not in text


def test_the_list_of_methods_fits_a_terminal(capsys):
    assert main(["methods"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 100
    assert {line.split()[0] for line in lines if line[:1].strip()} >= set(CATALOGUE)
    assert main(["methods", "--wide"]) == 0
    assert "cost" in capsys.readouterr().out.splitlines()[0]


def test_the_first_help_imports_no_torch():
    code = (
        "import sys; from potstill.app.entry import main; assert main(['--help']) == 0; "
        "assert main(['--version']) == 0; assert not {'torch', 'tyro', 'numpy'} & set(sys.modules)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert all(f"potstill {name}" in said.stdout for name in COMMANDS)


def test_completion_knows_commands_methods_and_their_flags(tmp_path, monkeypatch):
    monkeypatch.setattr("potstill.methods.CATALOGUE", {k: CATALOGUE[k] for k in ("dm", "csdm")})
    (tmp_path / "potstill").write_text(completion(["bash"]))

    def on_tab(*words: str) -> list[str]:
        line = json.dumps(["potstill", *words])[1:-1].replace(",", "")
        said = f". ./potstill; COMP_WORDS=({line}); COMP_CWORD={len(words)}; _potstill; "
        said += 'printf "%s\\n" "${COMPREPLY[@]}"'
        done = subprocess.run(["bash", "-c", said], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0 and not done.stderr, done.stderr
        return done.stdout.split()

    assert on_tab("rep") == ["report"]
    assert on_tab("distill", "c") == ["csdm"]
    assert on_tab("distill", "csdm", "--alpha-h") == ["--alpha-head"]
    assert on_tab("distill", "dm", "--alpha-h") == []
    assert "--protocol" in on_tab("evaluate", "runs/x", "--pro")


def test_without_a_terminal_progress_is_lines(monkeypatch):
    log = io.StringIO()
    monkeypatch.setattr(sys, "stderr", log)
    import potstill.run.log as module

    original = module.tqdm

    def eager(*items: object, **how: object) -> object:
        return original(*items, **how | {"delay": 0, "mininterval": 0})

    eager.__name__ = "tqdm"
    monkeypatch.setattr(module, "tqdm", eager)
    assert list(progress(range(3), label="distil", quiet=False, total=3)) == [0, 1, 2]
    said = log.getvalue()
    assert "\r" not in said and "potstill: distil: 3 of 3" in said
    assert all(line.startswith("potstill: distil: ") for line in said.splitlines())
    list(progress(range(3), label="distil", quiet=True))
    assert log.getvalue() == said


def small(train: ImageSet) -> SyntheticSet:
    rows = torch.cat([train.of_class(k)[:1] for k in range(train.num_classes)])
    made = {"images": train.batch(rows), "labels": train.labels[rows], "classes": train.classes}
    return SyntheticSet(**made, transform=Normalize.fit(train))


def test_sets_are_printed_in_two_lines_and_shown_with_pictures():
    train = load("digits").long_tailed(50)
    syn = small(train)
    assert repr(train) == (
        "ImageSet 'digits': 364 images, 8x8 grey, imbalance factor 64\n"
        "  10 classes: 128, 86, 55, 36, 23, 15, 9, 6, 4, 2"
    )
    lines = repr(syn).splitlines()
    assert lines[0] == f"SyntheticSet {syn.checksum}: 10 images, 8x8 grey, labels hard"
    assert lines[1].startswith("  10 classes: 1 each; ") and len(lines) == 2
    lacks = replace(train, partial=True).select(train.labels != 3)  # as a test set may
    assert lacks._repr_html_().count("data:image/png;base64,") == 9
    for shown in (train, syn):
        page = shown._repr_html_()
        assert page.count("data:image/png;base64,") == 10 and "10 classes" in page


def test_a_picture_in_a_notebook_is_that_of_the_set_and_names_are_escaped():
    import base64
    import io as streams
    import re

    from PIL import Image

    images = torch.zeros(4, 3, 2, 2, dtype=torch.uint8)
    images[2:] = 200
    labels, rows = torch.tensor([0, 0, 1, 1]), torch.arange(4)
    named = ImageSet(images, labels, ("<b>", "x"), "s", rows, "0" * 16)
    page = named._repr_html_()
    assert "&lt;b&gt;" in page and "<b>" not in page
    found = re.findall(r"base64,([^\"]+)", page)
    colours = [Image.open(streams.BytesIO(base64.b64decode(one))).getpixel((0, 0)) for one in found]
    assert colours == [(0, 0, 0), (200, 200, 200)]


def test_scores_are_printed_in_two_lines_and_as_a_table():
    record = {
        "artifact": "ab", "network": "convnet-d2-w8-in", "runs": 2,
        "protocol": {"name": "quick", "hash": "e071a630"},
        "accuracy": {"mean": 50.61, "std": 0.5},
        "groups": {name: {"mean": 10.0, "std": 1.0} for name in ("head", "medium", "tail")},
        "start": {"accuracy": {"mean": 42.5, "std": None}, "groups": {}},
    }  # fmt: skip
    lines = two_lines(record).splitlines()
    assert lines[0] == "Score of ab: convnet-d2-w8-in, quick [e071a630], 2 students"
    assert lines[1].startswith("  50.6 ± 0.5 %; head 10.0 ± 1.0; medium")
    assert lines[1].endswith("its start 42.5")
    table = html_table(record)
    assert table.count("<tr>") == 3 and "<td>its start</td><td>42.5</td><td>–</td>" in table


def test_a_mean_is_printed_without_noise():
    assert str(mean_std([93.0, 93.7, 93.38])["mean"]) == "93.36"


def test_records_go_to_a_tracker(tmp_path, monkeypatch):
    sent: list[tuple[int, dict[str, float]]] = []
    monkeypatch.setitem(
        TRACKERS, "wandb", lambda folder: lambda step, values: sent.append((step, values))
    )
    run = Run(device="cpu", folder=tmp_path / "a", cache=tmp_path / "cache", quiet=True)
    watch = tracker("wandb", tmp_path / "a")
    fields = {"steps": 3, "network": "convnet-d2-w8-in", "entries": 2, "batch_real": 4}
    CATALOGUE["dm"].budget("quick", **fields)(load("digits"), 1, run.with_(watch=watch))
    assert [step for step, _ in sent] == [0, 1, 2]
    assert {"lr", "seconds"} < sent[0][1].keys() and any("loss/" in key for key in sent[0][1])
    seen, sent = sent, []
    monkeypatch.setitem(
        TRACKERS, "wandb", lambda folder: lambda step, values: sent.append((step, values))
    )
    assert replay(tmp_path / "a", tracker("wandb", tmp_path / "a")) == 3 and sent == seen


def test_a_tracker_that_is_not_there_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(InputError, match="'wandb', which is not installed; pip install wandb"):
        tracker("wandb", tmp_path)
    with pytest.raises(InputError, match="did you mean 'wandb'"):
        tracker("wandbb", tmp_path)


def test_experiments_are_told_step_and_values(tmp_path, monkeypatch):
    import types

    calls: list[object] = []
    module = types.SimpleNamespace(
        init=lambda **facts: calls.append(facts),
        log=lambda values, step: calls.append((step, values)),
    )
    monkeypatch.setitem(sys.modules, "trackio", module)
    watch = tracker("trackio", tmp_path / "demo")
    watch(7, {"step": 7, "lr": 0.5, "seconds": 1.0, "loss": {"match": 2.0}, "classes": {}}, None)
    assert calls[0] == {"project": "potstill", "name": "demo"}
    assert calls[1] == (7, {"lr": 0.5, "seconds": 1.0, "loss/match": 2.0})
