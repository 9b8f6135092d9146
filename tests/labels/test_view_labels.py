"""Labels of views: what is replayed is what the teacher saw, and how a student learns from it."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import kl_div, log_softmax

from potstill.data import Normalize
from potstill.data.augment import DSA
from potstill.data.views import Views
from potstill.labels import ViewLabels
from potstill.losses import cross_entropy, divergence, logit_error
from potstill.nets import Examples, Training, create, predict, train_many
from potstill.nets.feed import Feed
from potstill.run import InputError

TRANSFORM = Normalize(torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.2, 0.3, 0.2]))
N, K, E = 7, 5, 3


def generators(purpose: str, index: int) -> torch.Generator:
    return torch.Generator().manual_seed(1000 * len(purpose) + index)


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(N, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def teacher():
    draw = torch.Generator().manual_seed(1)
    return create("convnet-d2-w8-in", channels=3, size=8, classes=K, generator=draw)


@pytest.fixture
def told(images, teacher) -> ViewLabels:
    def logits(x):
        return predict(teacher, x, TRANSFORM)

    return ViewLabels.of(images, logits, E, generators, cutmix=0.7)


def test_what_is_replayed_is_what_the_teacher_saw(images, teacher, told):
    assert told.epochs == E and told.fault(N, K) is None
    for epoch in range(2 * E):  # longer trainings begin again
        rows = torch.randperm(N, generator=torch.Generator().manual_seed(epoch))[:4]
        x = told.view(images, rows, epoch)
        said = predict(teacher, x, TRANSFORM).softmax(1)
        torch.testing.assert_close(told.targets(rows, epoch, K), said, atol=2e-3, rtol=2e-3)
    first, second = (told.view(images, torch.arange(N), epoch) for epoch in (0, 1))
    assert not torch.allclose(first, second)


def test_replayed_views_are_the_teachers_bit_by_bit(images, teacher, tmp_path):
    """CutMix and mirrors too, in any order and batch, and from a file."""
    from safetensors.torch import load_file, save_file

    shown: list[torch.Tensor] = []

    def logits(x):
        shown.append(x.clone())
        return predict(teacher, x, TRANSFORM)

    told = ViewLabels.of(images, logits, E, generators, cutmix=0.9)
    save_file({n: t.contiguous() for n, t in told.tensors().items()}, tmp_path / "views")
    again = ViewLabels(**load_file(tmp_path / "views"))
    seen = torch.cat(shown).unflatten(0, (E, N))
    assert int((told.patch[..., 1] > told.patch[..., 0]).sum()) > N and int(told.flip.sum()) > 0
    for epoch in range(2 * E):
        for rows in torch.randperm(N, generator=generators("rows", epoch)).split(3):
            assert torch.equal(again.view(images, rows, epoch), seen[epoch % E, rows])
    said = torch.cat([predict(teacher, x, TRANSFORM) for x in shown]).log_softmax(1).half()
    assert torch.equal(again.values.flatten(0, 1), said)


def test_a_view_is_its_crop_with_the_partners_in_the_patch(images, told):
    plain = Views(noise=0.0)
    at, rows = 1, torch.arange(N)
    draw = {"box": told.box[at], "flip": told.flip[at].bool(), "noise": torch.full((N,), -1)}
    crops = plain.apply(images, draw, 8)
    found, patched = told.view(images, rows, at), 0
    for i in range(N):
        expected = crops[i].clone()
        top, bottom, left, right = told.patch[at, i].tolist()
        other = crops[int(told.partner[at, i])]
        for y in range(top, bottom):
            for x in range(left, right):
                expected[:, y, x] = other[:, y, x]
                patched += 1
        assert torch.equal(found[i], expected)
    assert patched
    drawn = plain.draw(N, generators("views", at))
    assert torch.equal(drawn["box"], told.box[at])


def test_the_likeliest_classes_are_kept_and_the_others_share_the_rest(images, teacher, told):
    def logits(x):
        return predict(teacher, x, TRANSFORM)

    few = ViewLabels.of(images, logits, E, generators, cutmix=0.7, top=2)
    assert few.values.shape == (E, N, 2) and few.fault(N, K) is None
    rows = torch.arange(N)
    assert torch.equal(few.view(images, rows, 2), told.view(images, rows, 2))
    p, found = told.targets(rows, 2, K), few.targets(rows, 2, K)
    for i in range(N):
        kept = p[i].topk(2).indices
        rest = (1 - p[i, kept].sum()) / (K - 2)
        expected = torch.full((K,), float(rest)).index_copy(0, kept, p[i, kept])
        torch.testing.assert_close(found[i], expected, atol=2e-3, rtol=0)
    values, classes = told.values.float().topk(K, dim=2)  # all of them, named: the same as unnamed
    named = replace(told, values=values.half(), classes=classes.to(torch.int16))
    assert named.fault(N, K) is None
    torch.testing.assert_close(named.targets(rows, 0, K), told.targets(rows, 0, K))


def test_the_divergence_is_a_teachers_and_cross_entropy_up_to_a_constant():
    draw = torch.Generator().manual_seed(0)
    z = torch.randn(6, K, generator=draw, dtype=torch.float64, requires_grad=True)
    p = torch.randn(6, K, generator=draw, dtype=torch.float64).softmax(1)
    p[0] = torch.eye(K, dtype=torch.float64)[1]  # log 0
    for t in (1.0, 4.0):
        soft = p ** (1 / t) / (p ** (1 / t)).sum(1, keepdim=True)
        expected = t * t * kl_div(log_softmax(z / t, 1), soft, reduction="none").sum(1)
        torch.testing.assert_close(divergence(t)(z, p), expected)
    (slope,) = torch.autograd.grad(divergence()(z, p).sum(), z)
    (other,) = torch.autograd.grad(cross_entropy(z, p).sum(), z)
    torch.testing.assert_close(slope, other)
    with pytest.raises(InputError, match="temperature is 0"):
        divergence(0.0)


def test_a_network_learns_the_views_as_a_plain_loop_does(images, told):
    """Two epochs of SGD in float64 against the card's ten lines."""
    how = Training(epochs=2, batch=3, lr=0.1, momentum=0.0, weight_decay=0.0)
    examples = Examples(images.double(), torch.arange(N) % K, TRANSFORM, views=told)

    def student():
        draw = torch.Generator().manual_seed(3)
        return create("mlp-w8", channels=3, size=8, classes=K, generator=draw).double()

    def draws(purpose: str, member: int, index: int) -> torch.Generator:
        return generators(purpose, index)

    net, plain, t = student(), student(), 2.0
    train_many([net], examples, how, generators=draws, loss=divergence(t), quiet=True)
    feed = Feed(examples, how, draws, plain)
    optimizer = torch.optim.SGD(plain.parameters(), 0.1)
    for epoch in range(2):
        for rows in feed.order(0, epoch).split(3):
            x = TRANSFORM(told.view(images.double(), rows, epoch))
            p = (told.targets(rows, epoch, K).double().log() / t).softmax(1)
            loss = t * t * kl_div((plain(x) / t).log_softmax(1), p, reduction="batchmean")
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    for a, b in zip(net.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_a_teacher_labels_what_is_seen(images, teacher):
    how = Training(epochs=1, batch=4, augment=DSA.parse("color_crop", rule="idc"), cutmix=1.0)
    labels = torch.arange(N) % K
    examples = Examples(images, labels, TRANSFORM, teacher=lambda x: teacher(x).detach())

    def draws(purpose: str, member: int, index: int) -> torch.Generator:
        return generators(purpose, index)

    plain = Feed(replace(examples, teacher=None), how, draws, teacher)
    x, targets = Feed(examples, how, draws, teacher).batch(0, 0, torch.arange(4))
    assert torch.equal(x, plain.batch(0, 0, torch.arange(4))[0])
    assert torch.equal(targets, teacher(x).softmax(1))


def draws_of(purpose: str, member: int, index: int) -> torch.Generator:
    return generators(purpose, index)


def test_a_student_regresses_to_what_a_teacher_says_and_to_the_mixed_class(images, teacher, told):
    """MSE-GT against its formula, online and from the store, with CutMix."""
    labels = torch.arange(N) % K
    how = Training(epochs=1, batch=4, resized=Views(noise=0.0), cutmix=1.0)
    online = Examples(images, labels, TRANSFORM, teacher=lambda x: teacher(x).detach(), logits=True)
    feed = Feed(online, how, draws_of, teacher)
    plain = Feed(replace(online, teacher=None), how, draws_of, teacher)
    rows = torch.tensor([5, 0, 3])
    (x, targets), (same, mixed) = (one.batch(0, 0, rows) for one in (feed, plain))
    assert torch.equal(x, same) and torch.equal(targets[:, :K], teacher(x))
    assert torch.equal(targets[:, K:], mixed)
    box = Views(noise=0.0).draw(3, generators("augment/views", 0))
    crops = Views(noise=0.0).apply(TRANSFORM(images[rows]), box, (8, 8))
    unmixed = Feed(replace(online, teacher=None), replace(how, cutmix=0.0), draws_of, teacher)
    torch.testing.assert_close(unmixed.batch(0, 0, rows)[0], crops)

    stored = Examples(images, labels, TRANSFORM, views=told, logits=True)
    x, targets = Feed(stored, Training(epochs=1, batch=4), draws_of, teacher).batch(0, 0, rows)
    z = teacher(x).detach()
    torch.testing.assert_close(targets[:, :K], z - z.mean(1, keepdim=True), atol=5e-3, rtol=5e-3)
    for row, i in zip(targets[:, K:], rows.tolist(), strict=True):
        top, bottom, left, right = told.patch[0, i].tolist()
        area, other = (bottom - top) * (right - left) / 64, int(labels[told.partner[0, i]])
        expected = torch.zeros(K)
        expected[labels[i]] += 1 - area
        expected[other] += area
        torch.testing.assert_close(row, expected)
    few = replace(told, **dict(zip(("values", "classes"), top_two(told), strict=True)))
    assert torch.allclose(few.logits(rows, 0, K).softmax(1), few.targets(rows, 0, K), atol=1e-5)

    z, t = torch.randn(3, K, dtype=torch.float64), torch.randn(3, 2 * K, dtype=torch.float64)
    t[:, K:] = t[:, K:].softmax(1)
    slow = [
        sum((z[i, c] - t[i, c]) ** 2 for c in range(K)) / K
        - 0.3 * sum(t[i, K + c] * (z[i, c] - z[i].exp().sum().log()) for c in range(K))
        for i in range(3)
    ]
    torch.testing.assert_close(logit_error(0.3)(z, t), torch.stack(slow))


def top_two(told):
    values, classes = told.values.float().topk(2, dim=2)
    return values.half(), classes.to(torch.int16)


def test_what_cannot_be_is_refused(images, told):
    labels = torch.arange(N) % K
    examples = Examples(images, labels, TRANSFORM, views=told)
    net = create("mlp-w8", channels=3, size=8, classes=K, generator=torch.Generator())
    for more in (
        {"resized": Views(noise=0.0)},
        {"cutmix": 0.5},
        {"augment": DSA.parse("color")},
        {"mixing": "mixup"},
    ):
        how = Training(epochs=1, batch=4, **more)
        with pytest.raises(InputError, match="views that are stored"):
            Feed(examples, how, lambda *at: torch.Generator(), net)
    with pytest.raises(InputError, match="weights beside labels of views"):
        Examples(images, labels, TRANSFORM, torch.ones(N), views=told)
    with pytest.raises(InputError, match=r"noise is 0\.5"):
        ViewLabels.of(images, lambda x: x, 1, generators, views=Views())
    with pytest.raises(InputError, match="epochs is 0"):
        ViewLabels.of(images, lambda x: x, 0, generators)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda v: {"box": v.box[:, :3]}, r"box of type .* \(3, 7, 4\) is expected"),
        (lambda v: {"flip": v.flip.bool()}, "flip of type torch.bool"),
        (lambda v: {"values": v.values[:, :, :4]}, "4 values for 5 classes"),
        (lambda v: {"values": -v.values}, "no log-probabilities"),
        (lambda v: {"values": v.values * float("nan")}, "no log-probabilities"),
        (lambda v: {"values": v.values - float("inf")}, "no log-probabilities"),
        (lambda v: {"box": v.box * float("inf")}, "not finite"),
        (lambda v: {"partner": None}, "one of partner and patch"),
        (lambda v: {"partner": v.partner + 1}, "partner outside 0 to 6"),
        (lambda v: {"classes": torch.full_like(v.values, 5).to(torch.int16)}, "classes outside"),
        (lambda v: {"values": v.values[0]}, "values of type"),
    ],
)
def test_faults_are_named(told, change, sentence):
    assert re.search(sentence, replace(told, **change(told)).fault(N, K) or "")
