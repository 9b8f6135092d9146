import copy
import math
import time

import pytest
import torch

from potstill import nets
from potstill.data.augment import DSA
from potstill.losses import cross_entropy
from potstill.nets import Examples, Training, predict, train_many
from potstill.nets import many as engine
from potstill.nets.feed import Feed
from potstill.run import DivergedError, InputError, Run

RUN = Run(seed=5, device="cpu", quiet=True)
SGD = Training(epochs=2, batch=8, lr=0.05, weight_decay=1e-3)


class Centre:
    """A transform that shows in the result if it is left out."""

    def forward(self, x):
        return x * 2 - 1


def toy(n=20, classes=3, size=8, dtype=torch.uint8):
    g = torch.Generator().manual_seed(1)
    labels = torch.arange(n) % classes
    images = torch.randint(0, 80, (n, 3, size, size), generator=g)
    images += (labels * 80)[:, None, None, None]  # separable by brightness
    images = images.clamp(0, 255).to(torch.uint8)
    images = images if dtype == torch.uint8 else images.to(dtype) / 255
    return Examples(images, labels, Centre())


def members(count, name="convnet-d2-w4-in", dtype=torch.float32):
    return [
        nets.create(name, channels=3, size=8, classes=3, generator=RUN.generator("net", k)).to(
            dtype
        )
        for k in range(count)
    ]


def train(networks, training=SGD, examples=None, threads=2, **options):
    options = {"generators": RUN.generator, "quiet": True, **options}
    torch.set_num_threads(threads)
    try:
        train_many(networks, examples or toy(), training, **options)
    finally:
        left = torch.get_num_threads()
        torch.set_num_threads(1)  # no spinning between the calls
        assert left == threads  # given back, also after an error
    return networks


def equal(a, b):
    return all(torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items())


AUGMENTED = Training(
    epochs=2, batch=8, lr=0.05, augment=DSA.parse("color_crop_flip_scale", rule="idc"), cutmix=0.5
)


@pytest.mark.parametrize("name", ["convnet-d2-w4-in", "convnet-d2-w4-bn", "lenet"])
@pytest.mark.parametrize("training", [SGD, AUGMENTED])
def test_threads_equal_sequential_bitwise(name, training):
    a = train(members(3, name), training, backend="sequential")
    b = train(members(3, name), training, backend="threads")
    assert all(equal(x, y) for x, y in zip(a, b, strict=True))
    assert not equal(a[0], members(1, name)[0])


@pytest.mark.parametrize("backend", ["sequential", "threads", "auto"])
def test_members_do_not_depend_on_each_other(backend):
    together = train(members(3), AUGMENTED, backend=backend)
    alone = train(members(1), AUGMENTED)
    assert equal(together[0], alone[0])
    last = members(3)[2:]
    train(last, AUGMENTED, generators=lambda p, m, i: RUN.generator(p, m + 2, i))
    assert equal(together[2], last[0])
    # the same start with another member's draws ends elsewhere
    other = members(1)
    train(other, AUGMENTED, generators=lambda p, m, i: RUN.generator(p, m + 1, i))
    assert not equal(other[0], together[0])


@pytest.mark.parametrize("backend", ["sequential", "threads", "stacked"])
def test_every_member_computes_with_one_thread(backend):
    seen = set()

    def loss(logits, targets):
        seen.add(torch.get_num_threads())
        return cross_entropy(logits, targets)

    a = train(members(2), backend=backend, loss=loss)
    assert seen == {1}
    b = train(members(2), backend=backend, threads=1)
    assert all(equal(x, y) for x, y in zip(a, b, strict=True))


