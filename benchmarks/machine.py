"""What this machine rewards: pooling, norm, allocator, threads, stacking. One JSON line per figure.

``ratio`` is the time of the alternative over the time of the library's choice, so above 1 means the
choice is right here. Variants alternate; the ratio is the median of paired ratios. One-thread
figures are CPU seconds of the process, figures with several threads are wall seconds.

    python benchmarks/machine.py [--small]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from potstill import nets
from potstill.nets.layers import AveragePool, average_pool, norm
from potstill.run import Run
from potstill.run.machine import describe, tune_allocator

RUN = Run(device="cpu", quiet=True)
Work = Callable[[], object]


class Identity:
    """A transform that does nothing."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def figure(name: str, ours: float, other: float, ratio: float, **facts: object) -> None:
    record = {"figure": name, "ratio": round(ratio, 2), "ours_ms": round(1e3 * ours, 3),
              "other_ms": round(1e3 * other, 3), **facts}  # fmt: skip
    print(json.dumps(record), flush=True)


def compare(
    name: str,
    ours: Work,
    other: Work,
    clock: Callable[[], float] = time.process_time,
    repeats: int = 7,
    **facts: object,
) -> None:
    def seconds(work: Work) -> float:
        start = clock()
        work()
        return clock() - start

    ours(), other()  # warm up
    pairs = [(seconds(ours), seconds(other)) for _ in range(repeats)]
    mine, theirs = map(statistics.median, zip(*pairs, strict=True))
    figure(name, mine, theirs, statistics.median(b / a for a, b in pairs), **facts)


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=RUN.generator("noise"))


def network(width: int, seed: int = 0) -> nets.Network:
    generator = RUN.generator("net", seed)
    return nets.create(
        f"convnet-d3-w{width}-in", channels=3, size=32, classes=10, generator=generator
    )


def backward(module: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> Work:
    x = x.clone().requires_grad_()
    y = module(x)
    gradient = torch.ones_like(y).contiguous()
    return lambda: torch.autograd.grad(y, x, gradient, retain_graph=True)


def layers(width: int) -> None:
    """Average pooling and instance norm, alone."""
    for side in (32, 16, 8):
        x = noise(64, width, side, side)
        facts = {"shape": list(x.shape)}
        torch_pool = lambda x: F.avg_pool2d(x, 2)  # noqa: E731
        compare(
            "pool forward", lambda x=x: average_pool(x), lambda x=x: F.avg_pool2d(x, 2), **facts
        )
        compare("pool backward", backward(average_pool, x), backward(torch_pool, x), **facts)
    x = noise(64, width, 32, 32)
    ours, other = norm("in", width), nn.InstanceNorm2d(width, affine=True)
    facts = {"shape": list(x.shape), "against": "InstanceNorm2d"}
    compare("norm forward", lambda: ours(x).detach(), lambda: other(x).detach(), **facts)
    compare("norm backward", backward(ours, x), backward(other, x), **facts)


def whole_network(width: int) -> None:
    """The ConvNet with our pooling and with torch's."""
    ours, other, x = network(width), network(width), noise(64, 3, 32, 32)
    for place, layer in enumerate(other.body):
        if isinstance(layer, AveragePool):
            other.body[place] = nn.AvgPool2d(2)

    def train(net: nets.Network) -> Work:
        return lambda: net(x).square().mean().backward()

    def look(net: nets.Network) -> Work:
        return torch.no_grad()(lambda: net(x))

    facts = {"width": width, "batch": 64, "against": "AvgPool2d"}
    compare("network forward", look(ours), look(other), **facts)
    compare("network training", train(ours), train(other), **facts)


def thin_residual(width: int) -> None:
    """A training step of thin residual networks with channels last, and without."""
    x = noise(64, 3, 32, 32)

    def train(name: str, last: bool) -> Work:
        net = nets.create(name, channels=3, size=32, classes=10, generator=RUN.generator("net"))
        seen = x
        if last:
            net.channels_last_()
            seen = x.contiguous(memory_format=torch.channels_last)
        return lambda: net(seen).square().mean().backward()

    for name in (f"wrn16-w{width}-bn", f"resnet10-w{width}-bn", f"wrn16-w{width}-in"):
        facts = {"network": name, "batch": 64, "against": "contiguous"}
        compare("channels last", train(name, True), train(name, False), **facts)


def allocator(width: int) -> None:
    """A forward of 256 images in one pass, in processes with and without a tuned allocator."""
    seconds = {}
    for tuned in ("1", "0"):
        environment = {**os.environ, "POTSTILL_TUNE_MALLOC": tuned}
        command = [sys.executable, __file__, "--allocator", str(width)]
        answer = subprocess.run(command, env=environment, capture_output=True, check=True)
        seconds[tuned] = float(answer.stdout)
    ratio = seconds["0"] / seconds["1"]
    figure(
        "allocator", seconds["1"], seconds["0"], ratio, width=width, batch=256, against="default"
    )


def allocator_side(width: int) -> None:
    tune_allocator()
    torch.set_num_threads(1)
    net, x, spent = network(width), noise(256, 3, 32, 32), []
    with torch.no_grad():
        for _ in range(6):
            start = time.process_time()
            net(x)
            spent.append(time.process_time() - start)
    print(statistics.median(spent[1:]))


def together(width: int, members: int = 4, steps: int = 2) -> None:
    """Training four networks: one per thread, against in turn and against stacked."""
    generator = RUN.generator("images")
    images = torch.randint(0, 256, (64 * steps, 3, 32, 32), generator=generator).to(torch.uint8)
    examples = nets.Examples(images, torch.arange(64 * steps) % 10, Identity())
    training = nets.Training(epochs=1, batch=64)
    pool = [network(width, k) for k in range(members)]

    def train(backend: str) -> Work:
        return lambda: nets.train_many(
            pool, examples, training, generators=RUN.generator, backend=backend, quiet=True
        )

    threads = os.cpu_count() or 1
    torch.set_num_threads(threads)
    facts: dict[str, object] = {"width": width, "batch": 64, "members": members, "threads": threads}
    for rival in ("sequential", "stacked"):
        facts["against"] = rival
        compare("threads", train("threads"), train(rival), time.perf_counter, 3, **facts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true", help="width 32: a sixteenth of the work")
    parser.add_argument("--allocator", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.allocator:
        allocator_side(arguments.allocator)
        return
    width = 32 if arguments.small else 128
    print(json.dumps({"figure": "machine", **describe("cpu")}), flush=True)
    tune_allocator()
    torch.set_num_threads(1)
    layers(width)
    whole_network(width)
    thin_residual(width // 4)
    allocator(width)
    together(width)


if __name__ == "__main__":
    main()
