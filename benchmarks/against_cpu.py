"""One step of CSDM, LAD and SFM on a device against the same step on the CPU: image gradients.

Networks, draws and first images are shared; the CPU computes in fp32. Images are noise and
networks hardly trained: what is asked is whether the arithmetic agrees, not what it is good for.
On ``--device cpu`` the step is set against itself, which shows that it can be repeated.

    python benchmarks/against_cpu.py [--device cuda] [--width 64] [--only csdm lad sfm]
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from step import fake_cifar
from torch import Tensor

from potstill.data import ImageSet
from potstill.methods import CSDM, LAD, SFM, Matcher
from potstill.run import Run
from potstill.run.machine import describe

IPC = 3
# least cosine of the two gradients; the same as in tests/test_gpu.py
LEAST = {"fp32": 0.999, "bf16": 0.98}
PRECISIONS = {"csdm": ("fp32", "bf16"), "lad": ("fp32",), "sfm": ("fp32",)}


def methods(width: int) -> dict[str, Matcher]:
    """The three at sizes whose step a CPU takes in seconds."""
    network = f"convnet-d3-w{width}-in"
    small = {"network": network, "start_max": 1, "span": 1, "student_steps": 8}
    small |= {"experts": 1, "expert_epochs": 2, "classifier_epochs": 2, "classifier_images": 500}
    return {
        "csdm": CSDM.budget("quick", network=network, members=1, pool_epochs=0, entries=1),
        "lad": LAD.budget("quick", **small, classifier_steps=8, preprocess="normalize"),
        # noise is drawn on the device, differently on each
        "sfm": SFM.budget("quick", backbone=network, noise=0.0, levels="one"),
    }


def gradient(method: Matcher, real: ImageSet, cpu: Run, run: Run) -> Tensor:
    """Gradient of the image leaf at step 0, flat and in float64, on the CPU."""
    objective: Any
    if isinstance(method, LAD):  # experts choose the first images: once, for both
        networks = method.open(real, cpu)
        canvas = method.start(real, IPC, networks, cpu).to(run.device)
        objective = method.prepare(real, canvas, networks, run)
    else:  # networks are drawn on the CPU by the run's seed; trained ones would differ by device
        objective, _ = method.begin(real, IPC, run)
    for term in objective.terms(0, objective.canvas, objective.canvas.classes):
        term.values.sum().backward()
    leaf = objective.canvas.images.grad
    assert leaf is not None
    return leaf.detach().cpu().double().flatten()


def checks(options: argparse.Namespace, cache: Path) -> Iterator[dict[str, Any]]:
    """One record for each method and precision."""
    real = fake_cifar(options.real).long_tailed(8)
    shared: dict[str, Any] = {"cache": cache, "quiet": True}
    cpu = Run(device="cpu", precision="fp32", **shared)
    for name in options.only:
        method = methods(options.width)[name]
        expected = gradient(method, real, cpu, cpu)
        for precision in PRECISIONS[name] if options.device != "cpu" else ("fp32",):
            run = Run(device=options.device, precision=precision, **shared)
            found = gradient(method, real, cpu, run)
            cosine = float(torch.cosine_similarity(found, expected, dim=0))
            apart = float((found - expected).norm() / expected.norm())
            yield {
                "check": f"{name} {precision}",
                "relative_error": float(f"{apart:.3g}"),
                "cosine": round(cosine, 7),
                "least_cosine": LEAST[precision],
                "agrees": cosine >= LEAST[precision],  # False for NaN, too
            }


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--real", type=int, default=64, help="images of the largest class")
    parser.add_argument("--only", nargs="+", choices=PRECISIONS, default=list(PRECISIONS))
    options = parser.parse_args()
    records = []
    with tempfile.TemporaryDirectory() as cache:
        for record in checks(options, Path(cache)):
            records.append(record)
            told = {r["check"]: r["relative_error"] for r in records}
            figure = "relative error " + ", ".join(f"{k} {v:.1e}" for k, v in told.items())
            facts = {"device": describe(options.device)["device"], "width": options.width}
            print(json.dumps(record | facts | {"figure": figure}), flush=True)
    apart = [f"{r['check']}: cosine {r['cosine']}" for r in records if not r["agrees"]]
    if apart:
        print(f"the device and the CPU disagree ({'; '.join(apart)})", file=sys.stderr)
    return len(apart) > 0


if __name__ == "__main__":
    sys.exit(main())
