"""EDF's two masks against slow, obvious versions in float64."""

from __future__ import annotations

import pytest
import torch
from torch.func import functional_call

from potstill import nets
from potstill.losses import cross_entropy
from potstill.match import StudentStep, classifier_distance, trajectory_distance
from potstill.match.rollout import far_apart
from potstill.methods import EDF, LAD, MTT
from potstill.methods.trajectory.masks import area_weights
from potstill.nets.class_maps import class_maps
from potstill.run import InputError

N, K, SIZE = 5, 3, 8
TINY = {
    "steps": 4, "network": "convnet-d2-w8-in", "experts": 2, "expert_epochs": 4, "expert_batch": 16,
    "student_steps": 3, "span": 1, "start_max": 2, "preprocess": "normalize", "start_grow": 0,
}  # fmt: skip


def stream(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=stream(seed), dtype=torch.float64)


def network(name="convnet-d2-w8-in", size=SIZE):
    return nets.create(name, channels=3, size=size, classes=K, generator=stream(1)).double()


def opened(method, real, run, ipc=2):
    return method.begin(real, ipc, run)[0]


# --- common pattern dropout -----------------------------------------------------------------------


def moved_by_hand(net, start, steps, x, targets, lr):
    """A student that walks with the graph of its whole way."""
    theta = {name: value.clone().requires_grad_() for name, value in start.items()}
    for _ in range(steps):
        loss = cross_entropy(functional_call(net, theta, (x,)), targets).mean()
        slopes = torch.autograd.grad(loss, list(theta.values()), create_graph=True)
        theta = {n: v - lr * g for (n, v), g in zip(theta.items(), slopes, strict=True)}
    return theta


def by_hand(end, start, target, names, drop):
    """Entry by entry: sort, leave out the smallest, divide by what the same entries went."""
    gaps = [g for n in names for g in (end[n] - target[n]).flatten().unbind()]
    went = [w for n in names for w in (start[n] - target[n]).flatten().unbind()]
    order = sorted(range(len(gaps)), key=lambda k: float(gaps[k].detach().abs()))
    kept = order[int(drop * len(order)) :]
    return sum(gaps[k] ** 2 for k in kept) / sum(went[k] ** 2 for k in kept)


@pytest.fixture
def scene():
    net = network()
    start = {name: value.detach().clone() for name, value in net.named_parameters()}
    target = {n: v + 0.1 * normal(*v.shape, seed=k) for k, (n, v) in enumerate(start.items())}
    leaves = [normal(N, 3, SIZE, SIZE, seed=2), normal(N, K, seed=3).softmax(1), torch.tensor(0.2)]
    x, targets, lr = (leaf.double().requires_grad_() for leaf in leaves)
    return net, start, target, x, targets, lr


@pytest.mark.parametrize("gradient", ["exact", "unroll"])
@pytest.mark.parametrize("part", ["whole", "backbone"])
@pytest.mark.parametrize("drop", [0.25, 0.9])
def test_a_share_of_the_parameters_is_dropped_from_both_distances(scene, gradient, part, drop):
    net, start, target, x, targets, lr = scene
    names = [n for n in start if part == "whole" or not n.startswith("classifier.")]
    expected = by_hand(moved_by_hand(net, start, 3, x, targets, lr), start, target, names, drop)
    value = trajectory_distance(
        x, targets, lr, forward=lambda theta, x: functional_call(net, dict(theta), (x,)),
        start=start, target=target, steps=[StudentStep(None, {})] * 3, matched=names, drop=drop,
        gradient=gradient,
    )  # fmt: skip
    assert float(value.detach()) == pytest.approx(float(expected.detach()), rel=1e-10)
    assert (
        abs(float(value.detach()) - float(by_hand(target | start, start, target, names, 0))) > 1e-3
    )
    ours, theirs = (torch.autograd.grad(v, (x, targets, lr)) for v in (value, expected))
    for a, b in zip(ours, theirs, strict=True):
        assert b.norm() > 1e-6 and (a - b).norm() < 1e-9 * b.norm()


