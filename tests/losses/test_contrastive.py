"""Losses without labels, against loops over pairs."""

import math

import pytest
import torch

from potstill.losses.contrastive import OBJECTIVES, barlow_twins, nt_xent, self_supervised
from potstill.run import InputError


def pair(n=5, d=4, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(2, n, d, generator=draw, dtype=torch.float64).unbind()


def slow_nt_xent(a, b, temperature):
    """SimCLR, eq. 1: 2n anchors, each against its partner and all others but itself."""
    rows = [*a.tolist(), *b.tolist()]
    n = len(a)

    def similarity(u, v):
        dot = sum(x * y for x, y in zip(u, v, strict=True))
        return dot / math.sqrt(sum(x * x for x in u) * sum(y * y for y in v))

    total = 0.0
    for i in range(2 * n):
        j = i + n if i < n else i - n
        near = math.exp(similarity(rows[i], rows[j]) / temperature)
        others = [
            math.exp(similarity(rows[i], rows[k]) / temperature) for k in range(2 * n) if k != i
        ]
        total -= math.log(near / sum(others))
    return total / (2 * n)


@pytest.mark.parametrize("temperature", [0.1, 0.5, 2.0])
def test_nt_xent_equals_the_loop(temperature):
    a, b = pair()
    expected = slow_nt_xent(a, b, temperature)
    assert nt_xent(a, b, temperature).item() == pytest.approx(expected, rel=1e-12)
    assert nt_xent(b, a, temperature).item() == pytest.approx(expected, rel=1e-12)


def test_nt_xent_sees_directions_only():
    a, b = pair()
    torch.testing.assert_close(nt_xent(7 * a, 0.1 * b), nt_xent(a, b))


def test_nt_xent_is_lowest_for_alike_views_of_unlike_images():
    a = torch.eye(4, dtype=torch.float64)
    others = math.exp(0) * 6
    best = -math.log(math.exp(10) / (math.exp(10) + others))
    assert nt_xent(a, a, 0.1).item() == pytest.approx(best, rel=1e-9)
    same = torch.ones(4, 4, dtype=torch.float64)  # all images alike: chance
    assert nt_xent(same, same, 0.1).item() == pytest.approx(math.log(7))
    assert nt_xent(a, a.roll(1, 0), 0.1) > 5  # the wrong partner


def slow_barlow(a, b, off_diagonal):
    n, d = a.shape

    def standard(z, k):
        column = z[:, k].tolist()
        mean = sum(column) / n
        deviation = math.sqrt(sum((x - mean) ** 2 for x in column) / n)
        return [(x - mean) / deviation for x in column]

    total = 0.0
    for i in range(d):
        for j in range(d):
            left, right = standard(a, i), standard(b, j)
            c = sum(x * y for x, y in zip(left, right, strict=True)) / n
            total += (1 - c) ** 2 if i == j else off_diagonal * c**2
    return total


@pytest.mark.parametrize("off_diagonal", [0.0, 0.005, 1.0])
def test_barlow_twins_equals_the_loop(off_diagonal):
    a, b = pair()
    expected = slow_barlow(a, b, off_diagonal)
    assert barlow_twins(a, b, off_diagonal).item() == pytest.approx(expected, rel=1e-12)


def test_barlow_twins_ignores_scale_and_shift_of_each_output():
    a, b = pair()
    scale, shift = torch.tensor([3.0, 0.1, 1.0, 7.0]).double(), torch.arange(4.0).double()
    torch.testing.assert_close(barlow_twins(a * scale + shift, b), barlow_twins(a, b))


def test_barlow_twins_of_alike_views_with_independent_outputs_is_nothing():
    z = torch.tensor([[1, 1], [1, -1], [-1, 1], [-1, -1]], dtype=torch.float64)
    assert barlow_twins(z, z).item() == pytest.approx(0, abs=1e-15)
    twice = z[:, :1].expand(-1, 2)  # two outputs that say the same
    assert barlow_twins(twice, twice, 0.005).item() == pytest.approx(0.01)


@pytest.mark.parametrize("loss", [nt_xent, barlow_twins])
def test_derivatives(loss):
    a, b = pair(4, 3)
    inputs = (a.clone().requires_grad_(), b.clone().requires_grad_())
    assert torch.autograd.gradcheck(loss, inputs)


def test_an_output_that_does_not_vary_stays_finite():
    a, b = pair()
    a = a.clone()
    a[:, 0] = 1.5
    a.requires_grad_()
    value = barlow_twins(a, b)
    value.backward()
    assert torch.isfinite(value) and torch.isfinite(a.grad).all()


def test_by_name():
    a, b = pair()
    assert OBJECTIVES == ("simclr", "barlow")
    assert torch.equal(self_supervised("simclr", a, b, 0.3), nt_xent(a, b, 0.3))
    assert torch.equal(self_supervised("barlow", a, b, 0.3), barlow_twins(a, b))
    with pytest.raises(InputError, match="objective is 'byol'; use one of simclr, barlow"):
        self_supervised("byol", a, b, 0.3)
