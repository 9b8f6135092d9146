"""One step of RFAD and of FRePo against the released loops written plainly in torch.

CIFAR-10 sizes at IPC 10. RFAD: new networks of normal weights, their features of a real batch and
of the set, the float64 solve, Platt cross-entropy, the gradient in images, matrix and scale. FRePo:
one network of the pool, features of the set and of its mirror images, squared error, the gradient
in images and targets; the update of the network, which both sides would do alike, is left out. The
plain side takes real batches whole, through networks made anew with parameters that ask for
gradients, with ``nn.AvgPool2d``, all graphs at once. Images are random numbers. Both gradients of
the images have to agree, or the script fails. Seconds are of the processor, so that other programs
count little; ``--as-released`` leaves torch's allocator as it is, on both sides.

    python benchmarks/ridge_step.py [--methods rfad frepo] [--width 64] [--real 256] [--nets 4]
                                    [--repeats 5] [--threads 1]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
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
from potstill.run.machine import describe, peak_memory_gb, tune_allocator


def plainly(network: nn.Module) -> nn.Module:
    """The same network with torch's own pooling and parameters that ask for gradients."""
    layers = [nn.AvgPool2d(2) if isinstance(m, AveragePool) else m for m in network.body]
    return nn.Sequential(*layers).requires_grad_(True)


class Ours:
    """The library's step."""

    def __init__(self, name: str, options: argparse.Namespace, folder: str) -> None:
        fields: dict[str, Any] = {"batch_real": options.real, "preprocess": "normalize"}
        fields["network"] = f"convnet-d3-w{options.width}-" + ("none" if name == "rfad" else "in")
        fields |= {"nets_per_step": options.nets} if name == "rfad" else {"label_margin": 0.0}
        self.method: Any = CATALOGUE[name].budget("quick", **fields)
        run = Run(device="cpu", cache=Path(folder), quiet=True)
        self.real = fake_cifar(max(64, options.real // 10 + 1))
        self.objective, self.networks = self.method.begin(self.real, 10, run)
        self.pieces, self.step = self.objective.pieces(run), 0

    def leaves(self) -> dict[str, Tensor]:
        return self.objective.canvas.parameters() | self.objective.leaves()

    def __call__(self) -> Tensor:
        for leaf in self.leaves().values():
            leaf.grad = None
        for term in self.objective.terms(self.step, self.objective.canvas, self.pieces):
            term.values.backward()
        self.step += 1
        return self.objective.canvas.images.grad


class Plain:
    """The formulas of a step, one after the other."""

    def __init__(self, name: str, ours: Ours) -> None:
        self.name, self.ours, self.step = name, ours, 0
        self.leaves = {n: v.detach().clone().requires_grad_() for n, v in ours.leaves().items()}
        self.targets = ours.objective.labels.targets().detach().clone()

    def networks(self) -> list[nn.Module]:
        count = getattr(self.ours.method, "nets_per_step", 1)
        numbers = range(self.step * count, (self.step + 1) * count)
        if self.name == "frepo":
            return [plainly(self.ours.networks.at(self.step).net)]
        draws = [self.ours.networks.run.generator("network", number) for number in numbers]
        return [plainly(self.ours.networks._new(draw)) for draw in draws]

    def __call__(self) -> Tensor:
        for leaf in self.leaves.values():
            leaf.grad = None
        objective, method = self.ours.objective, self.ours.method
        rows = objective.positions(self.step)
        t, labels = objective.real_images(rows), self.ours.real.labels[rows]
        s, targets = self.leaves["images"], self.leaves.get("targets", self.targets)
        if self.name == "rfad":
            s = (s.flatten(1) @ self.leaves["mixing"]).view_as(s)
        else:
            s, targets = torch.cat([s, s.flip(3)]), torch.cat([targets, targets])
        k_ss: Any = 0
        k_ts: Any = 0
        for network in self.networks():
            with torch.no_grad():
                phi_t = network(t).flatten(1).double()
            phi_s = network(s).flatten(1).double()
            share = 2 / (method.nets_per_step * phi_s.shape[1]) if self.name == "rfad" else 1.0
            k_ss, k_ts = k_ss + share * phi_s @ phi_s.T, k_ts + share * phi_t @ phi_s.T
        if self.name == "rfad":
            k_ss, k_ts = k_ss + 0.01, k_ts + 0.01
        ridge = method.reg * k_ss.diagonal().mean() * torch.eye(len(k_ss), dtype=torch.float64)
        found = k_ts @ torch.linalg.solve(k_ss + ridge, targets.double())
        if self.name == "rfad":
            loss = F.cross_entropy(self.leaves["platt"].double().exp() * found, labels)
        else:
            loss = 0.5 * (found - F.one_hot(labels, 10) + 0.1).square().sum(1).mean()
        loss.backward()
        self.step += 1
        return self.leaves["images"].grad


def compare(name: str, options: argparse.Namespace) -> None:
    """Take turns; print the record."""
    with tempfile.TemporaryDirectory() as folder:
        ours = Ours(name, options, folder)
        plain = Plain(name, ours)
        a, b = ours(), plain()
        apart = float((a - b).norm() / b.norm())
        if not apart < 1e-2:
            raise SystemExit(f"{name}: gradients differ by {apart:.1e} of their length")
        times = []
        for _ in range(options.repeats):
            pair = []
            for side in (ours, plain):
                began = time.process_time()
                side()
                pair.append(time.process_time() - began)
            times.append(pair)
    ratios = [plain_s / ours_s for ours_s, plain_s in times]
    record = {
        "benchmark": f"{name.upper()} step against a plain transcription",
        "ratio": round(statistics.median(ratios), 2),
        "ratio_min": round(min(ratios), 2),
        "ratio_max": round(max(ratios), 2),
        "ours_s": round(statistics.median(a for a, _ in times), 3),
        "plain_s": round(statistics.median(b for _, b in times), 3),
        "gradients_apart": apart,
        **{key: getattr(options, key) for key in ("width", "real", "nets", "repeats", "threads")},
        "peak_memory_gb": round(peak_memory_gb("cpu"), 2),
        "device": describe("cpu")["device"],
        "torch": torch.__version__,
    }
    print(json.dumps(record), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--methods", nargs="+", choices=["rfad", "frepo"], default=["rfad", "frepo"]
    )
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--real", type=int, default=256)
    parser.add_argument("--nets", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--as-released", action="store_true", help="torch's allocator")
    options = parser.parse_args()
    if not options.as_released:
        tune_allocator()
    torch.set_num_threads(options.threads)
    for name in options.methods:
        compare(name, options)


if __name__ == "__main__":
    main()
