import errno
import os
from pathlib import Path

import pytest
import torch

from potstill.run import ArtifactError, StorageError
from potstill.run.checkpoint import atomic, load_state, save_state, write_bytes, write_json


def test_state_round_trip(tmp_path):
    tensors = {"a.b": torch.rand(3, dtype=torch.float64), "n": torch.tensor(7)}
    save_state(tmp_path / "s.safetensors", tensors, {"step": 3, "best": 0.1})
    found, facts = load_state(tmp_path / "s.safetensors")
    assert facts == {"step": 3, "best": 0.1}
    assert all(torch.equal(found[k], v) and found[k].dtype == v.dtype for k, v in tensors.items())


@pytest.mark.parametrize("content", [b"", b"x" * 100, b"\x08\x00\x00\x00\x00\x00\x00\x00{}      "])
def test_damaged_state_is_refused(tmp_path, content):
    (tmp_path / "s").write_bytes(content)
    with pytest.raises(ArtifactError, match="damaged"):
        load_state(tmp_path / "s")


def test_truncated_state_is_refused(tmp_path):
    path = tmp_path / "s"
    save_state(path, {"a": torch.rand(100)}, {})
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ArtifactError):
        load_state(path)


def test_disk_full_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "f.json"
    write_json(path, {"old": 1})

    def full(self, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(StorageError, match="No space left"):
        write_json(path, {"new": 2})
    monkeypatch.undo()
    assert "old" in path.read_text() and [p.name for p in tmp_path.iterdir()] == ["f.json"]


def test_no_temporary_file_remains(tmp_path):
    write_bytes(tmp_path / "a" / "b.bin", b"1")
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["b.bin"]


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def dies_while_writing(path):
    child = os.fork()
    if not child:
        atomic(path, lambda temporary: temporary.write_bytes(b"half") and os._exit(9))
    os.waitpid(child, 0)


def test_the_next_write_puts_away_what_a_killed_one_left(tmp_path):
    path = tmp_path / "scores.json"
    write_bytes(path, b"old")
    dies_while_writing(path)
    assert path.read_bytes() == b"old" and len(names(tmp_path)) == 2
    dies_while_writing(path)
    assert len(names(tmp_path)) == 2
    write_bytes(path, b"x")
    assert path.read_bytes() == b"x" and names(tmp_path) == ["scores.json"]


def test_two_writers_of_one_file_do_not_meet(tmp_path):
    path = tmp_path / "x.json"

    def slow(temporary):
        temporary.write_bytes(b"slow")
        write_bytes(path, b"quick")
        assert path.read_bytes() == b"quick" and temporary.read_bytes() == b"slow"

    atomic(path, slow)
    assert path.read_bytes() == b"slow" and names(tmp_path) == ["x.json"]


@pytest.mark.parametrize("planted", ["link", "fifo", "folder"])
def test_what_lies_in_the_place_of_the_unfinished_file_is_not_written_to(tmp_path, planted):
    (tmp_path / "theirs").write_bytes(b"mine")
    usual = tmp_path / ".x.json.part"
    make = {"link": lambda: usual.symlink_to("theirs"), "fifo": lambda: os.mkfifo(usual)}
    make.get(planted, usual.mkdir)()
    write_bytes(tmp_path / "x.json", b"x")
    assert (tmp_path / "x.json").read_bytes() == b"x"
    assert (tmp_path / "theirs").read_bytes() == b"mine"
    assert names(tmp_path) == [".x.json.part", "theirs", "x.json"]
