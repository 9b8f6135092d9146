import pytest
import torch

from potstill import nets
from potstill.data.augment import DSA
from potstill.losses import cross_entropy
from potstill.nets import Examples, Sharpness, Training, train_many
from potstill.nets.feed import Feed
from potstill.nets.sharpness import Ascent
from potstill.run import InputError, Run

RUN = Run(seed=3, device="cpu", quiet=True)
BACKENDS = ("sequential", "threads", "stacked")
DOUBLE = torch.float64


class Centre:
    def forward(self, x):
        return x * 2 - 1


def toy(n=20, classes=3, dtype=DOUBLE):
    g = torch.Generator().manual_seed(1)
    labels = torch.arange(n) % classes
    images = torch.rand(n, 3, 8, 8, generator=g) * 0.4 + labels[:, None, None, None] * 0.3
    return Examples(images.to(dtype), labels, Centre())


def members(count, name="convnet-d2-w4-in", dtype=DOUBLE):
    made = [
        nets.create(name, channels=3, size=8, classes=3, generator=RUN.generator("net", k))
        for k in range(count)
    ]
    return [network.to(dtype) for network in made]


def train(networks, training, examples=None, threads=2, **options):
    torch.set_num_threads(threads)
    try:
        train_many(
            networks, examples or toy(), training,
            **{"generators": RUN.generator, "quiet": True, **options},
        )  # fmt: skip
    finally:
        torch.set_num_threads(1)
    return networks


def equal(a, b):
    return all(torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items())


def transcribed(network, images, targets, how, lr, decay, wanted=None):
    """A step as the paper writes it: tensor by tensor, norms over all of them, nothing shared."""
    wanted = wanted or list(network.parameters())

    def slopes():
        return torch.autograd.grad(cross_entropy(network(images), targets).mean(), wanted)

    def length(tensors):
        return torch.sqrt(sum((t**2).sum() for t in tensors))

    g1 = slopes()
    if how.adaptive:
        norm = length([w.detach().abs() * g for w, g in zip(wanted, g1, strict=True)])
        e = [how.rho * w.detach() ** 2 * g / (norm + 1e-12)
             for w, g in zip(wanted, g1, strict=True)]  # fmt: skip
    else:
        e = [how.rho * g / (length(g1) + 1e-12) for g in g1]
    with torch.no_grad():
        [w.add_(step) for w, step in zip(wanted, e, strict=True)]
    g2 = slopes()
    with torch.no_grad():
        [w.sub_(step) for w, step in zip(wanted, e, strict=True)]
        inner = sum((a * b).sum() for a, b in zip(g1, g2, strict=True))
        cosine = inner / (length(g1) * length(g2))
        for w, a, b in zip(wanted, g1, g2, strict=True):
            v = a - cosine * length(g1) * b / length(g2)
            w.sub_(lr * (b - how.alpha * v + decay * w))


HOWS = [
    Sharpness(0.05, 0.3),
    Sharpness(0.05, 0.0),  # ASAM
    Sharpness(0.05, 0.7, adaptive=False),
    Sharpness(0.05, 0.0, adaptive=False),  # SAM
]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("how", HOWS)
def test_steps_are_the_papers(how, backend):
    examples = toy()
    ours = members(2)
    train(ours, Training(epochs=3, batch=20, lr=0.1, momentum=0, weight_decay=0.01, sharpness=how),
          examples, backend=backend)  # fmt: skip
    plain = members(2)
    train(plain, Training(epochs=3, batch=20, lr=0.1, momentum=0, weight_decay=0.01), examples)
    for network, slow, other in zip(ours, members(2), plain, strict=True):
        for _ in range(3):
            transcribed(slow, examples.images * 2 - 1, examples.targets, how, 0.1, 0.01)
        gap = max((a - b).abs().max() for a, b in zip(network.parameters(), slow.parameters(),
                                                       strict=True))  # fmt: skip
        effect = max((a - b).abs().max() for a, b in zip(network.parameters(), other.parameters(),
                                                          strict=True))  # fmt: skip
        assert gap < 1e-11 < 1e-5 < effect  # and it is not just descent