# Adam divides by the gradient's size, so its network has no norm, which takes a bias's gradient.
@pytest.mark.parametrize(
    ("name", "training"),
    [
        ("convnet-d2-w4-in", Training(
            epochs=4, batch=8, lr=0.05, weight_decay=1e-2, schedule="step",
            milestones=(0.25, 0.5), gamma=0.5, reset_momentum=True)),
        ("convnet-d2-w4-none", Training(
            epochs=3, batch=6, optimizer="adamw", lr=1e-2, weight_decay=0.1, schedule="cosine",
            sampling="balanced", augment=DSA.parse("color_crop"), cutmix=0.5)),
    ],
)  # fmt: skip
def test_stacked_agrees_with_sequential(name, training):
    examples = toy(dtype=torch.float64)
    a, b, starts = (members(3, name, torch.float64) for _ in range(3))
    train(a, training, examples, backend="sequential")
    train(b, training, examples, backend="stacked")
    for x, y, start in zip(a, b, starts, strict=True):
        for key, value in x.named_parameters():
            moved = (value - start.get_parameter(key)).norm()
            assert moved > 0
            assert (value - y.get_parameter(key)).norm() <= 1e-8 * moved, key


def test_batch_norm_is_not_stacked():
    a = train(members(2, "convnet-d2-w4-bn"), backend="sequential")
    b = train(members(2, "convnet-d2-w4-bn"), backend="stacked")
    assert all(equal(x, y) for x, y in zip(a, b, strict=True))
    assert a[0].state_dict()["body.1.num_batches_tracked"] == 6


def test_schedules():
    step = Training(
        epochs=5, batch=1, lr=1.0, schedule="step", milestones=(0.2, 0.4, 0.6, 0.8), gamma=0.5
    )
    assert [step.lr_at(e) for e in range(5)] == [1, 0.5, 0.25, 0.125, 0.0625]
    idc = Training(epochs=9, batch=1, lr=1.0, schedule="step", milestones=(2 / 3, 5 / 6), gamma=0.2)
    assert [idc.lr_at(e) for e in (0, 5, 6, 7, 8)] == pytest.approx([1, 1, 0.2, 0.04, 0.04])
    cosine = Training(epochs=4, batch=1, lr=2.0, schedule="cosine")
    assert [cosine.lr_at(e) for e in range(4)] == pytest.approx([2, 1.70710678, 1, 0.29289322])
    assert Training(epochs=4, batch=1, lr=2.0, milestones=(0.5,)).lr_at(3) == 2.0
    rising = Training(epochs=10, batch=1, lr=3.0, warmup=0.2, schedule="cosine")
    expected = [1, 2, *(1.5 * (1 + math.cos(math.pi * k / 8)) for k in range(8))]
    assert [rising.lr_at(e) for e in range(10)] == pytest.approx(expected)
    short = Training(epochs=3, batch=1, lr=3.0, warmup=0.2)  # no whole epoch to rise in
    assert [short.lr_at(e) for e in range(3)] == [3, 3, 3]
    assert step == Training(**{**vars(step)}) and hash(step) == hash(Training(**vars(step)))


def test_nesterov_steps_are_the_formula():
    """v <- m v + g, w <- w - lr (g + m v), with g the slope of the loss and of the decay."""
    training = Training(epochs=1, batch=1, lr=0.1, momentum=0.8, nesterov=True, weight_decay=0.5)
    found, w, v = torch.tensor([2.0, -1.0], dtype=torch.float64, requires_grad=True), [2.0, -1.0], 0
    optimizer, v = training.optimizer_for([found]), [0.0, 0.0]
    for _ in range(3):
        optimizer.zero_grad()
        (found**3).sum().backward()
        optimizer.step()
        for k in range(2):
            g = 3 * w[k] ** 2 + 0.5 * w[k]
            v[k] = 0.8 * v[k] + g
            w[k] -= 0.1 * (g + 0.8 * v[k])
    assert found.tolist() == pytest.approx(w, rel=1e-12)


def test_a_small_last_batch_is_left_out_where_asked(monkeypatch):
    seen, original = [], Feed.batch
    monkeypatch.setattr(
        Feed, "batch", lambda *at: seen.append(at[-1].tolist()) or original(*at)
    )  # fmt: skip
    training = Training(epochs=3, batch=8, lr=0.05, drop_last=True)
    train(members(1), training, examples=toy(20))
    assert [len(rows) for rows in seen] == [8, 8] * 3
    assert len({*seen[0], *seen[1]}) == 16 and len({row for rows in seen for row in rows}) > 16
    seen.clear()
    train(members(1), training, examples=toy(5))  # all there is
    assert [len(rows) for rows in seen] == [5] * 3
    assert [training.steps(n) for n in (5, 8, 20, 24)] == [1, 1, 2, 3]
    assert [SGD.steps(n) for n in (5, 8, 20, 24)] == [1, 1, 3, 3]


