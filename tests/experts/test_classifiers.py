import shutil
from itertools import pairwise

import pytest
import torch

from potstill.data import DSA, ZCA, Normalize
from potstill.experts import train_classifiers, train_experts
from potstill.nets import Examples, Sharpness, Training, create, train_many
from potstill.run import InputError

NETWORK = "convnet-d2-w8-in"
FIRST = Training(epochs=3, batch=8, lr=0.05, momentum=0, weight_decay=5e-3)
SECOND = Training(
    epochs=4, batch=8, lr=0.1, momentum=0, weight_decay=0, sampling="cyclic",
    sharpness=Sharpness(), augment=DSA.parse("color_crop"),
)  # fmt: skip


@pytest.fixture
def experts(real, run):
    return train_experts(real, Normalize.fit(real), NETWORK, 2, FIRST, run, epochs=[1, 3])


def make(real, experts, run, start=3, epochs=range(4), training=SECOND, transform=None):
    return train_classifiers(
        real, transform or Normalize.fit(real), experts, start, training, run, epochs=epochs
    )


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_they_begin_where_experts_end_and_only_they_move(real, experts, run):
    classifiers = make(real, experts, run)
    for m in range(2):
        whole = experts.at(m, 3)
        assert equal(whole, classifiers.backbone(m) | classifiers.at(m, 0))
        assert not set(classifiers.backbone(m)) & set(classifiers.at(m, 0))
        ends = [classifiers.at(m, e)["classifier.weight"] for e in range(4)]
        assert all((a != b).any() for a, b in pairwise(ends))
    assert list(classifiers.at(0, 3)) == ["classifier.weight", "classifier.bias"]
    assert classifiers.members == 2 and classifiers.network == NETWORK
    assert not torch.equal(ends[3], classifiers.at(0, 3)["classifier.weight"])


@pytest.mark.parametrize("start", [1, 3])
def test_they_are_those_of_a_network_with_a_frozen_body(real, experts, run, start):
    classifiers = make(real, experts, run, start)
    nets = [
        create(NETWORK, channels=1, size=8, classes=3, generator=torch.Generator())
        for _ in range(2)
    ]
    for m, net in enumerate(nets):
        net.load_state_dict(experts.at(m, start))
        net.body.requires_grad_(False)
    train_many(
        nets, Examples(real.images.float() / 255, real.labels, Normalize.fit(real)), SECOND,
        generators=lambda purpose, *index: run.generator(f"classifiers/{purpose}", *index),
        stop_epoch=3, quiet=True,
    )  # fmt: skip
    for m, net in enumerate(nets):
        assert torch.equal(net.classifier.weight, classifiers.at(m, 3)["classifier.weight"])
        assert torch.equal(net.classifier.bias, classifiers.at(m, 3)["classifier.bias"])


def test_a_balanced_stream_lifts_the_tail(make_blobs, run):
    real = make_blobs((60, 10, 2))
    experts = train_experts(real, Normalize.fit(real), NETWORK, 1, FIRST, run, epochs=[3])
    classifiers = make(real, experts, run, epochs=[0, 4])

    def tail(epoch):
        net = create(NETWORK, channels=1, size=8, classes=3, generator=torch.Generator())
        net.load_state_dict(classifiers.backbone(0) | classifiers.at(0, epoch))
        with torch.no_grad():
            logits = net(Normalize.fit(real).forward(real.images.float() / 255))
        return float(logits.softmax(1)[real.labels == 2, 2].mean())

    assert tail(4) > 2 * tail(0)


def test_cached_and_grown(real, experts, run, calls, tmp_path):
    first = make(real, experts, run, epochs=[2])
    again = make(real, experts, run, epochs=[2])
    assert calls == [(0, 2)] * 2 and again.seconds_saved > 0 == first.seconds_saved
    grown = make(real, experts, run, epochs=[0, 4])
    assert calls[2:] == [(0, 0)] * 2 + [(2, 4)] * 2
    other = run.with_(cache=tmp_path / "other")
    whole = make(real, experts, other, epochs=range(5))
    assert all(equal(grown.at(m, e), whole.at(m, e)) for m in range(2) for e in (0, 2, 4))
    assert make(real, experts, run, start=1, epochs=[0]).key != first.key == grown.key
    assert first.rows.columns == 3 * 32 + 3


def test_experts_of_something_else_are_refused(real, experts, run, make_blobs):
    swapped = make_blobs((16, 8, 4))
    object.__setattr__(swapped, "classes", ("class 1", "class 0", "class 2"))
    with pytest.raises(InputError, match=r"other classes \(\[.class 0.*train experts on this"):
        make(swapped, experts, run)
    with pytest.raises(InputError, match=f"{experts.key} were trained on other data"):
        make(make_blobs((16, 8, 4), seed=1).select(torch.arange(27)), experts, run)
    with pytest.raises(InputError, match="other transform"):
        make(real, experts, run, transform=ZCA.fit(real))
    with pytest.raises(InputError, match="epoch is 2, which expert 0 has not kept"):
        make(real, experts, run, start=2)


def test_a_damaged_expert_is_told_and_trained_again(real, experts, run, caplog):
    whole = make(real, experts, run).backbone(1)
    shutil.rmtree(run.cache / "experts" / make(real, experts, run).key)
    (path,) = (p for p in run.cache.rglob("experts-*.safetensors"))
    content = bytearray(path.read_bytes())
    content[len(content) - 4 * experts.rows.columns * (500 - 53) + 8] ^= 1
    path.write_bytes(content)
    again = train_experts(real, Normalize.fit(real), NETWORK, 2, FIRST, run, epochs=[1, 3])
    made = make(real, again, run)
    assert caplog.text.count("damaged at expert 1, epoch 3; training that part again") == 1
    assert all(torch.equal(value, whole[name]) for name, value in made.backbone(1).items())
