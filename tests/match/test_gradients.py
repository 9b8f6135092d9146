"""Gradient matching against DC's loop and distance written plainly, in float64."""

import pytest
import torch
import torch.nn.functional as F
from torch.func import functional_call

from potstill import nets
from potstill.losses import balanced_softmax
from potstill.match.gradients import GradientMatching, gradient_distance
from potstill.run import InputError

CLASSES = 3


def stream(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=stream(seed), dtype=torch.float64)


def network(name="convnet-d2-w5-in"):
    net = nets.create(name, channels=2, size=8, classes=CLASSES, generator=stream()).double()
    return net.eval()


def seen_by(net):
    def features(parameters, x):
        body = {n[5:]: v for n, v in parameters.items() if n.startswith("body.")}
        return functional_call(net.body, body, (x,)).flatten(1)

    return features


def matching(net, **options):
    return GradientMatching(features=seen_by(net), **options)


def batches(per_class, seed):
    return [
        (normal(n, 2, 8, 8, seed=10 * seed + label), torch.full((n,), label))
        for label, n in enumerate(per_class)
    ]


def plain_rows(a, b):
    """DC's distance of two gradients in the order of parameters, one output unit after another."""
    total = 0
    for g, h in zip(a, b, strict=True):
        if g.ndim > 1:
            for x, y in zip(g.reshape(len(g), -1), h.reshape(len(h), -1), strict=True):
                total = total + 1 - (x * y).sum() / (x.norm() * y.norm() + 0.000001)
    return total


def plain_whole(a, b, metric):
    a, b = (torch.cat([g.reshape(-1) for g in side]) for side in (a, b))
    if metric == "kernels_l1":
        return abs(a - b).sum()
    if metric in ("mse", "kernels"):
        return ((a - b) ** 2).sum()
    return 1 - (a * b).sum() / (a.norm() * b.norm() + 0.000001)


def released(net, real, synthetic, metric, keep=lambda name: True, loss=F.cross_entropy):
    """The released loop: distances per class with a double backward through the whole network."""
    named = [(name, p) for name, p in net.named_parameters() if keep(name)]
    if metric.startswith("kernels"):
        named = [(name, p) for name, p in named if p.ndim > 1]
    parameters = [p for _, p in named]
    found = []
    for (x, y), (s, t) in zip(real, synthetic, strict=True):
        a = [g.detach() for g in torch.autograd.grad(loss(net(x), y), parameters)]
        b = torch.autograd.grad(loss(net(s), t), parameters, create_graph=True)
        found.append(plain_rows(a, b) if metric == "rows" else plain_whole(a, b, metric))
    return found


def leaves(sides):
    return [(x.clone().requires_grad_(), y) for x, y in sides]


@pytest.mark.parametrize(
    "name", ["convnet-d2-w5-in", "convnet-d2-w4-bn", "convnet-d2-w4-none-max", "mlp-w6", "lenet"]
)
@pytest.mark.parametrize("metric", ["rows", "cosine", "mse", "kernels", "kernels_l1"])
def test_distances_and_pixel_gradients_are_those_of_a_plain_double_backward(name, metric):
    net, real = network(name), batches((5, 3, 7), seed=1)
    ours, plain = leaves(batches((2, 1, 3), seed=2)), leaves(batches((2, 1, 3), seed=2))
    found = matching(net, metric=metric, chunk=2).distances(
        dict(net.named_parameters()), real, ours
    )
    for d, expected, (x, _), (s, _) in zip(
        found, released(net, real, plain, metric), ours, plain, strict=True
    ):
        torch.testing.assert_close(d, expected, rtol=1e-10, atol=1e-12)
        (slope,), (goal,) = torch.autograd.grad(d, x), torch.autograd.grad(expected, s)
        torch.testing.assert_close(slope, goal, rtol=1e-8, atol=1e-8 * goal.abs().max().item())
        assert goal.abs().max() > 1e-9


