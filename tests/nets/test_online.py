"""A network trained in turns with a canvas: against a plain loop, and left and taken up again."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from potstill import nets
from potstill.data import DSA
from potstill.losses import balanced_softmax
from potstill.nets import Examples, Training
from potstill.nets.online import OnlineNetwork
from potstill.nets.sharpness import Sharpness
from potstill.run import ArtifactError, DivergedError, InputError, Run

RUN = Run(seed=3, device="cpu", quiet=True)
HOW = Training(epochs=2, batch=4, lr=0.05, momentum=0.9, weight_decay=1e-2)


class Centre:
    def forward(self, x):
        return 2 * x - 1


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


def examples(n=10, seed=0, dtype=torch.float32):
    images, labels = torch.rand(n, 3, 8, 8, generator=draw(seed)), torch.arange(n) % 3
    return Examples((images * 255).to(torch.uint8) if dtype == torch.uint8 else images.to(dtype),
                    labels, Centre())  # fmt: skip


def online(name="convnet-d2-w4-in", seed=0, **options):
    return OnlineNetwork(name, shape=(3, 8, 8), classes=3, generator=draw(seed), **options)


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def plain(net, steps, batches, lr, momentum, decay, memory=None):
    """SGD in numbers: v <- m v + (g + decay w), w <- w - lr v."""
    memory = memory or [None for _ in net.parameters()]
    for x, y in batches[:steps]:
        slopes = torch.autograd.grad(F.cross_entropy(net(x), y), net.parameters())
        with torch.no_grad():
            for place, (p, g) in enumerate(zip(net.parameters(), slopes, strict=True)):
                g = g + decay * p
                memory[place] = g if memory[place] is None else momentum * memory[place] + g
                p -= lr * memory[place]
    return memory


def test_training_is_plain_descent_that_remembers_its_momentum_between_calls():
    own, data = online(), examples()
    net = nets.create("convnet-d2-w4-in", channels=3, size=8, classes=3, generator=draw())
    net.double(), own.network.double()
    orders = [torch.randperm(10, generator=RUN.generator("order", 0, k)) for k in range(3)]
    batches = [
        (2 * data.images[rows].double() - 1, data.targets[rows])
        for order in orders
        for rows in order.split(4)
    ]
    own.train(data, HOW, generators=RUN.generator)
    memory = plain(net, 6, batches, 0.05, 0.9, 1e-2)
    own.train(data, replace(HOW, lr=0.01, momentum=0.5), generators=RUN.generator, steps=2)
    plain(net, 2, batches[6:], 0.01, 0.5, 1e-2, memory)
    assert (own.passes, own.steps) == (3, 8)
    for p, q in zip(own.network.parameters(), net.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-12)
    assert not own.network.training and all(p.grad is None for p in own.network.parameters())


AUGMENTED = replace(HOW, augment=DSA.parse("color_crop_cutout_flip_scale_rotate"), cutmix=0.5)


@pytest.mark.parametrize("name", ["convnet-d2-w4-in", "convnet-d2-w4-bn"])
@pytest.mark.parametrize("kind", ["sgd", "adamw"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8])
def test_left_in_the_middle_and_taken_up_it_ends_with_the_same_bytes(name, kind, dtype):
    how, data = replace(AUGMENTED, optimizer=kind), examples(dtype=dtype)
    loss = balanced_softmax([9, 3, 1])

    def go(own, steps):
        own.train(data, how, generators=RUN.generator, loss=loss, steps=steps)

    whole = online(name, optimizer=kind)
    go(whole, 3), whole.restart(draw(9)), go(whole, 4), go(whole, 5)
    first = online(name, optimizer=kind)
    go(first, 3), first.restart(draw(9)), go(first, 4)
    left = first.state()
    go(first, 1)  # what was written down is a copy
    second = online(name, seed=77, optimizer=kind)
    go(second, 2)
    second.load_state(left)
    assert same(second.state(), left)
    go(second, 5)
    assert same(second.state(), whole.state())
    assert (second.births, second.passes, second.steps) == (1, 4, 9)
    assert not same(left, whole.state())


def test_the_bytes_do_not_depend_on_threads():
    found = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        own = online("convnet-d2-w16-in")
        own.train(examples(40), replace(HOW, batch=16), generators=RUN.generator)
        assert torch.get_num_threads() == threads
        found.append(own.state())
    torch.set_num_threads(1)
    assert same(*found)


def test_a_state_before_any_step_forgets_what_came_after():
    own = online()
    start = own.state()
    own.train(examples(), HOW, generators=RUN.generator)
    assert any(name.startswith("optimizer.") for name in own.state())
    own.load_state(start)
    assert same(own.state(), start)


def test_a_restart_is_a_new_network_with_draws_of_its_own():
    own, asked = online(), []

    def generators(purpose, birth, index):
        asked.append((purpose, birth, index))
        return RUN.generator(purpose, birth, index)

    how = replace(HOW, epochs=1, augment=DSA.parse("flip"))
    own.train(examples(), how, generators=generators)
    own.restart(draw(5))
    weights = own.network.state_dict()
    assert same(weights, online(seed=5).network.state_dict()) and own.births == 1
    own.train(examples(), how, generators=generators)
    for birth in (0, 1):
        assert ("order", birth, 0) in asked
        assert [("augment", birth, k) in asked for k in range(4)] == [True, True, True, False]
    assert len(asked) == len(set(asked)) == 8


def test_images_of_a_canvas_are_constants():
    pixels = torch.rand(6, 3, 8, 8, generator=draw()).requires_grad_()
    own = online()
    before = own.state()
    own.train(Examples(pixels, torch.arange(6) % 3, Centre()), HOW, generators=RUN.generator)
    assert pixels.grad is None and not same(before, own.state())


def test_an_interrupted_training_stands_between_two_steps():
    own, whole = online(), online()

    def interrupt(logits, targets):
        if own.steps == 2:
            raise KeyboardInterrupt
        return F.cross_entropy(logits, targets, reduction="none")

    with pytest.raises(KeyboardInterrupt):
        own.train(examples(), HOW, generators=RUN.generator, loss=interrupt)
    whole.train(examples(), HOW, generators=RUN.generator, steps=2)
    assert same(own.state(), whole.state()) and not own.network.training


@pytest.mark.parametrize(("epochs", "steps"), [(0, None), (5, 0)])
def test_no_steps_change_nothing(epochs, steps):
    own = online()
    before = own.state()
    own.train(examples(), replace(HOW, epochs=epochs), generators=RUN.generator, steps=steps)
    assert same(before, own.state())


def test_what_cannot_be_used_is_refused():
    own, data = online(), examples()

    def train(how, **options):
        own.train(data, how, generators=RUN.generator, **options)

    with pytest.raises(InputError, match="optimizer is 'adamw'; the network has 'sgd'"):
        train(replace(HOW, optimizer="adamw"))
    with pytest.raises(InputError, match="schedule is 'cosine'"):
        train(replace(HOW, schedule="cosine"))
    with pytest.raises(InputError, match="sharpness is set"):
        train(replace(HOW, sharpness=Sharpness(rho=0.1)))
    with pytest.raises(InputError, match="steps is -1"):
        train(HOW, steps=-1)
    with pytest.raises(InputError, match="optimizer is 'lamb'; use one of sgd, adamw"):
        online(optimizer="lamb")
    with pytest.raises(DivergedError, match=r"use a smaller lr than 1000"):
        train(replace(HOW, lr=1e8))


def test_the_state_of_another_network_is_refused():
    state = online().state()
    for other in (online("convnet-d2-w5-in"), online("convnet-d2-w4-bn")):
        with pytest.raises(ArtifactError, match="not that of this network"):
            other.load_state(state)
    own = online()
    own.train(examples(), HOW, generators=RUN.generator)
    with pytest.raises(ArtifactError, match="not that of this network"):
        online(optimizer="adamw").load_state(own.state())
    for missing in ("counters", "network.classifier.bias"):
        with pytest.raises(ArtifactError):
            online().load_state({n: t for n, t in state.items() if n != missing})
