"""One step of gradient matching against the released loops written plainly: DC, DSA, IDC.

CIFAR-10 sizes: 10 classes; 256 real images of each (64 for IDC), 10 images per class (40 tiles for
IDC), ConvNet-D3. A step takes the distances of all classes, their gradient in the pixels and a step
of SGD on them; the network's own training, the same work on both sides, is left out. Images are
random numbers, on which time does not depend.

The plain side is the released loop: real batches whole, gradients of all parameters (also of those
that the distance then ignores) of a network whose parameters ask for gradients, a second-order
graph per class, ``nn.AvgPool2d``. DC and DSA sum all classes before one backward pass; IDC steps
class by class and augments both sides as one batch. It shares our augmentation and our draws, and
its real images are normalised beforehand.

Each side is a process of its own, and they take turns. "as released" leaves the allocator of the
plain process as it is; "our allocator" tunes it as the library does its own. Both pixel gradients
have to agree, or the script fails.

    python benchmarks/gradient.py [--methods dc dsa idc] [--device cpu] [--threads 1] [--real 0]
                                  [--width 32] [--ipc 10] [--repeats 5]
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
import torch.nn.functional as F
from step import fake_cifar
from torch import Tensor, nn

from potstill.methods import CATALOGUE
from potstill.nets.layers import AveragePool
from potstill.run import Run
from potstill.run.machine import describe, tune_allocator

CLASSES = 10
PLAIN = ("as released", "our allocator")


class Ours:
    """The library's step."""

    def __init__(self, options: argparse.Namespace, name: str, folder: str) -> None:
        self.run = Run(device=options.device, cache=Path(folder), quiet=True)
        more = {"batch_real": options.real} if options.real else {}
        network = f"convnet-d3-w{options.width}-in"
        method: Any = CATALOGUE[name].budget("paper", network=network, start="real", **more)
        self.real = fake_cifar(max(4 * options.ipc, method.gradients.batch_real) + 8)
        self.objective, self.networks = method.begin(self.real, options.ipc, self.run)
        self.canvas, self.step = self.objective.canvas, 0
        self.optimizer = torch.optim.SGD([self.canvas.images], self.objective.lr, 0.5)
        self.slope = torch.empty(0)

    def __call__(self) -> None:
        self.optimizer.zero_grad()
        for term in self.objective.terms(self.step, self.canvas, CLASSES):
            term.values.sum().backward()
        self.slope = self.canvas.images.grad
        self.optimizer.step()
        self.canvas.project_()
        self.step += 1


class Released(Ours):
    """The released loops' arithmetic on the same draws."""

    def __init__(self, options: argparse.Namespace, name: str, folder: str) -> None:
        super().__init__(options, name, folder)
        self.tiled = name == "idc"
        self.net = self.networks.at(0).net.requires_grad_()
        for place, layer in enumerate(self.net.body):
            if isinstance(layer, AveragePool):
                self.net.body[place] = nn.AvgPool2d(2)
        self.transform = self.networks.transform
        self.images = self.transform.forward(self.real.batch(torch.arange(len(self.real))))
        self.images = self.images.to(options.device)

    def __call__(self) -> None:
        total, slope = torch.zeros((), device=self.images.device), 0
        for label in range(CLASSES):
            loss = self.distance(label)
            total = total + loss
            if self.tiled:
                slope = slope + self.moved_by(loss)
        self.slope = slope if self.tiled else self.moved_by(total)
        if self.tiled:
            self.canvas.images.data.clamp_(0, 1)
        self.step += 1

    def moved_by(self, loss: Tensor) -> Tensor:
        self.optimizer.zero_grad()
        loss.backward()
        slope = self.canvas.images.grad.clone()
        self.optimizer.step()
        return slope

    def distance(self, label: int) -> Tensor:
        x = self.images[self.objective.real_batch(self.step, label).to(self.images.device)]
        x, s = self.augmented(x, self.synthetic(label), label)
        y, t = (torch.full((len(side),), label, device=side.device) for side in (x, s))
        named = list(self.net.named_parameters())
        parameters = [value for _, value in named]
        loss = F.cross_entropy(self.net(x), y)
        a = [g.detach().clone() for g in torch.autograd.grad(loss, parameters)]
        loss = F.cross_entropy(self.net(s), t)
        b = torch.autograd.grad(loss, parameters, create_graph=True)
        found = torch.zeros((), device=s.device)
        for (place, value), g, h in zip(named, a, b, strict=True):
            if value.ndim > 1 and not (self.tiled and place.startswith("classifier")):
                found = found + (((g - h) ** 2).sum() if self.tiled else self.rows(g, h))
        return found

    def synthetic(self, label: int) -> Tensor:
        own = self.canvas.images[self.canvas.rows(label, label + 1)]
        if not self.tiled:
            return own
        half = own.shape[-1] // 2
        corners = [(i, j) for i in (0, half) for j in (0, half)]
        cut = torch.cat([own[:, :, i : i + half, j : j + half] for i, j in corners])
        whole = F.interpolate(cut, size=own.shape[-2:], mode="bilinear", align_corners=False)
        return self.transform.forward(whole)

    def augmented(self, x: Tensor, s: Tensor, label: int) -> tuple[Tensor, Tensor]:
        dsa = self.objective.dsa
        if dsa is None:
            return x, s
        draw, size = self.run.generator("augment", self.step, label), (x.shape[2], x.shape[3])
        how = dsa.draw(1, size, draw, siamese=True, device=x.device)
        if not self.tiled:
            return dsa.apply(x, how), dsa.apply(s, how)
        both = dsa.apply(torch.cat([x, s]), how)
        return both[: len(x)], both[len(x) :]

    def rows(self, a: Tensor, b: Tensor) -> Tensor:
        a, b = a.flatten(1), b.flatten(1)
        return (1 - (a * b).sum(-1) / (a.norm(dim=-1) * b.norm(dim=-1) + 0.000001)).sum()


