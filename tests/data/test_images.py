from __future__ import annotations

import dataclasses
import hashlib
import json

import numpy as np
import pytest
import torch

from potstill.data import ImageSet
from potstill.run import InputError


def make(numbers, **changes):
    values = torch.arange(len(numbers) * 4, dtype=torch.int64).remainder(256).to(torch.uint8)
    fields = {
        "images": values.view(-1, 1, 2, 2),
        "labels": torch.as_tensor(numbers, dtype=torch.int64),
        "classes": ("a", "b", "c"),
        "source": "toy",
        "indices": torch.arange(len(numbers)) + 100,
        "fingerprint": "f" * 16,
    }
    return ImageSet(**{**fields, **changes})


def test_facts_of_a_small_set():
    toy = make([2, 0, 1, 0, 0, 2])
    assert (len(toy), toy.num_classes, toy.shape) == (6, 3, (1, 2, 2))
    assert toy.counts == (3, 1, 2)
    assert toy.imbalance_factor == 3.0
    assert toy.of_class(0).tolist() == [1, 3, 4]
    with pytest.raises(dataclasses.FrozenInstanceError):
        toy.source = "other"


def test_checksum_is_of_fingerprint_classes_indices_and_labels():
    toy = make([0, 1, 2])
    content = json.dumps(["f" * 16, ["a", "b", "c"]]).encode()
    content += np.array([100, 101, 102], "<i8").tobytes() + np.array([0, 1, 2], "<i8").tobytes()
    assert toy.checksum == hashlib.sha256(content).hexdigest()[:16]
    others = [
        make([0, 2, 1]),
        make([0, 1, 2], indices=torch.arange(3)),
        make([0, 1, 2], fingerprint="0" * 16),
        make([0, 1, 2], classes=("a", "b", "d")),
    ]
    assert len({toy.checksum, *(other.checksum for other in others)}) == 5
    assert make([0, 1, 2], history=({"op": "x"},)).checksum == toy.checksum


def test_batch_is_float_between_0_and_1():
    toy = make([0, 1, 2])
    batch = toy.batch(torch.tensor([2, 0]))
    assert batch.dtype == torch.float32
    assert torch.equal((batch * 255).round().to(torch.uint8), toy.images[[2, 0]])
    assert toy.to("cpu").checksum == toy.checksum


@pytest.mark.parametrize(
    ("sizes", "groups"),
    [
        ([4, 4], {}),
        ([7, 4, 5], {}),  # less than twice the smallest: no head, no tail
        (range(124, 134), {}),
        ([4, 2], {"head": (0,), "tail": (1,)}),
        ([2, 9, 5], {"head": (1,), "medium": (2,), "tail": (0,)}),
        ([3, 3, 3, 1, 9], {"head": (0, 4), "medium": (1,), "tail": (2, 3)}),
        (range(1, 11), {"head": (7, 8, 9), "medium": (3, 4, 5, 6), "tail": (0, 1, 2)}),
    ],
)
def test_groups(sizes, groups):
    labels = np.repeat(np.arange(len(sizes)), list(sizes))
    toy = make(labels, classes=[str(label) for label in range(len(sizes))])
    assert toy.groups == groups


def test_select_keeps_rows_and_history():
    toy = make([2, 0, 1, 0, 0, 2])
    part = toy.select(torch.tensor([5, 1, 2]), op="mine", why="test")
    assert part.labels.tolist() == [2, 0, 1]
    assert part.indices.tolist() == [105, 101, 102]
    assert torch.equal(part.images, toy.images[[5, 1, 2]])
    assert part.history == ({"op": "mine", "why": "test"},)
    again = part.select(torch.tensor([True, True, True]))
    assert again.history == part.history
    assert again.checksum == part.checksum
    assert part.fingerprint == toy.fingerprint


@pytest.mark.parametrize("positions", [[0, 1, 6], [-1, 1, 2]])
def test_select_out_of_range(positions):
    with pytest.raises(InputError, match="this set has positions 0 to 5"):
        make([2, 0, 1, 0, 0, 2]).select(torch.tensor(positions))


def test_hold_out_is_balanced_disjoint_and_repeatable():
    toy = make(np.repeat([0, 1, 2], [40, 30, 20]))
    rest, held = toy.hold_out(seed=3)
    assert held.counts == (2, 2, 2)
    assert rest.counts == (38, 28, 18)
    both = torch.cat([rest.indices, held.indices]).sort().values
    assert torch.equal(both, toy.indices)
    assert rest.history[-1] == {"op": "hold_out", "per_class": 2, "seed": 3, "part": "rest"}
    assert held.history[-1]["part"] == "held"
    assert torch.equal(toy.hold_out(seed=3)[1].indices, held.indices)
    assert not torch.equal(toy.hold_out(seed=4)[1].indices, held.indices)


def test_hold_out_never_empties_a_class():
    toy = make([0, 0, 0, 1, 1, 2])
    rest, held = toy.hold_out()
    assert (rest.counts, held.counts, held.lacking) == ((2, 1, 1), (1, 1, 0), ("c",))
    with pytest.raises(InputError, match=r"class 'c' has 1 image.*name a test set"):
        toy.hold_out(1)
    with pytest.raises(InputError, match=r"class 'a' has 1 image.*name a test set"):
        make([0, 1, 2]).hold_out()
    two = make([0, 0, 0, 1, 1, 2, 2])
    assert two.hold_out()[0].counts == (2, 1, 1)
    with pytest.raises(InputError, match=r"per_class is 2 but class 'b'.*use 1 to 1"):
        two.hold_out(2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": torch.zeros(3, 1, 2, 2)}, r"images are torch.float32 of shape \(3, 1, 2, 2\)"),
        ({"images": torch.zeros(3, 2, 2, 2, dtype=torch.uint8)}, "with c = 1 or 3"),
        ({"labels": torch.tensor([0, 1])}, r"labels are torch.int64 of shape \(2,\)"),
        ({"labels": torch.tensor([0, 1, 2], dtype=torch.int32)}, "labels are torch.int32"),
        (
            {"labels": torch.tensor([0, 1, 3])},
            r"hold 3 \(row 2\); 3 classes need labels from 0 to 2",
        ),
        ({"labels": torch.tensor([0, -1, 2])}, r"hold -1 \(row 1\)"),
        (
            {"labels": torch.tensor([0, 2, 2])},
            r"class 'b' \(label 1\) of source 'toy' has no images",
        ),
        ({"indices": torch.arange(4)}, "indices are"),
        ({"classes": ("a",)}, "at least 2 classes"),
    ],
)
def test_wrong_sets_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        make([0, 1, 2], **changes)
