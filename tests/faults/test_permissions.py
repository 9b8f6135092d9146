"""Files and folders that may not be read or written: one sentence, and nothing is lost.

Root may read everything, so the child gives up the capabilities that let it.
"""

from __future__ import annotations

import ctypes
import shlex
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import ground
from cases import Case, Ended, Fault, draw_for, in_child, judged, trials
from trial import main

MODES = {"unreadable": 0o000, "unwritable": 0o444}
TARGETS = (
    "run", "run/run.json", "run/scores.json", "run/metrics.jsonl", "run/report.html", "run/.lock",
    "run/checkpoint.safetensors", "run/checkpoint-other.safetensors", "run/pictures",
    "run/pictures/real.png", "run/synthetic", "run/synthetic/synthetic.safetensors",
    "run/synthetic/provenance.json", "run/synthetic/preview.png", "run/synthetic/README.md",
    "run/synthetic/images", "run/synthetic/data", "source", "source/train", "source/test",
    "source/train/one", "source/train/one/000.png", "cell.toml", "cache", "cache/*", "cache/*/*",
    "cache/*/*/*",
)  # fmt: skip


class _Set(ctypes.Structure):
    _fields_ = [(n, ctypes.c_uint32) for n in ("effective", "permitted", "inheritable")]


def give_up_rights() -> None:
    """Let permissions hold for this process, root or not: no CAP_DAC_OVERRIDE, _READ_SEARCH."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    sets = (_Set * 2)()
    if libc.capget(header, sets):
        raise OSError(ctypes.get_errno(), "capget")
    for name in ("effective", "permitted", "inheritable"):
        setattr(sets[0], name, getattr(sets[0], name) & ~0b110)
    if libc.capset(header, sets):
        raise OSError(ctypes.get_errno(), "capset")


def commands(root: Path) -> dict[str, list[str]]:
    run, source = str(root / "run"), root / "source"
    return {
        "distill": ground.words("csdm", source, root / "run"),
        "force": [*ground.words("csdm", source, root / "run"), "--seed", "1", "--force"],
        "distill anew": ground.words("random", source, root / "new"),
        "evaluate": ["evaluate", run, *shlex.split(ground.STUDENT), "--runs", "2"],
        "report": ["report", run],
        "compare": ["compare", run, str(root / "other"), "--out", str(root / "page.html")],
        "recipe": ["recipe", str(root / "cell.toml"), "--out", str(root / "cell"), *_MACHINE],
        "backbone": [
            *("backbone", "train", "--data", str(source), "--out", str(root / "backbone")),
            *shlex.split("--network convnet-d2-w8-in --epochs 1"), *_MACHINE,
        ],
    }  # fmt: skip


_MACHINE = shlex.split(ground.MACHINE)


def _chosen(place: Path, pattern: str, pick: Callable[[list[Path]], Path]) -> Path | None:
    found = sorted(p for p in place.glob(pattern) if not p.is_symlink())
    return pick(found) if found else None


def _contents(place: Path) -> dict[str, bytes]:
    return {str(p.relative_to(place)): p.read_bytes() for p in place.rglob("*") if p.is_file()}


def judge(root: Path, template: Path, name: str, target: str, mode: int, seed: str) -> str:
    place = root / "now"
    ground.fresh(template, place)
    path = _chosen(place, target, draw_for(seed, 0, 0).choice)
    if path is None:
        raise Fault(f"there is no {target} to take permissions from")
    with ground.environment(place):
        words, before = commands(place)[name], path.stat().st_mode
        artifact = (place / "run/synthetic/synthetic.safetensors").read_bytes()
        path.chmod(mode | 0o111 if path.is_dir() and mode else mode)

        def action() -> int:
            give_up_rights()
            return main(words)

        try:
            ended: Ended = in_child(action, root / "said")
        finally:
            path.chmod(before)
        outcome = judged(ended)
        if outcome == "refused":
            if (place / "run/synthetic/synthetic.safetensors").read_bytes() != artifact:
                raise Fault("refused, but the artifact is another one")
            again = in_child(lambda: main(words), root / "said")
            if again.code:
                raise Fault(f"with permissions given back: {again.code}, {again.said[-300:]!r}")
    return f"{name}: {outcome}"


def cases(root: Path, seed: int, numbers: range | None) -> Iterator[Case]:
    """A sample by number, or (``numbers`` is None) every command with every target and mode."""
    template, now = root / "before", root / "now"
    now.mkdir()
    with ground.environment(now):
        ended = in_child(lambda: 0 if ground.finished(now, "csdm") else 1, root / "said", 300)
        assert ended.code == 0, ended
    (now / "csdm").rename(now / "run")
    shutil.copytree(now / "run", now / "other")
    (now / "cell.toml").write_text(ground.RECIPE.format(source=now / "source"))
    ground.fresh(now, template)
    every = [
        (name, target, how) for name in commands(now) for target in TARGETS for how in MODES
    ]  # fmt: skip
    for number in numbers or range(len(every)):
        draw = draw_for("permissions", seed, number)
        name, target, how = every[number] if numbers is None else draw.choice(every)

        def run(
            name: str = name, target: str = target, how: str = how, number: int = number
        ) -> str:
            return judge(root, template, name, target, MODES[how], f"{seed}/{number}")

        yield Case(number, f"{name} with {how} {target}", run, 60, 500)


def test_what_may_not_be_read_or_written_is_a_sentence(tmp_path):
    ground.warm()
    tally = trials(cases(tmp_path, 0, range(8)))
    assert not tally.failures, "\n".join(tally.failures)


def test_permissions_hold_in_the_child(tmp_path):
    (tmp_path / "x").write_text("x")
    (tmp_path / "x").chmod(0)

    def action() -> int:
        give_up_rights()
        try:
            return len((tmp_path / "x").read_text())
        except PermissionError:
            return 0

    assert in_child(action, tmp_path / "said").code == 0
