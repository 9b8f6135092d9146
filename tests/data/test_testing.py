"""Test images: classes by name, classes that are lacking, and images of both splits."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from potstill.data import load, load_pair
from potstill.data.testing import shared_images
from potstill.run import InputError


def split(labels, seed=0):
    draw = np.random.Generator(np.random.PCG64(seed))
    return draw.integers(0, 256, (len(labels), 4, 4), dtype=np.uint8), np.array(labels)


@pytest.mark.parametrize("gone", [0, 1, 2])
def test_arrays_whose_test_split_lacks_a_class(gone):
    labels = [label for label in (0, 1, 2) if label != gone] * 2
    train, test, note = load_pair({"train": split([0, 1, 2] * 3), "test": split(labels, 1)})
    assert test.classes == train.classes and test.labels.tolist() == labels
    assert test.lacking == (str(gone),) and test.imbalance_factor == 1
    assert f"No test images of 1 of 3 classes ({gone}): accuracies are over the 2 others." in note
    with pytest.raises(InputError, match=r"other classes than .*\(3\)"):
        load_pair({"train": split([0, 1, 2] * 3), "test": split([0, 3], 1)})
    with pytest.raises(InputError, match=r"hold -1 \(row 1\)"):
        load_pair({"train": split([0, 1, 2] * 3), "test": split([0, -1], 1)})


def test_classes_are_told_apart_by_name_not_by_place():
    train = split(["owl", "cow", "dog"] * 3)
    test = split(["owl", "dog"], 1)
    first, second, _ = load_pair(train, test=test)
    assert first.classes == ("cow", "dog", "owl")
    assert second.labels.tolist() == [2, 1]


def test_a_subset_of_which_the_test_split_has_a_part(tmp_path):
    images, labels = split([0, 1, 2] * 3)
    np.savez(tmp_path / "a.npz", train_images=images, train_labels=labels,
             test_images=images[:2][::-1], test_labels=labels[:2][::-1])  # fmt: skip
    _, test, _ = load_pair(tmp_path / "a.npz", subset="1,2")
    assert test.labels.tolist() == [0] and test.lacking == ("2",)


def test_images_in_both_splits_are_counted(caplog):
    (x, y), (more, z) = split([0, 1] * 5), split([0, 1] * 2, 1)
    load_pair((x, y), test=(more, z))
    assert "pixel for pixel" not in caplog.text
    more[1], more[3] = x[4], x[4]
    train, test, _ = load_pair((x, y), test=(more, z))
    assert "2 of 4 test images of arrays are training images, too" in caplog.text
    assert "the first is row 1" in caplog.text
    pairs = [(a, b) for b in range(4) for a in range(10) if (x[a] == more[b]).all()]
    assert shared_images(train, test) == [b for _, b in pairs]
    turned = torch.from_numpy(x).transpose(1, 2).contiguous()
    assert shared_images(load((turned, torch.from_numpy(y))), train) == []
