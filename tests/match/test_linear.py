"""Gradients of linear heads and flows, against autograd and closed forms in float64."""

import math

import pytest
import torch
import torch.nn.functional as F

from potstill.match.linear import (
    analytic_gradient,
    cosine_distance,
    flows,
    linear_gradient,
    row_cosines,
    shrink_centres,
    sub_flows,
)
from potstill.match.spectral import segment_mean
from potstill.run import InputError

C, D = 5, 7


def normal(*shape, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=draw, dtype=torch.float64)


def batch(counts=(3, 4, 2, 5, 1), seed=0):
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    z = normal(len(labels), D, seed=seed) + normal(len(counts), D, seed=seed + 1)[labels] + 0.7
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    return z[order], labels[order]


def by_autograd(z, labels, weight, bias, share=None, create_graph=False):
    """Gradient of the (weighted) mean cross-entropy in weight and bias."""
    weight = weight.clone().requires_grad_()
    bias = (torch.zeros(len(weight)).to(weight) if bias is None else bias.clone()).requires_grad_()
    losses = F.cross_entropy(F.linear(z, weight, bias), labels, reduction="none")
    value = losses.mean() if share is None else (losses * share).sum() / share.sum()
    g_weight, g_bias = torch.autograd.grad(value, (weight, bias), create_graph=create_graph)
    return torch.cat([g_weight, g_bias[:, None]], 1)


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_linear_gradient_equals_autograd(biased, weighted):
    z, labels = batch()
    weight, bias = normal(C, D, seed=3), normal(C, seed=4) if biased else None
    share = normal(len(z), seed=5).exp() if weighted else None
    found = linear_gradient(z, labels, weight, bias, share)
    expected = by_autograd(z, labels, weight, bias, share)
    torch.testing.assert_close(found, expected, atol=1e-13, rtol=1e-12)


def test_weights_need_not_sum_to_anything_and_equal_ones_do_nothing():
    z, labels = batch()
    weight, share = normal(C, D, seed=3), normal(len(z), seed=5).exp()
    once = linear_gradient(z, labels, weight, image_weights=share)
    torch.testing.assert_close(linear_gradient(z, labels, weight, image_weights=9 * share), once)
    even = linear_gradient(z, labels, weight, image_weights=torch.full((len(z),), 3.0))
    torch.testing.assert_close(even, linear_gradient(z, labels, weight))


@pytest.mark.parametrize("std", [0.01, 1.0])
def test_its_derivative_equals_the_double_backward_of_the_released_code(std):
    real, real_labels = batch(seed=8)
    z, labels = batch((2, 2, 2, 2, 2), seed=11)
    weight = normal(C, D, seed=3) * std
    goal = by_autograd(real, real_labels, weight, None)

    def derivative(gradient):
        leaf = z.clone().requires_grad_()
        found = gradient(leaf)
        value = 1 - F.cosine_similarity(goal.flatten(), found.flatten(), dim=0)
        return value, torch.autograd.grad(value, leaf)[0]

    ours, slope = derivative(lambda leaf: linear_gradient(leaf, labels, weight))
    theirs, double = derivative(
        lambda leaf: by_autograd(leaf, labels, weight, None, create_graph=True)
    )
    assert ours.item() == pytest.approx(theirs.item(), abs=1e-13)
    torch.testing.assert_close(slope, double, atol=1e-13, rtol=1e-11)
    assert slope.norm() > 1e-4
    leaf = z.clone().requires_grad_()
    found = linear_gradient(leaf, labels, weight)
    (through,) = torch.autograd.grad(cosine_distance(goal, found), leaf)
    torch.testing.assert_close(through, double, atol=1e-13, rtol=1e-11)


def test_a_head_of_zeros_on_balanced_classes_gives_the_flows():
    z, labels = batch((4,) * C)
    found = linear_gradient(z, labels, torch.zeros(C, D, dtype=torch.float64))
    expected = (C - 1) / C**2 * flows(segment_mean(z, labels, C))
    torch.testing.assert_close(found[:, :-1], expected, atol=1e-14, rtol=1e-12)
    assert found[:, -1].abs().max() < 1e-15


def test_a_head_of_zeros_on_a_long_tail_is_nearly_all_head():
    """Row k is m / C - π_k μ_k; with weights 1 / π it is the flow again."""
    counts = (100, 30, 10, 3, 1)
    z, labels = batch(counts)
    weight, n = torch.zeros(C, D, dtype=torch.float64), torch.tensor(counts).double()
    centres, priors = segment_mean(z, labels, C), n / n.sum()
    natural = linear_gradient(z, labels, weight)
    expected = (priors @ centres) / C - priors[:, None] * centres
    torch.testing.assert_close(natural[:, :-1], expected, atol=1e-13, rtol=1e-12)
    balanced = linear_gradient(z, labels, weight, image_weights=1 / n[labels])
    expected = (C - 1) / C**2 * flows(centres)
    torch.testing.assert_close(balanced[:, :-1], expected, atol=1e-13, rtol=1e-12)