def test_the_sum_over_classes_has_the_summed_gradient():
    net, real = network(), batches((4, 4, 4), seed=1)
    pixels = normal(6, 2, 8, 8, seed=5)

    def sides(x):
        return [(x[2 * c : 2 * c + 2], torch.full((2,), c)) for c in range(CLASSES)]

    x, s = pixels.clone().requires_grad_(), pixels.clone().requires_grad_()
    for d in matching(net).distances(dict(net.named_parameters()), real, sides(x)):
        d.backward()
    sum(released(net, real, sides(s), "rows")).backward()
    torch.testing.assert_close(x.grad, s.grad, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("layers", ["body", "head"])
@pytest.mark.parametrize("metric", ["rows", "mse", "kernels"])
def test_parts_of_the_network(layers, metric):
    net, real = network(), batches((4, 2, 3), seed=1)
    ours, plain = leaves(batches((2, 2, 2), seed=2)), leaves(batches((2, 2, 2), seed=2))
    found = matching(net, layers=layers, metric=metric).distances(
        dict(net.named_parameters()), real, ours
    )

    def keep(name):
        return name.startswith("classifier") == (layers == "head")

    goals = released(net, real, plain, metric, keep)
    for d, expected, (x, _), (s, _) in zip(found, goals, ours, plain, strict=True):
        torch.testing.assert_close(d, expected, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(
            torch.autograd.grad(d, x), torch.autograd.grad(expected, s), rtol=1e-8, atol=1e-11
        )


def test_another_loss_and_learnt_targets():
    net, counts = network(), [20, 5, 1]
    loss = balanced_softmax(counts)
    real, images = batches((4, 4, 4), seed=1)[:1], normal(3, 2, 8, 8, seed=3)
    soft = normal(3, CLASSES, seed=4).softmax(1)
    x, t, s, u = (value.clone().requires_grad_() for value in (images, soft, images, soft))
    (d,) = matching(net, loss=loss).distances(dict(net.named_parameters()), real, [(x, t)])

    def mean(logits, targets):
        return loss(logits, targets).mean()

    (goal,) = released(net, real, [(s, u)], "rows", loss=mean)
    torch.testing.assert_close(d, goal, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(
        torch.autograd.grad(d, (x, t)), torch.autograd.grad(goal, (s, u)), rtol=1e-8, atol=1e-10
    )


def test_through_a_function_of_the_pixels():
    net, real, images = network(), batches((4, 4, 4), seed=1)[:1], normal(2, 2, 8, 8, seed=3)
    x, s, label = images.clone().requires_grad_(), images.clone().requires_grad_(), torch.zeros(2)
    label = label.long()
    (d,) = matching(net).distances(dict(net.named_parameters()), real, [(x.sin(), label)])
    (goal,) = released(net, real, [(s.sin(), label)], "rows")
    torch.testing.assert_close(torch.autograd.grad(d, x), torch.autograd.grad(goal, s))


def test_the_real_side_is_a_constant_without_a_graph():
    net, (side, *_) = network(), batches((6, 1, 1), seed=1)
    x = side[0].clone().requires_grad_()
    parameters = dict(net.named_parameters())
    found = matching(net, metric="mse", chunk=4).real_gradient(parameters, x, side[1])
    assert set(found) == set(parameters)
    assert not any(value.requires_grad for value in found.values())
    assert all(p.requires_grad and p.grad is None for p in net.parameters())
    goal = torch.autograd.grad(F.cross_entropy(net(side[0]), side[1]), net.parameters())
    for (name, _), expected in zip(net.named_parameters(), goal, strict=True):
        torch.testing.assert_close(found[name], expected)
    rows = matching(net).real_gradient(parameters, *side)
    assert all(value.ndim > 1 for value in rows.values()) and rows


def test_the_distance_ignores_scale_and_survives_dead_units():
    g = {"a": normal(4, 2, 3, 3), "b": normal(4, seed=1), "c": normal(2, 5, seed=2)}
    far = {name: 1e3 * value for name, value in g.items()}
    assert gradient_distance(g, far).item() == pytest.approx(0, abs=1e-5)
    opposite = {**g, "a": -g["a"], "b": 0 * g["b"]}
    assert gradient_distance(g, opposite).item() == pytest.approx(8, abs=1e-4)
    dead = {**g, "a": g["a"].clone()}
    dead["a"][0] = 0
    leaf = {name: value.clone().requires_grad_() for name, value in dead.items()}
    value = gradient_distance(g, leaf)
    assert value.item() == pytest.approx(1, abs=1e-5)  # a unit that learns nothing counts 1
    slopes = torch.autograd.grad(value, [leaf["a"], leaf["c"]])
    assert all(torch.isfinite(slope).all() for slope in slopes)


def test_what_cannot_be_compared_is_refused():
    g = {"bias": normal(3)}
    with pytest.raises(InputError, match="metric is 'rows', for which the gradients hold no"):
        gradient_distance(g, g)
    with pytest.raises(InputError, match="metric is 'ours'; use one of rows, cosine, mse, kernels"):
        gradient_distance(g, g, "ours")
    with pytest.raises(InputError, match="layers is 'conv'; use one of all, body, head"):
        matching(network(), layers="conv")
    with pytest.raises(ValueError, match="shorter"):
        net = network()
        list(matching(net).distances(dict(net.named_parameters()), [], batches((1,), 1)))
