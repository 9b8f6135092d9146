"""Entries of the cache: keys, files that are believed with their check and name, locks, removal."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest
import torch

from potstill.run import Run, StorageError
from potstill.run.cache import Cached, found_in, key_facts, remove

TABLE = {"table": torch.arange(6.0)}


def entry(root, kind="pools", **facts):
    return Cached(root, kind, {"seed": 0} | facts, "networks on digits")


def table_of(one, name="a.safetensors"):
    return one.recall(name, "making it again", lambda t, f: (t["table"], f["seconds"], f["why"]))


def save(one, name="a.safetensors", seconds=2.5):
    one.save(name, TABLE, {"why": "test"}, seconds)


def test_a_key_holds_the_circumstances_and_what_is_said_besides(tmp_path):
    run = Run(device="cpu", seed=3)
    facts = key_facts("pool-1", run, "checksum", network="mlp")
    assert facts == {
        "kind": "pool-1", "data": "checksum", "network": "mlp", "seed": 3, "device": "cpu",
        "precision": "fp32", "torch": torch.__version__, "threads": torch.get_num_threads(),
    }  # fmt: skip
    assert "threads" not in key_facts("pool-1", run, "checksum", threads=False)
    assert key_facts("pool-1", run, "checksum", seed=0)["seed"] == 0
    changes = [{}, {"network": "cnn"}, {"seed": 4}, {"precision": "bf16"}]
    keys = {Cached(tmp_path, "pools", facts | change, "").key for change in changes}
    assert len(keys) == len(changes) and not list(tmp_path.iterdir())


def test_what_was_saved_is_recalled_and_described(tmp_path):
    assert table_of(entry(tmp_path)) is None and not list(tmp_path.iterdir())
    save(entry(tmp_path))
    save(entry(tmp_path), "b.safetensors")
    table, seconds, why = table_of(entry(tmp_path))
    assert torch.equal(table, TABLE["table"]) and (seconds, why) == (2.5, "test")
    (found,) = found_in(tmp_path)
    assert (found.kind, found.what, found.seconds) == ("pools", "networks on digits", 5.0)
    assert abs(found.created - time.time()) < 60 and found.path == entry(tmp_path).folder
    assert found.size > 2 * 24


@pytest.mark.parametrize("harm", ["another file's", "another entry's", "damaged"])
def test_a_file_is_believed_only_in_its_place_and_with_its_check(tmp_path, caplog, harm):
    one, other = entry(tmp_path), entry(tmp_path, seed=1)
    save(one), save(one, "b.safetensors"), save(other)
    path = one.folder / "a.safetensors"
    if harm == "damaged":
        path.write_bytes(path.read_bytes()[:-1] + b"\xff")
    else:
        (one.folder / "b.safetensors" if "file" in harm else other.folder / path.name).replace(path)
    assert table_of(entry(tmp_path)) is None
    (said,) = caplog.messages
    assert str(path) in said and said.endswith("; making it again")


DESCRIPTIONS = ["", "null", "[1]", '{"what": 3, "created": "x", "seconds": true}', "{" * 10_000,
                '{"what": "a\\u001b[31m\\nb", "created": 1e999, "seconds": null}']  # fmt: skip


@pytest.mark.parametrize("text", DESCRIPTIONS)
def test_a_damaged_description_costs_only_the_description(tmp_path, caplog, text):
    save(entry(tmp_path))
    path = entry(tmp_path).folder / "entry.json"
    path.write_text(text)
    (found,) = found_in(tmp_path)
    assert found.what.isprintable() and found.seconds is None
    assert abs(found.created - time.time()) < 60
    assert table_of(entry(tmp_path)) is not None and not caplog.text


def test_using_an_entry_is_noted_and_the_least_recently_used_comes_first(tmp_path):
    for seed, days in ((0, 5), (1, 9), (2, 7)):
        save(entry(tmp_path, seed=seed))
        then = time.time() - days * 86400
        os.utime(entry(tmp_path, seed=seed).folder / "entry.json", (then, then))
    order = [found.path for found in found_in(tmp_path)]
    assert order == [entry(tmp_path, seed=seed).folder for seed in (1, 2, 0)]
    table_of(entry(tmp_path, seed=1))
    assert [found.path for found in found_in(tmp_path)] == [*order[1:], order[0]]
    assert time.time() - found_in(tmp_path)[-1].used < 60


def test_only_our_own_files_are_removed(tmp_path):
    one = entry(tmp_path)
    save(one)
    (one.folder / "notes.txt").write_text("mine")
    (tmp_path / "pools" / "my networks").mkdir()
    (tmp_path / "pools" / "my networks" / "a.safetensors").write_text("mine")
    (tmp_path / "mine").mkdir()
    elsewhere = tmp_path.parent / f"{tmp_path.name} elsewhere"
    elsewhere.mkdir()
    (elsewhere / "a.safetensors").write_text("mine")
    (tmp_path / "pools" / ("0" * 16)).symlink_to(elsewhere)
    (tmp_path / "heads").mkdir()
    (tmp_path / "heads" / f"{'1' * 16}.safetensors").write_text("of version 0.1")
    del one
    found = found_in(tmp_path)
    assert {one.kind for one in found} == {"pools", "heads"}
    assert all(remove(one, dry=True) for one in found) and len(found_in(tmp_path)) == 2
    assert all(remove(one) for one in found) and not found_in(tmp_path)
    kept = sorted(p.name for p in tmp_path.rglob("*") if p.is_file())
    assert kept == ["a.safetensors", "notes.txt"] and (elsewhere / "a.safetensors").exists()
    assert all(remove(one) for one in found)  # gone already


HOLD = """
import sys
from potstill.run.cache import Cached
one = Cached(__import__("pathlib").Path(sys.argv[1]), "pools", {"seed": 0}, "")
one.hold()
print("held", flush=True)
sys.stdin.read()
"""


def test_what_a_process_is_at_work_with_is_left_until_it_ends(tmp_path):
    save(entry(tmp_path))
    (found,) = found_in(tmp_path)
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdin=-1, stdout=-1, text=True) as process:
        assert process.stdout.readline() == "held\n"
        assert not remove(found) and not remove(found, dry=True)
        assert table_of(entry(tmp_path)) is not None
        process.stdin.close()
    assert remove(found) and not found.path.exists()


def test_an_entry_is_held_as_long_as_somebody_has_it(tmp_path):
    one = entry(tmp_path)
    one.hold()
    (found,) = found_in(tmp_path)
    assert not remove(found)
    del one
    assert remove(found)


def test_a_removed_entry_is_made_again_under_a_new_lock(tmp_path):
    one = entry(tmp_path)
    save(one)
    (found,) = found_in(tmp_path)
    del one
    assert remove(found)
    again = entry(tmp_path)
    save(again)
    assert not remove(found) and table_of(again) is not None


def test_what_may_not_be_removed_is_one_sentence(tmp_path, monkeypatch):
    save(entry(tmp_path))

    def refused(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("potstill.run.cache.remove_owned", refused)
    with pytest.raises(StorageError, match=r"cannot remove .*: Permission denied; change its"):
        remove(found_in(tmp_path)[0])


def test_a_description_that_cannot_be_written_is_done_without(tmp_path, monkeypatch):
    def refused(*_):
        raise StorageError("disk full")

    monkeypatch.setattr("potstill.run.cache.write_json", refused)
    save(entry(tmp_path))
    assert table_of(entry(tmp_path)) is not None
    assert [found.what for found in found_in(tmp_path)] == [""]


def test_a_cache_that_is_none_holds_nothing(tmp_path):
    assert found_in(tmp_path / "nothing") == []
    (tmp_path / "pools").write_text("a file")
    assert found_in(tmp_path) == []
