"""What lies on the disk, and what may be wrong with it."""

import json
import os
import time
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from potstill.data import DSA, Normalize
from potstill.experts import rows as store
from potstill.experts.trajectories import train_experts
from potstill.nets import Sharpness, Training
from potstill.run import ArtifactError, StorageError
from potstill.run.checkpoint import content_check

NETWORK = "convnet-d2-w8-in"
TRAINING = Training(
    epochs=6, batch=8, lr=0.05, momentum=0, weight_decay=5e-3, sharpness=Sharpness(),
    augment=DSA.parse("color_crop"),
)  # fmt: skip


def make(real, run, members=2, epochs=range(5), training=TRAINING, network=NETWORK):
    return train_experts(real, Normalize.fit(real), network, members, training, run, epochs=epochs)


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def same(a, b, members, epochs):
    return all(equal(a.at(m, e), b.at(m, e)) for m in members for e in epochs)


def only_file(run):
    (path,) = run.cache.rglob("experts-000-009-epochs-000-049.safetensors")
    return path


def test_a_file_is_sparse_whole_and_readable_by_others(real, run):
    experts = make(real, run, members=2, epochs=[1, 4])
    path = only_file(run)
    with safe_open(path, framework="pt") as file:
        rows = file.get_tensor("rows")
        stated = json.loads(file.metadata()["potstill"])
    assert stated == experts.facts and rows.shape == (10, 50, experts.rows.columns)
    for member, epoch in (0, 1), (1, 4):
        flat = torch.cat([value.flatten() for value in experts.at(member, epoch).values()])
        assert torch.equal(rows[member, epoch], flat)
    assert not rows[2:].any() and not rows[:, 5:].any()
    assert path.stat().st_blocks * 512 < path.stat().st_size / 10


def test_experts_and_epochs_beyond_a_file_have_others(real, run, tmp_path, monkeypatch):
    one = make(real, run.with_(cache=tmp_path / "one"), members=3)
    expected = {(m, e): one.at(m, e) for m in range(3) for e in range(5)}
    monkeypatch.setattr(store, "MEMBERS", 2)
    monkeypatch.setattr(store, "EPOCHS", 3)
    experts = make(real, run, members=3)
    names = sorted(p.name for p in run.cache.rglob("*.safetensors"))
    assert names == [f"experts-{m}-epochs-{e}.safetensors" for m in ("000-001", "002-003")
                     for e in ("000-002", "003-005")]  # fmt: skip
    assert all(equal(experts.at(*place), value) for place, value in expected.items())


def test_what_is_stated(real, run):
    index = json.loads((only_file(run).parent if make(real, run) else Path()).joinpath(
        "index.json").read_text())  # fmt: skip
    facts = index["facts"]
    assert facts["network"] == NETWORK and facts["data"] == real.checksum
    assert facts["classes"] == ["class 0", "class 1", "class 2"] and facts["seed"] == 0
    assert facts["device"] == "cpu" and facts["torch"] == torch.__version__
    assert facts["layout"]["classifier.weight"] == [3, 32] and "epochs" not in facts["training"]
    assert sorted(index["rows"]) == ["0", "1"] and len(index["rows"]["1"]["4"]) == 2


@pytest.mark.parametrize("damage", ["truncated", "empty", "header", "missing"])
def test_a_damaged_file_is_made_again(real, run, calls, caplog, damage):
    first = make(real, run)
    kept = {(m, e): first.at(m, e) for m in range(2) for e in range(5)}
    path = only_file(run)
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes({"truncated": content[:-1], "empty": b"",
                          "header": content[:20] + b"x" + content[21:]}[damage])  # fmt: skip
    calls.clear()
    again = make(real, run)
    assert calls == [(0, 4)] * 2 and path.name in caplog.text and "10 rows again" in caplog.text
    assert all(equal(again.at(*place), value) for place, value in kept.items())
    assert path.read_bytes() == content


def flip(run, experts, member, epoch):
    path, columns = only_file(run), experts.rows.columns
    with path.open("rb+") as file:
        start = path.stat().st_size - 4 * 500 * columns
        file.seek(start + 4 * columns * (50 * member + epoch) + 11)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 16]))


