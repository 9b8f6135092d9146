"""Where the weights of CSDM act: its image gradient beside SDM's, class by class.

While SDM's quick budget descends, the gradient of the matching term is taken at a few steps under
other weights of amplitude and phase, on the same images and views. Printed for the largest, a
middle and the smallest class:

* cosine of each setting's image gradient with SDM's (1 = weights change nothing but its length);
* the amplitude's share of the distance;
* cosine of SDM's gradients of two consecutive views (0 = what is left is noise of views);
* the squared distance in units of the sampling noise of the class's real images (below 1 a class is
  fitted to its images, not to its law).

    python benchmarks/class_weights.py --data CIFAR10 [--imbalance-factor 200] [--out FILE]

No image outside the long-tailed training set is looked at.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from torch import Tensor

from potstill.canvas import Canvas
from potstill.data import ImageSet, load
from potstill.match.spectral import sampling_noise, spectral_mean
from potstill.methods import CSDM, SDM
from potstill.methods.distribution.class_matching import ClassMatching
from potstill.run import Run
from potstill.run.machine import describe, tune_allocator

SETTINGS: dict[str, dict[str, Any]] = {
    "log_linear 0.8": {"alpha_head": 0.8},
    "log_linear 0.9": {"alpha_head": 0.9},
    "two_level 0.9": {"alpha_head": 0.9, "alpha_schedule": "two_level"},
    "phase alone": {"alpha_schedule": "constant", "alpha_balanced": 0.001},
    "amplitude alone": {"alpha_schedule": "constant", "alpha_balanced": 0.999},
}
VIEWS = 4  # looked at each time, one after the other


def match_gradient(objective: ClassMatching, canvas: Canvas, step: int) -> Tensor:
    """Return the image gradient (C, p) of the matching term of a step."""
    term = next(objective.terms(step, canvas, canvas.classes))  # of all classes at a time
    (leaf,) = canvas.pixel_parameters()
    (grad,) = torch.autograd.grad(term.values.sum(), leaf)
    return grad.reshape(canvas.classes, -1)


@torch.no_grad()
def fit(objective: ClassMatching, canvas: Canvas, step: int, real: ImageSet) -> dict[str, Tensor]:
    """Return the squared distance in units of its noise, (C,)."""
    view = objective.side.at(step)
    images, labels = canvas.decode()
    features = objective.side.features(images, labels, view)
    b = spectral_mean(features, view.frequencies, labels, canvas.classes)
    noise = sampling_noise(view.table, torch.tensor(real.counts)).mean(1)
    squared = (view.table - b).square().mean(1) * 2
    return {"distance / noise": squared / noise}


def look(
    sdm: ClassMatching, others: dict[str, ClassMatching], canvas: Canvas, step: int, real: ImageSet
) -> dict[str, list[float]]:
    """Return what is printed of a step: a number for each class, mean over a few views."""
    found: dict[str, list[Tensor]] = {}
    before: Tensor | None = None
    for view in range(step, step + VIEWS):
        base = match_gradient(sdm, canvas, view)
        rows = {name: match_gradient(one, canvas, view) for name, one in others.items()}
        cosines = {f"cosine {n}": torch.cosine_similarity(base, g) for n, g in rows.items()}
        cosines |= fit(sdm, canvas, view, real)
        if before is not None:
            cosines["cosine next view"] = torch.cosine_similarity(base, before)
        before = base
        facts = next(sdm.terms(view, canvas, canvas.classes)).facts
        cosines["amplitude share"] = facts["amplitude_share"].detach()
        for name, values in cosines.items():
            found.setdefault(name, []).append(values)
    return {name: torch.stack(rows).mean(0).tolist() for name, rows in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", default="../shared/data/cifar10")
    parser.add_argument("--imbalance-factor", type=float, default=200)
    parser.add_argument("--ipc", type=int, default=10)
    parser.add_argument("--steps", type=int, nargs="+", default=[0, 100, 200, 299])
    parser.add_argument("--set", type=json.loads, default={}, help="fields of all, as JSON")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    tune_allocator()
    torch.set_num_threads(options.threads)
    run = Run(seed=options.seed, device=options.device, quiet=True)
    real = load(options.data, quiet=True).long_tailed(options.imbalance_factor)
    last = max(options.steps) + 1
    size = {"steps": 200 if last <= 200 else last, **options.set}
    method = SDM.budget("quick", **size)
    sdm, networks = method.begin(real, options.ipc, run)
    canvas = sdm.canvas
    others: dict[str, Any] = {
        name: CSDM.budget("quick", **size, **fields).prepare(real, canvas, networks, run)
        for name, fields in SETTINGS.items()
    }
    shown = [0, real.num_classes // 2, real.num_classes - 1]
    lines = []

    def watch(step: int, record: dict[str, Any], canvas: Canvas) -> None:
        if step not in options.steps:
            return
        found = look(sdm, others, canvas, step, real)  # type: ignore[arg-type]
        line = {"step": step, "seed": options.seed, "counts": list(real.counts), "classes": found}
        lines.append(line | {"device": describe(run.device)["device"]})
        for name, values in found.items():
            print(f"{step:5d}  {name:28}" + "".join(f"{values[c]:9.3f}" for c in shown), flush=True)

    print(f"kernel length {sdm.comparison.length:.3f}")  # type: ignore[attr-defined]
    print(f"{'step':>5}  {'':28}" + "".join(f"{real.counts[c]:9d}" for c in shown) + "  images")
    method(real, options.ipc, run.with_(watch=watch))
    if options.out:
        options.out.write_text("".join(json.dumps(line) + "\n" for line in lines))


if __name__ == "__main__":
    main()
