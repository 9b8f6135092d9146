"""What every long-tailed cut has in common, whatever its profile, factor and sizes."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace

import torch
from hypothesis import given
from hypothesis import strategies as st

from potstill.canvas import images_per_class
from potstill.data.longtail import (
    DRAWS,
    PROFILES,
    Imbalance,
    draw_positions,
    profile_counts,
    size_groups,
)

LARGEST, CLASSES = st.integers(1, 5000), st.integers(2, 200)
PROFILE = st.sampled_from(PROFILES)
SHARE = st.floats(0, 1)  # of the way from factor 1 to the largest one that leaves no class empty
SIZES = st.lists(st.integers(1, 400), min_size=1, max_size=30)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda part: st.lists(part, max_size=3) | st.dictionaries(st.text(max_size=5), part),
    max_leaves=5,
)


@given(LARGEST, CLASSES, SHARE, PROFILE)
def test_sizes_fall_from_the_largest_to_its_share(largest, classes, share, profile):
    factor = largest**share
    counts = profile_counts(largest, classes, factor, profile)
    if profile == "even":  # a control: of the size of the exponential one, and balanced
        total = sum(profile_counts(largest, classes, factor))
        assert {*counts} == {total // classes} and total - sum(counts) < classes
        return
    assert len(counts) == classes and counts[0] == largest and counts[-1] >= 1
    assert all(a >= b for a, b in pairwise(counts))
    assert counts[-1] == int(largest / factor + 1e-9)
    assert largest / counts[-1] >= factor * (1 - 1e-9)  # what is cut is never less uneven


@given(LARGEST, CLASSES, SHARE, SHARE, PROFILE)
def test_a_larger_factor_leaves_no_class_more(largest, classes, one, other, profile):
    less, more = sorted((largest**one, largest**other))
    wide = profile_counts(largest, classes, less, profile)
    narrow = profile_counts(largest, classes, more, profile)
    assert all(a >= b for a, b in zip(wide, narrow, strict=True))


@given(
    st.lists(st.integers(0, 4), min_size=1, max_size=60),
    st.lists(st.integers(0, 20), min_size=5, max_size=5),
    st.sampled_from(DRAWS),
    st.integers(0, 5),
)
def test_drawn_images_are_of_their_class_and_smaller_draws_lie_in_larger(
    labels, counts, draw, seed
):
    labels = torch.tensor(labels)
    chosen = draw_positions(labels, counts, draw, seed)
    have = torch.bincount(labels, minlength=5).tolist()
    kept = [min(a, b) for a, b in zip(have, counts, strict=True)]
    assert torch.bincount(labels[chosen], minlength=5).tolist() == kept
    assert len(set(chosen.tolist())) == len(chosen)
    fewer = draw_positions(labels, [count // 2 for count in counts], draw, seed)
    assert set(fewer.tolist()) <= set(chosen.tolist())


@given(SIZES, st.integers(1, 60))
def test_shared_out_images_add_up_and_no_class_has_more_than_it_had(sizes, ipc):
    real = SimpleNamespace(counts=tuple(sizes), num_classes=len(sizes))
    counts = images_per_class(real, ipc, "long_tailed")
    assert sum(counts) == min(ipc * len(sizes), sum(sizes))
    assert all(1 <= count <= size for count, size in zip(counts, sizes, strict=True))
    ordered = [count for _, count in sorted(zip(sizes, counts, strict=True))]
    assert all(a <= b for a, b in pairwise(ordered))  # a larger class has no fewer


@given(st.lists(st.integers(0, 400), max_size=30))
def test_groups_are_parts_of_all_classes_by_falling_size(sizes):
    groups = size_groups(sizes)
    if not groups:
        assert not sizes or max(sizes) < 2 * max(1, min(sizes))
        return
    assert sorted(label for labels in groups.values() for label in labels) == [*range(len(sizes))]
    parts = [[sizes[label] for label in labels] for labels in groups.values()]
    assert all(min(a) >= max(b) for a, b in pairwise(parts))
    assert len(groups["head"]) == len(groups["tail"]) == max(1, round(len(sizes) / 3))


@given(SIZES, st.lists(JSON | st.fixed_dictionaries({"op": st.just("long_tailed")}) | JSON))
def test_a_history_of_anybody_gives_a_sentence(sizes, history):
    told = Imbalance.of(sizes, history)
    assert told.factor == max(sizes) / min(sizes)
    assert f"{max(sizes):,} image" in told.sentence and told.short
