"""What a user sees: help in groups, fast; completion; logs of lines."""

from __future__ import annotations

import io
import json
import subprocess
import sys

import pytest

from potstill.app.cli import COMMANDS, main
from potstill.app.completion_command import command as completion
from potstill.methods import CATALOGUE
from potstill.run.log import progress


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
