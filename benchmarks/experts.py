"""Training experts for trajectory matching: many at once, and classifiers on resting bodies.

First line: sharpness-aware (GSAM) training of eight experts, all at once against one after the
other, with the precision and memory layout that experts have on the device. Second line: the second
stage of LAD (classifiers only, class-balanced stream) as it is done here, each frozen body passed
once per step without a graph, against the published way, the whole network differentiated twice and
the body's gradient thrown away; both end with the same classifiers up to rounding. Images are
random numbers: time does not depend on them.

    python benchmarks/experts.py [--experts 8] [--images 2000] [--width 128] [--epochs 1]
                                 [--repeats 3] [--backend auto] [--device cpu]
"""

from __future__ import annotations

import argparse
from dataclasses import replace

import torch
from pairs import measure
from step import fake_cifar

from potstill.data import DSA, Normalize
from potstill.nets import Examples, Network, Sharpness, Training, create, train_many
from potstill.nets.feed import Feed
from potstill.nets.sharpness import Ascent
from potstill.run import Run
from potstill.run.machine import tune_allocator


def masked(nets: list[Network], examples: Examples, training: Training, run: Run) -> None:
    """Train classifiers as published: gradients of everything, those of bodies then cleared."""
    for member, net in enumerate(nets):
        net.to(run.device).train()
        feed = Feed(examples, training, run.generator, net)
        optimizer = training.optimizer_for(net.parameters())
        assert training.sharpness is not None
        ascent = Ascent(training.sharpness, net.classifier.parameters(), 1)
        step = 0
        for epoch in range(training.epochs):
            for positions in feed.order(member, epoch).split(training.batch):
                x, targets = feed.batch(member, step, positions)

                def slope(
                    net: Network = net, x: torch.Tensor = x, y: torch.Tensor = targets
                ) -> None:
                    with torch.autocast(
                        "cuda", torch.bfloat16, enabled=run.on_gpu and run.precision == "bf16"
                    ):
                        logits = net(x)
                    torch.nn.functional.cross_entropy(logits.float(), y).backward()
                    for parameter in net.body.parameters():
                        parameter.grad = None

                optimizer.zero_grad()
                slope()
                ascent.up()
                slope()
                ascent.down()
                optimizer.step()
                step += 1


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--experts", type=int, default=8)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--backend", default="auto", help="of all at once; on a GPU auto measures")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    tune_allocator()
    run = Run(device=options.device, quiet=True)
    real = fake_cifar(options.images // 10)
    examples = Examples(real.images.float() / 255, real.labels, Normalize.fit(real))
    dsa = DSA.parse("color_crop_cutout_flip_scale_rotate", align_corners=True)
    first = Training(
        epochs=options.epochs, batch=256, lr=0.01, momentum=0, weight_decay=5e-3, augment=dsa,
        sharpness=Sharpness(),
    )  # fmt: skip
    second = replace(first, weight_decay=0.0, sampling="cyclic")

    def new(count: int, *, frozen: bool = False) -> list[Network]:
        name = f"convnet-d3-w{options.width}-in"
        nets = [
            create(name, channels=3, size=32, classes=10, generator=run.generator("net", k))
            for k in range(count)
        ]
        for net in nets:
            net.body.requires_grad_(not frozen)
        return nets

    def train(nets: list[Network], training: Training, backend: str) -> None:
        train_many(
            nets,
            examples,
            training,
            generators=run.generator,
            device=run.device,
            backend=backend,
            precision=run.precision if run.on_gpu else "fp32",
            channels_last=run.on_gpu,
            quiet=True,
        )

    count = options.experts
    facts = {"experts": count, "images": len(real), "width": options.width,
             "epochs": options.epochs, "backend": options.backend,
             "precision": run.precision}  # fmt: skip
    measure(
        "experts with GSAM together against one after the other",
        lambda: train(new(count), first, options.backend),
        lambda: train(new(count), first, "sequential"),
        repeats=options.repeats,
        device=options.device,
        **facts,
    )
    ours, plain = new(1, frozen=True), new(1)
    train(ours, second, "sequential")
    masked(plain, examples, second, run)
    gap = (ours[0].classifier.weight - plain[0].classifier.weight).norm()
    moved = (ours[0].classifier.weight - new(1)[0].classifier.weight.to(gap.device)).norm()
    facts["disagreement"] = f"{float((gap / moved).detach()):.1e}"  # of what the weights moved
    measure(
        "classifier stage on frozen bodies against the whole network with a masked gradient",
        lambda: train(new(count, frozen=True), second, options.backend),
        lambda: masked(new(count), examples, second, run),
        repeats=options.repeats,
        device=options.device,
        **facts,
    )


if __name__ == "__main__":
    main()