@pytest.mark.parametrize("backend", BACKENDS)
def test_radius_zero_is_plain_descent_to_the_byte(backend):
    base = {"epochs": 2, "batch": 8, "lr": 0.05, "augment": DSA.parse("color_crop")}
    a = train(members(2), Training(**base), backend=backend)
    b = train(members(2), Training(**base, sharpness=Sharpness(0.0)), backend=backend)
    assert all(equal(x, y) for x, y in zip(a, b, strict=True))


def test_a_small_radius_tends_to_plain_descent():
    base = {"epochs": 1, "batch": 20, "lr": 0.1}
    (plain,) = train(members(1), Training(**base))
    gaps = []
    for rho in (1e-3, 1e-5):
        (near,) = train(members(1), Training(**base, sharpness=Sharpness(rho)))
        gaps.append(float((near.classifier.weight - plain.classifier.weight).norm().detach()))
    assert 0 < gaps[1] < gaps[0] / 50


def test_the_climb_raises_the_loss_and_comes_back_to_the_very_place():
    examples = toy(dtype=torch.float32)
    (network,) = members(1, dtype=torch.float32)
    before = [p.detach().clone() for p in network.parameters()]

    def loss():
        value = cross_entropy(network(examples.images * 2 - 1), examples.targets).mean()
        network.zero_grad()
        value.backward()
        return float(value.detach())

    ascent = Ascent(Sharpness(0.05), network.parameters(), 1)
    low = loss()
    ascent.up()
    assert loss() > low
    ascent.down()
    assert all(torch.equal(p, q) for p, q in zip(network.parameters(), before, strict=True))


def test_direction_with_alpha_is_orthogonal_where_it_should_be():
    """g - g2 = -alpha v has no part along g2, and its length is that of g1's orthogonal part."""
    w = torch.nn.Parameter(torch.tensor([[1.0, -2.0, 3.0], [2.0, 0.5, -1.0]], dtype=DOUBLE))
    g1 = torch.tensor([[1.0, 2.0, 0.5], [0.0, 1.0, 1.0]], dtype=DOUBLE)
    g2 = torch.tensor([[0.5, 1.0, -1.0], [1.0, 1.0, 0.0]], dtype=DOUBLE)
    ascent = Ascent(Sharpness(0.1, 0.25, adaptive=False), [w], 2)  # two members of three numbers
    place = w.detach().clone()
    w.grad = g1.clone()
    ascent.up()
    assert torch.allclose(w - place, 0.1 * g1 / g1.norm(dim=1, keepdim=True), atol=1e-12)
    w.grad = g2.clone()
    ascent.down()
    change = w.grad - g2
    assert torch.allclose((change * g2).sum(1), torch.zeros(2, dtype=DOUBLE), atol=1e-12)
    across = g1 - (g1 * g2).sum(1, keepdim=True) / g2.square().sum(1, keepdim=True) * g2
    assert torch.allclose(change, -0.25 * across, atol=1e-12)


def test_a_gradient_of_zero_is_no_error():
    w = torch.nn.Parameter(torch.ones(1, 3))
    ascent = Ascent(Sharpness(), [w], 1)
    w.grad = torch.zeros(1, 3)
    ascent.up()
    w.grad = torch.zeros(1, 3)
    ascent.down()
    assert torch.equal(w, torch.ones(1, 3)) and torch.equal(w.grad, torch.zeros(1, 3))


@pytest.mark.parametrize("name", ["convnet-d2-w4-in", "lenet"])
def test_threads_equal_sequential_bitwise_and_members_are_independent(name):
    training = Training(epochs=2, batch=8, lr=0.05, momentum=0, sharpness=Sharpness(0.05),
                        augment=DSA.parse("color_crop_flip_scale"), cutmix=0.5)  # fmt: skip
    examples = toy(dtype=torch.float32)
    a = train(members(3, name, torch.float32), training, examples, backend="sequential")
    b = train(members(3, name, torch.float32), training, examples, backend="threads")
    (c,) = train(members(1, name, torch.float32), training, examples)
    assert all(equal(x, y) for x, y in zip(a, b, strict=True)) and equal(a[0], c)


def test_batch_norm_is_refused():
    with pytest.raises(InputError, match=r"network 0 keeps running statistics.*'-in'"):
        train(members(1, "convnet-d2-w4-bn"), Training(epochs=1, batch=8, sharpness=Sharpness()))