def test_segment_means_are_class_centres():
    z, labels = batch()
    for label in range(C):
        torch.testing.assert_close(segment_mean(z, labels, C)[label], z[labels == label].mean(0))


def test_flows_lead_from_each_centre_to_the_mean_of_the_others():
    centres = normal(C, D)
    for k, flow in enumerate(flows(centres)):
        others = [centres[c] for c in range(C) if c != k]
        torch.testing.assert_close(flow, sum(others) / (C - 1) - centres[k])
    closed = C / (C - 1) * (centres.mean(0) - centres)
    torch.testing.assert_close(flows(centres), closed, atol=1e-14, rtol=1e-12)


def test_flows_ignore_a_common_shift_which_the_released_divisor_does_not():
    centres, shift, ipc = normal(C, D), 5 * normal(D, seed=9), 10

    def released(centres):  # divides by the number of synthetic images less one
        return (centres.sum(0) - centres) / (C * ipc - 1) - centres

    torch.testing.assert_close(flows(centres + shift), flows(centres), atol=1e-13, rtol=1e-12)
    ours = cosine_distance(flows(centres), flows(centres + shift))
    theirs = cosine_distance(flows(centres), released(centres + shift))
    assert ours.abs() < 1e-12 and theirs > 0.5  # although the centres are exactly right


def test_flows_of_one_class_are_refused():
    with pytest.raises(InputError, match="centres has 1 class"):
        flows(normal(1, D))


def test_sub_flows_lead_from_each_part_to_the_other_classes():
    centres, parts = normal(C, D), normal(C, 3, D, seed=2)
    found = sub_flows(centres, parts)
    for k in range(C):
        others = torch.stack([centres[c] for c in range(C) if c != k]).mean(0)
        for j in range(3):
            torch.testing.assert_close(found[k, j], others - parts[k, j])
    torch.testing.assert_close(sub_flows(centres, centres[:, None])[:, 0], flows(centres))


@pytest.mark.parametrize("priors", [(0.2,) * 5, (0.7, 0.15, 0.1, 0.04, 0.01)])
def test_analytic_gradient_is_the_gradient_for_a_small_head(priors):
    """On a finite set whose moments are exact, with images weighted to the priors."""
    counts = (60,) * C
    z, labels = batch(counts)
    priors = torch.tensor(priors, dtype=torch.float64)
    share = priors[labels] / 60
    centres, second = segment_mean(z, labels, C), (z * share[:, None]).T @ z
    weight = normal(C, D, seed=3)

    def cosine(std):
        exact = linear_gradient(z, labels, std * weight, image_weights=share)
        found = analytic_gradient(centres, priors, second, std * weight)
        return F.cosine_similarity(exact.flatten(), found.flatten(), dim=0).item()

    assert cosine(0.0) == pytest.approx(1, abs=1e-14)
    assert cosine(0.01) > 0.999999 and cosine(0.05) > 0.999
    # an expansion of first order: what is left falls with the square of the head
    gaps = []
    for std in (2e-3, 1e-3):
        exact = linear_gradient(z, labels, std * weight, image_weights=share)
        gaps.append((exact - analytic_gradient(centres, priors, second, std * weight)).norm())
    assert (gaps[0] / gaps[1]).item() == pytest.approx(4, rel=0.02)


def test_analytic_gradient_holds_what_the_zeroth_order_lacks():
    z, labels = batch((60,) * C)
    priors, second = torch.full((C,), 1 / C, dtype=torch.float64), z.T @ z / len(z)
    centres, weight = segment_mean(z, labels, C), 0.1 * normal(C, D, seed=3)
    exact = linear_gradient(z, labels, weight)
    first = analytic_gradient(centres, priors, second, weight)
    zeroth = analytic_gradient(centres, priors, second, 0 * weight)
    assert (first - exact).norm() < 0.5 * (zeroth - exact).norm()


def test_analytic_gradient_is_the_expectation_over_batches():
    counts = torch.tensor([50, 20, 10, 5, 15])
    z, labels = batch(tuple(counts.tolist()))
    priors, second = counts.double() / counts.sum(), z.T @ z / len(z)
    weight = 0.01 * normal(C, D, seed=3)
    draw = torch.Generator().manual_seed(0)
    total = torch.zeros(C, D + 1, dtype=torch.float64)
    for _ in range(400):
        rows = torch.randint(len(z), (50,), generator=draw)
        total += linear_gradient(z[rows], labels[rows], weight) / 400
    found = analytic_gradient(segment_mean(z, labels, C), priors, second, weight)
    assert F.cosine_similarity(found.flatten(), total.flatten(), dim=0) > 0.999


