import math

import pytest
import torch

from potstill import losses
from potstill.run import InputError

COUNTS = [50, 7, 1]
LOGITS = torch.tensor(
    [[1.0, -2.0, 0.5], [0.2, 0.1, 3.0], [-1.0, 4.0, 0.0], [0.0, 0.0, 0.0]]
).double()
TARGETS = torch.tensor([2, 0, 1, 1])


def softmax(z):
    total = sum(math.exp(v) for v in z)
    return [math.exp(v) / total for v in z]


def slow(name, z, y):
    p = softmax(z)
    prior = [n / sum(COUNTS) for n in COUNTS]
    if name == "cross_entropy":
        return -math.log(p[y])
    if name == "logit_adjusted":
        return -math.log(softmax([v + 0.7 * math.log(q) for v, q in zip(z, prior, strict=True)])[y])
    if name == "balanced_softmax":
        weighed = [n * math.exp(v) for n, v in zip(COUNTS, z, strict=True)]
        return -math.log(weighed[y] / sum(weighed))
    if name == "class_balanced":
        w = [(1 - 0.9) / (1 - 0.9**n) for n in COUNTS]
        return -w[y] * 3 / sum(w) * math.log(p[y])
    if name == "focal":
        return -((1 - p[y]) ** 1.5) * math.log(p[y])
    if name == "ldam":
        margins = [0.4 * (1 / n**0.25) / max(1 / m**0.25 for m in COUNTS) for n in COUNTS]
        moved = [3 * (v - (margins[y] if c == y else 0)) for c, v in enumerate(z)]
        return -math.log(softmax(moved)[y])
    assert name == "label_aware"
    n, most, least = COUNTS[y], max(COUNTS), min(COUNTS)
    e = 0.1 + (0.4 - 0.1) * math.sin(math.pi * (n - least) / (2 * (most - least)))
    return -(1 - e) * math.log(p[y]) - e * sum(map(math.log, p)) / 3


LOSSES = {
    "cross_entropy": losses.cross_entropy,
    "logit_adjusted": losses.logit_adjusted(COUNTS, tau=0.7),
    "balanced_softmax": losses.balanced_softmax(torch.tensor(COUNTS)),
    "class_balanced": losses.class_balanced(COUNTS, beta=0.9),
    "focal": losses.focal(1.5),
    "ldam": losses.ldam(COUNTS, most=0.4, scale=3),
    "label_aware": losses.label_aware(COUNTS, head=0.4, tail=0.1),
}


@pytest.mark.parametrize("name", LOSSES)
def test_equals_the_formula(name):
    values = LOSSES[name](LOGITS, TARGETS)
    expected = [slow(name, z, y) for z, y in zip(LOGITS.tolist(), TARGETS.tolist(), strict=True)]
    assert torch.allclose(values, torch.tensor(expected, dtype=torch.float64), rtol=1e-10)


@pytest.mark.parametrize("name", LOSSES)
def test_soft_labels_are_the_weighted_sum(name):
    soft = torch.tensor(
        [[0.2, 0.3, 0.5], [1.0, 0.0, 0.0], [0.0, 2.0, 0.0], [0.1, 0.0, 0.9]]
    ).double()
    each = torch.stack([LOSSES[name](LOGITS, torch.full((4,), y)) for y in range(3)], 1)
    assert torch.allclose(LOSSES[name](LOGITS, soft), (each * soft).sum(1))


@pytest.mark.parametrize("name", LOSSES)
def test_dtype_follows_and_gradients_are_finite_when_sure(name):
    sure = torch.tensor([[90.0, -90.0, -90.0], [-90.0, 90.0, 0.0]], requires_grad=True)
    values = LOSSES[name](sure, torch.tensor([0, 0]))
    values.sum().backward()
    assert values.dtype == torch.float32
    assert values.isfinite().all() and sure.grad.isfinite().all()


def test_limits():
    plain = losses.cross_entropy(LOGITS, TARGETS)
    same_as_plain = [
        losses.focal(0.0),
        losses.class_balanced(COUNTS, 0.0),
        losses.logit_adjusted(COUNTS, 0.0),
        losses.balanced_softmax([4, 4, 4]),
        losses.ldam(COUNTS, most=0.0),
        losses.label_aware(COUNTS, 0.0, 0.0),
        losses.weighted(losses.cross_entropy, torch.ones(3)),
    ]
    for same in same_as_plain:
        assert torch.allclose(same(LOGITS, TARGETS), plain)


def test_margins_keep_their_digits_when_the_network_is_sure():
    # as released: a logit of 18 ahead of the others is 1 - p = 1e-8, but the margin is 15 of it
    z, tail = torch.tensor([[0.0, 0.1, 0.7]]), torch.tensor([2])
    loss = losses.ldam(COUNTS, scale=30)
    exact = math.log1p(math.exp(15 - 21) + math.exp(15 - 18))
    assert float(loss(z, tail)) == pytest.approx(exact, rel=1e-5)


def test_a_margin_asks_more_of_the_tail():
    even = torch.zeros(3, 3).double()
    head, medium, tail = losses.ldam(COUNTS)(even, torch.arange(3)).tolist()
    assert tail > medium > head > math.log(3)


def test_deferred_weights_come_in_the_last_fifth():
    weights = losses.effective_weights(COUNTS, 0.9)
    late = losses.weighted(losses.cross_entropy, weights)
    both = losses.Deferred(losses.cross_entropy, late)
    assert [losses.loss_at(both, e / 10) is late for e in range(10)] == [False] * 8 + [True] * 2
    assert losses.loss_at(late, 0.9) is late
    plain = losses.cross_entropy(LOGITS, TARGETS)
    torch.testing.assert_close(late(LOGITS, TARGETS), plain * weights[TARGETS])


def test_adjust_undoes_the_prior():
    # a classifier that outputs log p(x|y) + log prior is adjusted to log p(x|y)
    prior = torch.tensor(COUNTS).double() / sum(COUNTS)
    assert torch.allclose(losses.adjust(LOGITS + prior.log(), COUNTS), LOGITS)
    assert torch.allclose(losses.adjust(LOGITS, COUNTS, tau=0.0), LOGITS)


@pytest.mark.parametrize(
    ("make", "words"),
    [(lambda: losses.class_balanced(COUNTS, 1.0), "beta is 1.0"),
     (lambda: losses.focal(-1.0), "gamma is -1.0"),
     (lambda: losses.ldam(COUNTS, -0.1), "most is -0.1"),
     (lambda: losses.ldam(COUNTS, scale=0.0), "scale is 0.0"),
     (lambda: losses.ldam([3, 0]), "counts is"),
     (lambda: losses.label_aware(COUNTS, 1.1), "head is 1.1"),
     (lambda: losses.balanced_softmax([3, 0]), "counts is"),
     (lambda: losses.adjust(LOGITS, [3, -1, 2]), "counts is")],
)  # fmt: skip
def test_bad_arguments(make, words):
    with pytest.raises(InputError, match=words):
        make()


def test_scaled_error_is_half_the_squared_distance_to_scaled_centred_targets():
    loss = losses.scaled_error(8.0)
    expected = [
        sum((v - 8 * ((c == y) - 1 / 3)) ** 2 for c, v in enumerate(z)) / 2
        for z, y in zip(LOGITS.tolist(), TARGETS.tolist(), strict=True)
    ]
    assert loss(LOGITS, TARGETS).tolist() == pytest.approx(expected)
    goals = torch.rand(4, 3, dtype=torch.float64)
    plain = losses.squared_error(LOGITS, 8 * goals)
    torch.testing.assert_close(loss(LOGITS, goals), plain)
