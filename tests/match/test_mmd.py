"""The exact kernel distance against loops over pairs."""

import pytest
import torch

from potstill.match.kernels import kernel
from potstill.match.mmd import by_class, class_mmd2, mmd2, multi_bandwidth
from potstill.match.moments import mean_distance


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def m3d(x, y):
    """M3D's loss transcribed: five bandwidths about the union's mean squared distance."""
    total = torch.cat([x, y])
    distance = ((total[:, None] - total[None]) ** 2).sum(-1)
    n = len(total)
    bandwidth = (distance.detach().sum() / (n * n - n)) / 2.0**2
    gram = sum(torch.exp(-distance / (bandwidth * 2.0**i)) for i in range(5))
    k = len(x)
    return gram[:k, :k].mean() + gram[k:, k:].mean() - 2 * gram[:k, k:].mean()


@pytest.mark.parametrize("name", ["rbf", "matern32", "laplace-l1", "linear", "rbf+cauchy"])
def test_it_is_the_v_statistic(name):
    x, y, k = normal(7, 3), normal(4, 3, seed=1) + 0.5, kernel(name, 0.8)

    def mean(u, v):
        pairs = [k.gram(p[None], q[None])[0, 0] for p in u for q in v]
        return torch.stack(pairs).mean()

    expected = mean(x, x) + mean(y, y) - 2 * mean(x, y)
    torch.testing.assert_close(mmd2(x, y, k), expected)
    assert mmd2(x, x, k).abs() < 1e-12


def test_the_linear_kernel_gives_the_distance_of_means():
    x, y = normal(7, 3), normal(4, 3, seed=1)
    expected = mean_distance(x.mean(0, keepdim=True), y.mean(0, keepdim=True))[0]
    torch.testing.assert_close(mmd2(x, y, kernel("linear")), expected)


def test_dropping_the_constant_keeps_the_gradient():
    x, y, k = normal(9, 3), normal(4, 3, seed=1).requires_grad_(), kernel("rbf")
    whole, part = mmd2(x, y, k), mmd2(x, y, k, drop_constant=True)
    torch.testing.assert_close(whole - part, k.gram(x, x).mean())
    (g_whole,), (g_part,) = (torch.autograd.grad(v, y) for v in (whole, part))
    torch.testing.assert_close(g_whole, g_part)


def test_multi_bandwidth_is_m3ds_and_carries_no_gradient_through_the_bandwidth():
    x, y = 100 + normal(9, 3), (100.4 + normal(5, 3, seed=1)).requires_grad_()
    expected, got = m3d(x, y), mmd2(x, y)
    torch.testing.assert_close(got, expected)
    wanted, have = (torch.autograd.grad(v, y)[0] for v in (expected, got))
    torch.testing.assert_close(have, wanted)
    assert multi_bandwidth(x, y, bandwidths=3)(x, x)[0, 0].item() == pytest.approx(3)


@pytest.mark.parametrize("name", ["rbf", "cauchy-l1", None])
def test_classes_at_once_equal_classes_one_by_one(name):
    k = kernel(name) if name else None
    real, real_labels = normal(14, 3), torch.tensor([0] * 8 + [1] * 4 + [2] * 2).flip(0)
    labels = torch.tensor([2, 0, 1, 1, 0, 1])  # unequal and shuffled
    syn = normal(6, 3, seed=1).requires_grad_()
    bank, mask = by_class(real, real_labels, 3)
    for drop in (False, True):
        got = class_mmd2(bank, mask, syn, labels, k, drop_constant=drop)
        expected = torch.stack(
            [mmd2(real[real_labels == c], syn[labels == c], k, drop) for c in range(3)]
        )
        torch.testing.assert_close(got, expected)
        wanted, have = (torch.autograd.grad(v.sum(), syn)[0] for v in (expected, got))
        torch.testing.assert_close(have, wanted)
    full = bank[:, :2]
    without_mask = class_mmd2(full, None, syn, labels, k)
    torch.testing.assert_close(without_mask, class_mmd2(full, mask[:, :2], syn, labels, k))


def test_by_class_keeps_the_order_and_pads_with_zero():
    features, labels = torch.arange(1.0, 6.0)[:, None], torch.tensor([2, 0, 2, 2, 0])
    padded, mask = by_class(features, labels, 4)
    assert padded[..., 0].tolist() == [[2, 5, 0], [0, 0, 0], [1, 3, 4], [0, 0, 0]]
    assert mask.sum(1).tolist() == [2, 0, 3, 0]
