"""Pools, experts, classifiers and backbones that are killed or left go on where they were."""

import multiprocessing
import os
import signal
import time

import left
import pytest
import torch


class Killed(BaseException):
    pass


def stopped(kind, real, run, at, stop, error):
    """Train until ``stop`` ends it before step ``at``; return the steps that were begun."""

    def act(begun):
        if begun == at:
            stop()

    undo = left.before_each_step(act)
    try:
        with pytest.raises(error):
            left.KINDS[kind][0](real, run)
    finally:
        count = undo()
    return count


def trained(kind, real, run):
    """Train to the end; return what comes out and the number of steps."""
    undo = left.before_each_step(lambda begun: None)
    try:
        found = left.KINDS[kind][0](real, run)
    finally:
        count = undo()
    return found, count


def kill():
    raise Killed


def interrupt():
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(0.2)  # the main thread hears of it


def same(a, b):
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def states(run):
    return [
        path.name for path in run.cache.rglob("*") if path.name.startswith(("resume", "traini"))
    ]


@pytest.mark.parametrize("kind", left.KINDS)
def test_an_error_at_any_step_loses_that_step(kind, real, run, tmp_path):
    whole, total = trained(kind, real, run.with_(cache=tmp_path / "whole"))
    assert total == left.KINDS[kind][1] and not states(run.with_(cache=tmp_path / "whole"))
    for at in sorted({1, total // 3, total // 2, total - 1}):
        cut = run.with_(cache=tmp_path / f"{at}")
        assert stopped(kind, real, cut, at, kill, Killed) == at
        found, again = trained(kind, real, cut)
        assert same(found, whole) and again == total - at
        assert not states(cut) and not [*cut.cache.rglob("*.part")]


@pytest.mark.parametrize("kind", left.KINDS)
def test_ctrl_c_loses_nothing(kind, real, run, tmp_path):
    """However long ago a state was written."""
    whole, total = trained(kind, real, run.with_(cache=tmp_path / "whole"))
    slow = run.with_(checkpoint_seconds=1e9)
    begun = stopped(kind, real, slow, total // 3, interrupt, KeyboardInterrupt)
    assert total // 3 < begun < total and not [*slow.cache.rglob("*.part")]
    found, again = trained(kind, real, slow)
    assert same(found, whole) and begun + again == total
    assert not states(slow)


@pytest.mark.parametrize("kind", ["pool", "experts with momentum", "classifiers", "backbone"])
def test_a_killed_process_loses_the_step_it_was_in(kind, real, run, tmp_path):
    whole, total = trained(kind, real, run.with_(cache=tmp_path / "whole"))
    at = 2 * total // 3

    def die(begun):
        if begun == at:
            os.kill(os.getpid(), signal.SIGKILL)

    def work():
        left.before_each_step(die)
        left.KINDS[kind][0](real, run)

    child = multiprocessing.get_context("fork").Process(target=work)
    child.start()
    child.join(60)
    assert child.exitcode == -signal.SIGKILL and states(run)
    found, again = trained(kind, real, run)
    assert same(found, whole) and again == total - at
    assert not states(run)