def serve(line: Connection, options: argparse.Namespace, name: str, side: str) -> None:
    """Take a step whenever asked and answer with its seconds; after the first with its gradient."""
    torch.set_num_threads(options.threads)
    if side != "as released":
        tune_allocator()
    alone = options.threads == 1 and options.device == "cpu"
    clock = time.process_time if alone else time.perf_counter
    with tempfile.TemporaryDirectory() as folder:
        work = (Ours if side == "ours" else Released)(options, name, folder)
        work()
        line.send(work.slope.flatten().tolist())
        while line.recv():
            began = clock()
            work()
            if options.device.startswith("cuda"):
                torch.cuda.synchronize()
            line.send(clock() - began)


class Side:
    """A process that takes steps when asked."""

    def __init__(self, options: argparse.Namespace, name: str, side: str) -> None:
        context = multiprocessing.get_context("spawn")
        self.line, end = context.Pipe()
        self.process = context.Process(target=serve, args=(end, options, name, side), daemon=True)
        self.process.start()
        self.slope = torch.tensor(self.line.recv(), dtype=torch.float64)

    def seconds(self) -> float:
        self.line.send(True)
        return self.line.recv()

    def end(self) -> None:
        self.line.send(False)
        self.process.join()


def compare(options: argparse.Namespace, name: str) -> None:
    ours, *plain = [Side(options, name, side) for side in ("ours", *PLAIN)]
    differences = [float((ours.slope - p.slope).norm() / p.slope.norm()) for p in plain]
    assert max(differences) < 1e-3, f"the pixel gradients of {name} differ by {differences}"
    times = [[side.seconds() for side in (ours, *plain)] for _ in range(options.repeats + 1)][1:]
    for number, side in enumerate(PLAIN, start=1):
        ratios = [row[number] / row[0] for row in times]
        record = {
            "benchmark": f"{name} step: gradients matched, against the released loop",
            "plain": side,
            "ratio": round(statistics.median(ratios), 2),
            "ratio_min": round(min(ratios), 2),
            "ratio_max": round(max(ratios), 2),
            "ours_s": round(statistics.median(row[0] for row in times), 3),
            "plain_s": round(statistics.median(row[number] for row in times), 3),
            "difference_of_pixel_gradients": f"{differences[number - 1]:.1e}",
            **{key: value for key, value in vars(options).items() if key != "methods"},
            "processor": describe(options.device)["device"],
            "torch": torch.__version__,
        }
        print(json.dumps(record), flush=True)
    for one in (ours, *plain):
        one.end()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--methods", nargs="+", default=["dc", "dsa", "idc"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--real", type=int, default=0, help="real images of a class; 0: published")
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--ipc", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    for name in options.methods:
        compare(options, name)


if __name__ == "__main__":
    main()
