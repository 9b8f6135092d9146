"""A command and its ground: disturbed in one way or another, then given again.

What must hold: the same artifact bytes as undisturbed, no file lost that potstill did not write, no
unfinished file left, and in between the old artifact or the new one.
"""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ground
import torch
from cases import Case, Ended, Fault, in_child, judged
from operations import KILL, Operations
from safetensors.torch import load_file

from potstill.run import ArtifactError, StorageError
from potstill.synthetic import SyntheticSet

FOREIGN = (".git/HEAD", ".git/objects/ab", ".gitattributes")  # of a user, in run and artifact
NOTE = "notes.txt"  # may stand beside a run that is there already


def evaluated(folder: Path) -> list[Any]:
    """Scores without times."""
    facts = json.loads((folder / "run" / "scores.json").read_text())["scores"]
    return [{k: v for k, v in one.items() if "seconds" not in k and k != "date"} for one in facts]


def synthetic(folder: Path) -> dict[str, bytes]:
    """Bytes of an artifact apart from the times in its provenance."""
    root = folder / "run" / "synthetic"
    root = root if root.exists() else folder / "run"
    kept = (p for p in sorted(root.rglob("*")) if p.is_file())
    return {
        str(p.relative_to(root)): p.read_bytes()
        for p in kept
        if p.name not in ("provenance.json", "README.md") and ".git" not in str(p.relative_to(root))
    }


@dataclass(frozen=True)
class Job:
    """A command on what ``before`` makes; ``result`` must come out the same."""

    before: Callable[[Path], None]
    action: Callable[[Path], int]
    result: Callable[[Path], Any] = synthetic
    old: bool = False  # an older artifact is there, which must load until the new one does


def main(words: list[str]) -> int:
    from potstill.app.cli import main as command

    return command(words)


def strangers(folder: Path, *, note: bool) -> None:
    """Files of a user in the run folder and in the artifact's."""
    for name in (*FOREIGN, *((NOTE,) if note else ())):
        for place in (folder, folder / "synthetic"):
            if place == folder or place.is_dir():
                (place / name).parent.mkdir(parents=True, exist_ok=True)
                (place / name).write_text("mine")


def distilling(job: str, *more: str) -> Callable[[Path], int]:
    return lambda folder: main([*ground.words(job, folder / "source", folder / "run"), *more])


def _empty(folder: Path) -> None:
    strangers(folder / "run", note=False)


def _older(folder: Path) -> None:
    """A finished and scored run of another job, with the cache that it left."""
    strangers(folder / "run", note=True)


def _saving(folder: Path) -> int:
    old = SyntheticSet.load(folder / "made")
    images = torch.rand(old.images.shape, generator=torch.Generator().manual_seed(1))
    try:
        replace(old, images=images).save(folder / "run")
    except StorageError as error:
        print(f"potstill: {error}", file=sys.stderr)
        return 4
    return 0


def _saving_elsewhere(folder: Path) -> int:
    """On a system that cannot exchange two folders in one step."""
    from potstill.run import replace

    replace._exchanged = lambda a, b: False
    return _saving(folder)


def _saved(folder: Path) -> None:
    shutil.copytree(folder / "made", folder / "run")
    for name in (*FOREIGN, NOTE):
        (folder / "run" / name).parent.mkdir(exist_ok=True)
        (folder / "run" / name).write_text("mine")


def _evaluate(folder: Path) -> int:
    return main(["evaluate", str(folder / "run"), *shlex.split(ground.STUDENT)])


def _recipe(folder: Path) -> None:
    _empty(folder)
    (folder / "cell.toml").write_text(ground.RECIPE.format(source=folder / "source"))


def _follow(folder: Path) -> int:
    words = ["recipe", str(folder / "cell.toml"), "--out", str(folder / "run")]
    return main([*words, *shlex.split(ground.MACHINE)])


def _backbone(folder: Path) -> int:
    words = ["backbone", "train", "--data", str(folder / "source"), "--out", str(folder / "run")]
    how = "--network convnet-d2-w8-in --epochs 2"
    return main([*words, *shlex.split(f"{how} {ground.MACHINE}")])


def _weights(folder: Path) -> dict[str, bytes]:
    """Without the seconds that training took."""
    tensors = load_file(folder / "run" / "backbone.safetensors")
    return {name: value.numpy().tobytes() for name, value in tensors.items()}


JOBS = {
    "save": Job(_saved, _saving, old=True),
    "save elsewhere": Job(_saved, _saving_elsewhere, old=True),
    "csdm": Job(_empty, distilling("csdm")),
    "lad": Job(_empty, distilling("lad")),
    "lgm": Job(_empty, distilling("lgm")),
    "force": Job(_older, distilling("csdm", "--seed", "1", "--force"), old=True),
    "again": Job(_older, distilling("random", "--force"), old=True),
    "evaluate": Job(_older, _evaluate, evaluated),
    "backbone": Job(_empty, _backbone, _weights),
    "recipe": Job(_recipe, _follow, lambda folder: [synthetic(folder), evaluated(folder)]),
}
SCORED = ("force", "again", "evaluate")  # begin from a finished run


