from __future__ import annotations

import numpy as np
import pytest
import torch

from potstill.data import ImageSet, draw_positions, load, profile_counts
from potstill.data.longtail import Imbalance
from potstill.run import InputError, cache_folder

CACHE = cache_folder()  # the developer's own: CIFAR-10 is decoded once, not once per test


def flat(counts, interleaved=False):
    """A set of 1x1 images whose pixel is its position within the class (mod 256)."""
    labels = np.repeat(np.arange(len(counts)), counts)
    if interleaved:
        labels = labels.reshape(len(counts), -1).T.ravel()
    labels = torch.from_numpy(labels)
    n = len(labels)
    images = torch.arange(n).remainder(251).to(torch.uint8).view(n, 1, 1, 1)
    names = tuple(str(label) for label in range(len(counts)))
    return ImageSet(images, labels, names, "flat", torch.arange(n), "0" * 16)


CIFAR10 = {  # public lists of the CIFAR-LT code
    10: [5000, 3871, 2997, 2320, 1796, 1391, 1077, 834, 645, 500],
    50: [5000, 3237, 2096, 1357, 878, 568, 368, 238, 154, 100],
    100: [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50],
    200: [5000, 2775, 1540, 854, 474, 263, 146, 81, 45, 25],
}


@pytest.mark.parametrize("factor", CIFAR10)
def test_published_cifar10_counts(factor):
    counts = profile_counts(5000, 10, factor)
    assert counts == CIFAR10[factor]
    assert sum(counts) == {10: 20431, 50: 13996, 100: 12406, 200: 11203}[factor]


