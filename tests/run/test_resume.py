"""What a descent keeps for its resume: two files in turn, each believed only with its check."""

import json
import logging
import os
import signal

import pytest
import torch
from tests.run.test_loop import Parabola, canvas, go

from potstill.run import ArtifactError, InputError, StorageError
from potstill.run.checkpoint import load_state, save_state
from potstill.run.loop import Descent, Term, descend
from potstill.run.resume import CHECKPOINTS
from potstill.run.signals import Terminated, ending_signals, uninterrupted

NEWEST, OTHER = CHECKPOINTS


class Dies(Parabola):
    """Ends at a step as a signal would, with a state of its own that its terms move."""

    def __init__(self, at=None, how=KeyboardInterrupt):
        self.at, self.how = at, how
        self.count = torch.zeros(())

    def terms(self, step, canvas, chunk):
        self.count += 1
        if step == self.at:
            raise self.how
        yield from super().terms(step, canvas, chunk)

    def state(self):
        return {"count": self.count}

    def load_state(self, tensors):
        self.count = tensors["count"]


def killed(run, folder, at, seconds=0.0, how=KeyboardInterrupt, steps=20):
    held = run.with_(folder=folder, checkpoint_seconds=seconds)
    with pytest.raises(how):
        go(canvas(), held, Dies(at, how), steps=steps)


def resumed(run, folder, steps=20):
    surface, problem = canvas(), Dies()
    go(surface, run.with_(folder=folder), problem, steps=steps)
    assert problem.count == steps  # the state of the step that was cut off is not counted twice
    return surface.images


@pytest.fixture
def whole(run):
    surface = canvas()
    go(surface, run, Dies(), steps=20)
    return surface.images


def damage(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def step_of(path):
    return load_state(path)[1]["step"]


def test_the_two_files_are_written_in_turn(run, tmp_path):
    killed(run, tmp_path, 9)
    assert {step_of(tmp_path / name) for name in CHECKPOINTS} == {8, 9}


@pytest.mark.parametrize("which", ["newest", "older", "both"])
def test_a_flipped_bit_falls_back_and_the_bytes_are_the_same(run, tmp_path, whole, which, caplog):
    killed(run, tmp_path, 9)
    files = sorted((tmp_path / name for name in CHECKPOINTS), key=step_of)
    for path in {"newest": files[1:], "older": files[:1], "both": files}[which]:
        damage(path)
    with caplog.at_level(logging.WARNING):
        assert torch.equal(resumed(run, tmp_path), whole)
    said = {"newest": "step 8", "older": "step 9", "both": "beginning again at step 0"}[which]
    assert said in caplog.text and "checkpoint" in caplog.text
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(20))


def test_an_interrupted_step_loses_nothing_before_it(run, tmp_path, whole):
    killed(run, tmp_path, 9, seconds=1000.0)  # no checkpoint would be due yet
    assert step_of(tmp_path / NEWEST) == 9
    assert torch.equal(resumed(run, tmp_path), whole)


def test_a_changed_name_or_shape_is_damage_and_another_version_is_a_sentence(run, tmp_path):
    killed(run, tmp_path, 5)
    for name in CHECKPOINTS:
        tensors, facts = load_state(tmp_path / name)
        save_state(tmp_path / name, {f"x{n}": t for n, t in tensors.items()}, facts)
    with pytest.raises(ArtifactError, match=r"lacks 'surface.images'"):
        resumed(run, tmp_path)


def test_a_checkpoint_that_may_not_be_read_is_not_written_over(run, tmp_path, monkeypatch):
    killed(run, tmp_path, 5)
    before = {name: (tmp_path / name).read_bytes() for name in CHECKPOINTS}
    with monkeypatch.context() as patch:
        patch.setattr(os, "access", lambda path, mode: False)
        with pytest.raises(StorageError, match=r"cannot be read \(Permission denied\)"):
            resumed(run, tmp_path)
    assert {name: (tmp_path / name).read_bytes() for name in CHECKPOINTS} == before


def test_a_checkpoint_of_another_job_is_refused(run, tmp_path):
    killed(run, tmp_path, 5)
    with pytest.raises(InputError, match="another job"):
        descend(Dies(), canvas(), run.with_(folder=tmp_path), Descent(steps=20, lr_images=0.1),
                classes=("a", "b"), chunk=2, key="other")  # fmt: skip


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_scheduler_ends_a_descent_between_two_steps(run, tmp_path, whole, number, code):
    class Ended(Dies):
        def terms(self, step, canvas, chunk):
            if step == 6:
                os.kill(os.getpid(), number)
            for term in super().terms(step, canvas, chunk):
                yield Term(term.name, term.values, term.first)

    held = run.with_(folder=tmp_path, checkpoint_seconds=1000.0)
    with ending_signals(), pytest.raises(Terminated) as caught:
        go(canvas(), held, Ended(), steps=20)
    assert caught.value.code == code
    assert step_of(tmp_path / NEWEST) == 6
    assert not [path for path in tmp_path.iterdir() if path.name.endswith(".part")]
    assert torch.equal(resumed(run, tmp_path), whole)


def test_signals_wait_for_the_end_of_a_block():
    done = []
    with pytest.raises(KeyboardInterrupt), uninterrupted():
        os.kill(os.getpid(), signal.SIGINT)
        done.append(1)
    assert done == [1]


def test_an_ignored_hangup_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with ending_signals(), uninterrupted():
            os.kill(os.getpid(), signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)
