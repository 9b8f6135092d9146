"""Taps and batch statistics against slices of a Sequential and statistics by hand."""

import gc
import weakref

import pytest
import torch
from torch import nn
from torch.func import functional_call

from potstill import nets
from potstill.nets.taps import batch_statistics, tap_names, tapped
from potstill.run import InputError


def network(name="convnet-d2-w4-in"):
    draw = torch.Generator().manual_seed(0)
    net = nets.create(name, channels=3, size=8, classes=5, generator=draw).double()
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm2d):
            for value in (layer.running_mean, layer.running_var, layer.weight.data):
                value.copy_(torch.rand(value.shape, generator=draw) + 0.5)
    return net.eval()


def images(n=6, seed=1):
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(n, 3, 8, 8, generator=draw, dtype=torch.float64)


def slices(net, x):
    """Output of every layer of the body, with no layer working in place."""
    outputs = []
    for layer in net.body:
        x = x.relu() if isinstance(layer, nn.ReLU) else layer(x)
        outputs.append(x)
    return outputs


@pytest.mark.parametrize("norm", ["in", "bn", "none"])
def test_outputs_are_those_of_slices_even_before_layers_that_work_in_place(norm):
    net, x = network(f"convnet-d2-w4-{norm}"), images()
    names = [f"body.{k}" for k in range(len(net.body))]
    with tapped(net, [*names, "classifier"]) as outputs:
        logits = net(x)
    for name, expected in zip(names, slices(net, x), strict=True):
        torch.testing.assert_close(outputs[name], expected, rtol=0, atol=0)
    assert torch.equal(outputs["classifier"], logits) and torch.equal(logits, net(x))
    assert (outputs["body.1"] < 0).any()  # not yet what the ReLU in place makes of it


def test_gradients_flow_through_taps():
    net = network()
    x, s = images().requires_grad_(), images().requires_grad_()
    with tapped(net, ["body.1", "body.6"]) as outputs:
        net(x)
    own = slices(net, s)
    pull = [torch.sin(own[k]).sum() for k in (1, 6)]
    found = sum(torch.sin(outputs[f"body.{k}"]).sum() for k in (1, 6))
    torch.testing.assert_close(torch.autograd.grad(found, x), torch.autograd.grad(sum(pull), s))
    a = torch.autograd.grad(net(x).square().sum(), x)
    with tapped(net, tap_names(net)):
        b = torch.autograd.grad(net(x).square().sum(), x)
    assert torch.equal(a[0], b[0])  # a tap changes nothing downstream


def test_a_functional_call_is_tapped_with_its_own_parameters():
    net, x = network(), images()
    other = {name: 2 * value.detach() for name, value in net.named_parameters()}
    with tapped(net, ["body.0"]) as outputs:
        functional_call(net, other, (x,))
    torch.testing.assert_close(outputs["body.0"], 2 * net.body[0](x))


def hooks(net):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in net.modules())


def test_nothing_is_left_behind():
    net, x = network("resnet18-bn"), images(2).requires_grad_()
    for collect in (lambda: tapped(net, ["body.3", "body.3"]), lambda: batch_statistics(net)):
        with collect() as found:
            net(x)
            assert hooks(net)
        assert not hooks(net)
        before = dict(found)
        net(images(3))
        assert all(found[name] is value for name, value in before.items())
        value = next(iter(found.values()))
        watched = weakref.ref(value if isinstance(value, torch.Tensor) else value.mean)
        del found, before, value
        gc.collect()
        assert watched() is None
        with pytest.raises(ZeroDivisionError), collect():
            raise ZeroDivisionError
        assert not hooks(net)
    with pytest.raises(InputError), tapped(net, ["body.3", "nothing"]):
        pass
    assert not hooks(net)


def test_names():
    assert tap_names(network()) == ["body", *[f"body.{k}" for k in range(8)], "classifier"]
    resnet = network("resnet18-bn")
    assert {"body.3", "body.3.residual.1", "body.5.shortcut"} <= set(tap_names(resnet))
    with tapped(resnet, tap_names(resnet)) as outputs:
        resnet(images(2))
    assert set(outputs) == set(tap_names(resnet))
    with (
        pytest.raises(InputError, match=r"layer is 'body\.9'; did you mean 'body"),
        tapped(network(), ["body.9"]),
    ):
        pass
    branches = nn.ModuleList([nn.Linear(2, 2)])
    assert tap_names(nn.ModuleDict({"a": branches})) == ["a.0"]


def test_the_last_pass_counts():
    net = network()
    with tapped(net, ["classifier"]) as outputs:
        net(images())
        last = net(images(2, seed=7))
    assert torch.equal(outputs["classifier"], last)


def statistics(x):
    """Mean and biased variance of a layer's inputs, channel by channel."""
    rows = [x[:, c].flatten() for c in range(x.shape[1])]
    return [sum(row) / len(row) for row in rows], [
        sum((v - sum(row) / len(row)) ** 2 for v in row) / len(row) for row in rows
    ]


def test_batch_statistics_are_those_of_slices():
    net, x = network("convnet-d2-w4-bn"), images()
    with batch_statistics(net) as found:
        logits = net(x)
    assert torch.equal(logits, net(x)) and list(found) == ["body.1", "body.5"]
    own = slices(net, x)
    for name, place in (("body.1", 0), ("body.5", 4)):
        mean, variance = statistics(own[place].detach())
        torch.testing.assert_close(found[name].mean, torch.stack(mean))
        torch.testing.assert_close(found[name].variance, torch.stack(variance))
        layer = net.get_submodule(name)
        assert torch.equal(found[name].running_mean, layer.running_mean)
        assert torch.equal(found[name].running_variance, layer.running_var)


def test_the_loss_of_statistics_has_the_gradient_of_slices():
    net = network("convnet-d2-w4-bn")
    x, s = images().requires_grad_(), images().requires_grad_()
    with batch_statistics(net) as found:
        net(x)
    loss = sum(
        (f.mean - f.running_mean).norm() + (f.variance - f.running_variance).norm()
        for f in found.values()
    )
    goal = 0
    for place, inputs in ((1, slices(net, s)[0]), (5, slices(net, s)[4])):
        layer, flat = net.body[place], inputs.transpose(0, 1).flatten(1)
        goal = goal + (flat.mean(1) - layer.running_mean).norm()
        goal = goal + (flat.square().mean(1) - flat.mean(1) ** 2 - layer.running_var).norm()
    torch.testing.assert_close(loss, goal)
    slope, expected = torch.autograd.grad(loss, x), torch.autograd.grad(goal, s)
    torch.testing.assert_close(slope, expected)
    assert expected[0].abs().max() > 1e-4


def test_in_training_the_kept_statistics_are_those_before_the_pass():
    net = network("convnet-d2-w4-bn").train()
    before = net.body[1].running_mean.clone()
    with batch_statistics(net) as found:
        net(images())
    assert torch.equal(found["body.1"].running_mean, before)
    moved = torch.lerp(before, found["body.1"].mean.detach(), 0.1)
    torch.testing.assert_close(net.body[1].running_mean, moved)


def test_networks_without_running_statistics_are_refused():
    with (
        pytest.raises(InputError, match="no batch norm with running statistics"),
        batch_statistics(network()),
    ):
        pass
    bare = nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False))
    with pytest.raises(InputError, match="no batch norm with running"), batch_statistics(bare):
        pass
