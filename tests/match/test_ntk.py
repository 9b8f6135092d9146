"""Kernels of infinite networks: a literal recursion, wide networks, finite differences."""

import itertools
import math

import pytest
import torch

from potstill.match.ntk import WideNetwork, kernel_regression
from potstill.run import InputError


def normal(*shape, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=draw, dtype=torch.float64)


def regression_loss(k_ss, k_ts, y_s, y_t, reg):
    return 0.5 * (kernel_regression(k_ss, k_ts, y_s, reg) - y_t).square().mean()


def literal(x, y, depth, w2, b2):
    """Tangent and output kernel of two lists of numbers."""
    d = len(x)
    kxx, kyy, kxy = (w2 * sum(a * b for a, b in zip(u, v, strict=True)) / d + b2
                     for u, v in ((x, x), (y, y), (x, y)))  # fmt: skip
    tangent = kxy
    for _ in range(depth):
        root = math.sqrt(kxx * kyy)
        angle = math.acos(max(-1.0, min(1.0, kxy / root)))
        k1 = root * (math.sin(angle) + (math.pi - angle) * math.cos(angle)) / (2 * math.pi)
        k0 = (math.pi - angle) / (2 * math.pi)
        kxy = w2 * k1 + b2
        tangent = kxy + w2 * k0 * tangent
        kxx, kyy = w2 * kxx / 2 + b2, w2 * kyy / 2 + b2
    return tangent, kxy


@pytest.mark.parametrize("depth", [1, 2, 5])
@pytest.mark.parametrize(("w2", "b2"), [(2.0, 0.01), (1.3, 0.0)])
def test_the_kernel_is_the_literal_recursion(depth, w2, b2):
    x, y = normal(4, 6), normal(3, 6, seed=1)
    for place, kind in enumerate(("ntk", "nngp")):
        net = WideNetwork(depth=depth, weight_variance=w2, bias_variance=b2, kind=kind)
        expected = [[literal(a, b, depth, w2, b2)[place] for b in y.tolist()] for a in x.tolist()]
        expected = torch.tensor(expected, dtype=torch.float64)
        torch.testing.assert_close(net(x, y), expected, rtol=1e-12, atol=1e-13)
        torch.testing.assert_close(net(y, x), expected.T, rtol=1e-12, atol=1e-13)
        torch.testing.assert_close(net.diagonal(x), net(x, x).diagonal(), rtol=1e-7, atol=0)


def empirical(x, width, depth, seed):
    """Tangent kernel and product of outputs of one wide network, float64."""
    draw = torch.Generator().manual_seed(seed)
    sizes = [x.shape[1], *[width] * depth, 1]
    layers = [
        (torch.randn(b, a, generator=draw, dtype=torch.float64),
         torch.randn(b, generator=draw, dtype=torch.float64))
        for a, b in itertools.pairwise(sizes)
    ]  # fmt: skip
    inputs, gates, h = [], [], x
    for place, (weight, bias) in enumerate(layers):
        inputs.append(h)
        z = math.sqrt(2 / h.shape[1]) * h @ weight.T + 0.1 * bias
        gates.append((z > 0).double())
        h = z.relu() if place < depth else z
    tangent = torch.zeros(len(x), len(x), dtype=torch.float64)
    slope = torch.ones(len(x), 1, dtype=torch.float64)  # of the output in a layer's outputs
    for place in reversed(range(depth + 1)):
        seen = inputs[place]
        share = slope @ slope.T
        tangent += share * (2 / seen.shape[1] * seen @ seen.T + 0.01)
        if place:
            weight, _ = layers[place]
            slope = math.sqrt(2 / seen.shape[1]) * slope @ weight * gates[place - 1]
    last = inputs[-1]
    return tangent, 2 / width * last @ last.T + 0.01