def test_later_fields_are_in_no_key_of_before():
    assert not {"nesterov", "warmup", "drop_last"} & {*SGD.facts}
    assert {"nesterov": True, "warmup": 0.5}.items() <= Training(
        epochs=1, batch=1, nesterov=True, warmup=0.5
    ).facts.items()


def test_channels_last_on_a_cpu_agrees_to_rounding():
    (plain,), (other,) = (
        train(members(1, "wrn16-w4-bn"), channels_last=last) for last in (False, True)
    )
    assert not equal(plain, other)  # otherwise nothing was laid out in another way
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(value, other.state_dict()[name], atol=2e-3, rtol=1e-3)


@pytest.mark.parametrize("backend", ["sequential", "stacked"])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_network_is_the_mean_of_its_weights(backend, momentum):
    """Every epoch shows the mean, the steps go on from the weights themselves."""
    base = {"batch": 8, "lr": 0.05, "momentum": momentum, "reset_momentum": True}
    base |= {"schedule": "step", "milestones": (0.5,)}
    examples, steps = toy(dtype=torch.float64), []

    def watch(logits, targets):
        steps.append([p.detach().clone() for p in slow.parameters()])
        return cross_entropy(logits, targets)

    (slow,) = members(1, dtype=torch.float64)
    train([slow], Training(epochs=4, **base), examples, backend="sequential", loss=watch)
    steps.append(list(slow.parameters()))
    means, mean = [], steps[1]  # of the first step on
    for weights in steps[1:]:
        mean = [0.8 * m + 0.2 * w for m, w in zip(mean, weights, strict=True)]
        means.append(mean)
    shown = []

    def look(member, epoch, network):
        shown.append([p.detach().clone() for p in network.parameters()])

    (ours,) = train(
        members(1, dtype=torch.float64), Training(epochs=4, ema=0.8, **base), examples,
        backend=backend, on_epoch=look,
    )  # fmt: skip
    for epoch, found in enumerate([*shown, list(ours.parameters())]):
        expected = means[3 * min(epoch + 1, 4) - 1]
        newest = steps[3 * min(epoch + 1, 4)]
        assert all(torch.allclose(p, q, atol=1e-10) for p, q in zip(found, expected, strict=True))
        assert not torch.allclose(found[0], newest[0], atol=1e-6)


def test_a_mean_in_a_memory_that_is_given_up_is_refused():
    with pytest.raises(InputError, match=r"ema is 0\.9 with reset_momentum and adamw"):
        Training(epochs=2, batch=8, optimizer="adamw", ema=0.9, reset_momentum=True)


@pytest.mark.parametrize("backend", ["sequential", "stacked"])
def test_lr_and_momentum_at_a_milestone(backend):
    """Full-batch steps against ten lines of plain gradient descent."""
    base = {"epochs": 4, "batch": 20, "lr": 0.1, "weight_decay": 0.01, "schedule": "step",
            "milestones": (0.5,), "gamma": 0.1}  # fmt: skip
    examples = toy(dtype=torch.float64)
    for reset in (False, True):
        (ours,) = train(members(1, dtype=torch.float64), Training(**base, reset_momentum=reset),
                        examples, backend=backend)  # fmt: skip
        (slow,) = members(1, dtype=torch.float64)
        speed = [torch.zeros_like(p) for p in slow.parameters()]
        for epoch in range(4):
            value = cross_entropy(slow(examples.images * 2 - 1), examples.targets).mean()
            slopes = torch.autograd.grad(value, list(slow.parameters()))
            for p, g, v in zip(slow.parameters(), slopes, speed, strict=True):
                v *= 0.0 if reset and epoch == 2 else 0.9
                v += g + 0.01 * p.detach()
                p.data -= (0.1 if epoch < 2 else 0.01) * v
        for p, q in zip(ours.parameters(), slow.parameters(), strict=True):
            assert torch.allclose(p, q, atol=1e-10)


def feed(examples, **fields):
    training = Training(**{"epochs": 1, "batch": 4, **fields})
    return Feed(examples, training, RUN.generator, members(1)[0])


