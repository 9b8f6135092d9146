"""One budget and its shares, and one measure of what a graph holds."""

from __future__ import annotations

import weakref
from functools import partial

import pytest
import torch
from torch import nn

from potstill.data import Normalize
from potstill.experts.trainer import Trainer
from potstill.losses import cross_entropy
from potstill.methods.trajectory.students import Students
from potstill.nets import Training, create, create_for
from potstill.nets.frozen import frozen
from potstill.networks.extractor import FeatureExtractor
from potstill.run import Run
from potstill.run.memory import Budget, bytes_per_image, saved_bytes


@pytest.mark.parametrize("memory_gb", [4.0, 3.7, 1e-3, 1e-9])
def test_shares_are_what_each_had_by_itself(memory_gb):
    budget = Run(device="cpu", memory_gb=memory_gb).budget
    assert budget == Budget(memory_gb)
    assert budget.images == budget.lockstep == int(1e9 * memory_gb)
    assert budget.step == budget.kept == int(0.5e9 * memory_gb)
    assert budget.links == budget.mapped == budget.beside == int(0.25e9 * memory_gb)
    assert budget.real_pass == int(0.125e9 * memory_gb)
    assert budget.decoding == int(memory_gb * 1e9) // 16


def measured():
    x = torch.randn(1000, requires_grad=True)
    built, held = saved_bytes(lambda: x.sigmoid())  # its node keeps its own output
    assert held == 4000
    slope = torch.autograd.grad(built.sum(), x, create_graph=True)[0]
    torch.testing.assert_close(slope, built * (1 - built))
    return weakref.ref(x)


def test_a_measured_graph_is_freed_with_its_result():
    assert measured()() is None


def test_an_image_is_what_it_adds_without_the_weights():
    first, last = nn.Linear(50, 70), nn.Linear(70, 3)
    graph = lambda n: last(first(torch.zeros(n, 50)).relu())  # noqa: E731
    # the images for the first weights' gradient, and what ReLU gives for its own and the last's
    assert bytes_per_image(graph) == 4 * (50 + 70)
    assert saved_bytes(lambda: graph(1))[1] == 4 * (50 + 70) + last.weight.nbytes
    assert bytes_per_image(lambda n: torch.zeros(1, requires_grad=True).exp()) == 1


def hand_counted(width: int, size: int, trained: bool) -> int:
    """What a ConvNet of three blocks with instance norm keeps of an RGB image, float32.

    Of each block: the input of its convolution, of its norm (with mean and deviation of every
    channel) and the output of its ReLU, which is the input of the average, too.
    """
    inputs = [3 * size**2, width * (size // 2) ** 2, width * (size // 4) ** 2]
    blocks = [2 * width * (size // 2**depth) ** 2 + 2 * width for depth in range(3)]
    return 4 * (sum(inputs) + sum(blocks) + trained * width * (size // 8) ** 2)


def test_all_measures_of_one_network_are_the_hand_count(make_blobs, run):
    real = make_blobs((6, 4), size=32, channels=3)
    transform = Normalize.fit(real)
    net = create_for(real, "convnet-d3-w128-in", torch.Generator().manual_seed(0))
    extractor = FeatureExtractor(net, transform, run)
    counted, image = hand_counted(128, 32, trained=False), real.batch(torch.tensor([0]))
    assert counted == 1_555_456
    at_unit_length = 4 * (128 * 4 * 4 + 1)  # features and their length
    assert extractor.image_bytes(image) - counted == pytest.approx(at_unit_length, abs=8)
    backbone = frozen("own", net.body, (32, 32), 3, transform, "test")
    assert backbone.image_bytes() == counted
    trainer = Trainer(
        real, transform, Training(epochs=1, batch=2), cross_entropy, run, None, None, "test"  # type: ignore[arg-type]
    )  # fmt: skip
    assert trainer._image_bytes(net) == hand_counted(128, 32, trained=True)


def test_the_second_order_graph_of_a_student_step_has_the_same_measure(run):
    draw = torch.Generator().manual_seed(0)
    network = create("convnet-d2-w16-in", channels=1, size=(8, 8), classes=3, generator=draw)
    x, targets = torch.zeros(1, 1, 8, 8), torch.eye(3)[:1]
    found = Students(network, run, None).image_bytes(x, targets, cross_entropy)
    leaves = {n: p.detach().requires_grad_() for n, p in network.named_parameters()}

    def build(n: int) -> tuple[torch.Tensor, ...]:
        images = x.repeat(n, 1, 1, 1).requires_grad_()
        logits = torch.func.functional_call(network, leaves, (images,))
        value = cross_entropy(logits, targets.repeat(n, 1)).sum()
        return torch.autograd.grad(value, list(leaves.values()), create_graph=True)

    held = [saved_bytes(partial(build, n))[1] for n in (1, 8, 24)]
    assert held[2] - held[1] == 16 * found
    assert held[0] > found + sum(p.nbytes for p in network.parameters() if p.ndim > 1)
