import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck, gradgradcheck

from potstill.nets.layers import GlobalAverage, average_pool, norm

SIZES = [(4, 4), (5, 4), (4, 7), (5, 5), (2, 3)]


def images(*shape, dtype=torch.float64, seed=0):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("size", SIZES)
def test_average_pool_equals_torch(size):
    x = images(2, 3, *size).requires_grad_()
    ours, theirs = average_pool(x), F.avg_pool2d(x, 2)
    assert torch.allclose(ours, theirs, atol=1e-14)
    g = images(*theirs.shape, seed=1)
    expected = torch.autograd.grad(theirs, x, g)[0]
    assert torch.allclose(torch.autograd.grad(ours, x, g)[0], expected, atol=1e-14)


@pytest.mark.parametrize("size", SIZES)
def test_average_pool_derivatives(size):
    x = images(1, 2, *size).requires_grad_()
    assert gradcheck(average_pool, x, check_forward_ad=True)
    assert gradgradcheck(average_pool, x)


def test_average_pool_under_function_transforms():
    x, w = images(3, 2, 2, 5, 4), images(3, 2, 2, 2, 2, seed=1)

    def value(x, w, pool):
        return (pool(x) * w).sum() + (pool(x) ** 3).sum()

    def derivatives(pool):
        first = torch.vmap(torch.func.grad(lambda x, w: value(x, w, pool)))
        second = torch.func.grad(lambda x: (first(x, w) ** 2).sum())
        push = torch.func.jvp(lambda x: value(x, w[0], pool), (x[0],), (x[1],))[1]
        return first(x, w), second(x), push

    ours, theirs = derivatives(average_pool), derivatives(lambda x: F.avg_pool2d(x, 2))
    for a, b in zip(ours, theirs, strict=True):
        assert torch.allclose(a, b, atol=1e-12)


def test_average_pool_of_transposed_and_expanded_input():
    x = images(2, 3, 6, 4).transpose(2, 3)
    assert torch.allclose(average_pool(x), F.avg_pool2d(x, 2), atol=1e-14)
    leaf = images(1, 1, 4, 4).requires_grad_()
    average_pool(leaf).sum().backward()  # an expanded gradient
    assert torch.equal(leaf.grad, torch.full_like(leaf, 0.25))


def test_instance_norm_is_per_channel_with_scale_and_shift():
    layer = norm("in", 6)
    x = images(2, 6, 4, 4, dtype=torch.float32)
    assert torch.allclose(layer(x), F.instance_norm(x, eps=1e-5), atol=1e-5)
    assert [p.shape for p in layer.parameters()] == [(6,), (6,)]


@pytest.mark.parametrize(("kind", "channels", "groups"), [("ln", 6, 1), ("gn", 8, 4), ("gn", 6, 2)])
def test_group_counts(kind, channels, groups):
    assert norm(kind, channels).num_groups == groups


def test_bn_and_none():
    assert isinstance(norm("bn", 3), torch.nn.BatchNorm2d)
    assert isinstance(norm("none", 3), torch.nn.Identity)


def test_global_average():
    x = images(2, 3, 5, 4)
    assert torch.allclose(GlobalAverage()(x), F.adaptive_avg_pool2d(x, 1).flatten(1))