@pytest.mark.parametrize(("factor", "total"), [(10, 19573), (20, 15907), (50, 12608), (100, 10847)])
def test_published_cifar100_counts(factor, total):
    counts = profile_counts(500, 100, factor)
    assert sum(counts) == total
    assert (counts[0], counts[-1]) == (500, 500 // factor)


@pytest.mark.parametrize(("factor", "total"), [(10, 39072), (20, 31711)])
def test_published_tiny_imagenet_counts(factor, total):
    assert sum(profile_counts(500, 200, factor)) == total


@pytest.mark.parametrize("largest", [49, 98, 103, 107, 5000])
def test_the_ends_are_exact(largest):
    """In floating point 49 * (1 / 49) is below 1."""
    for profile in ("exponential", "step", "pareto"):
        counts = profile_counts(largest, 7, largest, profile)
        assert (counts[0], counts[-1]) == (largest, 1)


def test_published_draw_is_that_of_the_public_code():
    toy = flat([5000] * 3, interleaved=True)
    cut = toy.long_tailed(50)
    for label, count in enumerate(profile_counts(5000, 3, 50)):
        chosen = cut.indices[cut.labels == label]
        within = torch.searchsorted(toy.of_class(label), chosen)
        assert within[:5].tolist() == [1501, 2586, 2653, 1055, 705][:count]
        # The public code asks choice() for n_c positions without replacement.
        again = np.random.RandomState(42).choice(5000, count, replace=False)
        assert within.tolist() == again.tolist()
    assert cut.labels.tolist() == sorted(cut.labels.tolist())


def test_published_draws_are_nested_and_never_repeat_a_row():
    toy = flat([60, 60, 60])
    large, small = toy.long_tailed(5), toy.long_tailed(20)
    assert set(small.indices.tolist()) < set(large.indices.tolist())
    assert len(set(large.indices.tolist())) == len(large)
    assert torch.equal(large.images, toy.images[large.indices])


def test_seeded_draw():
    toy = flat([60, 60, 60])
    one, same, other = (toy.long_tailed(5, draw="seeded", seed=seed) for seed in (1, 1, 2))
    assert one.counts == toy.long_tailed(5).counts
    assert torch.equal(one.indices, same.indices)
    assert not torch.equal(one.indices, other.indices)
    state = torch.random.get_rng_state()
    toy.long_tailed(3, draw="seeded")
    assert torch.equal(torch.random.get_rng_state(), state)


def test_numpy_generator_stays_untouched():
    before = np.random.get_state()[1].copy()
    flat([60, 60, 60]).long_tailed(5)
    assert (np.random.get_state()[1] == before).all()


def test_step_and_pareto():
    assert profile_counts(100, 4, 10, "step") == [100, 100, 10, 10]
    assert profile_counts(100, 5, 10, "step") == [100, 100, 100, 10, 10]
    counts = profile_counts(1280, 1000, 256, "pareto")  # ImageNet-LT: 115.8 K images, 1280 to 5
    assert (counts[0], counts[-1], sum(counts)) == (1280, 5, 121449)
    assert counts == sorted(counts, reverse=True)
    many, few = sum(n > 100 for n in counts), sum(n < 20 for n in counts)
    assert (many, few) == (404, 140)  # the OLTR list has 385 and 136


def test_history():
    toy = flat([60, 60, 60])
    (fact,) = toy.long_tailed(10).history
    assert fact["op"] == "long_tailed"
    assert (fact["imbalance_factor"], fact["profile"], fact["draw"]) == (
        10,
        "exponential",
        "published",
    )
    assert fact["counts"] == [60, 18, 6]
    assert "seed" not in fact and "capped" not in fact
    assert len(fact["index_checksum"]) == 16
    seeded = toy.long_tailed(10, draw="seeded", seed=7).history[0]
    assert seeded["seed"] == 7
    assert seeded["index_checksum"] != fact["index_checksum"]


def test_unbalanced_source_is_capped_and_says_so():
    toy = flat([100, 20, 50])
    cut = toy.long_tailed(4)
    assert profile_counts(100, 3, 4) == [100, 50, 25]
    assert cut.counts == (100, 20, 25)
    assert cut.history[0]["capped"] == ["1"]
    assert cut.history[0]["wanted"] == [100, 50, 25]


def test_factor_one_keeps_everything():
    assert flat([30, 30]).long_tailed(1).counts == (30, 30)


@pytest.mark.parametrize(
    ("factor", "message"),
    [
        (0.01, "use 100"),
        (0, "use a number from 1 to"),
        (-5, "use a number from 1 to"),
        (float("nan"), "use a number from 1 to"),
        (float("inf"), "use a number from 1 to"),
        (31, "use at most 30, the size of the largest class"),
    ],
)
def test_wrong_factors(factor, message):
    toy = flat([30, 30])
    with pytest.raises(InputError, match=message):
        toy.long_tailed(factor)
    assert toy.long_tailed(30).counts == (30, 1)


def test_wrong_names():
    with pytest.raises(InputError, match="did you mean 'exponential'"):
        profile_counts(30, 3, 2, "exponental")
    with pytest.raises(InputError, match="did you mean 'published'"):
        draw_positions(torch.tensor([0, 1]), [1, 1], "publishd")


def test_a_long_tailed_set_can_be_cut_further():
    """As with the CIFAR-100-LT files of factor 10."""
    train = flat(profile_counts(500, 100, 10))
    assert len(train) == 19573
    for factor, total in ((20, 15907), (50, 12608), (100, 10847)):
        cut = train.long_tailed(factor)
        assert len(cut) == total
        assert "capped" not in cut.history[0]


def test_cifar10_lt(shared_data):
    """Rows of the files are interleaved by class; within a class they are in official order."""
    train = load(shared_data / "cifar10", cache=CACHE, quiet=True)
    cut = train.long_tailed(200)
    assert len(cut) == 11203
    assert (cut.indices[:5] // 10).tolist() == [1501, 2586, 2653, 1055, 705]
    assert cut.history[0]["index_checksum"] == "316198f16ffa7b51"
    assert set(cut.groups["tail"]) == {7, 8, 9}


CUT = {"op": "long_tailed", "imbalance_factor": 50, "profile": "exponential"}


@pytest.mark.parametrize(
    ("counts", "history", "short", "sentence"),
    [
        ([5, 5], [], "1", "as it is: 5 images per class"),
        ([1, 1], [], "1", "as it is: 1 image per class"),
        ([11, 169], [], "15.36", "as it is: 11 to 169 images per class, imbalance factor 15.36"),
        (
            [128, 30, 2],
            [{"op": "hold_out"}, CUT],
            "64 (asked for 50)",
            "cut to imbalance factor 50 (exponential profile) and has factor 64: 2 to 128 images "
            "per class",
        ),
        (
            [5000, 100],
            [CUT],
            "50",
            "cut to imbalance factor 50 (exponential profile): 100 to 5,000 images per class",
        ),
        ([9, 3], [CUT | {"imbalance_factor": 1}], "3", "as it is: 3 to 9 images per class, imbal"),
    ],
)
def test_the_factor_asked_for_and_that_of_the_set(counts, history, short, sentence):
    known = Imbalance.of(counts, history)
    assert known.short == short and known.sentence.startswith(sentence)


@pytest.mark.parametrize(
    "history", [None, 3, [None, 3], [{"op": "long_tailed"}], [CUT | {"imbalance_factor": "x"}]]
)
def test_a_history_that_says_nothing_is_no_cut(history):
    assert Imbalance.of([9, 3], history).asked is None


def test_digits_at_factor_50_have_64():
    train = load("digits").long_tailed(50)
    assert Imbalance.of(train.counts, train.history).short == "64 (asked for 50)"


def test_the_draw_as_positions_of_labels():
    from potstill.data import load, long_tail_indices

    train = load("digits")
    keep = long_tail_indices(train.labels.tolist(), 50)
    assert train.indices[keep].tolist() == train.long_tailed(50).indices.tolist()
    assert keep.tolist() == long_tail_indices(train.labels.numpy(), 50, draw="published").tolist()
    for wrong in ([0.5, 1.0], [], [[0], [1]], [0, -1]):
        with pytest.raises(InputError, match="give whole numbers from 0"):
            long_tail_indices(wrong, 2)
