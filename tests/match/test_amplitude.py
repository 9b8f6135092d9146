"""Weights by class, laws of sampling noise, and the unit of length."""

import math

import pytest
import torch

from potstill.match.amplitude import (
    amplitude_weights,
    median_distance,
    noise_laws,
    reliability_weights,
)
from potstill.match.spectral import split, unbiased_amplitude
from potstill.run import InputError

TAIL = [5000, 2500, 500, 100, 25]


@pytest.mark.parametrize("schedule", ["log_linear", "two_level"])
@pytest.mark.parametrize("alpha_head", [0.3, 0.8])
def test_weights_run_from_head_to_tail(schedule, alpha_head):
    counts = [100, 5000, 25, 2500, 500]
    weights = amplitude_weights(counts, alpha_head, schedule)
    ordered = weights[torch.tensor(counts).argsort()]
    steps = ordered.diff() * (1 if alpha_head > 0.5 else -1)
    assert (steps >= 0).all() and weights.dtype == torch.float32
    assert ordered[0].item() == pytest.approx(1 - alpha_head)
    assert ordered[-1].item() == pytest.approx(alpha_head)


def test_log_linear_is_linear_in_the_index_of_an_exponential_profile():
    counts = [round(2**20 * 0.25**c) for c in range(5)]
    weights = amplitude_weights(counts, 0.8)
    torch.testing.assert_close(weights, torch.tensor([0.8, 0.65, 0.5, 0.35, 0.2]))


@pytest.mark.parametrize(
    ("counts", "head"),
    [
        ([5000, 100, 2500, 25], [1, 0, 1, 0]),  # half of the classes
        ([5000, 500, 25], [1, 1, 0]),  # the middle one is above the geometric mean, 354
        ([5000, 300, 25], [1, 0, 0]),
        ([900, 400, 400, 100], [1, 1, 1, 0]),  # tied at the middle, above 300
        ([900, 200, 200, 100], [1, 0, 0, 0]),
        ([900, 900, 900, 100], [1, 1, 1, 0]),
    ],
)
def test_two_level_divides_by_count(counts, head):
    weights = amplitude_weights(counts, 0.8, "two_level")
    torch.testing.assert_close(weights, torch.tensor([0.8 if h else 0.2 for h in head]))


@pytest.mark.parametrize("schedule", ["log_linear", "two_level", "constant"])
def test_balanced_or_constant_weights_are_alpha_balanced(schedule):
    assert amplitude_weights([7, 7, 7], 0.8, schedule, 0.65).tolist() == pytest.approx([0.65] * 3)
    if schedule == "constant":
        assert amplitude_weights(TAIL, 0.8, schedule).tolist() == [0.5] * 5


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"alpha_head": 1.0}, "alpha_head is 1.0"),
        ({"alpha_balanced": 0.0}, "alpha_balanced is 0.0"),
        ({"schedule": "loglinear"}, "did you mean 'log_linear'"),
        ({"counts": [3, 0]}, "at least one image"),
    ],
)
def test_refusals(arguments, words):
    with pytest.raises(InputError, match=words):
        amplitude_weights(**{"counts": TAIL, **arguments})


@pytest.mark.parametrize("n", [10, 100])
def test_sampling_noise_follows_its_laws(n):
    """Normal samples, 10 %: total and inflation for few draws, the split into parts for many."""
    repetitions, omega = 200_000 // n, torch.tensor([0.6, 1.0, 1.4], dtype=torch.float64)
    g = torch.Generator().manual_seed(0)
    x = torch.randn(repetitions, n, generator=g, dtype=torch.float64) + 0.4
    counts = torch.full((repetitions,), n)
    for w in omega:
        many = torch.stack([(x * w).cos().mean(1), (x * w).sin().mean(1)], dim=1)
        size = torch.exp(-(w**2) / 2)
        truth = torch.stack([size * (0.4 * w).cos(), size * (0.4 * w).sin()])[None]
        laws = noise_laws(truth, counts[:1])
        pairs = [((many - truth).square().sum(1).mean(), laws.total)]
        if n == 10:
            squared = truth.square().sum()
            pairs.append((many.square().sum(1).mean() - squared, laws.total))
            if w < 1.4:  # beyond, cutting negative estimates to 0 shows
                shrunk = unbiased_amplitude(many, counts).square().sum(1).mean()
                pairs.append((shrunk, squared))
        else:
            amplitude, phase = (part.mean() for part in split(truth.expand_as(many), many))
            pairs += [(amplitude, laws.amplitude), (phase, laws.phase)]
        for measured, law in pairs:
            assert measured.item() == pytest.approx(law.item(), rel=0.1)


def test_unbiased_amplitude_keeps_the_phase_and_spares_single_images():
    a = torch.tensor([[0.6, 0.01, 0.3, 0.02], [0.6, 0.8, 0.8, 0.6]])
    got = unbiased_amplitude(a, torch.tensor([10, 1]))
    squared = 0.6**2 + 0.3**2
    factor = math.sqrt((10 * squared - 1) / 9 / squared)
    expected = torch.tensor([[0.6 * factor, 0.0, 0.3 * factor, 0.0], [0.6, 0.8, 0.8, 0.6]])
    torch.testing.assert_close(got, expected)


def test_reliability_trusts_the_head_and_moves_a_noisy_tail_to_phase():
    amplitude, phase = torch.full((5,), 0.01), torch.full((5,), 0.01)
    counts = torch.tensor(TAIL)
    noisy = reliability_weights(TAIL, 0.8, amplitude, phase, 1.0 / counts, 0.1 / counts)
    assert noisy[0].item() == pytest.approx(0.8, abs=0.01)
    assert (noisy.diff() < 0).all()
    even = reliability_weights(TAIL, 0.8, amplitude, phase, 1.0 / counts, 1.0 / counts)
    torch.testing.assert_close(even, torch.full((5,), 0.8))
    # One tail class by hand: trust 0.01 / (0.01 + v) in each part.
    w_a, w_p = 0.8 * 0.01 / (0.01 + 0.04), 0.2 * 0.01 / (0.01 + 0.004)
    assert noisy[4].item() == pytest.approx(w_a / (w_a + w_p), rel=1e-5)


def test_median_distance_counts_classes_alike():
    g = torch.Generator().manual_seed(1)
    wide, tight = 3 * torch.randn(400, 50, generator=g), torch.randn(40, 50, generator=g)
    features, labels = torch.cat([wide, 100 + tight]), torch.tensor([0] * 400 + [2] * 40)
    shuffle = torch.randperm(440, generator=g)
    draws = [
        median_distance(features[shuffle], labels[shuffle], torch.Generator().manual_seed(s))
        for s in (0, 0, 1)
    ]
    assert draws[0] == draws[1] != draws[2]
    # Distances are 3 x and 1 x sqrt(2 · 50) = 10 in equal number, so the median is between.
    assert all(12 < value < 28 for value in draws)
    alone = median_distance(wide, labels[:400], torch.Generator().manual_seed(0))
    assert alone == pytest.approx(30, rel=0.05)
    with pytest.raises(InputError, match="two images"):
        median_distance(features[:2], torch.tensor([0, 1]), torch.Generator().manual_seed(0))