def test_a_share_of_the_classifier_is_dropped(scene):
    net, start, target, x, targets, lr = scene
    names = ["classifier.weight", "classifier.bias"]
    theta = {n: v.clone().requires_grad_(n in names) for n, v in start.items()}
    for _ in range(3):
        loss = cross_entropy(functional_call(net, theta, (x,)), targets).mean()
        slopes = torch.autograd.grad(loss, [theta[n] for n in names], create_graph=True)
        theta |= {n: theta[n] - lr * g for n, g in zip(names, slopes, strict=True)}
    expected = by_hand(theta, start, target, names, 0.4)
    value = classifier_distance(
        x, targets, lr, features=net.features, start=start, target=target,
        steps=[StudentStep(None, {})] * 3, drop=0.4,
    )  # fmt: skip
    assert float(value.detach()) == pytest.approx(float(expected.detach()), rel=1e-10)
    ours, theirs = (torch.autograd.grad(v, (x, targets, lr)) for v in (value, expected))
    for a, b in zip(ours, theirs, strict=True):
        assert b.norm() > 1e-6 and (a - b).norm() < 1e-9 * b.norm()


def test_of_equal_differences_as_many_are_dropped_as_asked_for():
    a, b = {"w": torch.ones(2, 3), "v": torch.full((4,), 2.0)}, {"w": torch.zeros(2, 3)}
    assert far_apart(a, b, 0.5)["w"].tolist() == [[0, 0, 0], [1, 1, 1]]
    b["v"] = torch.zeros(4)  # over all parameters together, not tensor by tensor
    kept = far_apart(a, b, 0.65)
    assert kept["w"].sum() == 0 and kept["v"].tolist() == [1, 1, 1, 1]
    assert far_apart(a, b, 0.05) is None


def test_parameters_that_no_expert_moved_are_one_sentence(scene):
    net, start, _, x, targets, lr = scene
    still = {n: v + 1e-9 * (n == "body.0.bias") for n, v in start.items()}  # a norm undoes it
    with pytest.raises(InputError, match="target equals start"):
        trajectory_distance(
            x, targets, lr, forward=lambda theta, x: functional_call(net, dict(theta), (x,)),
            start=start, target=still, steps=[StudentStep(None, {})], drop=0.9,
        )  # fmt: skip


# --- discriminative area enhancement --------------------------------------------------------------


