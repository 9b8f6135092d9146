"""One uncached DM step, all classes in one stream, against the published per-class loop.

Same images, same network, same frozen-network trick on both sides; real features without graph.
Two lines: the loop with this library's pooling (what batching and chunking alone give), and with
torch's average pooling, as in the published network.

    python benchmarks/uncached.py [--real 256] [--width 128] [--repeats 5] [--compile]
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from pairs import measure
from step import fake_cifar

from potstill.methods import DM
from potstill.nets import create
from potstill.run import Run
from potstill.run.machine import tune_allocator


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--real", type=int, default=256)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--compile", action="store_true", help="compile our feature network")
    options = parser.parse_args()
    tune_allocator()
    with tempfile.TemporaryDirectory() as cache:
        run = Run(device=options.device, cache=Path(cache), quiet=True, compile=options.compile)
        real = fake_cifar(options.real)
        network = f"convnet-d3-w{options.width}-in"
        method = DM.budget("paper", network=network, batch_real=options.real)
        objective, networks = method.begin(real, 10, run)
        canvas = objective.canvas
        counter = iter(range(10**6))

        def ours() -> None:
            canvas.images.grad = None
            for term in objective.terms(next(counter), canvas, 10):
                term.values.sum().backward()

        dsa, transform = objective.side.dsa, networks.transform
        syn = canvas.images.detach().clone().requires_grad_(True)

        def plain(features: Callable[[torch.nn.Module, torch.Tensor], torch.Tensor]) -> None:
            """Class by class, with whole real batches."""
            step = next(counter)
            net = (
                create(
                    network,
                    channels=3,
                    size=32,
                    classes=10,
                    generator=run.generator("plain", step),
                )
                .to(run.device)
                .requires_grad_(False)
            )
            loss = torch.zeros((), device=run.device)
            for label in range(10):
                params = dsa.draw(
                    1,
                    (32, 32),
                    run.generator("plain", step, label),
                    siamese=True,
                    device=run.device,
                )
                images = real.batch(real.of_class(label), run.device)
                x = features(net, dsa.apply(transform.forward(images), params)).detach()
                y = features(
                    net, dsa.apply(transform.forward(syn[10 * label : 10 * label + 10]), params)
                )
                loss = loss + (x.mean(0) - y.mean(0)).square().sum()
            syn.grad = None
            loss.backward()

        sides = {"with the same pooling": _same, "with torch's average pooling": _published}
        for name, features in sides.items():
            measure(
                f"DM step uncached, batched, against the per-class loop {name}",
                ours,
                partial(plain, features),
                repeats=options.repeats,
                device=options.device,
                real_per_class=options.real,
                width=options.width,
                compiled=options.compile,
            )


def _same(net: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Features by the network as it is in this library."""
    return net.features(x)  # type: ignore[operator, no-any-return]


def _published(net: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Features with torch's average pooling, as the published network computes them."""
    convs = [m for m in net.modules() if isinstance(m, torch.nn.Conv2d)]
    norms = [m for m in net.modules() if isinstance(m, torch.nn.GroupNorm)]
    for conv, norm in zip(convs, norms, strict=True):
        x = torch.nn.functional.avg_pool2d(torch.relu(norm(conv(x))), 2)
    return x.flatten(1)


if __name__ == "__main__":
    main()
