"""Every numeric flag of every command, tried with what no number of its kind can be.

In one process. Allowed is one sentence that names the flag, or a finite result; never a traceback,
never a wait. The short form tries each field once with what must be refused; ``POTSTILL_LONG=1``
tries all flags of all commands with all values, and runs what is legal.
"""

from __future__ import annotations

import os
import shlex
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from potstill.app.backbone_command import _Shown, _Train
from potstill.app.cli import Distill, Evaluate, Recipe, main
from potstill.app.crossval import _CrossVal
from potstill.app.flags import Machine
from potstill.app.job import Data
from potstill.experts.selfsupervised import SelfSupervision
from potstill.methods import CATALOGUE
from potstill.run.fields import admits, fields_of, wanted
from potstill.run.parts import flat_hints
from potstill.synthetic import SyntheticSet

LONG = bool(os.environ.get("POTSTILL_LONG"))
VALUES = ["-1", "0", "nan", "inf", "1e30", "1000000000000", "9223372036854775808", "word", ""]
SECONDS = 10
ON_MACHINE = ("distill", "backbone train", "evaluate", "recipe")  # commands that say where to run

POOL = "--network convnet-d2-w8-in --entries 1 --batch-real 4 --steps 2"
TRAJECTORY = (
    "--network convnet-d2-w8-in --experts 1 --expert-epochs 2 --expert-batch 512 --span 1"
    " --student-steps 2 --start-max 1 --start-now 0 --start-grow 0 --steps 2"
)
UNROLLED = "--network convnet-d2-w8-in --student-steps 3 --window 2 --batch-real 4 --steps 2"
BACKBONE = "--backbone self:convnet-d2-w8-bn --backbone-epochs 1"


def fewest(name: str) -> list[str]:
    """Flags with which a method takes a second."""
    table, words = CATALOGUE[name]().fields(), ""
    if "entries" in table:
        words = POOL + (" --members 1 --pool-epochs 1" if "members" in table else "")
        words += " --frequencies 16" if "frequencies" in table else ""
    elif "window" in table:
        words = UNROLLED + (" --radius 1" if "radius" in table else "")
    elif "student_steps" in table:
        words = TRAJECTORY
        words += " --classifier-epochs 1 --classifier-steps 2" if name == "lad" else ""
    elif "backbone" in table:
        words = BACKBONE
        if "augmentations" in table:
            words += " --steps 2 --grow-every 1 --augmentations 1"
    return shlex.split(words)


class Case(NamedTuple):
    """One flag of one command."""

    command: str  # as typed, with {root} for a scratch folder
    flag: str
    hint: Any

    def words(self, value: str, root: Path) -> list[str]:
        """The command with this flag set to a value."""
        given = [word.format(root=root) for word in shlex.split(self.command)]
        if self.flag in given:
            del given[(at := given.index(self.flag)) : at + 2]
        return [*given, f"{self.flag}={value}"]

    def legal(self, value: str) -> bool:
        """Whether the flag's own annotation admits the value."""
        for kind in (int, float):
            if kind is float and "whole" in wanted(self.hint):
                continue
            try:
                return admits(self.hint, kind(value))
            except ValueError:
                continue
        return False


def cases() -> Iterator[Case]:
    """Every numeric flag."""
    commands: list[tuple[str, tuple[Any, ...]]] = []
    for name, method in CATALOGUE.items():
        of = " --of {root}/made" if name == "neighbours" else ""
        words = shlex.join(fewest(name))
        command = f"distill {name} {words}{of} --budget quick --ipc 1 --out {{root}}/run --force"
        commands.append((command, (method.budget("quick"), Distill, Data, Machine)))
        for room, kinds in getattr(method, "pairs", {}).items():  # flags of kinds not the default
            other = getattr(method(), room).kinds
            for kind in kinds:
                if kind in other and kind != getattr(method(), room).kind:
                    commands.append((f"{command} --{room} {kind}", (other[kind](),)))
    train = "backbone train --network convnet-d2-w8-bn --epochs 1 --out {root}/backbone"
    commands.append((train, (SelfSupervision, _Train, Data, Machine)))
    commands.append(("backbone show convnet-d2-w8-in", (_Shown,)))
    scored = "evaluate {root}/made --network convnet-d2-w8-in --protocol quick --runs 1"
    commands.append((f"{scored} --no-baseline --no-quantized", (Evaluate, Machine)))
    folds = "crossval random --folds 2 --ipc 1 --student mlp-w8 --protocol quick --runs 1"
    commands.append((f"{folds} --out {{root}}/folds --force", (_CrossVal,)))
    commands.append(("recipe {root}/tiny.toml --out {root}/recipe --force", (Recipe, Machine)))
    for command, owners in commands:
        quiet = " --device cpu --threads 1 --quiet" if command.startswith(ON_MACHINE) else ""
        for owner in owners:
            hints = fields_of(owner) if isinstance(owner, type) else flat_hints(owner)
            for name, hint in hints.items():
                if "number" in wanted(hint) or name in ("power", "channels"):
                    yield Case(command + quiet, "--" + name.replace("_", "-"), hint)


