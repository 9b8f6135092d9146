"""ADSA's τ against its formula in float64."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

from potstill.labels import adsa_tau, even_shift
from potstill.run import InputError

COUNTS = (500, 60, 7)


def spread(z, labels, counts, tau: float) -> float:
    """std over classes of the mean of softmax(z - τ log π)_c over a class's images, by hand."""
    total, of = sum(counts), {}
    for row, label in zip(z.tolist(), labels.tolist(), strict=True):
        e = [math.exp(v - tau * math.log(n / total)) for v, n in zip(row, counts, strict=True)]
        of.setdefault(label, []).append(e[label] / sum(e))
    means = [sum(values) / len(values) for values in of.values()]
    middle = sum(means) / len(means)
    return math.sqrt(sum((m - middle) ** 2 for m in means) / len(means))


def said(tau: float = 0.0, seed: int = 0, counts=COUNTS, spoil: float = 0.0):
    """Logits of a teacher as sure of each class, but for τ log π, and labels (30,)."""
    labels = torch.arange(3).repeat(10)
    z = 2.0 * torch.eye(3, dtype=torch.float64)[labels]
    if spoil:
        draw = torch.Generator().manual_seed(seed)
        z = z + spoil * torch.randn(z.shape, generator=draw, dtype=torch.float64)
    return z + tau * (torch.tensor(counts).double() / sum(counts)).log(), labels


def test_a_teacher_without_a_prior_is_left_alone():
    z, labels = said()
    assert adsa_tau(z, labels, COUNTS) == 0


@pytest.mark.parametrize("tau", [0.3, 0.77, 1.0, 1.55])
def test_what_a_prior_added_is_taken_out(tau):
    z, labels = said(tau)
    assert adsa_tau(z, labels, COUNTS) == pytest.approx(tau, abs=1e-4)
    cubed = tuple(n**3 for n in COUNTS)  # log π three times as steep, up to a constant
    assert adsa_tau(z, labels, cubed) == pytest.approx(tau / 3, abs=1e-4)


@pytest.mark.parametrize("seed", range(4))
def test_it_is_the_first_minimum_of_the_spread(seed):
    z, labels = said(0.6, seed, spoil=1.5)
    found = adsa_tau(z, labels, COUNTS)
    least = spread(z, labels, COUNTS, found)
    assert least <= min(spread(z, labels, COUNTS, found + d) for d in (-1e-3, 1e-3)) + 1e-12
    before = [spread(z, labels, COUNTS, found * k / 50) for k in range(51)]
    assert all(a >= b for a, b in pairwise(before))  # nothing before it
    assert 0 < found < 2


def test_being_sure_of_nothing_is_no_balance():
    """With a tail that has no images a large τ takes all confidence from every class: no spread."""
    counts, labels = (10**4, 10**3, 10**2, 1), torch.arange(3).repeat(10)
    draw = torch.Generator().manual_seed(0)
    z = 2.0 * torch.eye(4, dtype=torch.float64)[labels]
    z = z + torch.randn(z.shape, generator=draw, dtype=torch.float64)
    z = z + 0.5 * (torch.tensor(counts).double() / sum(counts)).log()
    found = adsa_tau(z, labels, counts)
    assert 0.3 < found < 0.7
    assert spread(z, labels, counts, 2.0) < spread(z, labels, counts, found)  # and yet not chosen
    near = [spread(z, labels, counts, found + d) for d in (-1e-3, 0, 1e-3)]
    assert min(near) == near[1]


def test_it_stays_within_its_bounds():
    z, labels = said(9.0)
    assert adsa_tau(z, labels, COUNTS) == 2
    z, labels = said(-0.5)  # more sure of the tail
    assert adsa_tau(z, labels, COUNTS) == 0


def test_several_teachers_are_one_whose_probabilities_are_averaged():
    (one, labels), (two, _) = said(0.4, 1, spoil=1.0), said(0.9, 2, spoil=1.0)
    both = adsa_tau(torch.stack([one, two]), labels, COUNTS)
    alone = adsa_tau(one, labels, COUNTS), adsa_tau(two, labels, COUNTS)
    assert adsa_tau(torch.stack([one, one]), labels, COUNTS) == alone[0]
    assert min(alone) < both < max(alone)


def test_classes_without_images_play_no_part():
    z, labels = said(0.5, 3, spoil=1.0)
    some = labels != 1
    found = adsa_tau(z[some], labels[some], COUNTS)
    assert found == pytest.approx(adsa_tau(z[some].float(), labels[some], COUNTS), abs=1e-4)
    near = [spread(z[some], labels[some], COUNTS, found + d) for d in (-1e-3, 0, 1e-3)]
    assert min(near) == near[1]


def test_counts_that_do_not_fit_are_refused():
    z, labels = said()
    with pytest.raises(InputError, match="counts has 2 numbers for 3 classes"):
        adsa_tau(z, labels, (1, 2))
    with pytest.raises(InputError, match="one positive number of images"):
        adsa_tau(z, labels, (1, 2, 0))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
@pytest.mark.parametrize("teachers", [1, 3])
def test_even_labels_give_each_class_its_images_worth(teachers, temperature):
    labels = torch.tensor([0] * 12 + [1] * 12 + [2] * 6)
    draw = torch.Generator().manual_seed(1)
    z = 3 * torch.randn(teachers, 30, 3, generator=draw, dtype=torch.float64)
    z += torch.tensor([0.0, 2.0, 7.0])  # a teacher that is all for the tail
    shift = even_shift(z[0] if teachers == 1 else z, labels, temperature)
    mass = ((z + shift) / temperature).softmax(2).mean((0, 1))
    assert mass.tolist() == pytest.approx([0.4, 0.4, 0.2], abs=1e-7)
    assert float(shift.sum()) == pytest.approx(0, abs=1e-9)
    assert not torch.allclose((z / temperature).softmax(2).mean((0, 1)), mass, atol=0.1)
    again = even_shift(z + shift, labels, temperature)
    assert torch.allclose(again, torch.zeros(3, dtype=torch.float64), atol=1e-6)


def test_even_labels_are_found_where_a_teacher_is_all_but_certain():
    labels = torch.arange(3).repeat(10)
    z = 60 * torch.eye(3, dtype=torch.float64)[labels.roll(1)]
    z[labels == 0] = torch.tensor([0.0, 80.0, 3.0], dtype=torch.float64)  # nobody says 0 of these
    mass = (z + even_shift(z, labels)).softmax(1).mean(0)
    assert mass.tolist() == pytest.approx([1 / 3] * 3, abs=1e-5)


def test_even_labels_need_an_image_of_each_class():
    with pytest.raises(InputError, match="calibration is 'even', but class 1 has no image"):
        even_shift(torch.zeros(4, 3), torch.tensor([0, 0, 2, 2]))
