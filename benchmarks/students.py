"""Five students of the ``dsa`` protocol at IPC 10 against one: together, and one after the other.

Precision and memory layout are those of ``potstill evaluate`` on the device. The second line's
ratio is the cost of five trained together relative to one alone (5 = no gain).

"auto" is what the library does: threads on a CPU, on a GPU the faster of two that it times; with
``--backend stacked`` the question is what stacking gives.

    python benchmarks/students.py [--epochs 100] [--width 128] [--backend auto] [--device cpu]
"""

from __future__ import annotations

import argparse
from dataclasses import replace

from pairs import measure
from step import fake_cifar

from potstill.data import Normalize
from potstill.evaluation import PROTOCOLS
from potstill.evaluation.student import machine_options
from potstill.nets import Examples, create, train_many
from potstill.run import Run
from potstill.run.machine import tune_allocator


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--backend", default="auto", help="of five together")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    tune_allocator()
    run = Run(device=options.device, quiet=True)
    real = fake_cifar(10)
    examples = Examples(real.images.float() / 255, real.labels, Normalize.fit(real))
    training = replace(PROTOCOLS["dsa"].training, epochs=options.epochs)

    def train(count: int, backend: str) -> None:
        nets = [
            create(
                f"convnet-d3-w{options.width}-in",
                channels=3,
                size=32,
                classes=10,
                generator=run.generator("student", k),
            )
            for k in range(count)
        ]
        train_many(
            nets,
            examples,
            training,
            generators=run.generator,
            device=run.device,
            backend=backend,
            quiet=True,
            **machine_options(run),
        )

    facts = {"epochs": options.epochs, "width": options.width, "device": options.device}
    facts["backend"] = options.backend
    facts |= machine_options(run)
    together = measure(
        "five students together against one after the other",
        lambda: train(5, options.backend),
        lambda: train(5, "sequential"),
        repeats=options.repeats,
        **facts,
    )
    alone = measure(
        "one student against five together (ratio = cost of five over one)",
        lambda: train(1, "auto"),
        lambda: train(5, options.backend),
        repeats=options.repeats,
        **facts,
    )
    assert together["repeats"] == alone["repeats"]


if __name__ == "__main__":
    main()