@pytest.mark.parametrize("fields", [{"rho": -0.1}, {"alpha": float("nan")}, {"rho": float("inf")}])
def test_bad_radii(fields):
    with pytest.raises(InputError, match=f"{next(iter(fields))} of sharpness is"):
        Sharpness(**fields)


# -- going on from given weights ------------------------------------------------------------------

ONWARD = Training(epochs=5, batch=8, lr=0.05, momentum=0, sharpness=Sharpness(0.05), cutmix=0.5,
                  augment=DSA.parse("color_crop"), schedule="step", milestones=(0.4,))  # fmt: skip


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("sampling", ["shuffled", "cyclic"])
def test_two_parts_are_the_whole_to_the_byte(backend, sampling):
    training = Training(**{**vars(ONWARD), "sampling": sampling})
    whole = train(members(2), training, backend=backend)
    parts, seen = members(2), []
    train(parts, training, backend=backend, stop_epoch=2)
    assert not equal(parts[0], whole[0])
    train(parts, training, backend=backend, start_epoch=2, on_epoch=lambda m, e, n: seen.append(e))
    assert all(equal(x, y) for x, y in zip(parts, whole, strict=True))
    assert sorted(seen) == [2, 2, 3, 3, 4, 4]
    fresh = train(members(2), training, backend=backend, start_epoch=2)
    assert not equal(fresh[0], whole[0])  # the weights given are the ones gone on from


@pytest.mark.parametrize("backend", BACKENDS)
def test_members_may_start_at_their_own_epochs(backend):
    whole, parts = train(members(3), ONWARD, backend="sequential"), members(3)
    train(parts[:1], ONWARD, stop_epoch=3)
    train(parts[2:], ONWARD, stop_epoch=5, generators=lambda p, m, i: RUN.generator(p, m + 2, i))
    train(parts, ONWARD, backend=backend, start_epoch=[3, 0, 5])
    assert all(equal(x, y) for x, y in zip(parts, whole, strict=True))


@pytest.mark.parametrize(
    ("training", "options", "words"),
    [(Training(epochs=3, batch=8), {"start_epoch": 1}, "start_epoch is 1, but sgd with momentum"),
     (Training(epochs=3, batch=8, optimizer="adamw", momentum=0), {"start_epoch": [0, 1]}, "adamw"),
     (ONWARD, {"start_epoch": 6}, "start_epoch is 6"),
     (ONWARD, {"start_epoch": [1]}, "start_epoch is .* one for each of 2"),
     (ONWARD, {"start_epoch": -1}, "start_epoch is -1"),
     (ONWARD, {"stop_epoch": 6}, "stop_epoch is 6; use at most the 5 epochs")],
)  # fmt: skip
def test_bad_starts(training, options, words):
    with pytest.raises(InputError, match=words):
        train(members(2), training, **options)


# -- nothing but the classifier -------------------------------------------------------------------


def frozen(count, **options):
    networks = members(count, **options)
    for network in networks:
        network.body.requires_grad_(False)
    return networks


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("how", [None, Sharpness(0.05)])
def test_a_frozen_body_is_passed_once_and_the_classifier_moves_as_it_should(backend, how):
    examples, passes = toy(), []
    networks = frozen(2)
    if backend != "stacked":  # hooks do not travel to the stacked network
        networks[0].body.register_forward_hook(lambda *_: passes.append(torch.is_grad_enabled()))
    train(networks, Training(epochs=3, batch=20, lr=0.1, momentum=0, sharpness=how), examples,
          backend=backend)  # fmt: skip
    assert backend == "stacked" or passes == [False] * 3
    for network, slow, start in zip(networks, members(2), members(2), strict=True):
        assert equal(network.body, start.body)
        wanted = list(slow.classifier.parameters())
        x, y = examples.images * 2 - 1, examples.targets
        for _ in range(3):
            transcribed(slow, x, y, how or Sharpness(0.0, 0.0), 0.1, 5e-4, wanted)
        for p, q in zip(network.classifier.parameters(), wanted, strict=True):
            assert torch.allclose(p, q, atol=1e-11)


def test_frozen_and_whole_networks_are_not_stacked_together():
    networks = [*frozen(1), *members(2)[1:]]
    train(networks, ONWARD, backend="stacked")
    assert equal(networks[0].body, members(1)[0].body)
    assert not equal(networks[1].body, members(2)[1].body)


