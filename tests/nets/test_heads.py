"""Stacked linear heads against plain torch, one at a time; maps between feature spaces."""

import hashlib
import math

import pytest
import torch
import torch.nn.functional as F

from potstill.losses import Deferred, cross_entropy, logit_adjusted
from potstill.nets.head_training import (
    HeadTraining,
    _mixed,
    _Sums,
    adam_projector,
    ridge_projector,
    train_heads,
)
from potstill.run import InputError

N, DIM, CLASSES, VIEWS = 23, 6, 3, 4


def _ridges(z, y, ridges):
    return _Sums.of(z[None], y[None]).maps(ridges, z.shape[1])


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def generators(*words):
    """As a run gives them: the words decide the stream."""
    text = hashlib.sha256("/".join(map(str, words)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(text[:7], "little"))


def table(views=VIEWS, n=N, seed=0):
    return normal(views, n, DIM, seed=seed)


LABELS = torch.arange(N) ** 2 % CLASSES  # unbalanced
TRAINING = HeadTraining(epochs=7, batch=5, lr=0.5)


def plain_head(z, targets, training, head, weights=None, teacher=None, distil=None, loss=None):
    """One head alone: torch.nn.Linear, torch.optim.Adam, a cosine by hand."""
    layer = torch.nn.Linear(DIM, CLASSES)
    with torch.no_grad():
        start = torch.randn(CLASSES, DIM, generator=generators("weights", head, 0))
        layer.weight.copy_(start * training.init_std)
        layer.bias.zero_()
    n = len(targets)
    batch = min(training.batch, n)
    steps = math.ceil(n / batch)
    peak = training.lr * batch / 256
    adam = torch.optim.Adam(layer.parameters(), lr=peak)
    done = 0
    for epoch in range(training.epochs):
        order = torch.randperm(n, generator=generators("order", head, epoch))
        if callable(z):
            seen, told = z(epoch)[head], None
        else:
            view = torch.randint(len(z), (n,), generator=generators("views", head, epoch))
            seen = torch.stack([z[v, i] for i, v in enumerate(view.tolist())])
            if teacher is not None:
                told = torch.stack([teacher[v, i] for i, v in enumerate(view.tolist())])
        for first in range(0, n, batch):
            rows = order[first : first + batch]
            logits = layer(seen[rows])
            if loss is not None:
                values = loss(logits, targets[rows])
            else:
                values = F.cross_entropy(logits, targets[rows], reduction="none")
            if teacher is not None:
                alpha, heat = distil
                soft = F.kl_div(
                    F.log_softmax(logits / heat, 1),
                    F.softmax(told[rows] / heat, 1),
                    reduction="none",
                ).sum(1)
                values = alpha * heat**2 * soft + (1 - alpha) * values
            if weights is not None:
                values = values * (weights / weights.mean())[rows]
            for group in adam.param_groups:
                group["lr"] = peak * (1 + math.cos(math.pi * done / (steps * training.epochs))) / 2
            adam.zero_grad()
            values.mean().backward()
            adam.step()
            done += 1
    return layer.weight.detach(), layer.bias.detach()


@pytest.fixture(autouse=True)
def _own_draws_only():
    """torch.nn.Linear draws; the library must not."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def check(found, alone):
    for k, (weight, bias) in enumerate(alone):
        torch.testing.assert_close(found[0][k], weight, atol=2e-5, rtol=1e-4)
        torch.testing.assert_close(found[1][k], bias, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("batch", [5, 23, 100])
def test_stacked_heads_equal_plain_ones(batch):
    z, training = table(), HeadTraining(epochs=7, batch=batch, lr=0.5)
    found = train_heads(z, LABELS, CLASSES, training, heads=3, generators=generators)
    assert found[0].shape == (3, CLASSES, DIM) and found[1].shape == (3, CLASSES)
    check(found, [plain_head(z, LABELS, training, k) for k in range(3)])
    assert found[0].norm() > 0.3 and not found[0].requires_grad
    assert (found[0][0] - found[0][1]).abs().max() > 1e-3  # each has its own draws


def test_a_head_does_not_depend_on_how_many_there_are():
    three = train_heads(table(), LABELS, CLASSES, TRAINING, heads=3, generators=generators)
    one = train_heads(table(), LABELS, CLASSES, TRAINING, heads=1, generators=generators)
    torch.testing.assert_close(three[0][:1], one[0], atol=1e-6, rtol=1e-5)


def test_fresh_views_every_epoch():
    def fresh(epoch):
        return normal(2, N, DIM, seed=50 + epoch)

    found = train_heads(fresh, LABELS, CLASSES, TRAINING, heads=2, generators=generators)
    check(found, [plain_head(fresh, LABELS, TRAINING, k) for k in range(2)])


def test_half_precision_banks_and_soft_targets():
    z, soft = table().half(), normal(N, CLASSES, seed=3).softmax(1)
    found = train_heads(z, soft, CLASSES, TRAINING, heads=2, generators=generators)
    check(found, [plain_head(z.float(), soft, TRAINING, k) for k in range(2)])


def test_image_weights_are_relative():
    z, weights = table(), normal(N, seed=4).exp()
    options = {"heads": 2, "generators": generators}
    found = train_heads(z, LABELS, CLASSES, TRAINING, weights=weights, **options)
    check(found, [plain_head(z, LABELS, TRAINING, k, weights) for k in range(2)])
    other = train_heads(z, LABELS, CLASSES, TRAINING, weights=9 * weights, **options)
    torch.testing.assert_close(found[0], other[0], atol=1e-5, rtol=1e-4)


def test_other_losses():
    z, loss = table(), logit_adjusted((20, 2, 1))
    found = train_heads(z, LABELS, CLASSES, TRAINING, heads=1, generators=generators, loss=loss)
    check(found, [plain_head(z, LABELS, TRAINING, 0, loss=loss)])


@pytest.mark.parametrize("distil", [(0.5, 4.0), (1.0, 1.0), (0.0, 2.0)])
def test_a_teacher(distil):
    z, teacher = table(), 3 * normal(VIEWS, N, CLASSES, seed=6)
    found = train_heads(
        z, LABELS, CLASSES, TRAINING, heads=2, generators=generators, teacher=teacher, distil=distil
    )  # fmt: skip
    alone = [plain_head(z, LABELS, TRAINING, k, teacher=teacher, distil=distil) for k in range(2)]
    check(found, alone)


def test_the_mixed_loss_is_the_divergence_of_torch():
    logits, teacher, hard = normal(2, 5, 4), normal(2, 5, 4, seed=1), normal(2, 5, seed=2)
    for alpha, heat in ((0.3, 4.0), (1.0, 1.0)):
        kl = F.kl_div(
            (logits / heat).log_softmax(-1),
            (teacher / heat).log_softmax(-1),
            reduction="none",
            log_target=True,
        ).sum(-1)
        expected = alpha * heat**2 * kl + (1 - alpha) * hard
        torch.testing.assert_close(_mixed(logits, teacher, hard, alpha, heat), expected)
    zero = _mixed(teacher, teacher, hard, 1.0, 2.0)
    torch.testing.assert_close(zero, torch.zeros(2, 5), atol=1e-6, rtol=0)


def test_blobs_apart_are_told_apart():
    labels = torch.arange(3).repeat_interleave(20)
    z = (normal(2, 60, DIM) + 6 * torch.eye(3, DIM)[labels]).contiguous()
    training = HeadTraining(epochs=60, batch=16, lr=0.2)
    weight, bias = train_heads(z, labels, 3, training, heads=4, generators=generators)
    other = normal(60, DIM, seed=9) + 6 * torch.eye(3, DIM)[labels]
    for k in range(4):
        assert ((other @ weight[k].T + bias[k]).argmax(1) == labels).all()


def test_balanced_sampling_gives_every_class_its_share(monkeypatch):
    labels = torch.tensor([0] * 16 + [1] * 4 + [2])
    seen = []

    def watching(logits, targets):
        seen.append(targets.clone())
        return cross_entropy(logits, targets)

    options = {"heads": 1, "generators": generators, "loss": watching}
    training = HeadTraining(epochs=4, batch=7, sampling="balanced")
    train_heads(table(n=21), labels, 3, training, **options)
    for epoch in range(4):
        drawn = torch.cat(seen[3 * epoch : 3 * epoch + 3])
        assert torch.bincount(drawn).tolist() == [7, 7, 7]
    seen.clear()
    train_heads(table(n=21), labels, 3, HeadTraining(epochs=1, batch=7), **options)
    assert torch.bincount(torch.cat(seen)).tolist() == [16, 4, 1]


def test_balanced_sampling_learns_no_prior():
    labels = torch.tensor([0] * 10 + [1] * 2)
    z = torch.zeros(1, 12, DIM)
    z[0, :, 0] = labels - 0.5  # the classes mirror each other

    def lead(sampling):
        training = HeadTraining(epochs=150, batch=12, lr=0.5, sampling=sampling)
        _, bias = train_heads(z, labels, 2, training, heads=1, generators=generators)
        return (bias[0, 0] - bias[0, 1]).item()

    assert abs(lead("balanced")) < 0.02 and lead("shuffled") > 0.2


def test_bad_fields_and_shapes_are_refused():
    for name in ("epochs", "batch", "lr"):
        with pytest.raises(InputError, match=f"{name} is 0; use a"):
            HeadTraining(**{"epochs": 1, name: 0})
    with pytest.raises(InputError, match="sampling is 'even'"):
        HeadTraining(epochs=1, sampling="even")
    with pytest.raises(InputError, match="targets has 5 rows for 23 images"):
        train_heads(table(), LABELS[:5], CLASSES, TRAINING, heads=1, generators=generators)


# maps between feature spaces


def double(*shape, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=draw, dtype=torch.float64)


def test_ridge_recovers_a_known_map():
    z, matrix, shift = double(3, 40, DIM), double(5, DIM, seed=1), double(5, seed=2)
    found = ridge_projector(z + 2, (z + 2) @ matrix.T + shift)
    torch.testing.assert_close(found.weight, matrix.float(), atol=1e-3, rtol=0)
    torch.testing.assert_close(found.bias, shift.float(), atol=1e-3, rtol=0)
    assert found.about == {"kind": "ridge", "lambda": pytest.approx(1e-5)}
    x = double(7, DIM, seed=3)
    torch.testing.assert_close(found(x), x @ matrix.T + shift, atol=1e-2, rtol=0)
    assert found.nbytes == 4 * (5 * DIM + 5)


def test_a_tiny_ridge_is_least_squares_with_a_constant():
    z, y = double(40, DIM) + 3, double(40, 5, seed=1) - 2
    ((weight, bias),) = _ridges(z, y, (1e-13,))
    extended = torch.cat([z, torch.ones(40, 1).double()], 1)
    expected = torch.linalg.lstsq(extended, y).solution
    torch.testing.assert_close(weight, expected[:-1].T, atol=1e-9, rtol=0)
    torch.testing.assert_close(bias, expected[-1], atol=1e-9, rtol=0)


@pytest.mark.parametrize("ridge", [1e-3, 1.0, 100.0])
def test_ridges_minimise_their_objective_with_a_free_bias(ridge):
    z, y = double(30, DIM) + 3, double(30, 5, seed=1) - 2
    centred = z - z.mean(0)
    strength = ridge * torch.linalg.eigvalsh(centred.T @ centred).mean()
    weight, bias = (t.clone().requires_grad_() for t in _ridges(z, y, (ridge,))[0])
    value = (z @ weight.T + bias - y).square().sum() + strength * weight.square().sum()
    slopes = torch.autograd.grad(value, (weight, bias))
    assert all(slope.abs().max() < 1e-9 for slope in slopes)
    # the bias is not shrunk: the mean is met exactly
    torch.testing.assert_close(z.mean(0) @ weight.T + bias, y.mean(0))


def test_the_ridge_is_the_one_with_the_smallest_error_on_unseen_images():
    """Against a loop that leaves out one fold of images, with all of their views, at a time."""
    views, n = 2, 13
    z = double(views, n, 10)
    y = z @ double(3, 10, seed=1).T + 3 * double(views, n, 3, seed=2)
    errors = {}
    for ridge in [10.0**k for k in range(-5, 3)]:
        errors[ridge] = 0.0
        for fold in range(5):
            held = [i for i in range(n) if i * 5 // n == fold]
            rest = [i for i in range(n) if i not in held]
            left = z[:, rest].reshape(-1, 10)
            ((weight, bias),) = _ridges(left, y[:, rest].reshape(-1, 3), (ridge,))
            errors[ridge] += (z[:, held] @ weight.T + bias - y[:, held]).square().sum().item()
    best = min(errors, key=errors.get)
    assert 1e-5 < best < 100  # else the choice would be no choice
    assert ridge_projector(z, y).about["lambda"] == pytest.approx(best)


def test_more_features_than_rows_give_the_same_as_all_dimensions():
    """In the span of few rows, against the plain closed form in all dimensions."""
    z, y = double(2, 6, 40) + 1, double(2, 6, 3, seed=1)
    found = ridge_projector(z, y)
    ridge = found.about["lambda"]
    ((weight, bias),) = _ridges(z.flatten(0, 1), y.flatten(0, 1), (ridge,))
    torch.testing.assert_close(found.weight.double(), weight, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found.bias.double(), bias, atol=1e-5, rtol=1e-4)


def test_noise_alone_gets_the_strongest_ridge():
    found = ridge_projector(double(1, 12, 10), double(1, 12, 3, seed=1))
    assert found.about["lambda"] >= 10


@pytest.mark.parametrize("n", [1, 2])
def test_few_images_still_give_finite_maps(n):
    found = ridge_projector(double(1, n, DIM), double(1, n, 5, seed=1))
    assert torch.isfinite(found.weight).all() and torch.isfinite(found.bias).all()
    if n == 1:
        torch.testing.assert_close(found.bias, double(1, n, 5, seed=1)[0, 0].float())


def test_more_features_than_images():
    z, y = double(2, 6, 40), double(2, 6, 3, seed=1)
    found = ridge_projector(z, y)
    assert torch.isfinite(found.weight).all()
    assert (found(z) - y).square().mean() < y.var()


def test_adam_comes_to_where_ridge_is():
    z, matrix, shift = normal(2, 60, DIM), normal(4, DIM, seed=1), normal(4, seed=2)
    y = z @ matrix.T + shift
    found = adam_projector(z, y, generators, epochs=400, lr=0.3)
    closed = ridge_projector(z, y)
    torch.testing.assert_close(found.weight, closed.weight, atol=0.02, rtol=0)
    torch.testing.assert_close(found.bias, closed.bias, atol=0.02, rtol=0)
    assert found.about == {"kind": "adam", "epochs": 400, "lr": 0.3}
    again = adam_projector(z, y, generators, epochs=400, lr=0.3)
    assert torch.equal(found.weight, again.weight)


def test_adam_is_the_published_loop():
    z, y = normal(3, 120, DIM), normal(3, 120, 4, seed=1)
    layer, draw = torch.nn.Linear(DIM, 4), generators("weights", 0, 0)
    with torch.no_grad():
        layer.weight.uniform_(-(DIM**-0.5), DIM**-0.5, generator=draw)
        layer.bias.uniform_(-(DIM**-0.5), DIM**-0.5, generator=draw)
    peak, total, done = 0.01 * 100 / 256, 2 * 5, 0
    adam = torch.optim.Adam(layer.parameters(), lr=peak)
    for epoch in range(5):
        order = torch.randperm(120, generator=generators("order", 0, epoch))
        view = torch.randint(3, (120,), generator=generators("views", 0, epoch))
        for rows in order.split(100):
            adam.param_groups[0]["lr"] = peak * (1 + math.cos(math.pi * done / total)) / 2
            adam.zero_grad()
            F.mse_loss(layer(z[view[rows], rows]), y[view[rows], rows]).backward()
            adam.step()
            done += 1
    found = adam_projector(z, y, generators, epochs=5)
    torch.testing.assert_close(found.weight, layer.weight.detach(), atol=1e-6, rtol=0)
    torch.testing.assert_close(found.bias, layer.bias.detach(), atol=1e-6, rtol=0)


def test_a_deferred_loss_and_progressive_sampling_follow_the_epochs():
    labels = torch.tensor([0] * 16 + [1] * 4 + [2])
    seen = {"first": [], "late": []}

    def watching(name):
        return lambda z, y: (seen[name].append(y.clone()), cross_entropy(z, y))[1]

    training = HeadTraining(epochs=10, batch=21, sampling="progressive")
    loss = Deferred(watching("first"), watching("late"))
    train_heads(table(n=21), labels, 3, training, heads=1, generators=generators, loss=loss)
    assert (len(seen["first"]), len(seen["late"])) == (8, 2)
    assert torch.bincount(seen["first"][0]).tolist() == [16, 4, 1]
    assert torch.bincount(seen["late"][1])[2] >= 6  # 0.1 of 1 and 0.9 of 7
