"""Two passes give what one pass over everything gives, in pieces of any size."""

import pytest
import torch
import torch.nn.functional as F

from potstill.match.two_pass import feature_gradients
from potstill.run import InputError

N, VIEWS, DIM = 5, 3, 4


def normal(*shape, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=draw, dtype=torch.float64)


LEAVES = {"coarse": normal(N, 2, 1, 1), "fine": normal(N, 2, 4, 4, seed=1)}
KERNEL, LINEAR = normal(3, 2, 3, 3, seed=2), normal(DIM, 3, seed=3)
SHIFTS = normal(VIEWS, N, 1, 1, 1, seed=4)
GOAL = normal(N, DIM, seed=5)
SHARES = torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64)[:, None, None]  # of the views


def render(leaves):
    return torch.sigmoid(leaves["coarse"] + leaves["fine"])


def see(images, rows, view):
    """A small network on a view that differs from image to image."""
    seen = images.roll(view, 2) * (1 + SHIFTS[view, rows])
    return torch.tanh(F.conv2d(seen, KERNEL)).mean((2, 3)) @ LINEAR.T


def loss(z):
    """One cosine over all images: no sum over images."""
    return 1 - F.cosine_similarity((SHARES * z).sum(0).flatten(), GOAL.flatten(), dim=0)


def by_autograd():
    leaves = {name: leaf.clone().requires_grad_() for name, leaf in LEAVES.items()}
    images = render(leaves)
    value = loss(torch.stack([see(images, slice(0, N), view) for view in range(VIEWS)]))
    slopes = torch.autograd.grad(value, list(leaves.values()))
    return value.detach(), dict(zip(leaves, slopes, strict=True))


@pytest.mark.parametrize("budget", [1, 2, 3, 4, 7, N * VIEWS - 1, N * VIEWS, 1000])
def test_equals_the_whole_graph_for_every_budget(budget):
    value, grads = feature_gradients(LEAVES, render, see, loss, views=VIEWS, budget=budget)
    expected, slopes = by_autograd()
    torch.testing.assert_close(value, expected, atol=1e-14, rtol=0)
    assert list(grads) == list(LEAVES)
    for name, slope in slopes.items():
        assert slope.norm() > 1e-3
        torch.testing.assert_close(grads[name], slope, atol=1e-12, rtol=0)


def test_the_loss_is_not_a_sum_over_images():
    """Else pieces could be taken one by one, and this file would prove nothing."""
    value, _ = feature_gradients(LEAVES, render, see, loss, views=VIEWS, budget=100)
    alone = []
    for row in range(N):
        part = {name: leaf[row : row + 1] for name, leaf in LEAVES.items()}
        one, _ = feature_gradients(
            part,
            render,
            lambda x, rows, view, row=row: see(x, slice(row, row + 1), view),
            lambda z, row=row: 1 - F.cosine_similarity((SHARES * z).sum(0)[0], GOAL[row], dim=0),
            views=VIEWS,
            budget=100,
        )
        alone.append(one)
    assert abs(sum(alone) / N - value) > 1e-3


@pytest.mark.parametrize("budget", [1, 6, 1000])
def test_loss_is_called_once_with_all_features(budget):
    shapes = []

    def counted(z):
        shapes.append(tuple(z.shape))
        return loss(z)

    feature_gradients(LEAVES, render, see, counted, views=VIEWS, budget=budget)
    assert shapes == [(VIEWS, N, DIM)]


class Counted(torch.autograd.Function):
    """The identity; knows how many images have a graph that has not been used yet."""

    live = most = passed = 0

    @staticmethod
    def forward(ctx, images):
        if images.requires_grad:
            Counted.live += len(images)
            Counted.most = max(Counted.most, Counted.live)
            Counted.passed += len(images)
        return images.clone()

    @staticmethod
    def backward(ctx, slope):
        Counted.live -= len(slope)
        return slope


@pytest.mark.parametrize("budget", [1, 2, 4, 6, 11, 14, 15])
def test_graphs_hold_no_more_views_than_the_budget(budget):
    Counted.live = Counted.most = Counted.passed = 0

    def watched(images, rows, view):
        return see(Counted.apply(images) if torch.is_grad_enabled() else images, rows, view)

    feature_gradients(LEAVES, render, watched, loss, views=VIEWS, budget=budget)
    assert Counted.passed == N * VIEWS and Counted.live == 0
    assert 1 <= Counted.most <= budget


@pytest.mark.parametrize("budget", [2, 1000])
def test_leaves_and_the_mode_are_left_alone(budget):
    leaves = {name: leaf.clone().requires_grad_() for name, leaf in LEAVES.items()}
    with torch.no_grad():
        _, grads = feature_gradients(leaves, render, see, loss, views=VIEWS, budget=budget)
        assert not torch.is_grad_enabled()
    assert all(leaf.grad is None for leaf in leaves.values())
    assert all(not grad.requires_grad for grad in grads.values())
    assert all(torch.equal(leaves[name], LEAVES[name]) for name in LEAVES)
    assert all(grad.norm() > 1e-3 for grad in grads.values())


@pytest.mark.parametrize(("views", "budget"), [(0, 1), (1, 0)])
def test_no_views_or_no_memory_is_refused(views, budget):
    with pytest.raises(InputError, match=f"budget is {budget} and views is {views}"):
        feature_gradients(LEAVES, render, see, loss, views=views, budget=budget)