def test_balanced_sampling_balances_and_covers():
    labels = torch.tensor([0] * 15 + [1] * 4 + [2])
    order = feed(Examples(toy().images, labels, Centre()), sampling="balanced").order(0, 0)
    assert sorted(labels[order].bincount().tolist()) == [6, 7, 7]
    uses = order.bincount(minlength=20)
    assert uses[:15].max() == 1  # no image twice before each was seen once
    assert uses[15:19].min() >= 1 and uses[15:19].max() <= 2
    assert uses[19] >= 6
    blocks = labels[order].diff().abs().sum()
    assert blocks > 4  # mixed, not class after class


def test_shuffled_order_is_a_permutation_per_member_and_epoch():
    f = feed(toy())
    orders = [f.order(m, e).tolist() for m in range(2) for e in range(2)]
    assert all(sorted(o) == list(range(20)) for o in orders)
    assert len(set(map(tuple, orders))) == 4
    assert orders[0] == f.order(0, 0).tolist()


def test_last_partial_batch_is_kept():
    sizes = []

    def loss(logits, targets):
        sizes.append(len(logits))
        return cross_entropy(logits, targets)

    train(members(1), SGD, loss=loss)
    assert sizes == [8, 8, 4] * 2


def test_purposes_and_indices_of_draws():
    asked = []

    def generators(purpose, member, index):
        asked.append((purpose, member, index))
        return RUN.generator(purpose, member, index)

    train(members(2), AUGMENTED, generators=generators, backend="sequential")
    for member in range(2):
        assert [i for p, m, i in asked if (p, m) == ("order", member)] == [0, 1]
        assert [i for p, m, i in asked if (p, m) == ("augment", member)] == list(range(6))
        assert [i for p, m, i in asked if (p, m) == ("cutmix", member)] == list(range(6))


def test_weights_multiply_the_loss():
    full = toy(dtype=torch.float64)
    weights = torch.cat([torch.ones(8), torch.zeros(12)])
    one = Training(epochs=1, batch=20, lr=0.1)
    (a,) = train(members(1, dtype=torch.float64), one,
                 Examples(full.images, full.targets, Centre(), weights))  # fmt: skip
    (b,) = train(members(1, dtype=torch.float64), one,
                 Examples(full.images[:8], full.targets[:8], Centre()))  # fmt: skip
    for p, q in zip(a.parameters(), b.parameters(), strict=True):
        assert torch.allclose(p, q, atol=1e-12)


def test_bytes_and_floats_of_the_same_images_agree():
    (a,), (b,) = train(members(1)), train(members(1), examples=toy(dtype=torch.float32))
    for p, q in zip(a.parameters(), b.parameters(), strict=True):
        assert torch.allclose(p, q, atol=1e-5)


@pytest.mark.parametrize("backend", ["threads", "stacked"])
def test_it_learns(backend):
    examples = toy(n=30)
    networks = members(2)

    def value(network):
        logits = predict(network, examples.images, Centre())
        return cross_entropy(logits, examples.targets).mean()

    before = [value(n) for n in networks]
    train(networks, Training(epochs=12, batch=10, lr=0.05), examples, backend=backend)
    for network, old in zip(networks, before, strict=True):
        assert value(network) < 0.5 * old
        logits = predict(network, examples.images, Centre())
        assert (logits.argmax(1) == examples.targets).float().mean() > 0.9


def test_global_generators_are_untouched():
    before = torch.get_rng_state()
    for backend in ("sequential", "threads", "stacked"):
        train(members(2), AUGMENTED, backend=backend)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("backend", ["sequential", "threads", "stacked"])
def test_divergence_names_member_and_epoch(backend):
    networks = members(2)
    networks[1].classifier.weight.data[0, 0] = float("nan")
    with pytest.raises(DivergedError, match=r"network 1 .* epoch 1 of 2.*lr"):
        train(networks, backend=backend)


