"""Death and failing disks at every file operation: the same command then ends as undisturbed.

A kill, a full disk, a failing disk and a missing permission at the k-th operation; then the same
command again. What must hold: the same artifact bytes, no file lost that potstill did not write,
no unfinished file left, and between the two the old artifact or the new one.
"""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ground
import torch
from cases import Case, Ended, Fault, draw_for, in_child, judged, trials
from operations import FULL, KILL, Operations
from safetensors.torch import load_file

from potstill.run import ArtifactError
from potstill.synthetic import SyntheticSet

HOWS = (KILL, KILL, KILL, FULL, "EIO", "EACCES")
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
    from potstill.cli import main as command

    return command(words)


def strangers(folder: Path, *, note: bool) -> None:
    """Files of a user in the run folder and in the artifact's."""
    for name in (*FOREIGN, *((NOTE,) if note else ())):
        for place in (folder, folder / "synthetic"):
            if place == folder or place.is_dir():
                (place / name).parent.mkdir(parents=True, exist_ok=True)
                (place / name).write_text("mine")


def distilling(job: str, *more: str) -> Callable[[Path], int]:
    return lambda folder: main(
        [*ground.words(job, folder / "source", folder / "run"), *more]
    )


def _empty(folder: Path) -> None:
    strangers(folder / "run", note=False)


def _older(folder: Path) -> None:
    """A finished and scored run of another job, with the cache that it left."""
    strangers(folder / "run", note=True)


def _saving(folder: Path) -> int:
    draw = torch.Generator().manual_seed(1)
    old = SyntheticSet.load(folder / "made")
    images = torch.rand(old.images.shape, generator=draw)
    from dataclasses import replace

    try:
        replace(old, images=images).save(folder / "run")
    except OSError as error:
        import sys

        print(f"potstill: {error}", file=sys.stderr)
        return 4
    return 0


def _saved(folder: Path) -> None:
    shutil.copytree(folder / "made", folder / "run")
    for name in (*FOREIGN, NOTE):
        (folder / "run" / name).parent.mkdir(exist_ok=True)
        (folder / "run" / name).write_text("mine")


def _evaluate(folder: Path) -> int:
    return main(["evaluate", str(folder / "run"), *shlex.split(ground.STUDENT)])


def _backbone(folder: Path) -> int:
    return main(
        ["backbone", "train", "--data", str(folder / "source"), "--out", str(folder / "run")]
        + shlex.split("--network convnet-d2-w8-in --epochs 2 --device cpu --threads 1 --quiet")
        + ["--checkpoint-seconds", "0"]
    )


def _weights(folder: Path) -> dict[str, bytes]:
    """Without the seconds that training took."""
    tensors = load_file(folder / "run" / "backbone.safetensors")
    return {name: value.numpy().tobytes() for name, value in tensors.items()}


JOBS = {
    "save": Job(_saved, _saving, old=True),
    "csdm": Job(_empty, distilling("csdm")),
    "lad": Job(_empty, distilling("lad")),
    "lgm": Job(_empty, distilling("lgm")),
    "force": Job(_older, distilling("csdm", "--seed", "1", "--force"), old=True),
    "again": Job(_older, distilling("random", "--force"), old=True),
    "evaluate": Job(_older, _evaluate, evaluated),
    "backbone": Job(_empty, _backbone, _weights),
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
        if self.name == "save":
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
            self._old_or_new()
            self._strangers("after the failure")
            second = in_child(lambda: self.job.action(self.place), self.said)
            if second.code != 0:
                raise Fault(f"the second run ended with {second.code}: {second.said[-500:]!r}")
            if "Traceback" in second.said:
                raise Fault(f"the second run said {second.said[-500:]!r}")
            if self.job.result(self.place) != self.expected:
                raise Fault(f"another result ({self._differing()})")
            self._strangers("after the second run", home=True)
            left = [str(p.relative_to(self.place)) for p in self.place.rglob(".*.part")]
            left += [str(p.relative_to(self.place)) for p in self.place.rglob(".*.old")]
            if left := [name for name in left if not name.startswith("cache")]:
                raise Fault(f"left behind: {left}")
        return f"{self.name}: {how}"

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


def cases(root: Path, seed: int, numbers: range | None, jobs: tuple[str, ...] = tuple(JOBS)) -> (
    Iterator[Case]
):  # fmt: skip
    """A sample by number, or all (``numbers`` is None): every operation killed and failed once.

    The ways of failing take turns; another seed begins with another one.
    """
    ready: dict[str, Trial] = {}
    if numbers is None:
        number, ways = 0, [how for how in HOWS if how != KILL]
        for name in jobs:
            trial = Trial(root, name)
            for fail_at in range(len(trial.log)):
                for how in (KILL, ways[(fail_at + seed) % len(ways)]):
                    yield trial.case(number, fail_at, how)
                    number += 1
        return
    for number in numbers:
        draw = draw_for("kills", seed, number)
        name = jobs[number % len(jobs)]
        trial = ready[name] if name in ready else ready.setdefault(name, Trial(root, name))
        yield trial.case(number, draw.randrange(len(trial.log)), draw.choice(HOWS))


def test_a_save_over_an_older_artifact_dies_anywhere(tmp_path):
    ground.warm()
    tally = trials(cases(tmp_path, 0, range(24), ("save",)))
    assert not tally.failures, "\n".join(tally.failures)


def test_runs_die_anywhere_and_end_the_same(tmp_path):
    ground.warm()
    tally = trials(cases(tmp_path, 0, range(4), ("csdm", "force")))
    assert not tally.failures, "\n".join(tally.failures)