class Trial:
    """One job on its ground: how many operations it takes, and what it gives undisturbed."""

    def __init__(self, root: Path, name: str) -> None:
        self.name, self.job, self.root = name, JOBS[name], root / name
        self.template, self.place = self.root / "before", self.root / "now" / "place"
        self.template.mkdir(parents=True)
        self.said = self.root / "said"
        self._prepare()
        self.log: list[str] = []
        with self._fresh():
            if ended := self._run(-1, KILL, note=True):
                assert ended.code == 0, ended
            self.log = (self.root / "log").read_text().splitlines()
            self.expected = self.job.result(self.place)

    def _prepare(self) -> None:
        place = self.place  # the path stands in run.json, so it is made where it will be used
        place.mkdir(parents=True)
        ground.pictures(place / "source")
        if self.name.startswith("save"):
            shutil.copytree(ground.artifacts(self.root / "made")["soft"], place / "made")
        with ground.environment(place):
            if self.name in SCORED:
                first = ground.words("csdm", place / "source", place / "run")
                assert in_child(lambda: main(first), self.said).code == 0
            self.job.before(place)
        shutil.rmtree(self.template)
        shutil.copytree(place, self.template)

    def _fresh(self) -> Any:
        ground.fresh(self.template, self.place)
        return ground.environment(self.place)

    def _run(self, fail_at: int, how: str, note: bool = False) -> Ended:
        def action() -> int:
            operations = Operations(self.place, fail_at, how).install()
            try:
                return self.job.action(self.place)
            finally:
                if note:
                    operations.fail_at = -1
                    (self.root / "log").write_text("\n".join(operations.log))

        return in_child(action, self.said)

    def case(self, number: int, fail_at: int, how: str) -> Case:
        where = self.log[fail_at].replace(str(self.place), "") if fail_at < len(self.log) else "end"
        what = f"{self.name}: {how} at operation {fail_at} of {len(self.log)} ({where})"
        return Case(number, what, lambda: self.judge(fail_at, how), 120, 500)

    def judge(self, fail_at: int, how: str) -> str:
        with self._fresh():
            first = self._run(fail_at, how)
            if how == KILL:
                if first.code not in (9, 0):
                    raise Fault(f"the child ended with {first}")
            else:
                outcome = judged(first, (0, 4))
                how = f"{how} {outcome}"
            self.between("the failure")
            self.again()
        return f"{self.name}: {how}"

    def between(self, what: str) -> None:
        """What holds after a failure: the old artifact or the new one, and nobody's file lost."""
        self._old_or_new()
        self._strangers(f"after {what}")

    def again(self, spare: str = "cache") -> None:
        """The same command, undisturbed, ends with the same result and leaves nothing behind.

        A kill may leave unfinished files below ``spare``.
        """
        second = in_child(lambda: self.job.action(self.place), self.said)
        if second.code != 0 or "Traceback" in second.said:
            raise Fault(f"the second run ended with {second.code}: {second.said[-500:]!r}")
        if self.job.result(self.place) != self.expected:
            raise Fault(f"another result ({self._differing()})")
        self._strangers("after the second run", home=True)
        if left := [name for name in self.left() if not (spare and name.startswith(spare))]:
            raise Fault(f"left behind: {left}")

    def left(self) -> list[str]:
        """Unfinished files and folders of ours."""
        found = [p for name in (".*.part", ".*.old") for p in self.place.rglob(name)]
        return [str(path.relative_to(self.place)) for path in found]

    def _differing(self) -> str:
        found = self.job.result(self.place)
        if not isinstance(found, dict):
            return "scores"
        names = sorted(found.keys() | self.expected.keys())
        return ", ".join(n for n in names if found.get(n) != self.expected.get(n))

    def _old_or_new(self) -> None:
        """Between the two runs: the artifact is the old one or the new one."""
        if not self.job.old:
            return
        try:
            found = SyntheticSet.load(self.place / "run").images
        except ArtifactError as error:
            raise Fault(f"after the failure load says: {error}") from None
        inside = "synthetic" if (self.template / "run" / "synthetic").exists() else ""
        old = SyntheticSet.load(self.template / "run" / inside).images
        new = self.expected["synthetic.safetensors"]
        if not torch.equal(found, old) and found.numpy().tobytes() not in new:
            raise Fault("after the failure neither the old nor the new artifact is there")

    def _strangers(self, when: str, home: bool = False) -> None:
        """A user's files are still somewhere, and in their place at the end."""
        there = {p for p in self.template.rglob("*") if p.is_file() and p.read_bytes() == b"mine"}
        for path in there:
            relative = path.relative_to(self.template)
            if (self.place / relative).is_file():
                continue
            parts = relative.parts
            index = next(i for i, part in enumerate(parts) if part == NOTE or part.startswith("."))
            inner = Path(*parts[index:])
            if home or not [p for p in self.place.rglob(inner.name) if p.parts[-1] == inner.name]:
                raise Fault(f"{when} {relative} is lost")
