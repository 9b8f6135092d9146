"""Which parts of CSDM and of LAD matter, measured on images held out of the real training set.

200 images per class are cut from the balanced training set before it is made long-tailed; no test
image is looked at. Every variant of a family starts from the same images and shares the pool or the
experts of its seed where it can. One line of JSON per variant: accuracy of three students over all,
head, medium and tail classes, and for CSDM the amplitude's share of the distance in the largest and
the smallest class over the last tenth of the steps, for LAD the learned student step size.

    python benchmarks/ablation.py --data FOLDER [--family csdm|lad] [--imbalance-factor 200]
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

CSDM: list[tuple[str, dict[str, Any]]] = [
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
LAD: list[tuple[str, dict[str, Any]]] = [  # figure 6a: base, + DAM, + DAM + ED; then one by one
    ("lad", {"matching": "plain", "adjustment": "none"}),
    ("lad", {"matching": "plain"}),
    ("lad", {}),
    ("lad", {"adjustment": "none"}),
    ("lad", {"adjustment": "logit"}),
    ("lad", {"weight_scale": "sum1"}),
    ("lad", {"gradient": "tesla"}),
    ("lad", {"matching": "sequential"}),
    ("lad", {"matching": "direct"}),
    ("lad", {"matching": "oversample"}),
    ("lad", {"shortage": "noise"}),
    ("lad", {"ipc_profile": "long_tailed"}),
    ("mtt", {}),
    ("datm", {}),
]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", default="../shared/data/cifar10")
    parser.add_argument("--family", choices=("csdm", "lad"), default="csdm")
    parser.add_argument("--only", type=int, nargs="*", help="numbers of variants, from 0")
    parser.add_argument("--set", type=json.loads, default={}, help="fields of all, as JSON")
    parser.add_argument("--imbalance-factor", type=float, default=200)
    parser.add_argument("--steps", type=int, help="default: CSDM 300, LAD's quick budget")
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
    protocol = PROTOCOLS["quick" if options.family == "csdm" else "lad-quick"]
    variants = CSDM if options.family == "csdm" else LAD
    if options.family == "csdm":
        options.steps = options.steps or 300
    for number, (name, fields) in enumerate(variants):
        if options.only is not None and number not in options.only:
            continue
        records: list[dict[str, Any]] = []

        def watch(step: int, record: dict[str, Any], canvas: Any, to: Any = records) -> None:
            to.append(record)

        fields = {**options.set, **fields}
        if options.steps and name != "mosaic":
            fields["steps"] = options.steps
        method = find(name).budget("quick", **fields)
        began = time.perf_counter()
        syn = method(real, 10, run.with_(watch=watch))
        seconds = time.perf_counter() - began
        outcome = train_students(
            synthetic_examples(syn, "auto"),
            protocol.training_for(10, syn.syn_lr),
            protocol,
            network="convnet-w32-in",
            test=held_out,
            runs=3,
            run=run.with_(seed=0),
            label=name,
        )
        accuracies = overall(outcome.last, held_out.counts)
        groups = {name: outcome.last[:, list(own)].mean() for name, own in real.groups.items()}
        shares = [
            [r["classes"]["amplitude_share"][label] for r in records[-len(records) // 10 :]]
            for label in (0, -1)
            if records and "amplitude_share" in records[-1]["classes"]
        ]
        line = {
            "benchmark": "ablation on held-out training images",
            "method": name,
            **fields,
            "seed": options.seed,
            "accuracy": round(statistics.mean(accuracies), 2),
            "std": round(statistics.stdev(accuracies), 2),
            **{group: round(float(value), 1) for group, value in groups.items()},
            "amplitude_share": [round(statistics.mean(share), 2) for share in shares],
            "loss": records[-1]["loss"] if records else None,
            "syn_lr": syn.syn_lr,
            "seconds": round(seconds, 1),
            "device": describe(run.device)["device"],
        }
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