def test_a_class_map_is_grad_cam_of_the_last_fine_layer():
    """Behind it are average pooling and the classifier, so that its slopes are known."""
    net, x, labels = network(), normal(N, 3, SIZE, SIZE, seed=4), torch.tensor([0, 1, 2, 2, 0])
    with torch.no_grad():
        before_pool = x
        for layer in list(net.body)[:-1]:
            before_pool = layer(before_pool)
    weight = net.classifier.weight.detach().view(K, 8, 2, 2)
    found = class_maps(net, x, labels)
    for n, label in enumerate(labels.tolist()):
        cam = torch.zeros(4, 4, dtype=torch.float64)
        for k in range(8):
            slopes = [
                float(weight[label, k, i // 2, j // 2]) / 4 for i in range(4) for j in range(4)
            ]
            cam += sum(slopes) / 16 * before_pool[n, k]
        cam = cam.clamp_min(0)
        cam = (cam - cam.min()) / (cam.max() - cam.min()).clamp_min(1e-300)
        for i in range(SIZE):  # bilinear, half-pixel centres
            for j in range(SIZE):
                y, z = (min(max((p + 0.5) / 2 - 0.5, 0), 3) for p in (i, j))
                (a, b), (s, t) = (int(y), int(z)), (y % 1, z % 1)
                c, d = min(a + 1, 3), min(b + 1, 3)
                top, low = (1 - t) * cam[a, b] + t * cam[a, d], (1 - t) * cam[c, b] + t * cam[c, d]
                assert float(found[n, 0, i, j]) == pytest.approx(
                    float((1 - s) * top + s * low), abs=1e-12
                )
    assert (found.amax((1, 2, 3)) > 0.5).any() and found.min() >= 0 and found.max() <= 1


def test_maps_are_of_the_last_layer_that_is_fine_enough():
    x, labels = normal(2, 3, 16, 16, seed=4), torch.tensor([0, 1])
    deep = class_maps(network("convnet-d4-w8-in", 16), x, labels)  # maps of 16, 8, 4 and 2
    assert deep.shape == (2, 1, 16, 16) and torch.isfinite(deep).all()
    with pytest.raises(InputError, match="network is 'mlp', of whose layers none has a map of 4x4"):
        class_maps(network("mlp-w8", 16), x, labels, "mlp")


def test_weights_are_one_below_and_the_map_plus_beta_above():
    maps = torch.tensor([[0.0, 0.2, 0.4, 1.0], [0.0, 0.0, 0.0, 0.0]]).view(2, 1, 2, 2)
    assert area_weights(maps, 1.0).flatten().tolist() == [1, 1, 1, 2, 1, 1, 1, 1]  # mean 0.4
    assert area_weights(maps, 0.5, 0.3).flatten()[:4].tolist() == pytest.approx([1, 1, 0.9, 1.5])


@pytest.mark.parametrize("kind", [EDF, LAD, MTT])
def test_the_gradient_of_the_images_alone_is_weighed(kind, make_blobs, run):
    """With the weights of their maps: made at step 0, of the first expert, of their own class."""
    real = make_blobs((20, 8, 4))
    fields = TINY | ({"classifier_epochs": 2, "classifier_steps": 3} if kind is LAD else {})
    fields |= {"drop_share": 0.0, "threshold": 0.0, "ema": 0.0, "start": "real"}
    slopes, leaves = [], []
    for every in (0, 2):
        objective = opened(kind.budget("paper", **fields, area_every=every), real, run)
        for term in objective.terms(0, objective.canvas, 3):
            term.values.sum().backward()
        slopes.append(objective.canvas.images.grad)
        leaves.append([leaf.grad for leaf in objective.leaves().values()])
    net = kind.budget("paper", **fields).networks.new(real, stream())
    net.load_state_dict(objective.networks.teachers[0]())
    x = objective.canvas.seen(objective.networks.transform).detach()
    weights = area_weights(class_maps(net, x, objective.canvas.labels))
    assert weights.unique().numel() > 2
    assert torch.allclose(slopes[1], slopes[0] * weights, rtol=1e-4, atol=1e-9)
    for plain, masked in zip(*leaves, strict=True):
        assert torch.equal(plain, masked)


def test_maps_are_made_anew_every_so_many_steps(make_blobs, run):
    objective = opened(EDF.budget("paper", **TINY, area_every=3), make_blobs((20, 8, 4)), run)
    seen = []
    for step in range(5):
        list(objective.terms(step, objective.canvas, 3))
        seen.append(objective.state()["area"])
        with torch.no_grad():
            objective.canvas.images += 0.5 * torch.randn(seen[0].shape, generator=stream(step))
    assert torch.equal(seen[0], seen[2]) and torch.equal(seen[3], seen[4])
    assert not torch.equal(seen[2], seen[3])


def test_tiles_have_maps_of_their_own(make_blobs, run):
    real = make_blobs((20, 8, 4), size=16)
    method = EDF.budget("quick", **TINY, factor=2)
    objective = opened(method, real, run)
    list(objective.terms(0, objective.canvas, 3))
    assert objective.state()["area"].shape == (24, 1, 16, 16)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"drop_share": 1.0}, "drop_share is 1.0; use a number from 0 to below 1"),
        ({"drop_share": float("nan")}, "drop_share is nan"),
        ({"area_every": -1}, "area_every is -1"),
        ({"area_gain": -0.5}, "area_gain is -0.5"),
        ({"area_above": 1.5}, "area_above is 1.5"),
        ({"network": "mlp-w8"}, "network is 'mlp-w8', of whose layers none has a map"),
    ],
)
def test_bad_fields_are_refused_before_anything_is_trained(fields, sentence, make_blobs):
    with pytest.raises(InputError, match=sentence):
        EDF.budget("paper", **TINY | fields).check(make_blobs((20, 8, 4)))
