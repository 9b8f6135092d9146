"""Second derivatives written out against torch's."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from potstill import nets
from potstill.match.curvature import Curvature


def normal(*shape, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=draw, dtype=torch.float64)


def derivatives(layer, x, mode, inputs=True, parameters=True):
    """Gradient of <a, ∂L/∂θ> in images and parameters, for a curved L and fixed directions a."""
    x = x.clone().requires_grad_(inputs)
    theta = list(layer.parameters())
    with mode(x):
        y = layer(x)
    loss = (y.sin() * normal(*y.shape, seed=5)).sum()
    slopes = torch.autograd.grad(loss, theta, create_graph=True)
    s = sum((normal(*g.shape, seed=i) * g).sum() for i, g in enumerate(slopes))
    leaves = [x] * inputs + theta * parameters
    return slopes, torch.autograd.grad(s, leaves, materialize_grads=True)


class Nothing:
    def __init__(self, images):
        pass

    def __enter__(self):
        pass

    def __exit__(self, *_):
        pass


def block(*layers):
    """Layers in float64 with parameters away from where they start."""
    module = nn.Sequential(*layers).double()
    for i, p in enumerate(module.parameters()):
        p.data = normal(*p.shape, seed=20 + i)
    return module


LAYERS = {
    "conv": lambda: block(nn.Conv2d(3, 4, 3, padding=1)),
    "stride": lambda: block(nn.Conv2d(3, 4, 3, stride=2), nn.Conv2d(4, 2, (3, 1), padding=(1, 0))),
    "no bias": lambda: block(nn.Conv2d(3, 4, 3, bias=False), nn.ReLU(), nn.Conv2d(4, 2, 1)),
    "dilation": lambda: block(nn.Conv2d(3, 6, 3, dilation=2, padding=2, groups=3)),
    "dilation of images": lambda: block(nn.Conv2d(3, 4, (2, 3), dilation=(1, 2), stride=(1, 3))),
    "same": lambda: block(nn.Conv2d(3, 4, 3, padding="same")),
    "norm": lambda: block(nn.GroupNorm(3, 3)),
    "group norm": lambda: block(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4)),
    "no scale": lambda: block(nn.Conv2d(3, 4, 3), nn.GroupNorm(4, 4, affine=False)),
    "blocks": lambda: block(
        nn.Conv2d(3, 4, 3, padding=1), nn.GroupNorm(4, 4), nn.ReLU(inplace=True), nn.AvgPool2d(2),
        nn.Conv2d(4, 5, 3, padding=1), nn.GroupNorm(5, 5, eps=0.1), nn.ReLU(inplace=True),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("inputs", [True, False])
def test_equals_torch(name, inputs):
    layer, x = LAYERS[name](), normal(2, 3, 6, 7, seed=3)
    ours, theirs = (derivatives(layer, x, mode, inputs) for mode in (Curvature, Nothing))
    for a, b in zip([*ours[0], *ours[1]], [*theirs[0], *theirs[1]], strict=True):
        assert (a - b).norm() <= 1e-10 * max(1, b.norm())
    assert max(b.norm() for b in theirs[1]) > 0.1


@pytest.mark.parametrize("name", ["conv", "stride", "blocks"])
def test_without_the_derivative_in_parameters(name):
    layer, x = LAYERS[name](), normal(2, 3, 6, 7, seed=3)
    ours = derivatives(layer, x, lambda x: Curvature(x, parameters=False), parameters=False)
    torch.testing.assert_close(ours[1], derivatives(layer, x, Nothing)[1][:1])


def test_a_map_in_another_memory_layout():
    layer, x = LAYERS["norm"](), normal(2, 6, 3, 7, seed=3).transpose(1, 2)
    ours, theirs = (derivatives(layer, x, mode) for mode in (Curvature, Nothing))
    torch.testing.assert_close(ours, theirs)


def test_a_scale_of_zero():
    layer, x = LAYERS["norm"](), normal(2, 3, 6, 7)
    layer[0].weight.data.zero_()
    ours, theirs = (derivatives(layer, x, mode) for mode in (Curvature, Nothing))
    torch.testing.assert_close(ours, theirs)
    assert torch.stack([d.norm() for d in ours[1]]).isfinite().all()


@pytest.mark.parametrize("name", ["resnet18-in", "alexnet"])
def test_whole_networks(name):
    size = 8 if name == "resnet18-in" else 32
    draw = torch.Generator().manual_seed(0)
    net = nets.create(name, channels=3, size=size, classes=3, generator=draw).double()
    x = normal(2, 3, size, size)
    ours, theirs = (derivatives(net, x, mode) for mode in (Curvature, Nothing))
    flat = [torch.cat([v.flatten() for v in d[1]]) for d in (ours, theirs)]
    assert (flat[0] - flat[1]).norm() < 1e-9 * flat[1].norm()


def test_it_is_used_where_it_applies_and_only_inside():
    net, x = LAYERS["blocks"](), normal(2, 3, 6, 7).requires_grad_()

    def names(node, found):
        if node is not None:
            found.add(type(node).__name__)
            for following, _ in node.next_functions:
                names(following, found)
        return found

    ours = {"_NormBackward", "_ConvolutionBackward"}
    with Curvature(x):
        inside = net(x)
    assert ours <= names(inside.grad_fn, set())
    assert not ours & names(net(x).grad_fn, set())
    assert torch.equal(inside, net(x))
    with Curvature(x), torch.autocast("cpu", torch.bfloat16):
        assert F.conv2d(x.float(), net[0].weight.float()).dtype == torch.bfloat16
