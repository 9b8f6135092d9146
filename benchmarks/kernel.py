"""Accuracy of kernel ridge regression from a KIP set, and from the real images that it starts from.

On held-out training images and on the test split of the digits, over some seeds:

    python benchmarks/kernel.py [--ipc 1] [--steps 300] [--seeds 3] [--imbalance-factor 1]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

import torch

import potstill
from potstill.data import ImageSet
from potstill.match.ntk import kernel_regression
from potstill.methods import KIP
from potstill.methods.base import Objective
from potstill.run import Run
from potstill.run.loop import descend


def accuracy(objective: Objective, of: ImageSet) -> float:
    """Mean accuracy over classes, in percent."""
    kernel, transform = objective.kernel, objective.transform
    s = objective.canvas.seen(transform).detach().flatten(1)
    t = transform.forward(of.batch(torch.arange(len(of)))).flatten(1)
    y = objective.labels.targets().detach()
    found = kernel_regression(kernel(s, s), kernel(t, s), y, objective.how.reg).argmax(1)
    hits = [found[of.labels == c].eq(c).double().mean() for c in range(of.num_classes)]
    return 100 * float(torch.stack(hits).mean())


parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
parser.add_argument("--ipc", type=int, default=1)
parser.add_argument("--steps", type=int, default=300)
parser.add_argument("--seeds", type=int, default=3)
parser.add_argument("--imbalance-factor", type=float, default=1.0)
options = parser.parse_args()
train, test, _ = potstill.load_pair("digits")
for balance in ("none", "sampling"):
    rows: dict[str, list[float]] = {}
    for seed in range(options.seeds):
        run = Run(seed=seed, device="cpu", quiet=True)
        rest, held = train.hold_out(25, seed)
        if options.imbalance_factor > 1:
            rest = rest.long_tailed(options.imbalance_factor)
        method = KIP.budget("quick", steps=options.steps, balance=balance)
        objective, _ = method.begin(rest, options.ipc, run)
        for name, steps in (("start", 0), ("kip", options.steps)):
            began = time.perf_counter()
            if steps:
                descend(objective, objective.canvas, run, method.descent,
                        classes=rest.classes, chunk=1, key="kernel")  # fmt: skip
                rows.setdefault("seconds", []).append(time.perf_counter() - began)
            rows.setdefault(f"{name} held-out", []).append(accuracy(objective, held))
            rows.setdefault(f"{name} test", []).append(accuracy(objective, test))
    facts = {name: [round(statistics.mean(v), 2), round(statistics.stdev(v), 2)]
             for name, v in rows.items()}  # fmt: skip
    print(json.dumps({"balance": balance, "ipc": options.ipc, "steps": options.steps} | facts))
