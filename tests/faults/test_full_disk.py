"""A file system that is really full, of blocks or of names: one sentence, then the same bytes.

The disk is a small tmpfs in a mount namespace of the child's own, which needs the rights of root.
"""

from __future__ import annotations

import ctypes
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import ground
import pytest
from cases import Case, Fault, draw_for, in_child, judged, trials
from trial import JOBS, Trial

_NEW_NAMESPACE, _PRIVATE, _REMOUNT = 0x20000, (1 << 18) | (1 << 14), 1 << 5
_libc = ctypes.CDLL(None, use_errno=True)


def _mount(place: Path, flags: int, options: str) -> None:
    what = (b"none", os.fsencode(place), b"tmpfs", ctypes.c_ulong(flags), options.encode())
    if _libc.mount(*what):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(place))


def _apart() -> None:
    """Give this process a view of the mounts of its own."""
    if _libc.unshare(_NEW_NAMESPACE):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    _mount(Path("/"), _PRIVATE, "")


def may_mount(place: Path) -> bool:
    """Whether a child may mount a tmpfs."""

    def action() -> int:
        _apart()
        _mount(place, 0, "size=64k")
        return 0

    place.mkdir(parents=True, exist_ok=True)
    return in_child(action, place.with_name("said")).code == 0


@contextmanager
def _disk(place: Path) -> Iterator[None]:
    if os.readlink("/proc/self/ns/mnt") == os.readlink(f"/proc/{os.getppid()}/ns/mnt"):  # noqa: PTH115
        _apart()
    _mount(place, 0, "size=256m")
    try:
        yield
    finally:
        _libc.umount2(os.fsencode(place), 2)


class Filled(Trial):
    """A job on a disk with little room."""

    def fill(self, number: int, blocks: int, names: int) -> Case:
        room = f"{4 * blocks} kB" if blocks else f"{names} files"
        run = lambda: self.judge_full(blocks, names)  # noqa: E731
        return Case(number, f"{self.name}: room for {room}", run, 120, 500)

    def judge_full(self, blocks: int, names: int) -> str:
        disk = self.place.parent
        with _disk(disk), ground.environment(self.place):
            shutil.copytree(self.template, self.place, symlinks=True)
            facts = os.statvfs(disk)
            used = (facts.f_blocks - facts.f_bfree) * facts.f_bsize
            size = used + 4096 * blocks if blocks else 256 << 20
            limit = facts.f_files - facts.f_ffree + names if names else facts.f_files
            _mount(disk, _REMOUNT, f"size={size},nr_inodes={limit}")
            outcome = judged(in_child(lambda: self.job.action(self.place), self.said), (0, 4))
            self.between("the full disk")
            if outcome == "refused" and (left := self.left()):
                raise Fault(f"a full disk leaves {left}")
            _mount(disk, _REMOUNT, f"size={256 << 20},nr_inodes={facts.f_files}")
            self.again("")
        return f"{self.name}: {outcome}"


def cases(root: Path, seed: int, numbers: range, jobs: tuple[str, ...] = tuple(JOBS)) -> (
    Iterator[Case]
):  # fmt: skip
    ready: dict[str, Filled] = {}
    for number in numbers:
        draw = draw_for("full disk", seed, number)
        name = jobs[number % len(jobs)]
        trial = ready[name] if name in ready else ready.setdefault(name, Filled(root, name))
        blocks = draw.choice((draw.randrange(1, 8), draw.randrange(1, 60)))
        names = draw.randrange(0, len(trial.log) // 3)
        yield trial.fill(number, blocks if draw.random() < 0.7 else 0, names + 1)


def test_a_full_disk_is_a_sentence_and_loses_nothing(tmp_path):
    if not may_mount(tmp_path / "probe"):
        pytest.skip("a tmpfs cannot be mounted here (it needs the rights of root)")
    ground.warm()
    tally = trials(cases(tmp_path, 0, range(4), ("force", "save")))
    assert not tally.failures, "\n".join(tally.failures)
    assert any("refused" in kind for kind in tally.outcomes)
