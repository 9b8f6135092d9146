"""PDD: earlier stages stand still to the bit, networks of later ones know them."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from tests.test_contract import build

from potstill.methods.stages import Primed
from potstill.nets import Examples, Training, train_many
from potstill.run import InputError
from potstill.run import loop as loop_module


def staged(variant, real, run, monkeypatch, **changes):
    """The set, and the objectives of its stages as they ended."""
    ends = []
    original = loop_module.descend

    def watched(objective, canvas, *args, **named):
        found = original(objective, canvas, *args, **named)
        leaves = canvas.parameters() | objective.leaves()
        ends.append((objective, {n: leaf.detach().clone() for n, leaf in leaves.items()}))
        return found

    monkeypatch.setattr("potstill.methods.base.descend", watched)
    return build(variant, **changes)(real, 3, run), ends


@pytest.mark.parametrize("variant", ["dm-stages", "csdm-stages", "lad-stages", "mtt", "kip"])
def test_what_an_earlier_stage_made_stands_still(variant, make_blobs, run, monkeypatch):
    real = make_blobs((20, 9, 5))
    _, ends = staged(variant, real, run, monkeypatch, stages=3)
    assert len(ends) == 3
    assert [len(one.canvas.labels) for one, _ in ends] == [3, 6, 9]
    for (_, before), (later, after) in pairwise(ends):
        count, now = len(before[later.canvas.leaf]) // 3, len(after[later.canvas.leaf]) // 3
        kept = torch.cat([torch.arange(c * now, c * now + count) for c in range(3)])
        new = torch.ones(3 * now, dtype=torch.bool).index_fill(0, kept, False)
        for name in {later.canvas.leaf, "logits"} & set(after):
            assert torch.equal(after[name][kept], before[name])
        begun = later.canvas.parameters()[later.canvas.leaf]
        assert begun.grad is None or not begun.grad[kept].any()
        assert begun.grad is None or begun.grad[new].any()


def test_later_students_start_later_on_the_way_of_an_expert():
    method = build("lad", start_max=5, expert_epochs=8, start_grow=3)
    own = method.with_(stages=3)
    spans = [own.staging.of(own, p).trajectory for p in (1, 2, 3)]
    assert [(t.start_min, t.start_max) for t in spans] == [(0, 1), (1, 3), (3, 5)]
    assert all(t.bound(0) == t.start_max for t in spans)
    many = method.with_(stages=9)
    for p in range(1, 10):
        t = many.staging.of(many, p).trajectory
        assert 0 <= t.start_min < t.start_max <= 5


def test_networks_learn_the_stages_before_as_a_plain_training_does(make_blobs, run):
    real = make_blobs((6, 5, 4))
    method = build("dm")
    inner = method.open(real, run)
    plain = {n: t.clone() for n, t in inner.at(7).net.state_dict().items()}
    images, labels = real.batch(torch.arange(15)), real.labels
    primed = Primed(inner, images, labels, 2, 2, run)
    found = {n: t.clone() for n, t in primed.at(7).net.state_dict().items()}
    net = method.networks.new(real, torch.Generator().manual_seed(0))
    net.load_state_dict(plain)
    train_many(
        [net],
        Examples(images, labels, inner.transform),
        Training(epochs=2, batch=256, lr=0.01, momentum=0.9),
        generators=lambda what, _, index: run.generator(f"stage-2/{what}", 7, index),
        quiet=True,
    )
    for name, value in net.state_dict().items():
        assert torch.equal(value, found[name])
        assert value.ndim == 0 or not torch.equal(value, plain[name])
    again = Primed(inner, images, labels, 2, 2, run)
    again.at(3)
    assert all(torch.equal(t, found[n]) for n, t in again.at(7).net.state_dict().items())
    other = Primed(inner, images.flip(3), labels, 2, 2, run)
    assert len({primed.key, other.key, inner.key}) == 3 and again.key == primed.key


def test_a_run_killed_in_its_last_stage_does_not_go_through_the_first_again(
    make_blobs, run, tmp_path, monkeypatch
):
    real, folder, taken = make_blobs((12, 8, 5)), tmp_path / "run", []
    whole = build("csdm-stages")(real, 2, run)
    original = loop_module._Step.run

    class Killed(BaseException):
        pass

    def dying(self, step, chunk, detailed):
        taken.append(step)
        if len(taken) == 10:  # the fourth step of the second stage
            raise Killed
        original(self, step, chunk, detailed)

    monkeypatch.setattr(loop_module._Step, "run", dying)
    with pytest.raises(Killed):
        build("csdm-stages")(real, 2, run.with_(folder=folder))
    assert (folder / "stages" / "1" / "checkpoint.safetensors").exists()
    assert (folder / "checkpoint.safetensors").exists()
    found = build("csdm-stages")(real, 2, run.with_(folder=folder))
    assert taken[10:] == [3, 4, 5] and found.checksum == whole.checksum
    assert found.start.checksum == whole.start.checksum


def test_one_stage_is_no_stage_and_what_cannot_be_is_refused(make_blobs, run):
    real = make_blobs((12, 8, 5))
    method = build("dm")
    assert method.key(real, 2, run) == method.with_(stages=1).key(real, 2, run)
    assert method.key(real, 2, run) != method.with_(stages=2).key(real, 2, run)
    for variant, changes, sentence in (
        ("dm", {"stages": 3}, "stages is 3 with ipc 2; use at most 2"),
        ("dm", {"stages": 0}, "stages is 0"),
        ("dm", {"stages": 2, "ipc_profile": "long_tailed"}, "stages is 2 with canvas 'pixels' and"),
        ("lgm", {"stages": 2}, "stages is 2 with canvas 'pyramid'"),
        ("sre2l", {"stages": 2}, "stages is 2 with a canvas that is worked through in shards"),
        ("rfad", {"stages": 2}, "stages is 2 with learn_mixing"),
    ):
        with pytest.raises(InputError, match=sentence):
            build(variant, **changes)(real, 2, run)
