"""Which parts of CSDM matter, measured on images held out of the real training set.

200 images per class are cut from the balanced training set before it is made long-tailed; no test
image is looked at. Every variant starts from the same images and shares the pool of its seed. One
line of JSON per variant: accuracy of three students, and the amplitude's share of the distance in
the largest and the smallest class over the last tenth of the steps.

    python benchmarks/ablation.py --data FOLDER [--imbalance-factor 200] [--steps 300] [--seed 0]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch

from potstill.data import load
from potstill.evaluation import PROTOCOLS, train_students
from potstill.evaluation.metrics import overall
from potstill.evaluation.student import synthetic_examples
from potstill.methods import find
from potstill.run import Run
from potstill.run.machine import describe, tune_allocator

VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("mosaic", {}),
    ("sdm", {}),
    ("csdm", {"alpha_head": 0.8}),
    ("csdm", {"alpha_head": 0.2}),
    ("csdm", {"alpha_head": 0.8, "power": 2, "match_weight": 30000.0}),
    ("csdm", {"alpha_head": 0.2, "power": 2, "match_weight": 30000.0}),
    ("csdm", {"alpha_head": 0.8, "scale": 0.5}),
    ("csdm", {"alpha_head": 0.2, "scale": 0.5}),
    ("sdm", {"calibration": 0.0}),
]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", default="../shared/data/cifar10")
    parser.add_argument("--imbalance-factor", type=float, default=200)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    tune_allocator()
    if options.threads:
        torch.set_num_threads(options.threads)
    run = Run(seed=options.seed, device=options.device, quiet=True)
    rest, held_out = load(options.data, quiet=True).hold_out(200, seed=0)
    real = rest.long_tailed(options.imbalance_factor)
    protocol = PROTOCOLS["quick"]
    for name, fields in VARIANTS:
        records: list[dict[str, Any]] = []

        def watch(step: int, record: dict[str, Any], canvas: Any, to: Any = records) -> None:
            to.append(record)

        steps = {"steps": options.steps} if name != "mosaic" else {}
        method = find(name).budget("quick", **steps, **fields)
        began = time.perf_counter()
        syn = method(real, 10, run.with_(watch=watch))
        seconds = time.perf_counter() - began
        outcome = train_students(
            synthetic_examples(syn, "auto"),
            protocol.training_for(10),
            protocol,
            network="convnet-w32-in",
            test=held_out,
            runs=3,
            run=run.with_(seed=0),
            label=name,
        )
        accuracies = overall(outcome.last, held_out.counts)
        shares = [
            [r["classes"]["amplitude_share"][label] for r in records[-len(records) // 10 :]]
            for label in (0, -1)
            if records
        ]
        line = {
            "benchmark": "ablation on held-out training images",
            "method": name,
            **fields,
            "seed": options.seed,
            "accuracy": round(statistics.mean(accuracies), 2),
            "std": round(statistics.stdev(accuracies), 2),
            "amplitude_share": [round(statistics.mean(share), 2) for share in shares],
            "seconds": round(seconds, 1),
            "steps": options.steps,
            "device": describe(run.device)["device"],
        }
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
