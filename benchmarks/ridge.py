"""Four outer losses of KIP, RFAD and FRePo on long tails, on held-out training images.

Held-out images are cut from the balanced training set before it is made long-tailed; no test image
is looked at. The losses are natural squared error, squared error of class-balanced batches, Platt
cross-entropy, and Platt with + log n_c (balanced softmax). Every line is one distillation: mean
accuracy over all, head, medium and tail classes of kernel regression from the set itself, of the
same before step 0, and of students trained on the set. Lines that ``--out`` holds are not made
again; ``--table`` prints means over seeds and the gain over natural squared error, and nothing is
made.

    python benchmarks/ridge.py --out ridge.jsonl [--data digits] [--methods kip rfad frepo]
                               [--imbalance-factor 50] [--ipc 5] [--seeds 3] [--students 3]
    python benchmarks/ridge.py --out ridge.jsonl --table
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from torch import Tensor

from potstill.data import ImageSet, load
from potstill.evaluation import PROTOCOLS, train_students
from potstill.methods import find
from potstill.nets import Examples
from potstill.run import Run
from potstill.run.loop import descend
from potstill.run.machine import describe, tune_allocator

LOSSES: dict[str, dict[str, Any]] = {
    "natural squared error": {"outer_loss": "squared_error"},
    "balanced batches": {"outer_loss": "squared_error", "balance": "sampling"},
    "Platt cross-entropy": {"outer_loss": "cross_entropy"},
    "Platt balanced softmax": {"outer_loss": "balanced_softmax"},
}
LOOKS = {"kip": 1, "rfad": 4, "frepo": 10}  # kernels whose predictions are averaged
FIRST = next(iter(LOSSES))


def by_group(accuracy: Tensor, real: ImageSet) -> dict[str, float]:
    """Mean over classes and over each group of a row of percents (C,)."""
    own = {"all": accuracy.mean()} | {n: accuracy[list(g)].mean() for n, g in real.groups.items()}
    return {name: round(float(value), 2) for name, value in own.items()}


def regression(objective: Any, name: str, held: ImageSet, real: ImageSet) -> dict[str, float]:
    """Accuracy of kernel regression from the set as it is."""
    said = objective.predicted(held.batch(torch.arange(len(held))), LOOKS[name]).argmax(1).cpu()
    rows = [(said[held.labels == c] == c).double().mean() for c in range(held.num_classes)]
    return by_group(100 * torch.stack(rows), real)


def taught(objective: Any, held: ImageSet, real: ImageSet, runs: int, noflip: bool) -> Any:
    """Accuracy of students that are trained on the set."""
    made = objective.outcome(objective.canvas)
    goals = made.get("regression_targets")
    targets = objective.canvas.labels.cpu() if goals is None else goals
    examples = Examples(made["images"], targets, objective.transform, regression=goals is not None)
    protocol = PROTOCOLS["quick-noflip" if noflip else "quick"]
    found = train_students(
        examples, protocol.training, protocol, network="convnet-w32-in", test=held, runs=runs,
        run=Run(device="cpu", quiet=True),
    )  # fmt: skip
    return by_group(found.last.mean(0).double(), real)


def measure(given: dict[str, Any], whole: ImageSet) -> dict[str, Any]:
    """Distil once; return a line."""
    name, digits = given["method"], given["data"] == "digits"
    held_in, held = whole.hold_out(given["held_out"], given["seed"])
    real = held_in.long_tailed(given["imbalance_factor"])
    own = LOSSES[given["loss"]] | given["set"]
    if name == "frepo" and digits:  # a mirrored 2 is no 2
        own = {"mirrored": False} | own
    method = find(name).budget("quick", **own)
    run = Run(seed=given["seed"], device="cpu", quiet=True)
    method.check(real)
    objective, _ = method.begin(real, given["ipc"], run)
    start, began = regression(objective, name, held, real), time.perf_counter()
    descend(
        objective, objective.canvas, run, method.descent, classes=real.classes,
        chunk=objective.pieces(run), key="ridge",
    )  # fmt: skip
    seconds = time.perf_counter() - began
    return {
        "benchmark": "outer losses of kernel regression, held-out training images",
        **given,
        "counts": list(real.counts),
        "start": start,
        "regression": regression(objective, name, held, real),
        "students": taught(objective, held, real, given["runs"], digits) if given["runs"] else None,
        "seconds": round(seconds, 1),
        "device": describe("cpu")["device"],
    }


def table(lines: list[dict[str, Any]]) -> None:
    """Print means over seeds, their spread, and the paired gain over natural squared error."""
    cells: dict[str, dict[str, dict[int, Any]]] = {}
    for line in lines:
        cell = f"{line['data']}, factor {line['imbalance_factor']:g}, IPC {line['ipc']}: "
        cell += line["method"] + (f" {json.dumps(line['set'])}" if line["set"] else "")
        cells.setdefault(cell, {}).setdefault(line["loss"], {})[line["seed"]] = line
    for cell, losses in sorted(cells.items()):
        print(f"\n{cell}")
        for score in ("start", "regression", "students"):
            rows = [(n, own, losses.get(FIRST, {})) for n, own in losses.items()]
            for name, own, first in rows[:1] if score == "start" else rows:
                print(told(score, name, own, first))


def told(score: str, name: str, own: dict[int, Any], first: dict[int, Any]) -> str:
    """One row: the four accuracies, and how far each seed is from the first loss's."""
    found = [line[score] for line in own.values() if line[score]]
    if not found:
        return f"  {score:10} {name}: not measured"
    groups = " ".join(f"{g} {statistics.mean(f[g] for f in found):5.1f}" for g in found[0])
    spread = statistics.stdev(f["all"] for f in found) if len(found) > 1 else float("nan")
    pairs = [s for s in own if s in first and first[s][score] and own[s][score]]
    gains = [own[s][score]["all"] - first[s][score]["all"] for s in pairs]
    gain = ""
    if gains and score != "start" and name != FIRST:
        wins = sum(g > 0 for g in gains)
        gain = f"  {statistics.mean(gains):+.1f} over natural, better on {wins} of {len(gains)}"
    what = "" if score == "start" else name
    return f"  {score:10} {what:24} {groups} (± {spread:.1f}, {len(found)} seeds){gain}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="lines, made or gone on with")
    parser.add_argument("--data", default="digits", help="digits, a folder, or a name of the hub")
    parser.add_argument("--methods", nargs="+", choices=LOOKS, default=list(LOOKS))
    parser.add_argument("--imbalance-factor", type=float, default=50)
    parser.add_argument("--ipc", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--students", type=int, default=3, help="students of a set; 0 = none")
    parser.add_argument("--held-out", type=int, default=0, help="of each class; 0 = 25 or 200")
    parser.add_argument("--set", type=json.loads, default={}, help="JSON of further fields")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    done = (
        [json.loads(x) for x in options.out.read_text().splitlines()]
        if options.out.exists()
        else []
    )
    if options.table:
        table(done)
        return
    tune_allocator()
    torch.set_num_threads(options.threads)
    whole = load(options.data, quiet=True)
    label = "digits" if options.data == "digits" else Path(options.data).name
    for seed in range(options.seeds):
        for name in options.methods:
            for loss in LOSSES:
                given = {
                    "data": label, "method": name, "loss": loss, "seed": seed, "set": options.set,
                    "imbalance_factor": options.imbalance_factor, "ipc": options.ipc,
                    "held_out": options.held_out or (25 if label == "digits" else 200),
                    "runs": options.students,
                }  # fmt: skip
                if any(given.items() <= line.items() for line in done):
                    continue
                line = json.dumps(measure(given, whole))
                print(line, flush=True)
                with options.out.open("a") as file:
                    file.write(line + "\n")


if __name__ == "__main__":
    main()