@pytest.mark.parametrize(("depth", "width"), [(1, 4096), (2, 1024)])
def test_wide_networks_have_it(depth, width):
    # The deviation of one network is about 3 / √width; four seeds halve it. Tolerance: 3 standard
    # errors, relative to the largest entry: 0.07 and 0.14, less than what a bias, a factor of two
    # or a missing layer would change.
    x = normal(5, 10)
    found = [empirical(x, width, depth, seed) for seed in range(4)]
    for place, kind in enumerate(("ntk", "nngp")):
        mean = torch.stack([pair[place] for pair in found]).mean(0)
        expected = WideNetwork(depth=depth, kind=kind)(x, x)
        error = (mean - expected).abs().max() / expected.abs().max()
        assert error < 4.5 / math.sqrt(width)


def test_the_written_out_empirical_kernel_is_autograds():
    x, width = normal(3, 4), 6
    draw = torch.Generator().manual_seed(9)
    w1, b1, w2, b2 = (
        torch.randn(*shape, generator=draw, dtype=torch.float64).requires_grad_()
        for shape in ((width, 4), (width,), (1, width), (1,))
    )
    rows = []
    for image in x:
        h = (math.sqrt(2 / 4) * w1 @ image + 0.1 * b1).relu()
        out = math.sqrt(2 / width) * w2 @ h + 0.1 * b2
        slopes = torch.autograd.grad(out.sum(), (w1, b1, w2, b2))
        rows.append(torch.cat([slope.flatten() for slope in slopes]))
    jacobian = torch.stack(rows)
    torch.testing.assert_close(empirical(x, width, 1, 9)[0], jacobian @ jacobian.T)


@pytest.mark.parametrize("kind", ["ntk", "nngp"])
def test_chunks_of_rows_change_neither_values_nor_gradients(kind):
    net, x, y = WideNetwork(depth=2, kind=kind), normal(7, 2, 3), normal(4, 2, 3, seed=1)
    pull = normal(7, 4, seed=2)

    def slopes(chunk):
        leaves = [x.clone().requires_grad_(), y.clone().requires_grad_()]
        value = net(*leaves, chunk=chunk)
        return value.detach(), torch.autograd.grad((pull * value).sum(), leaves)

    whole, parts = slopes(None), slopes(3)
    torch.testing.assert_close(parts, whole, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(net(x, y, chunk=3), whole[0], rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("kind", ["ntk", "nngp"])
@pytest.mark.parametrize("bias", [0.01, 0.0])
def test_gradients_are_those_of_finite_differences(kind, bias):
    net = WideNetwork(depth=2, kind=kind, bias_variance=bias)
    x, y = normal(3, 4).requires_grad_(), normal(2, 4, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(net, (x, y))
    assert torch.autograd.gradcheck(net.diagonal, (x,))


def test_the_diagonal_has_the_gradient_of_the_norms():
    x = normal(6, 12)
    x[1], x[2] = 3 * x[0], x[0]  # parallel and equal images
    for kind in ("ntk", "nngp"):
        net, own = WideNetwork(depth=3, kind=kind), x.clone().requires_grad_()
        (found,) = torch.autograd.grad(net(own, own).diagonal().sum(), own)
        (expected,) = torch.autograd.grad(net.diagonal(own).sum(), own)
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)
        (all_of_it,) = torch.autograd.grad(net(own, own).sum(), own)
        assert torch.isfinite(all_of_it).all()


def test_blank_and_opposite_images_have_finite_gradients():
    x = normal(4, 5)
    x[1], x[2] = 0, -x[0]
    net, own = WideNetwork(bias_variance=0.0), x.requires_grad_()
    value = net(own, own)
    (slope,) = torch.autograd.grad(value.sum(), own)
    assert torch.isfinite(value).all() and torch.isfinite(slope).all()
    assert value[1].abs().max() < 1e-12


def test_the_loss_has_the_gradient_of_finite_differences():
    x, y, t = normal(6, 12), normal(6, 3, seed=1), normal(9, 12, seed=2)
    goal, net = normal(9, 3, seed=3), WideNetwork()

    def loss(images, labels):
        return regression_loss(net(images, images), net(t, images), labels, goal, reg=1e-3)

    def pixels_only(images):  # the diagonal has a kink, which finite differences would cross
        return loss(images, y)

    own = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(pixels_only(own), own)
    way = normal(6, 12, seed=4)
    ahead, back = (pixels_only(x + sign * 1e-6 * way) for sign in (1, -1))
    assert (slope * way).sum().item() == pytest.approx(((ahead - back) / 2e-6).item(), rel=1e-6)
    labels = y.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda value: loss(x, value), (labels,))
    ridge = torch.tensor(1e-2, dtype=torch.float64, requires_grad=True)
    k_ss, k_ts = net(x, x), net(t, x)
    assert torch.autograd.gradcheck(lambda r: regression_loss(k_ss, k_ts, y, goal, r), (ridge,))


@pytest.mark.parametrize("reg", [0.0, 1e-6, 5e-3, torch.tensor(0.1)])
def test_the_prediction_solves_the_normal_equations(reg):
    net, s, t, y = WideNetwork(), normal(5, 8), normal(3, 8, seed=1), normal(5, 2, seed=2)
    k_ss, k_ts = net(s, s), net(t, s)
    ridge = float(reg) * sum(k_ss[i, i].item() for i in range(5)) / 5
    expected = k_ts @ torch.linalg.inv(k_ss + ridge * torch.eye(5, dtype=torch.float64)) @ y
    found = kernel_regression(k_ss, k_ts, y, reg)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)
    if not float(reg):
        torch.testing.assert_close(kernel_regression(k_ss, k_ss, y, reg), y)
    torch.testing.assert_close(kernel_regression(9 * k_ss, 9 * k_ts, y, reg), found)