@pytest.mark.parametrize("backend", ["sequential", "threads", "stacked"])
def test_on_epoch_sees_the_trained_network(backend):
    seen = {}

    def keep(member, epoch, network):
        seen[member, epoch] = copy.deepcopy(network)
        network.eval()  # a callback that tests the network must not change its training

    networks = members(2, "convnet-d2-w4-in")
    train(networks, backend=backend, on_epoch=keep)
    assert sorted(seen) == [(0, 0), (0, 1), (1, 0), (1, 1)]
    for member, network in enumerate(networks):
        assert equal(network, seen[member, 1]) and not equal(network, seen[member, 0])


def test_on_epoch_is_called_one_at_a_time():
    inside, most = [], []

    def slow(member, epoch, network):
        inside.append(member)
        most.append(len(inside))
        time.sleep(0.02)
        inside.remove(member)

    train(members(2), backend="threads", on_epoch=slow)
    assert most == [1] * 4


def test_on_epoch_in_eval_mode_leaves_batch_norm_training():
    a = train(members(1, "convnet-d2-w4-bn"), on_epoch=lambda m, e, n: n.eval())
    assert equal(a[0], train(members(1, "convnet-d2-w4-bn"))[0])


@pytest.mark.parametrize("backend", ["sequential", "threads"])
def test_an_error_in_a_callback_comes_out(backend):
    def fail(member, epoch, network):
        raise RuntimeError("stop here")

    with pytest.raises(RuntimeError, match="stop here"):
        train(members(3), backend=backend, on_epoch=fail)


def test_training_works_under_no_grad():
    with torch.no_grad():
        (a,) = train(members(1))
    assert equal(a, train(members(1))[0])


def test_frozen_parameters_stay():
    for backend in ("sequential", "stacked"):
        networks = members(2)
        for network in networks:
            network.body.requires_grad_(False)
        train(networks, backend=backend)
        for network, start in zip(networks, members(2), strict=True):
            assert equal(network.body, start.body)
            assert not equal(network.classifier, start.classifier)


def test_choice_on_a_gpu_leaves_the_networks_alone(monkeypatch):
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    networks = members(2)
    long = Training(epochs=20, batch=4)
    device = torch.device("cpu")
    feed = Feed(toy(), long, RUN.generator, networks[0])
    job = engine.Job(feed, cross_entropy, device, "fp32", False, [range(100)] * 2)
    assert engine._faster(job, networks) in ("stacked", "sequential")
    assert all(equal(a, b) for a, b in zip(networks, members(2), strict=True))
    assert engine._faster(job, networks[:1]) == "sequential"


def test_predict():
    (network,) = members(1, "convnet-d2-w4-bn")
    examples = toy()
    network.train()
    logits = predict(network, examples.images, Centre(), chunk=7)
    assert network.training and not logits.requires_grad
    assert network.state_dict()["body.1.num_batches_tracked"] == 0
    expected = network.eval()(examples.images.float() / 255 * 2 - 1)
    assert torch.allclose(logits, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("fields", "words"),
    [({"optimizer": "adam"}, "optimizer is 'adam'"), ({"batch": 0}, "batch is 0"),
     ({"schedule": "linear"}, "schedule is 'linear'"), ({"milestones": (20.0,)}, "milestones is"),
     ({"cutmix": 1.5}, "cutmix is 1.5"), ({"lr": float("nan")}, "lr is nan"),
     ({"warmup": 1.0}, "warmup is 1"), ({"nesterov": True, "momentum": 0.0}, "to sgd with mom"),
     ({"nesterov": True, "optimizer": "adamw"}, "nesterov is True with adamw")],
)  # fmt: skip
def test_bad_trainings(fields, words):
    with pytest.raises(InputError, match=words):
        Training(**{"epochs": 1, "batch": 1, **fields})


def test_bad_calls():
    with pytest.raises(InputError, match=r"backend is 'thread'.*'threads'"):
        train(members(1), backend="thread")
    with pytest.raises(InputError, match="precision is 'bf16' on 'cpu'"):
        train(members(1), precision="bf16")
    with pytest.raises(InputError, match="3 images and 2 targets"):
        Examples(torch.zeros(3, 3, 8, 8), torch.zeros(2, dtype=torch.long), Centre())
    with pytest.raises(InputError, match="targets has 4 classes, the network 3"):
        train(members(1), examples=toy(classes=4))