def once() -> list[Case]:
    """Each flag with each annotation at the first command that has it."""
    seen = {}
    for case in cases():
        seen.setdefault((case.flag, repr(case.hint)), case)
    return list(seen.values())


RECIPE = """
[distill]
method = "random"
ipc = 1
[evaluate]
network = "convnet-d2-w8-in"
protocol = "quick"
runs = 1
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A scratch folder with a finished run, a recipe and a cache that all cases share."""
    root = tmp_path_factory.mktemp("flags")
    (root / "tiny.toml").write_text(RECIPE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("POTSTILL_CACHE", str(root / "cache"))
        words = f"distill random --ipc 1 --out {root}/made --device cpu --threads 1 --quiet"
        assert main(words.split()) == 0
    return root


def outcome(case: Case, value: str, root: Path, capsys: pytest.CaptureFixture[str]) -> int:
    """Run one case and hold it against what is allowed; return its exit code."""
    capsys.readouterr()
    shutil.rmtree(root / "backbone", ignore_errors=True)  # one of another training is refused
    began = time.process_time()  # of this process alone: others may be busy
    code = main(case.words(value, root))
    spent, said = time.process_time() - began, capsys.readouterr().err
    lines = [line for line in said.splitlines() if not line.startswith("potstill: the ")]
    title = f"{case.command.split(' --')[0]} {case.flag}={value}: {code} in {spent:.1f} s, {said}"
    assert spent < SECONDS, title
    if code == 0:
        if case.command.startswith("distill"):
            syn = SyntheticSet.load(root / "run" / "synthetic")
            assert torch.isfinite(syn.images).all() and torch.isfinite(syn.decoded()[0]).all()
        return code
    assert code in (2, 3, 4), title
    assert lines and lines[-1].startswith("potstill: ") and case.flag in lines[-1], title
    assert "Traceback" not in said and (code == 3 or len(lines) == 1), title
    return code


@pytest.mark.parametrize("case", once(), ids=lambda case: f"{case.command.split()[1]}{case.flag}")
def test_what_no_such_number_can_be_is_one_sentence(case, place, capsys, monkeypatch):
    monkeypatch.setenv("POTSTILL_CACHE", str(place / "cache"))
    values = [v for v in ("1000000000000", "-1", "word") if not case.legal(v)]
    assert len(values) > 1
    for value in values:
        assert outcome(case, value, place, capsys) == 2


@pytest.mark.parametrize("value", VALUES if LONG else [])
@pytest.mark.parametrize(
    "case", list(cases()) if LONG else [], ids=lambda case: f"{case.command.split()[1]}{case.flag}"
)
def test_every_flag_with_every_value(case, value, place, capsys, monkeypatch):
    monkeypatch.setenv("POTSTILL_CACHE", str(place / "cache"))
    assert outcome(case, value, place, capsys) == 2 or case.legal(value)


@pytest.mark.parametrize("name", ["dm", "ncfm", "mtt", "lgm"])
def test_the_most_steps_begin_at_once(name, make_blobs, run):
    def stop(step: int, record: dict[str, Any], canvas: Any) -> None:
        raise KeyboardInterrupt(step)

    words = fewest(name)
    given = {
        flag[2:].replace("-", "_"): value for flag, value in zip(*[iter(words)] * 2, strict=True)
    }
    fields = {k: int(v) if v.isdigit() else v for k, v in given.items()} | {"steps": 10**9}
    began = time.process_time()
    with pytest.raises(KeyboardInterrupt, match="0"):
        CATALOGUE[name].budget("quick", **fields)(make_blobs((8, 6)), 1, run.with_(watch=stop))
    assert time.process_time() - began < SECONDS
