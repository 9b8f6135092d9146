"""Sets and classes whose pictures hold nothing to tell them apart."""

from __future__ import annotations

import numpy as np
import pytest

from potstill.app.cli import main
from potstill.data import load, load_pair
from potstill.data.variety import Variety
from potstill.run import InputError

LABELS = np.arange(8) % 2


def pictures(seed=0):
    rng = np.random.Generator(np.random.PCG64(seed))
    return rng.integers(0, 256, (8, 4, 4), dtype=np.uint8)


def stored(tmp_path, images):
    np.savez(tmp_path / "set.npz", images=images, labels=LABELS)
    return tmp_path / "set.npz"


@pytest.mark.parametrize("again", [False, True])
def test_a_set_of_equal_pictures_is_refused_also_from_the_cache(tmp_path, again):
    for images in (np.full((8, 4, 4), 7, np.uint8), np.repeat(pictures()[:1], 8, 0)):
        path = stored(tmp_path, images)
        for _ in range(1 + again):
            with pytest.raises(InputError, match="pictures of the train split of set"):
                load(path)
    pair = {"train": (pictures(), LABELS), "test": (pictures()[:1].repeat(8, 0), LABELS)}
    with pytest.raises(InputError, match="all pictures of the test split of arrays are equal"):
        load_pair(pair)


def plain():
    images = pictures()
    images[LABELS == 1] = np.arange(8)[LABELS == 1, None, None]  # another grey each
    return images


def equal():
    images = pictures()
    images[LABELS == 1] = images[1]
    return images


@pytest.mark.parametrize("make", [plain, equal])
def test_a_class_of_them_costs_a_warning_each_time(tmp_path, caplog, make):
    path = stored(tmp_path, make())
    for _ in range(2):
        caplog.clear()
        load(path)
        assert [record.message for record in caplog.records] == [
            "1 class(es) of the train split of set.npz hold only pictures of one colour, or equal "
            "ones ('1'); look at their files"
        ]


def test_usual_sets_are_not_mentioned(caplog):
    twice = pictures()
    twice[3] = twice[1]  # a duplicate
    twice[5] = 9  # one empty picture
    load((twice, LABELS))
    load("digits")
    single = load((pictures(), [0, 1, 1, 1, 1, 1, 1, 1]))  # one picture is no class of equal ones
    assert single.counts == (1, 7)
    assert not caplog.records


def test_pictures_of_one_pixel_are_not_constant(caplog):
    load((np.arange(8, dtype=np.uint8)[:, None, None], LABELS))
    assert not caplog.records


def test_classes_are_left_alone_as_soon_as_they_vary(monkeypatch):
    looked = []
    real = Variety._one
    monkeypatch.setattr(
        Variety,
        "_one",
        lambda self, picture, label: looked.append(label) or real(self, picture, label),
    )
    load((np.repeat(pictures(), 10, 0)[np.argsort(np.arange(80) % 8, kind="stable")], [0, 1] * 40))
    assert len(looked) <= 6


def test_command_line_says_what_to_do(tmp_path, capsys):
    path = stored(tmp_path, np.zeros((8, 4, 4), np.uint8))
    words = ["distill", "random", "--data", str(path), "--ipc", "1", "--out", str(tmp_path / "run")]
    assert main(words) == 2
    said = capsys.readouterr().err
    assert said.startswith("potstill: all pictures of") and "--value-range" in said
    assert said.count("\n") == 1
