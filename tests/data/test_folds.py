"""Folds: every image tested once, classes in proportion, and small test sets named as such."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from potstill.app.opening import Data, open_data
from potstill.data import ImageSet, load_pair
from potstill.data.images import parse_fold
from potstill.data.testing import few_note
from potstill.run import InputError


@pytest.fixture
def uneven(make_blobs) -> ImageSet:
    return make_blobs((17, 9, 5))


def arrays(counts, size=8):
    labels = np.repeat(np.arange(len(counts)), counts)
    images = np.random.default_rng(0).integers(0, 255, (len(labels), size, size), dtype=np.uint8)
    return images, labels


def test_every_image_is_in_exactly_one_fold_and_folds_are_of_a_size(uneven):
    parts = [uneven.fold(number, 5) for number in range(1, 6)]
    tested = torch.cat([held.indices for _, held in parts])
    assert sorted(tested.tolist()) == sorted(uneven.indices.tolist())
    for rest, held in parts:
        assert not set(rest.indices.tolist()) & set(held.indices.tolist())
        assert len(rest) + len(held) == len(uneven)
    for label, count in enumerate(uneven.counts):
        sizes = {held.counts[label] for _, held in parts}
        assert sizes <= {count // 5, -(-count // 5)}
    sizes = [len(held) for _, held in parts]
    assert max(sizes) - min(sizes) <= 1


def test_a_fold_is_drawn_from_the_seed_and_remembered(uneven):
    one, again, other = (uneven.fold(2, 3, seed)[1] for seed in (0, 0, 1))
    assert one.indices.tolist() == again.indices.tolist() != other.indices.tolist()
    rest, held = uneven.fold(2, 3, 1)
    fact = {"op": "fold", "fold": 2, "folds": 3, "seed": 1}
    assert rest.history == (fact | {"part": "rest"},) and held.history == (fact | {"part": "held"},)


@pytest.mark.parametrize(
    ("fold", "said"),
    [
        ("0/5", "fold is '0/5'; use K/N with N at least 2 and K from 1 to N"),
        ("6/5", "fold is '6/5'"),
        ("1/1", "fold is '1/1'"),
        ("one of five", "fold is 'one of five'; write K/N"),
        ("1/2/3", "write K/N"),
        ("", "write K/N"),
        ((1, 6), "fold is 1/6 but class '2' has 5 image.*; use at most 5 folds"),
    ],
)
def test_folds_that_cannot_be_cut_are_one_sentence(fold, said):
    with pytest.raises(InputError, match=said):
        load_pair(arrays((17, 9, 5)), fold=fold)


def test_a_single_image_cannot_be_tested_and_trained_on():
    train, test, note = load_pair(arrays((9, 1)), fold="1/2")
    assert train.counts[1] == 1 and test.counts[1] == 0 and sum(test.counts) in (4, 5)
    assert "No test images of 1 of 2 classes (1): accuracies are over the 1 others." in note
    with pytest.raises(InputError, match=r"has 1 image.*; add images or leave it out"):
        load_pair(arrays((1, 1)), fold="1/2")
    assert parse_fold((2, 4)) == parse_fold("2/4") == (2, 4)


def test_the_sentence_names_the_fold_and_what_it_leaves_out():
    train, test, note = load_pair(arrays((60, 50)), fold="2/5", seed=3)
    assert note == (
        "Test images: fold 2 of 5 of the training images of arrays (22 images, seed 3); "
        "each image is in one fold."
    )
    assert len(train) == 88 and test.counts == (12, 10)
    assert "Its own test split plays no part." in load_pair("digits", fold=(1, 5))[2]
    with pytest.raises(InputError, match="test is 'digits' beside fold '1/5'"):
        load_pair("digits", test="digits", fold="1/5")


@pytest.mark.parametrize("how", ["hold-out", "fold", "second source", "own split"])
def test_few_test_images_are_named_wherever_they_come_from(how, tmp_path):
    many, few = arrays((40, 40)), arrays((9, 12))
    splits = dict(zip(("train_images", "train_labels"), many, strict=True))
    splits |= dict(zip(("test_images", "test_labels"), few, strict=True))
    np.savez(tmp_path / "set.npz", **splits)
    source, options, fewest = {
        "hold-out": (many, {}, 4),
        "fold": (many, {"fold": "1/5"}, 8),
        "second source": (many, {"test": few}, 9),
        "own split": (tmp_path / "set.npz", {}, 9),
    }[how]
    _, test, note = load_pair(source, **options)
    said = f"Few test images: {fewest} of the smallest class, so one image is"
    assert said in note and said in few_note(test)
    assert ("potstill crossval tests every image" in note) == (how != "fold")


def test_a_job_on_few_test_images_is_warned_of(run, caplog, tmp_path):
    images, labels = arrays((40, 40))
    np.savez(tmp_path / "set.npz", images=images, labels=labels)
    _, test, _ = Data(data=str(tmp_path / "set.npz")).open(run)
    assert few_note(test) == caplog.messages[-1]


def test_enough_test_images_need_no_word(run, caplog):
    assert "Few" not in load_pair(arrays((100, 120)))[2]  # a tenth of 100
    _, test, note = Data().open(run)
    assert "Few" not in note and not few_note(test) and not caplog.records


def test_the_fold_stands_in_the_options_and_opens_again(run):
    data = Data(fold="2/5", fold_seed=7, imbalance_factor=5)
    train, test, note = data.open(run)
    assert [fact["op"] for fact in train.history] == ["fold", "long_tailed"]
    assert (data.facts()["fold"], data.facts()["fold_seed"]) == ("2/5", 7)
    assert "fold" not in Data().facts() and "fold_seed" not in Data(fold_seed=7).facts()
    record = {"job": {"data": data.facts(), "train_checksum": train.checksum}}
    again = open_data(record, run)
    assert (again[0].checksum, again[1].checksum, again[2]) == (train.checksum, test.checksum, note)


def test_a_profile_is_named_only_where_something_was_cut():
    assert "profile" not in Data().facts() and "profile" not in Data(profile="step").facts()
    assert Data(imbalance_factor=10, profile="step").facts()["profile"] == "step"