def test_the_mean_over_heads_is_the_flow():
    z, labels = batch((20,) * C)
    goal = flows(segment_mean(z, labels, C)).flatten()
    heads = [0.1 * normal(C, D, seed=100 + k) for k in range(200)]
    found = [linear_gradient(z, labels, head)[:, :-1].flatten() for head in heads]
    one = torch.stack([F.cosine_similarity(g, goal, dim=0) for g in found]).mean()
    mean = F.cosine_similarity(torch.stack(found).mean(0), goal, dim=0)
    assert mean > 0.999 and 1 - mean < (1 - one) / 10


def cosine(a, b):
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    return dot / math.sqrt(sum(x * x for x in a)) / math.sqrt(sum(y * y for y in b))


def test_reductions_of_the_cosine():
    a, b = normal(C, 3, D), normal(C, 3, D, seed=1)
    whole = cosine(a.flatten().tolist(), b.flatten().tolist())
    rows = [cosine(x.flatten().tolist(), y.flatten().tolist()) for x, y in zip(a, b, strict=True)]
    assert cosine_distance(a, b).item() == pytest.approx(1 - whole, abs=1e-12)
    assert cosine_distance(a, b, "per_class").item() == pytest.approx(1 - sum(rows) / C, abs=1e-12)
    assert row_cosines(a, b).tolist() == pytest.approx(rows, abs=1e-12)
    with pytest.raises(InputError, match="reduction is 'both'; use one of global, per_class"):
        cosine_distance(a, b, "both")


def test_only_the_global_cosine_gives_long_rows_more_weight():
    a, b = normal(C, D), normal(C, D, seed=1)
    scale = torch.tensor([100.0, 1, 1, 1, 1]).double()[:, None]
    assert cosine_distance(scale * a, scale * b).item() == pytest.approx(
        1 - row_cosines(a, b)[0].item(), abs=0.01
    )
    torch.testing.assert_close(
        cosine_distance(scale * a, b, "per_class"), cosine_distance(a, b, "per_class")
    )


def test_cosine_of_nothing_is_finite():
    a = torch.zeros(C, D, dtype=torch.float64, requires_grad=True)
    for reduction in ("global", "per_class"):
        value = cosine_distance(a, normal(C, D), reduction)
        assert value.item() == 1
        assert torch.isfinite(torch.autograd.grad(value, a)[0]).all()


def slow_shrink(centres, counts, kappa, nearest=3):
    order = sorted(range(len(counts)), key=lambda c: (-counts[c], c))
    head = order[: max(1, round(len(counts) / 3))]
    moved = []
    for c in range(len(counts)):
        larger = [h for h in head if counts[h] > counts[c]]
        larger.sort(key=lambda h: (centres[h] - centres[c]).norm().item())
        if not larger:
            moved.append(centres[c])
            continue
        mean = torch.stack([centres[h] for h in larger[:nearest]]).mean(0)
        moved.append((counts[c] * centres[c] + kappa * mean) / (counts[c] + kappa))
    return torch.stack(moved)


@pytest.mark.parametrize("kappa", [0.5, 20.0])
def test_shrinking_equals_its_formula(kappa):
    counts = [100, 80, 60, 50, 40, 20, 10, 5, 4, 2, 2, 1]
    centres = normal(12, D)
    found = shrink_centres(centres, torch.tensor(counts), kappa)
    torch.testing.assert_close(found, slow_shrink(centres, counts, kappa))
    assert torch.equal(found[0], centres[0])  # the largest class
    moved = (found - centres).norm(dim=1)
    assert (moved[1:] > 0).all() and moved[-1] > moved[4]


def test_without_kappa_nothing_moves_and_with_a_huge_one_the_tail_is_its_neighbours():
    counts = torch.tensor([100, 80, 60, 1, 1, 1, 1, 1, 1])
    centres = normal(9, D)
    assert torch.equal(shrink_centres(centres, counts, 0.0), centres)
    found = shrink_centres(centres, counts, 1e12)
    torch.testing.assert_close(found[8], centres[:3].mean(0))
    single = shrink_centres(centres, counts, 1e12, nearest=1)
    gaps = (centres[:3] - centres[8]).norm(dim=1)
    torch.testing.assert_close(single[8], centres[:3][gaps.argmin()])


def test_a_balanced_set_stays():
    centres = normal(C, D)
    assert torch.equal(shrink_centres(centres, torch.full((C,), 7), 5.0), centres)


@pytest.mark.parametrize("kappa", [-1.0, math.nan])
def test_a_kappa_below_zero_is_refused(kappa):
    with pytest.raises(InputError, match="kappa is"):
        shrink_centres(normal(C, D), torch.arange(1, C + 1), kappa)
