"""One CSDM or NCFM step with the real side cached against the released NCFM form written plainly.

CIFAR-10 sizes: 10 classes, IPC 10, decoded 2x2 (400 images), matching + calibration. The plain side
is the formula of NCFM's loop, class by class: real images through the network, 4096 fresh Gaussian
frequencies projected twice, root of the weighted gaps, one AdamW step per class and term. Images
are random numbers: time does not depend on them.

The released networks keep ``requires_grad``, so that the released loop computes weight gradients
that nobody uses; so does the plain side here. ``--frozen`` freezes its networks.

The second line is a whole job of 5000 steps at the ``standard`` budget: each entry that these steps
look at is built once. Training the pool of networks is outside on both sides.

    python benchmarks/step.py [--method csdm] [--real 1024] [--width 128] [--frequencies 1024]
                              [--repeats 3] [--frozen] [--device cpu]
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from pairs import measure
from torch import Tensor

from potstill.canvas.tiled import tiles
from potstill.data import DSA, ImageSet
from potstill.methods import CSDM, NCFM
from potstill.networks import PoolNetworks
from potstill.run import Run
from potstill.run.machine import tune_allocator

STEPS = 5000
METHODS: dict[str, type[CSDM] | type[NCFM]] = {"csdm": CSDM, "ncfm": NCFM}
CLASSES = tuple(f"class {label}" for label in range(10))


def fake_cifar(per_class: int, seed: int = 0) -> ImageSet:
    """uint8 noise in CIFAR-10's shape."""
    draw = torch.Generator().manual_seed(seed)
    count = 10 * per_class
    images = torch.randint(0, 256, (count, 3, 32, 32), generator=draw, dtype=torch.uint8)
    labels = torch.arange(10).repeat_interleave(per_class)
    return ImageSet(images, labels, CLASSES, "noise", torch.arange(count), f"noise-{per_class}")


class PlainNCFM:
    """The released loop's arithmetic for one iteration, one class after another."""

    def __init__(
        self,
        networks: PoolNetworks,
        real: ImageSet,
        syn: Tensor,
        run: Run,
        frequencies: int,
        frozen: bool = False,
    ) -> None:
        self.net = networks.at(0).net.requires_grad_(not frozen)
        self.judge = networks.trained_at(0).net.requires_grad_(not frozen)
        self.transform = networks.transform
        self.real, self.run, self.frequencies = real, run, frequencies
        self.syn = syn.clone().requires_grad_(True)  # (100, 3, 32, 32)
        self.optimizer = torch.optim.AdamW([self.syn], lr=1e-3, weight_decay=5e-4)
        self.dsa = DSA.parse("color_crop_cutout", rule="idc")
        self.generator = torch.Generator(run.device).manual_seed(0)
        self.step_number = 0

    def features(self, images: Tensor) -> Tensor:
        return F.normalize(self.net.features(images), dim=1)

    def distance(self, x: Tensor, y: Tensor) -> Tensor:
        t = torch.randn(self.frequencies, x.shape[1], generator=self.generator, device=x.device)
        real_r, real_i = torch.cos(x @ t.T).mean(0), torch.sin(x @ t.T).mean(0)
        syn_r, syn_i = torch.cos(y @ t.T).mean(0), torch.sin(y @ t.T).mean(0)
        norm_real = torch.sqrt(real_r**2 + real_i**2)
        norm_syn = torch.sqrt(syn_r**2 + syn_i**2)
        amplitude = (norm_real - norm_syn) ** 2
        phase = 2 * (norm_real * norm_syn - real_r * syn_r - real_i * syn_i)
        return torch.sqrt(0.5 * amplitude + 0.5 * phase.clamp_min(1e-12)).mean()

    def __call__(self) -> None:
        for term in ("match", "calibration"):
            for label in range(10):
                draw = self.run.generator("plain", self.step_number, label)
                params = self.dsa.draw(1, (32, 32), draw, siamese=True, device=self.run.device)
                syn = tiles(self.syn[10 * label : 10 * label + 10], 2)
                seen = self.dsa.apply(self.transform.forward(syn), params)
                if term == "match":
                    images = self.real.batch(self.real.of_class(label), self.run.device)
                    with torch.no_grad():
                        x = self.features(self.dsa.apply(self.transform.forward(images), params))
                    loss = 300 * self.distance(x, self.features(seen))
                else:
                    target = torch.full((len(seen),), label, device=seen.device)
                    loss = F.cross_entropy(self.judge(seen), target)
                self.optimizer.zero_grad()
                loss.backward()
                self.optimizer.step()
        self.step_number += 1


class Cached:
    """Our step: all classes at once, the real side read from the cache."""

    def __init__(self, method: CSDM | NCFM, real: ImageSet, run: Run) -> None:
        self.objective, _ = method.begin(real, 10, run)
        self.canvas, side = self.objective.canvas, self.objective.side
        began = time.perf_counter()
        for step in range(side.entries):
            side.at(step)
        self.cache_seconds = (time.perf_counter() - began) / max(1, side.built)
        self.optimizer = torch.optim.Adam([self.canvas.images], lr=1e-3 * math.sqrt(20))
        self.step_number = 0

    def __call__(self) -> None:
        self.optimizer.zero_grad()
        for term in self.objective.terms(self.step_number, self.canvas, 10):
            term.values.sum().backward()
        self.optimizer.step()
        self.canvas.project_()
        self.step_number += 1


def entries_looked_at(run: Run, steps: int = STEPS, name: str = "csdm") -> int:
    """Distinct entries that ``steps`` steps of the standard budget look at."""
    method = METHODS[name].budget("standard", members=1, pool_epochs=0, network="convnet-d2-w8-in")
    objective, _ = method.begin(fake_cifar(8), 1, run)
    return len({objective.side.draws.numbers(step)[0] for step in range(steps)})


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--method", choices=METHODS, default="csdm")
    parser.add_argument("--real", type=int, default=1024)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--frequencies", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--frozen", action="store_true", help="no weight gradients, plain side")
    options = parser.parse_args()
    tune_allocator()
    with tempfile.TemporaryDirectory() as cache:
        run = Run(device=options.device, cache=Path(cache), quiet=True, compile=options.compile)
        real = fake_cifar(options.real)
        network = f"convnet-d3-w{options.width}-in"
        method = METHODS[options.method].budget(
            "paper",
            network=network,
            members=1,
            pool_epochs=0,
            real_side="fixed",
            entries=2,
            frequencies=options.frequencies,
        )
        ours = Cached(method, real, run)
        other = method.open(real, run)  # networks of its own, of the same weights
        start = ours.canvas.images.detach()
        plain = PlainNCFM(other, real, start, run, 4096, options.frozen)
        record = measure(
            f"{options.method.upper()} step, real side cached, against the released NCFM form",
            ours,
            plain,
            repeats=options.repeats,
            device=options.device,
            real_per_class=options.real,
            width=options.width,
            frequencies=[options.frequencies, 4096],
            precision=run.precision,  # ours; the plain side computes in fp32
            plain_networks="frozen" if options.frozen else "with weight gradients, as released",
            cache_entry_s=round(ours.cache_seconds, 3),
        )
        entries = entries_looked_at(run, name=options.method)
        whole = STEPS * record["ours_s"] + entries * ours.cache_seconds
        facts = {
            "benchmark": f"whole job of {STEPS} steps with {entries} entries, without the pools",
            "ratio": round(STEPS * record["plain_s"] / whole, 2),
        }
        print(json.dumps(facts))


if __name__ == "__main__":
    main()
