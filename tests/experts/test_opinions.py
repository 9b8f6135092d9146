import pytest
import torch
from torch import tensor

from potstill.data import Normalize
from potstill.experts import teachers as room
from potstill.experts.teachers import mean_right_logits, right_candidates, teacher_logits
from potstill.nets import create, predict
from potstill.run import InputError

NETWORK = "convnet-d2-w4-in"


def nets(count, run):
    return [
        create(NETWORK, channels=1, size=8, classes=3, generator=run.generator("net", k))
        for k in range(count)
    ]


def weights(count, run):
    return [dict(net.named_parameters()) for net in nets(count, run)]


@pytest.mark.parametrize("floats", [False, True])
@pytest.mark.parametrize("memory", [4.0, 1e-9])  # transformed once, or by every expert
def test_opinions_are_the_networks_logits(real, run, floats, memory):
    transform, images = Normalize.fit(real), real.images
    images = images.float() / 255 if floats else images
    got = [
        *teacher_logits(weights(3, run), NETWORK, images, transform, run.with_(memory_gb=memory))
    ]
    for logits, net in zip(got, nets(3, run), strict=True):
        assert torch.allclose(logits, predict(net, images, transform), atol=1e-6)
        assert not logits.requires_grad


def test_experts_are_read_one_at_a_time(real, run):
    read = []

    def stream():
        for k, value in enumerate(weights(3, run)):
            read.append(k)
            yield value

    got = teacher_logits(stream(), NETWORK, real.images[:2], Normalize.fit(real), run)
    assert read == [] and next(got) is not None and read == [0]
    assert next(got) is not None and read == [0, 1]


def speaking(monkeypatch, answers):
    """Experts that say the given logits (n, 3) of images whose first byte is their position."""

    def predict(net, images, transform, *, device, fits):
        return answers[net][images[:, 0, 0, 0].long()]

    monkeypatch.setattr(room, "predict", predict)
    monkeypatch.setattr(room, "_loaded", lambda members, *_: iter(members))
    return list(range(len(answers)))


def test_mean_over_those_that_are_right(monkeypatch, run):
    a = tensor([[3.0, 0, 0], [3.0, 0, 0], [3.0, 1, 0], [1.0, 0, 0]])
    b = tensor([[1.0, 0, -2], [0.0, 5, 0], [2.0, 1, 0], [0.0, 0, 1]])
    labels = tensor([0, 1, 2, 2])
    members = speaking(monkeypatch, [a, b])
    images = torch.arange(4, dtype=torch.uint8).view(4, 1, 1, 1).expand(4, 1, 8, 8)
    small = run.with_(memory_gb=1e-9)  # images come untransformed
    logits, right = mean_right_logits(members, NETWORK, images, labels, None, small)
    assert right.tolist() == [2, 1, 0, 1]
    assert logits.tolist() == [[2, 0, -1], [0, 5, 0], [0, 0, 0], [0, 0, 1]]
    with pytest.raises(InputError, match="experts is empty"):
        mean_right_logits([], NETWORK, images, labels, None, small)


@pytest.fixture
def numbered(make_blobs):
    """Ten, six and three images whose first byte is their position."""
    real = make_blobs((10, 6, 3))
    real.images[:, 0, 0, 0] = torch.arange(19).to(torch.uint8)
    return real


def said(real, right):
    """Logits of an expert that is right at some positions and else one class off."""
    hits = torch.zeros(len(real), dtype=torch.long)
    hits[list(right)] = 1
    return torch.nn.functional.one_hot((real.labels + 1 - hits) % 3, 3).float()


def drawn(real, run, label):
    own = real.of_class(label)
    return own[torch.randperm(len(own), generator=run.generator("right", label))].tolist()


def test_candidates_in_drawn_order_first_expert_first(monkeypatch, numbered, run):
    first, second = {1, 3, 5, 7, 11, 16}, {0, 1, 2, 3, 4, 12, 16, 17}
    members = speaking(monkeypatch, [said(numbered, first), said(numbered, second)])
    got = right_candidates(numbered, [6, 2, 3], members, NETWORK, None, run)
    for label, (needed, found) in enumerate(zip((6, 2, 3), got, strict=True)):
        order = drawn(numbered, run, label)
        line = [p for p in order if p in first]
        line += [p for p in order if p in second - first]
        assert found.tolist() == line[:needed]
    assert [len(found) for found in got] == [6, 2, 2]


def test_candidates_stop_when_there_are_enough(monkeypatch, numbered, run):
    members = speaking(monkeypatch, [said(numbered, range(19)), said(numbered, [])])
    read = []
    stream = (read.append(m) or m for m in members)
    got = right_candidates(numbered, [4, 0, 3], stream, NETWORK, None, run)
    assert [len(found) for found in got] == [4, 0, 3] and read == [0]
    assert got[0].tolist() == drawn(numbered, run, 0)[:4] and got[1].dtype == torch.int64


def test_candidates_of_a_class_that_nobody_knows(monkeypatch, numbered, run):
    members = speaking(monkeypatch, [said(numbered, {0, 18})] * 2)
    got = right_candidates(numbered, [2, 2, 2], members, NETWORK, None, run)
    assert [found.tolist() for found in got] == [[0], [], [18]]
    with pytest.raises(InputError, match="needed has 2 numbers; give 3"):
        right_candidates(numbered, [2, 2], members, NETWORK, None, run)


def test_candidates_do_not_depend_on_how_many_are_looked_at(monkeypatch, make_blobs, run):
    real = make_blobs((150, 90, 5))
    members = weights(2, run)
    few = right_candidates(real, [3, 3, 3], members, NETWORK, Normalize.fit(real), run)
    monkeypatch.setattr(room, "CPU_CHUNK", 1)
    one = right_candidates(real, [3, 3, 3], members, NETWORK, Normalize.fit(real), run)
    many = right_candidates(real, [99, 99, 99], members, NETWORK, Normalize.fit(real), run)
    logits = [predict(net, real.images, Normalize.fit(real)) for net in nets(2, run)]
    hits = [value.argmax(1) == real.labels for value in logits]
    for label in range(3):
        assert few[label].tolist() == one[label].tolist()
        right = (hits[0] | hits[1]) & (real.labels == label)
        assert sorted(many[label].tolist()) == right.nonzero().flatten().tolist()[:99]
        if (hits[0] & (real.labels == label)).sum() >= 3:
            assert few[label].tolist() == many[label][:3].tolist()
