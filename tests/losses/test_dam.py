"""The weighted, adjusted loss of LAD against its formula written out."""

import math

import pytest
import torch

from potstill.losses import balanced_softmax, cross_entropy, dam
from potstill.run import InputError

COUNTS = [50, 7, 1]
LOGITS = torch.tensor([[1.0, -2.0, 0.5], [0.2, 0.1, 3.0], [-1.0, 4.0, 0.0]]).double()
SOFT = torch.tensor([[0.2, 0.3, 0.5], [0.9, 0.1, 0.0], [0.1, 0.6, 0.3]]).double()


def slow(z, t, tau, weights):
    shifted = [v - tau * math.log(s) for v, s in zip(z, COUNTS, strict=True)]
    total = sum(math.exp(v) for v in shifted)
    terms = zip(weights, t, shifted, strict=True)
    return -sum(w * share * math.log(math.exp(v) / total) for w, share, v in terms)


WEIGHTS = {"mean1": [3 * n / 58 for n in COUNTS], "sum1": [n / 58 for n in COUNTS]}


@pytest.mark.parametrize("scale", WEIGHTS)
@pytest.mark.parametrize("tau", [0.0, 0.7])
@pytest.mark.parametrize("weighted", [True, False])
def test_equals_the_formula(scale, tau, weighted):
    values = dam(COUNTS, tau=tau, weighted=weighted, weight_scale=scale)(LOGITS, SOFT)
    weights = WEIGHTS[scale] if weighted else [1.0] * 3
    rows = zip(LOGITS.tolist(), SOFT.tolist(), strict=True)
    expected = [slow(z, t, tau, weights) for z, t in rows]
    torch.testing.assert_close(values, torch.tensor(expected).double())


@pytest.mark.parametrize("tau", [0.0, 0.7])
def test_indices_are_one_hot_labels(tau):
    loss, y = dam(torch.tensor(COUNTS), tau=tau), torch.tensor([2, 0, 1])
    torch.testing.assert_close(loss(LOGITS, y), loss(LOGITS, torch.eye(3).double()[y]))


def test_slope_at_the_logits():
    z = LOGITS.clone().requires_grad_()
    (slope,) = torch.autograd.grad(dam(COUNTS)(z, SOFT).mean(), z)
    w, p = torch.tensor(WEIGHTS["mean1"]).double(), LOGITS.softmax(1)
    expected = (p * (w * SOFT).sum(1, keepdim=True) - w * SOFT) / 3
    torch.testing.assert_close(slope, expected)


def test_limits():
    plain = cross_entropy(LOGITS, SOFT)
    assert torch.equal(dam(COUNTS, weighted=False)(LOGITS, SOFT), plain)
    torch.testing.assert_close(dam([4, 4, 4])(LOGITS, SOFT), plain)
    torch.testing.assert_close(dam([4, 4, 4], weight_scale="sum1")(LOGITS, SOFT), plain / 3)
    # the sign of the adjustment is the reverse of balanced softmax
    inverse = [1 / n for n in COUNTS]
    reverse = dam(COUNTS, tau=1.0, weighted=False)(LOGITS, SOFT)
    torch.testing.assert_close(reverse, balanced_softmax(inverse)(LOGITS, SOFT))


def test_dtype_follows_the_logits():
    values = dam(COUNTS, tau=0.5)(LOGITS.float(), SOFT.float())
    assert values.dtype == torch.float32 and values.isfinite().all()


@pytest.mark.parametrize(
    ("make", "words"),
    [(lambda: dam([3, 0, 1]), "counts is"),
     (lambda: dam(COUNTS, weight_scale="mean"), "weight_scale is 'mean'; did you mean 'mean1'"),
     (lambda: dam([[1, 2]]), "counts is")],
)  # fmt: skip
def test_bad_arguments(make, words):
    with pytest.raises(InputError, match=words):
        make()
