from __future__ import annotations

import logging
import os
import time

import numpy as np
import pytest
import torch

from potstill.data import store
from potstill.data.store import Facts, collect, read_entry, take
from potstill.run import StorageError
from potstill.run.cache import Cached
from potstill.run.checkpoint import load_state, save_state

FACTS = Facts(("a", "b"), ("train", "test"))
SMALL, LARGE = 1.0, 1e-9  # GB: in memory, memory-mapped


@pytest.fixture
def root(tmp_path):
    return tmp_path / "decoded"


def parts(sizes=(3, 4)):
    start = 0
    for size in sizes:
        values = np.arange(start, start + size * 12, dtype=np.uint8).reshape(size, 3, 2, 2)
        yield values, list(range(start // 12 % 2, start // 12 % 2 + size))
        start += size * 12


def entry(root, key="key"):
    return Cached(root.parent, root.name, {"source": key}, "what it is")


def fill(root, key="key", memory_gb=SMALL, sizes=(3, 4)):
    made = entry(root, key) if key else None
    return collect(parts(sizes), sum(sizes), FACTS, root=root, entry=made, memory_gb=memory_gb)


def expected():
    return torch.arange(84, dtype=torch.uint8).view(7, 3, 2, 2)


@pytest.mark.parametrize("write", [SMALL, LARGE])
@pytest.mark.parametrize("read", [SMALL, LARGE])
def test_what_was_written_is_read(root, write, read):
    made = fill(root, memory_gb=write)
    again = read_entry(entry(root), read)
    for bank, budget in ((made, write), (again, read)):
        assert torch.equal(bank.images, expected())
        assert bank.labels.tolist() == [0, 1, 2, 1, 2, 3, 4]
        assert bank.facts == FACTS
        assert (bank.mapped is not None) == (budget == LARGE)
    assert made.fingerprint == again.fingerprint
    assert [path.name for path in root.iterdir()] == [entry(root).key]


def test_fingerprint_is_of_the_content(root):
    first = fill(root).fingerprint
    assert fill(root, key=None, memory_gb=LARGE, sizes=(3, 4)).fingerprint == first
    assert fill(root, key=None, sizes=(4, 3)).fingerprint != first  # other labels
    assert len(first) == 16 and int(first, 16) >= 0


def test_without_a_key_nothing_stays(root):
    bank = fill(root, key=None, memory_gb=LARGE)
    assert torch.equal(bank.images, expected())
    assert not list(root.iterdir())
    assert read_entry(entry(root), SMALL) is None


def test_writing_to_a_mapped_tensor_does_not_reach_the_file(root):
    bank = fill(root, memory_gb=LARGE)
    bank.images[0] = 255
    assert torch.equal(read_entry(entry(root), LARGE).images, expected())


def truncate(path):
    path.write_bytes(path.read_bytes()[:-5])


def other_facts(path, **tensors):
    """Well-formed and checked, but not of these images."""
    known, facts = load_state(path)
    save_state(path, known | tensors, facts)


@pytest.mark.parametrize("memory_gb", [SMALL, LARGE])
@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("images.npy", truncate),
        ("images.npy", lambda path: path.write_bytes(b"")),
        ("images.npy", lambda path: np.save(path, np.zeros((7, 3, 2, 2), np.float32))),
        ("images.npy", lambda path: np.save(path, np.zeros((7, 3, 4, 1), np.uint8))),
        ("facts.safetensors", truncate),
        ("facts.safetensors", lambda path: path.write_text("{}")),
        ("facts.safetensors", lambda path: other_facts(path, labels=torch.zeros(6).long())),
        ("facts.safetensors", lambda path: other_facts(path, checks=torch.zeros(2).long())),
        ("facts.safetensors", lambda path: other_facts(path, rows=torch.arange(6))),
    ],
)
def test_damage_is_noticed_and_repaired(root, caplog, name, damage, memory_gb):
    fill(root)
    damage(entry(root).folder / name)
    assert read_entry(entry(root), memory_gb) is None
    assert "damaged" in caplog.text
    fill(root)
    assert torch.equal(read_entry(entry(root), memory_gb).images, expected())


def full_disk(*_):
    raise OSError(28, "No space left on device")


def test_full_disk_costs_a_warning(root, monkeypatch, caplog):
    monkeypatch.setattr(store, "_sync", full_disk)
    with caplog.at_level(logging.WARNING, "potstill"):
        bank = fill(root)
    assert torch.equal(bank.images, expected())
    assert "not cached" in caplog.text and "No space left" in caplog.text
    assert not list(root.iterdir())


def test_full_disk_stops_what_does_not_fit_in_memory(root, monkeypatch):
    monkeypatch.setattr(store, "_sync", full_disk)
    with pytest.raises(StorageError, match=r"No space left on device.*raise memory_gb"):
        fill(root, memory_gb=LARGE)
    assert not list(root.iterdir())


def test_cache_that_cannot_be_made(root, caplog):
    root.write_text("")
    assert torch.equal(fill(root).images, expected())
    assert "not cached" in caplog.text


def test_quicker_process_wins_and_nothing_is_left(root):
    first = fill(root)
    second = fill(root, memory_gb=LARGE)
    assert torch.equal(second.images, first.images)
    assert [path.name for path in root.iterdir()] == [entry(root).key]


def test_what_a_killed_process_left_goes_after_a_week(root):
    for name, age in (("old", 8), ("new", 6)):
        folder = root / f".part-{name}"
        folder.mkdir(parents=True)
        then = time.time() - age * 24 * 3600
        os.utime(folder, (then, then))
    fill(root)
    assert sorted(path.name for path in root.iterdir()) == [".part-new", entry(root).key]


def test_selection_of_a_mapped_tensor_stays_mapped(root, monkeypatch):
    monkeypatch.setattr(store, "_LARGE_SELECTION", 1)
    monkeypatch.setattr(store, "_ROWS", 2)
    bank = fill(root, memory_gb=LARGE)
    rows = torch.tensor([6, 0, 3, 3, 1])
    taken, mapped = take(bank.images, rows, bank.mapped)
    assert torch.equal(taken, expected()[rows]) and mapped is not None
    again, _ = take(taken, torch.tensor([0]), mapped)
    assert torch.equal(again, expected()[6:])
    assert [path.name for path in root.iterdir()] == [entry(root).key]
