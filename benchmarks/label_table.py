"""How much of a score is images and how much is labels, on held-out training images.

    python benchmarks/label_table.py --data CIFAR10 --out labels.jsonl [--imbalance-factor 200]
    python benchmarks/label_table.py --out labels.jsonl --table

Images of every row (CSDM, LAD, RDED, mosaics, random ones; quick budgets) are learned with every
kind of label: their class, their own (LAD), and of one teacher under balanced softmax a static soft
label for each training image, a stored one for each view of --epochs epochs, and a label of every
view online. Students, protocol (quick) and teacher are the same; of tiled sets the teacher learns
tiles, as everywhere here (docs/guide.md). 200 images per class are cut from the balanced training
set before it is made long-tailed; no test image is looked at.

One line of JSON per cell, with the bytes that a receiver needs; cells that --out holds are left
out, sets lie in --work and are read again, teachers and pools lie in the cache. The table gives
accuracies with their spread over students, kB, and what labels and images add to random images with
classes, each first. Views that are stored are crops of --crop-min of the area, mirrors and CutMix
patches; in all other columns students see the protocol's own augmentation.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from potstill.app.job import distill
from potstill.data import ImageSet, load
from potstill.data.views import Views
from potstill.evaluation import (
    PROTOCOLS,
    Protocol,
    class_accuracy,
    receiver_bytes,
    train_students,
    trained_teachers,
    with_soft_labels,
    with_view_labels,
)
from potstill.evaluation.examples import synthetic_examples
from potstill.evaluation.labels import tier_of
from potstill.evaluation.metrics import overall
from potstill.experts.looks import blurring
from potstill.methods import find
from potstill.nets import Network, predict
from potstill.run import Run
from potstill.run.machine import describe, tune_allocator
from potstill.synthetic import SyntheticSet

IMAGES: dict[str, tuple[str, dict[str, Any]]] = {
    "random": ("random", {}),
    "mosaic": ("mosaic", {}),
    "rded": ("rded", {}),
    "rded-tiles": ("rded", {"factor": 2}),
    "csdm": ("csdm", {}),
    "lad": ("lad", {}),
}
LABELS = ("hard", "own", "static", "stored", "online")
_TOLD = {"static": "soft", "stored": "views", "own": "soft"}  # what a protocol calls them


def labelled(
    syn: SyntheticSet, labels: str, nets: list[Network], run: Run, options: argparse.Namespace
) -> SyntheticSet:
    """Return the set with stored labels of this kind."""
    how = {} if options.calibration == "none" else {"tau": options.calibration}
    how |= {"counts": options.counts} if options.calibration == "adsa" else {}
    bare = replace(syn, regression_targets=None, weights=None)
    if labels == "static":
        return with_soft_labels(bare, nets, temperature=options.temperature, **how)
    if labels == "stored":
        views = Views(crop_min=options.crop_min, flip=options.flip, noise=0.0)
        own = replace(bare, soft_labels=None)
        return with_view_labels(
            own, nets, run, epochs=options.epochs, views=views, cutmix=0.5, **how
        )
    return syn


def measure(
    syn: SyntheticSet,
    labels: str,
    nets: list[Network],
    real: ImageSet,
    held_out: ImageSet,
    protocol: Protocol,
    run: Run,
    options: argparse.Namespace,
) -> dict[str, Any]:
    """Train students on a set with labels of a kind; return what they reach and what it takes."""
    own, began = labelled(syn, labels, nets, run, options), time.perf_counter()
    told = _TOLD.get(labels, "hard")
    examples, tier = synthetic_examples(own, told), tier_of(own, told)
    if labels == "online":

        @torch.no_grad()
        def said(x: Tensor) -> Tensor:
            return nets[0](x)

        examples, tier = replace(examples, teacher=said), "online"
    if labels in ("stored", "online"):
        protocol = replace(protocol, temperature=options.temperature)
    held = sum(t.nbytes for t in nets[0].state_dict().values()) if tier == "online" else 0
    outcome = train_students(
        examples, protocol.training_for(syn.ipc), protocol, network=options.network,
        test=held_out, runs=options.runs, run=run.with_(seed=0), label=labels,
    )  # fmt: skip
    found = overall(outcome.last, held_out.counts)
    groups = {name: outcome.last[:, list(own)].mean() for name, own in real.groups.items()}
    return {
        "accuracy": round(statistics.mean(found), 2),
        "std": round(statistics.stdev(found), 2) if len(found) > 1 else 0.0,
        **{group: round(float(value), 1) for group, value in groups.items()},
        "tier": tier,
        "bytes": receiver_bytes(own, tier, held),
        "students_seconds": round(time.perf_counter() - began, 1),
    }


def lines(
    real: ImageSet, held_out: ImageSet, protocol: Protocol, run: Run, options: argparse.Namespace
) -> Iterator[dict[str, Any]]:
    """Yield the cells that are not there yet."""
    options.counts = real.counts
    done = known(options.out)
    for name in options.images:
        cell = {"images": name, "seed": options.seed, "ipc": options.ipc}
        cell |= {"imbalance_factor": options.imbalance_factor, "teacher": options.teacher}
        cell |= {"temperature": options.temperature, "calibration": options.calibration}
        left = [
            label for label in options.labels
            if not any((cell | {"labels": label}).items() <= line.items() for line in done)
        ]  # fmt: skip
        if not left:
            continue
        began, (method, fields) = time.perf_counter(), IMAGES[name]
        place = f"{name}-lt{options.imbalance_factor:g}-ipc{options.ipc}-seed{options.seed}"
        chosen = find(method).budget("quick", **{**fields, **options.set.get(name, {})})
        syn = distill(chosen, real, ipc=options.ipc, out=options.work / place, run=run)
        seconds = round(time.perf_counter() - began, 1)
        look = blurring(syn.transform, syn.decode)
        nets, about = trained_teachers(
            options.teacher, "balanced_softmax", protocol, real, look, run,
            epochs=options.teacher_epochs,
        )  # fmt: skip
        small = [predict(net, held_out.rows(), look, device=run.device).argmax(1) for net in nets]
        rows = class_accuracy(small[0], held_out.labels, held_out.num_classes)[None]
        (right,) = overall(rows, held_out.counts)
        for label in left:
            if label == "own" and syn.soft_labels is None:
                continue
            found = measure(syn, label, nets, real, held_out, protocol, run, options)
            yield {
                "benchmark": "images and labels, on held-out training images", **cell,
                "labels": label, **found, "teacher_accuracy": round(right, 2),
                "teacher_sees": about["sees"], "seconds": seconds, "students": options.runs,
                "device": describe(run.device)["device"],
            }  # fmt: skip


def known(out: Path | None) -> list[dict[str, Any]]:
    """Lines that were made before."""
    return [json.loads(line) for line in out.read_text().splitlines()] if out else []


def table(done: list[dict[str, Any]]) -> str:
    """Return a table for each cell of the data: images down, labels across."""
    told: list[str] = []
    data = dict.fromkeys((d["imbalance_factor"], d["ipc"], d["calibration"]) for d in done)
    for factor, ipc, calibration in data:
        mine = [d for d in done if (d["imbalance_factor"], d["ipc"]) == (factor, ipc)]
        mine = [d for d in mine if d["calibration"] == calibration]
        told += [f"Factor {factor:g}, IPC {ipc}, calibration {calibration}", ""]
        told += ["| images | " + " | ".join(LABELS) + " | labels add | images add |"]
        told += ["|---" * (len(LABELS) + 3) + "|"]
        cells: dict[tuple[str, str], list[dict[str, Any]]] = {}
        for line in mine:
            cells.setdefault((line["images"], line["labels"]), []).append(line)
        mean = {at: statistics.mean(d["accuracy"] for d in own) for at, own in cells.items()}
        floor = mean.get(("random", "hard"))
        for name in dict.fromkeys(d["images"] for d in mine):
            row = [_cell(cells.get((name, label)), mean.get((name, label))) for label in LABELS]
            hard, best = mean.get((name, "hard")), mean.get((name, "online"))
            row.append("–" if hard is None or best is None else f"{best - hard:+.1f} online")
            row.append("–" if hard is None or floor is None else f"{hard - floor:+.1f} hard")
            bare = mean.get(("random", "online"))
            if best is not None and bare is not None:
                row[-1] += f", {best - bare:+.1f} online"
            told.append(f"| {name} | " + " | ".join(row) + " |")
        told.append("")
    return "\n".join(told)


def _cell(own: list[dict[str, Any]] | None, mean: float | None) -> str:
    if not own or mean is None:
        return "–"
    return f"{mean:.1f} ± {own[0]['std']:.1f} ({own[0]['bytes'] / 1000:.0f} kB)"


def parsed() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", default="../shared/data/cifar10")
    parser.add_argument("--images", nargs="*", choices=IMAGES, default=[*IMAGES])
    parser.add_argument("--labels", nargs="*", choices=LABELS, default=[*LABELS])
    parser.add_argument("--imbalance-factor", type=float, default=200)
    parser.add_argument("--ipc", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--runs", type=int, default=3, help="students of a cell")
    parser.add_argument("--network", default="convnet-w32-in")
    parser.add_argument("--teacher", default="convnet-w32-in")
    parser.add_argument("--teacher-epochs", type=int, help="default: as the ceiling")
    parser.add_argument("--temperature", type=float, default=1.0, help="of a teacher's labels")
    parser.add_argument("--calibration", choices=("none", "even", "adsa"), default="none")
    parser.add_argument("--epochs", type=int, default=100, help="of stored labels")
    parser.add_argument("--crop-min", type=float, default=0.25, help="of stored views")
    parser.add_argument("--flip", type=float, default=0.5, help="of stored views")
    parser.add_argument("--protocol", default="quick", help="of students, whose labels are hard")
    parser.add_argument("--held-out", type=int, default=200, help="images per class")
    parser.add_argument("--set", type=json.loads, default={}, help="fields by row, as JSON")
    parser.add_argument("--out", type=Path, help="JSON lines, of which known ones are left out")
    parser.add_argument("--work", type=Path, default=Path("runs/label-table"))
    parser.add_argument("--table", action="store_true", help="print what --out holds")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--device", default="auto")
    return parser.parse_args()


def main() -> None:
    options = parsed()
    if options.out:
        options.out.touch()
    if options.table:
        return print(table(known(options.out)))
    tune_allocator()
    if options.threads:
        torch.set_num_threads(options.threads)
    run = Run(seed=options.seed, device=options.device, quiet=True)
    rest, held_out = load(options.data, quiet=True).hold_out(options.held_out, seed=0)
    real = rest.long_tailed(options.imbalance_factor)
    for line in lines(real, held_out, PROTOCOLS[options.protocol], run, options):
        print(json.dumps(line), flush=True)
        if options.out:
            with options.out.open("a") as file:
                file.write(json.dumps(line) + "\n")
    if options.out:
        print(table(known(options.out)))


if __name__ == "__main__":
    main()