def test_a_damaged_row_is_told_and_made_again(real, run, calls, caplog):
    first = make(real, run)
    good = first.at(1, 3)
    flip(run, first, 1, 3)
    again = make(real, run)
    assert equal(again.at(1, 2), first.at(1, 2))
    calls.clear()
    assert equal(again.at(1, 3), good) and calls == [(2, 3)]  # in the middle of whatever reads it
    assert "damaged at expert 1, epoch 3; training that part again" in caplog.text
    calls.clear()
    assert equal(make(real, run).at(1, 3), good) and not calls


def test_training_does_not_go_on_from_a_damaged_row(real, run, tmp_path, calls, caplog):
    whole = make(real, run.with_(cache=tmp_path / "whole"), epochs=range(7))
    first = make(real, run, epochs=range(4))
    flip(run, first, 1, 3)
    calls.clear()
    grown = make(real, run, epochs=[*range(4), 6])
    assert sorted(calls) == [(2, 6), (3, 6)] and "making it again" in caplog.text
    assert same(whole, grown, range(2), [0, 1, 2, 3, 6])


@pytest.mark.parametrize(
    "text", ["", "{}", "[1]", '{"facts": {}, "rows": {"0": {"1": [1]}}}', "\0"]
)
def test_a_damaged_index_is_made_again(real, run, calls, caplog, text):
    first = make(real, run)
    value = first.at(1, 4)
    (only_file(run).parent / "index.json").write_text(text)
    calls.clear()
    assert equal(make(real, run).at(1, 4), value)
    assert calls == [(0, 4)] * 2 and "index.json is damaged" in caplog.text


@pytest.mark.parametrize(
    ("name", "value"),
    [("network", "convnet-d3-w8-in"), ("data", "0" * 16), ("classes", ["b", "a", "c"]),
     ("layout", {"classifier.weight": [3, 32]}), ("format", "potstill-rows-0"), ("seed", 9)],
)  # fmt: skip
def test_a_folder_of_other_experts_is_refused(real, run, name, value):
    make(real, run)
    path = only_file(run).parent / "index.json"
    index = json.loads(path.read_text())
    index["facts"][name] = value
    del index["check"]
    path.write_text(json.dumps(index | {"check": content_check({}, index)}))
    with pytest.raises(
        ArtifactError, match=f"holds experts whose {name} is .*; delete that folder"
    ):
        make(real, run)


def test_space_is_checked_before_training(real, run, monkeypatch, calls):
    need = 4 * make(real, run, members=1, epochs=[0]).rows.columns * (2 * 5 - 1)
    calls.clear()
    usage = namedtuple("Usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(1, 1, need - 1))
    with pytest.raises(StorageError, match=r"9 snapshots of experts needs 0\.0\d MB in .*, where "
                                           r"0\.0\d MB are free; .*\$POTSTILL_CACHE"):  # fmt: skip
        make(real, run)
    assert not calls
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(1, 1, need))
    assert make(real, run)


def test_a_full_disk_is_told_and_nothing_finished_is_lost(real, run, monkeypatch, calls):
    from potstill.experts.blocks import Block

    original, count = Block.write, []

    def write(self, *args):
        count.append(1)
        if len(count) == 9:
            raise OSError(28, "No space left on device")
        original(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Block, "write", write)
        with pytest.raises(StorageError, match=r"No space left on device; .*\$POTSTILL_CACHE"):
            make(real, run)
    calls.clear()
    make(real, run)
    assert calls == [(2.75, 4)]


def test_a_cache_that_cannot_be_written(real, run, tmp_path):
    blocked = tmp_path / "blocked"
    blocked.write_text("a file where a folder should be")
    with pytest.raises(StorageError, match="POTSTILL_CACHE"):
        make(real, run.with_(cache=blocked))


def test_another_process_at_work_is_waited_for(real, run, tmp_path, calls):
    """The second sees, once it is let in, what the first has made."""
    from threading import Thread

    first = make(real, run, epochs=[0])
    done = []
    with first.rows.held():
        thread = Thread(target=lambda: done.append(make(real, run)))
        thread.start()
        for _ in range(100):
            time.sleep(0.01)
        assert not done and not calls[2:]
        other = make(real, run.with_(cache=tmp_path / "other"))
        for m in range(2):
            for e in range(1, 5):
                first.rows.write(m, e, other.rows.read(m, e), 1.0)
    calls.clear()
    thread.join()
    assert not calls and same(done[0], other, range(2), range(5))