# -- the class-balanced stream --------------------------------------------------------------------


def stream(labels, **fields):
    images = torch.rand(len(labels), 3, 8, 8, generator=RUN.generator("images"))
    training = Training(**{"epochs": 1, "batch": 4, "sampling": "cyclic", **fields})
    like = nets.create("lenet", channels=3, size=8, classes=int(labels.max()) + 1,
                       generator=RUN.generator("net"))  # fmt: skip
    return Feed(Examples(images, labels, Centre()), training, RUN.generator, like)


@pytest.mark.parametrize("sizes", [(13, 5, 1), (40, 40), (50, 17, 6, 3, 2), (1, 1, 1), (4, 9)])
def test_cyclic_sampling_counts(sizes):
    labels = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    feed = stream(labels)
    for epoch in range(3):
        order = feed.order(0, epoch)
        assert len(order) == feed.length == max(sizes) * len(sizes)
        shares = labels[order].bincount(minlength=len(sizes))
        assert shares.max() - shares.min() <= 4
        uses = order.bincount(minlength=len(labels))
        for label, size in enumerate(sizes):  # nothing twice before everything once
            own = uses[labels == label]
            assert own.max() - own.min() <= 1 and own.sum() == shares[label], size


def test_cyclic_sampling_runs_of_four_and_rounds_of_classes():
    labels = torch.repeat_interleave(torch.arange(5), torch.tensor([16, 16, 7, 3, 2]))
    order = stream(labels).order(0, 0)
    visits = labels[order].view(-1, 4)
    assert (visits == visits[:, :1]).all()
    rounds = visits[:, 0].view(-1, 5)
    assert (rounds.sort(1).values == torch.arange(5)).all()  # each class once per round
    assert len({tuple(r) for r in rounds.tolist()}) > 1  # in changing order
    small = order[labels[order] == 4].view(-1, 2)  # two images: their rounds are visible
    assert (small.sort(1).values == torch.tensor([42, 43])).all()


def test_cyclic_orders_differ_by_member_and_epoch_and_come_again():
    feed = stream(torch.arange(3).repeat(10))
    orders = [tuple(feed.order(m, e).tolist()) for m in range(2) for e in range(2)]
    assert len(set(orders)) == 4 and orders[0] == tuple(feed.order(0, 0).tolist())


def test_cyclic_epochs_have_steps_for_all_draws():
    labels = torch.tensor([0] * 11 + [1] * 3 + [2])
    sizes = []

    def loss(logits, targets):
        sizes.append(len(logits))
        return cross_entropy(logits, targets)

    images = torch.rand(15, 3, 8, 8, generator=RUN.generator("images"), dtype=DOUBLE)
    training = Training(epochs=2, batch=8, sampling="cyclic")
    train(members(1), training, Examples(images, labels, Centre()), loss=loss)
    assert sizes == [8, 8, 8, 8, 1] * 2


def test_an_epoch_may_be_shorter_but_not_longer_than_its_sampling_makes_it():
    labels = torch.tensor([0] * 11 + [1] * 3 + [2])
    short = stream(labels, epoch_images=16)
    assert short.length == 16 and short.steps == 4
    assert labels[short.order(0, 0)].bincount().tolist() in ([8, 4, 4], [4, 8, 4], [4, 4, 8])
    assert stream(labels, epoch_images=1000).length == 33
    assert stream(labels, sampling="shuffled", epoch_images=1000).length == 15


# -- keys -----------------------------------------------------------------------------------------


def test_facts_of_old_trainings_have_no_new_fields():
    assert set(Training(epochs=1, batch=1).facts) == {
        "epochs", "batch", "optimizer", "lr", "momentum", "weight_decay", "schedule", "milestones",
        "gamma", "reset_momentum", "augment", "cutmix", "sampling",
    }  # fmt: skip
    sharp = Training(epochs=1, batch=1, sharpness=Sharpness(0.02)).facts
    assert sharp["sharpness"] == {"rho": 0.02, "alpha": 0.3, "adaptive": True}


def test_hashes_of_published_protocols_are_what_they_were():
    from potstill.evaluation import PROTOCOLS

    known = {"default": "8697d7fd", "dsa": "9b13639d", "idc": "5b56b1e8", "ncfm": "946b2cee"}
    assert {name: PROTOCOLS[name].hash for name in known} == known
