"""Death and failing disks at every file operation: the same command then ends as undisturbed.

A kill, a full disk, a failing disk and a missing permission at the k-th operation; then the same
command again.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import ground
from cases import Case, draw_for, trials
from operations import FULL, KILL
from trial import JOBS, Trial

HOWS = (KILL, KILL, KILL, FULL, "EIO", "EACCES")


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
