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
    return -((1 - p[y]) ** 1.5) * math.log(p[y])


LOSSES = {
    "cross_entropy": losses.cross_entropy,
    "logit_adjusted": losses.logit_adjusted(COUNTS, tau=0.7),
    "balanced_softmax": losses.balanced_softmax(torch.tensor(COUNTS)),
    "class_balanced": losses.class_balanced(COUNTS, beta=0.9),
    "focal": losses.focal(1.5),
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
    ]
    for same in same_as_plain:
        assert torch.allclose(same(LOGITS, TARGETS), plain)


def test_adjust_undoes_the_prior():
    # a classifier that outputs log p(x|y) + log prior is adjusted to log p(x|y)
    prior = torch.tensor(COUNTS).double() / sum(COUNTS)
    assert torch.allclose(losses.adjust(LOGITS + prior.log(), COUNTS), LOGITS)
    assert torch.allclose(losses.adjust(LOGITS, COUNTS, tau=0.0), LOGITS)


@pytest.mark.parametrize(
    ("make", "words"),
    [(lambda: losses.class_balanced(COUNTS, 1.0), "beta is 1.0"),
     (lambda: losses.focal(-1.0), "gamma is -1.0"),
     (lambda: losses.balanced_softmax([3, 0]), "counts is"),
     (lambda: losses.adjust(LOGITS, [3, -1, 2]), "counts is")],
)  # fmt: skip
def test_bad_arguments(make, words):
    with pytest.raises(InputError, match=words):
        make()