def test_equal_images_need_a_ridge():
    net, s, y = WideNetwork(), normal(4, 6), normal(4, 2, seed=1)
    s[1] = s[0]
    k_ss, k_ts = net(s, s), net(normal(3, 6, seed=2), s)
    with pytest.raises(InputError, match=r"reg is 0\.0, with which the kernel of 4 images is sing"):
        kernel_regression(k_ss, k_ts, y, 0.0)
    found = kernel_regression(k_ss, k_ts, y, 1e-6)
    same = y.clone()
    same[:2] = y[:2].mean(0)  # equal images can but share their labels
    assert torch.isfinite(found).all()
    torch.testing.assert_close(found, kernel_regression(k_ss, k_ts, same, 1e-6), rtol=0, atol=1e-8)
    own = s.requires_grad_()
    value = regression_loss(net(own, own), net(normal(3, 6, seed=2), own), y, normal(3, 2), 1e-6)
    assert torch.isfinite(torch.autograd.grad(value, own)[0]).all()


def test_what_cannot_be_used_is_refused():
    net, eye = WideNetwork(), torch.eye(3)
    with pytest.raises(InputError, match="y has 4 values per image and x has 3"):
        net(torch.ones(2, 3), torch.ones(2, 4))
    with pytest.raises(InputError, match="chunk is 0"):
        net(torch.ones(2, 3), torch.ones(2, 3), chunk=0)
    with pytest.raises(InputError, match=r"reg is -1\.0"):
        kernel_regression(eye, eye, eye, -1.0)
    with pytest.raises(InputError, match="not finite"):
        kernel_regression(eye * math.nan, eye, eye, 1e-6)
    with pytest.raises(InputError, match=r"shapes \(3, 3\), \(3, 2\), \(3, 3\)"):
        kernel_regression(eye, torch.ones(3, 2), eye, 1e-6)
    with pytest.raises(InputError, match="depth is 0"):
        WideNetwork(depth=0)
    with pytest.raises(InputError, match="kind is 'rbf'; use one of ntk, nngp"):
        WideNetwork(kind="rbf")
