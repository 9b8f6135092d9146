"""``potstill cache``: what lies there is listed, and goes by last use; what is in use stays."""

from __future__ import annotations

import os
import time

import pytest
import torch

from potstill.app.cli import main
from potstill.run import StorageError, cache_folder
from potstill.run.cache import Cached, found_in

DAY = 86_400
AGES = {0: 40, 1: 20, 2: 1}  # days since the last use


def entry(seed, kind="pools"):
    return Cached(cache_folder(), kind, {"seed": seed}, f"networks of {seed}")


@pytest.fixture
def filled():
    """Three entries of about a megabyte each."""
    for seed, days in AGES.items():
        entry(seed).save("a.safetensors", {"x": torch.zeros(250_000)}, {}, 1.5)
        then = time.time() - days * DAY
        os.utime(entry(seed).folder / "entry.json", (then, then))


def called(capsys, words, code=0):
    capsys.readouterr()
    assert main(["cache", *words.split()]) == code
    said = capsys.readouterr()
    return said.out if code == 0 else said.err


def left():
    known = {entry(seed).folder: seed for seed in AGES}
    return sorted(known[found.path] for found in found_in(cache_folder()))


def test_an_empty_cache_says_so(capsys):
    assert called(capsys, "") == f"cache {cache_folder()}\ntotal: 0 entries, 0 B\n"
    assert "removed 0 entries, 0 B" in called(capsys, "clear")
    assert not cache_folder().exists()


def test_what_lies_there_is_listed_with_totals_by_kind(filled, capsys):
    entry(7, "heads").save("head.safetensors", {}, {}, 90)
    rows = called(capsys, "").splitlines()
    by_what = {row.split("  ")[1].strip(): row for row in rows if "networks of" in row}
    for seed, days in AGES.items():
        row = by_what[f"networks of {seed}"]
        assert "1.0 MB" in row and "2 s" in row and f"{days} d" in row and entry(seed).key in row
    assert "90 s" in by_what["networks of 7"]
    assert "pools: 3 entries, 3.0 MB (networks for matching)" in rows
    assert any(row.startswith("heads: 1 entry, ") for row in rows)
    assert any(row.startswith("total: 4 entries, 3.0 MB") for row in rows)


@pytest.mark.parametrize(
    ("words", "stay"),
    [
        ("prune --older-than 30d", [1, 2]),
        ("prune --older-than 2w", [2]),
        ("prune --older-than 41d", [0, 1, 2]),
        ("prune --older-than 0s", []),
        ("prune --older-than 12.5H", []),
        ("prune --larger-than 5GB", [0, 1, 2]),
        ("prune --larger-than 2.5MB", [1, 2]),
        ("prune --larger-than 1100kb", [2]),
        ("prune --larger-than 0B", []),
        ("prune --older-than 30d --larger-than 1.5MB", [2]),
        ("prune --older-than=15d --larger-than=1TB", [2]),
        ("clear", []),
    ],
)
def test_the_least_recently_used_go_first(filled, capsys, words, stay):
    gone = len(AGES) - len(stay)
    dry = called(capsys, f"{words} --dry-run")
    assert f"would remove {gone} entr" in dry and left() == [0, 1, 2]
    said = called(capsys, words)
    assert f"removed {gone} entr" in said and left() == stay
    for seed in AGES:
        assert (f"networks of {seed} " in said) == (seed not in stay) == (entry(seed).key in dry)


def test_what_is_in_use_is_left_and_said(filled, capsys):
    busy = entry(1)
    busy.hold()
    for words in ("clear --dry-run", "clear"):
        said = called(capsys, words)
        assert "left 1 entry, 1.0 MB that a running process is at work with" in said
        assert said.index("remove") < said.index("networks of 1") and "2 entries, 2.0 MB" in said
    assert left() == [1]
    del busy
    assert "removed 1 entry" in called(capsys, "clear") and left() == []


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("prune", "--older-than and --larger-than are not given; say what is to go"),
        ("prune --older-than 30", "--older-than is '30'; use a number with s, min, h, d, w, such"),
        ("prune --older-than 3y", "--older-than is '3y'; use"),
        ("prune --older-than -3d", "--older-than"),
        ("prune --older-than=-3d", "--older-than is '-3d'; use"),
        ("prune --older-than nan", "--older-than is 'nan'; use"),
        ("prune --older-than 1e9d", "--older-than is '1e9d'; use"),
        ("prune --older-than 1000000000000d", "--older-than is '1000000000000d'; use"),
        ("prune --larger-than ٣GB", "--larger-than is '٣GB'; use"),
        ("prune --larger-than 5G", "--larger-than is '5G'; use a number with B, kB, MB, GB, TB"),
        ("prune --larger-than 0" + 300 * "0" + "GB", "--larger-than is '0000"),
        ("prune --larger 5GB", "did you mean '--larger-than'?"),
        ("clear everything", "potstill cache clear --help"),
        ("purge", "potstill cache is followed by 'purge'; did you mean 'prune'?"),
    ],
)
def test_what_cannot_be_meant_is_one_sentence(filled, capsys, words, sentence):
    said = called(capsys, words, 2)
    assert said.startswith("potstill: ") and said.count("\n") == 1 and sentence in said
    assert len(said) < 250 and left() == [0, 1, 2]


def test_help_names_the_cache(capsys):
    assert str(cache_folder()) in called(capsys, "--help")


def test_what_may_not_be_removed_is_said_after_what_is_gone(filled, capsys, monkeypatch):
    from potstill.app import cache_command

    real = cache_command.remove

    def refused(one, *, dry=False):
        if one.path == entry(1).folder:
            raise StorageError("cannot remove it; change its permissions")
        return real(one, dry=dry)

    monkeypatch.setattr(cache_command, "remove", refused)
    capsys.readouterr()
    assert main(["cache", "clear"]) == 4
    said = capsys.readouterr()
    assert "removed 1 entry, 1.0 MB" in said.out and "change its permissions" in said.err
    assert left() == [1, 2]
