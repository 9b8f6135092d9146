"""A canvas in shards: whose turn it is, what is kept, descents that are killed around a change."""

import pytest
import torch
from tests.canvas.test_pyramid import Killed, killed_at

from potstill.canvas import Canvas, canvas_spec
from potstill.canvas.shards import ShardedCanvas
from potstill.run import ArtifactError, InputError
from potstill.run.loop import Descent, Objective, Term, descend

STEPS = 4


class Pull(Objective):
    """Pull every pixel of class c towards (c + 1) / 4."""

    def terms(self, step, canvas, chunk):
        aims = (canvas.leaf_labels + 1)[:, None, None, None] / 4
        yield Term("pull", (canvas.images - aims).square().sum())

    def load_state(self, tensors):
        assert not tensors


def make(folder=None, counts=(3, 3, 3), order="spread", size=4):
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    images = torch.arange(len(labels))[:, None, None, None].expand(-1, 1, 2, 2) / 20
    whole = Canvas(images, labels, len(counts), canvas_spec())
    return ShardedCanvas(whole, STEPS, size, order, folder)


def go(canvas, run, **fields):
    how = Descent(steps=STEPS, lr_images=0.05, schedule="cosine", **fields)
    return descend(Pull(), canvas, run, how, classes=("a", "b", "c"), chunk=9, key="k")


def test_shards_are_spread_over_classes_or_go_class_by_class():
    rows = [part.tolist() for part in make().shards]
    assert rows == [[0, 1, 3, 6], [2, 4, 5, 7], [8]]  # first of each, then the second of each
    assert [part.tolist() for part in make(order="classes").shards] == [
        [0, 1, 2, 3], [4, 5, 6, 7], [8]
    ]  # fmt: skip
    assert make(counts=(1, 3, 2)).shards[0].tolist() == [0, 1, 2, 4]
    with pytest.raises(InputError, match="order is 'random'; use one of spread, classes"):
        make(order="random")


def test_each_shard_descends_as_if_it_were_alone(run):
    """Optimiser and schedule begin anew, and the others rest meanwhile."""
    canvas = make()
    told = go(canvas, run)
    assert told["steps"] == 3 * STEPS
    for rows in make().shards:
        alone = make()
        alone.shards, alone.rounds = [rows], 1
        alone._open(0)
        go(alone, run)
        torch.testing.assert_close(canvas.pictures()[rows], alone.pictures()[rows], rtol=0, atol=0)
    assert not torch.equal(canvas.pictures(), make().pictures())


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_a_kill_around_a_change_of_shards_changes_no_byte(run, tmp_path, monkeypatch, optimizer):
    whole = make()
    go(whole, run, optimizer=optimizer)
    for at in (1, STEPS - 1, STEPS, STEPS + 1, 2 * STEPS, 3 * STEPS - 1):
        folder = tmp_path / f"{optimizer}-{at}"
        with monkeypatch.context() as patch:
            killed_at(patch, at)
            with pytest.raises(Killed):
                go(make(folder), run.with_(folder=folder), optimizer=optimizer)
        again = make(folder)
        go(again, run.with_(folder=folder), optimizer=optimizer)
        assert torch.equal(again.pictures(), whole.pictures()), at
        third = make(folder)  # a finished run, read once more
        go(third, run.with_(folder=folder), optimizer=optimizer)
        assert torch.equal(third.pictures(), whole.pictures())
        files = sorted(path.name for path in (folder / "shards").iterdir())
        assert files == ["shard-00000.safetensors", "shard-00001.safetensors"]


def test_a_damaged_shard_is_one_sentence(run, tmp_path, monkeypatch):
    killed_at(monkeypatch, 2 * STEPS)
    with pytest.raises(Killed):
        go(make(tmp_path), run.with_(folder=tmp_path))
    path = tmp_path / "shards" / "shard-00000.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ArtifactError, match=r"shard-00000.* is damaged .*again with --force"):
        go(make(tmp_path), run.with_(folder=tmp_path))


def test_only_the_shard_at_work_has_gradients_and_an_optimiser(run):
    canvas = make()
    assert canvas.parameters()["images"].shape == (4, 1, 2, 2)
    assert len(canvas.leaf_labels) == 4 and len(canvas.labels) == 9
    assert canvas.pictures().shape == (9, 1, 2, 2)
    assert not canvas.pictures().requires_grad
