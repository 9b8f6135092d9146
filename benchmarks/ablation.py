"""Which parts of CSDM, of any spectral matcher and of LAD matter, on held-out training images.

200 images per class are cut from the balanced training set before it is made long-tailed; no test
image is looked at. Every variant of a family starts from the same images and shares the pool or the
experts of its seed where it can. One line of JSON per variant: accuracy of three students over all,
head, medium and tail classes, and for CSDM the amplitude's share of the distance in the largest and
the smallest class over the last tenth of the steps, for LAD the learned student step size. Variants
of the family "parts" differ from SDM's quick budget in one thing each; those of "labels" have the
labels of a residual teacher, whose own accuracy stands beside them; those of "storage" hold more
training images in the same numbers. "kernels" and "alpha" are the
cells of CSDM's figures 2 to 4, by ``--ipc`` and ``--imbalance-factor``. Lines that ``--out`` holds
are not made again; ``--table`` prints their means over seeds, and nothing is made.

    python benchmarks/ablation.py --data FOLDER [--family csdm|parts|labels|...]
                                  [--imbalance-factor 200]
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

from potstill.canvas import decode_images
from potstill.data import ImageSet, load
from potstill.evaluation import PROTOCOLS, Protocol, train_students
from potstill.evaluation.bench import tiles_per_side
from potstill.evaluation.examples import synthetic_examples
from potstill.evaluation.metrics import overall
from potstill.experts.looks import shrunk
from potstill.experts.taught_labels import Taught
from potstill.methods import find
from potstill.run import Run
from potstill.run.machine import describe, tune_allocator
from potstill.synthetic import SyntheticSet

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
_SNAPSHOTS = {"networks": "snapshots", "judge_ahead": 6}
PARTS: list[tuple[str, dict[str, Any]]] = [
    ("mosaic", {}),
    ("sdm", {}),
    ("csdm", {"alpha_schedule": "two_level", "alpha_head": 0.9}),
    ("sdm", {"augment_per": "class"}),
    ("sdm", {"entries": 100}),
    ("sdm", {"entries": 100, "views_per_step": 3}),
    ("sdm", {"floor": "stop"}),
    ("sdm", {"floor": "shrink"}),
    ("sdm", {"optimizer": "mean_adam"}),
    ("sdm", {"tail_images": 256}),
    ("sdm", {"pool_prior": "balanced_softmax"}),
    ("sdm", {"pool_epochs": 20}),
    ("sdm", {"calibration": 2.5}),
    ("sdm", {**_SNAPSHOTS}),
    ("sdm", {**_SNAPSHOTS, "calibration": 2.5}),
    ("sdm", {**_SNAPSHOTS, "calibration": 2.5, "pool_prior": "balanced_softmax"}),
    ("sdm", {"start": "crops"}),
    ("sdm", {"start": "crops", "steps": 0}),
    ("sdm", {"network": "convnet-w64-in"}),
]
_TAUGHT = {
    "labels": "taught",
    "teacher": "resnet10-w24-bn",
    "label_calibration": "none",
    "label_temperature": 1.0,
    "hard_share": 0.0,
}
_EVEN = {**_TAUGHT, "label_calibration": "even"}
LABELS: list[tuple[str, dict[str, Any]]] = [  # without a step, then behind SDM's
    (name, {**steps, **labels})
    for steps in ({"steps": 0}, {})
    for name, labels in (
        ("sdm", {}),
        ("sdm", _TAUGHT),
        ("sdm", {**_TAUGHT, "hard_share": 0.5}),
        ("sdm", {**_TAUGHT, "label_calibration": "adsa"}),
        ("sdm", _EVEN),
        ("sdm", {**_EVEN, "label_temperature": 2.0}),
        ("sdm", {**_EVEN, "label_temperature": 4.0}),
        ("sdm", {**_EVEN, "label_temperature": 2.0, "hard_share": 0.3}),
        ("sdm", {**_EVEN, "label_temperature": 2.0, "teachers": 2}),
    )
]
_HALF_BLEND = {**_SNAPSHOTS, "calibration": 2.5, "augment_per": "class"}
BLEND: list[tuple[str, dict[str, Any]]] = [  # what each part gave, together
    ("sdm", {**_HALF_BLEND, **_EVEN, "label_temperature": 2.0}),
    ("sdm", _HALF_BLEND),
    ("sdm", {**_HALF_BLEND, **_EVEN, "label_temperature": 2.0, "entries": 100}),
    ("sdm", {**_HALF_BLEND, **_EVEN, "label_temperature": 2.0, "pool_prior": "balanced_softmax"}),
    ("sdm", {**_EVEN, "label_temperature": 2.0, "entries": 100, "views_per_step": 3}),
]
_EVEN_2 = {**_EVEN, "label_temperature": 2.0}
STORAGE: list[tuple[str, dict[str, Any]]] = [  # what one stored image holds
    ("mosaic", {"colours": "half"}),
    ("sdm", {"canvas": "subsampled"}),
    ("sdm", {"canvas": "subsampled", "steps": 0, **_EVEN_2}),
    ("sdm", {"canvas": "subsampled", **_EVEN_2}),
    ("sdm", {"canvas": "subsampled", **_EVEN_2, "entries": 100, "views_per_step": 3}),
    ("csdm", {"canvas": "subsampled"}),
    ("mosaic", {"colours": "half", "factor": 1}),
    ("mosaic", {"colours": "half", "factor": 4}),
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
KERNELS: list[tuple[str, dict[str, Any]]] = [  # of figure 2 (IPC 50) and 4 (factors)
    ("sdm", {"kernel": kernel, "scale": scale})
    for scale in (1.0, 0.5, 0.25, 2.0)
    for kernel in ("rbf", "laplace", "matern32", "rq")
] + [("sdm", {"kernel": "linear"})]
ALPHA: list[tuple[str, dict[str, Any]]] = [  # its figure 3, over factors
    ("csdm", {"alpha_schedule": schedule, "alpha_head": alpha})
    for alpha in (0.9, 0.1, 0.99, 0.7, 0.5, 0.3)
    for schedule in ("two_level", "log_linear")
    if alpha != 0.5 or schedule == "two_level"  # at a half all weigh alike under either
]


FAMILIES = {
    "csdm": CSDM,
    "parts": PARTS,
    "labels": LABELS,
    "blend": BLEND,
    "storage": STORAGE,
    "lad": LAD,
    "kernels": KERNELS,
    "alpha": ALPHA,
}


def known(out: Path | None) -> list[dict[str, Any]]:
    """Lines that were made before."""
    return [json.loads(line) for line in out.read_text().splitlines()] if out else []


def table(lines: list[dict[str, Any]]) -> None:
    """Print means over distillation seeds, with the spread of these, largest first."""
    rows: dict[str, list[dict[str, Any]]] = {}
    for line in lines:
        cell = f"factor {line['imbalance_factor']:g}, IPC {line['ipc']}: {line['method']}"
        told = [json.dumps(line["asked"]), *(f"students {s}" for s in [line.get("students")] if s)]
        rows.setdefault(f"{cell} {' '.join(told)}", []).append(line)
    means = {name: statistics.mean(one["accuracy"] for one in own) for name, own in rows.items()}
    for name in sorted(means, key=means.__getitem__, reverse=True):
        own, found = rows[name], [one["accuracy"] for one in rows[name]]
        spread = f"{statistics.stdev(found):4.2f}" if len(found) > 1 else "   -"
        groups = [
            statistics.mean(one[group] for one in own) for group in ("head", "medium", "tail")
        ]
        by_size = " ".join(f"{value:5.1f}" for value in groups)
        print(f"{means[name]:6.2f} {spread} {len(own)}  {by_size}  {name}")


def label_mass(syn: SyntheticSet) -> list[float] | None:
    """How many training images' worth of soft labels each class gets."""
    _, _, soft, _ = syn.decoded()
    return None if soft is None else [round(float(mass), 1) for mass in soft.sum(0)]


def teacher_accuracy(
    method: Any, syn: SyntheticSet, real: ImageSet, held_out: ImageSet, run: Run
) -> dict[str, Any] | None:
    """What the first teacher makes of held-out images and of the tiles of the set.

    Percent that it gets right, and the shares of all labels that each class gets of it, in units of
    its share of the images.
    """
    labels = getattr(method, "labels", None)
    if not isinstance(labels, Taught):
        return None
    factor = tiles_per_side(syn)
    teachers, *_ = labels.trained(real, factor, syn.transform, run)
    small = shrunk(held_out, factor)
    tiles, own, *_ = decode_images(syn.images, syn.labels, syn.decode, small=True)
    looks = {"held out": (small.batch(torch.arange(len(small))), small.labels), "set": (tiles, own)}
    found: dict[str, Any] = {}
    for name, (x, y) in looks.items():
        said = teachers.logits(x)[0]
        found[name] = round(100 * float((said.argmax(1) == y).float().mean()), 2)
        mass = said.softmax(1).mean(0) * said.shape[1]  # of as many images of each class
        found[f"mass, {name}"] = [round(float(share), 2) for share in mass]
    return found


def measure(
    name: str,
    given: dict[str, Any],
    real: ImageSet,
    held_out: ImageSet,
    protocol: Protocol,
    run: Run,
) -> dict[str, Any]:  # fmt: skip
    """Distil once and train three students; return a line."""
    records: list[dict[str, Any]] = []

    def watch(step: int, record: dict[str, Any], canvas: Any, to: Any = records) -> None:
        to.append(record)

    asked = given["asked"]
    fields = asked if name == "mosaic" else {"steps": given["steps"], **asked}
    fields = {key: value for key, value in fields.items() if value is not None}
    method = find(name).budget("quick", **fields)
    began = time.perf_counter()
    syn = method(real, given["ipc"], run.with_(watch=watch))
    seconds = time.perf_counter() - began
    outcome = train_students(
        synthetic_examples(syn, "auto"),
        protocol.training_for(given["ipc"], syn.syn_lr),
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
    return {
        "benchmark": "ablation on held-out training images",
        **given,
        "accuracy": round(statistics.mean(accuracies), 2),
        "std": round(statistics.stdev(accuracies), 2),
        **{group: round(float(value), 1) for group, value in groups.items()},
        "amplitude_share": [round(statistics.mean(share), 2) for share in shares],
        "loss": records[-1]["loss"] if records else None,
        "syn_lr": syn.syn_lr,
        "kB": round(syn.nbytes / 1000),
        "mass": label_mass(syn),
        "teacher": teacher_accuracy(method, syn, real, held_out, run),
        "seconds": round(seconds, 1),
        "device": describe(run.device)["device"],
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", default="../shared/data/cifar10")
    parser.add_argument("--family", choices=FAMILIES, default="csdm")
    parser.add_argument("--only", type=int, nargs="*", help="numbers of variants, from 0")
    parser.add_argument("--set", type=json.loads, default={}, help="fields of all, as JSON")
    parser.add_argument(
        "--students", type=json.loads, default={}, help="changes of their protocol, as JSON"
    )
    parser.add_argument("--imbalance-factor", type=float, default=200)
    parser.add_argument("--ipc", type=int, default=10)
    parser.add_argument("--steps", type=int, help="default: CSDM 300, LAD's quick budget")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="JSON lines, of which known ones are left out")
    parser.add_argument("--table", action="store_true", help="print what --out holds")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    if options.out:
        options.out.touch()
    done = known(options.out)
    if options.table:
        return table(done)
    tune_allocator()
    if options.threads:
        torch.set_num_threads(options.threads)
    run = Run(seed=options.seed, device=options.device, quiet=True)
    rest, held_out = load(options.data, quiet=True).hold_out(200, seed=0)
    real = rest.long_tailed(options.imbalance_factor)
    protocol = PROTOCOLS["lad-quick" if options.family == "lad" else "quick"]
    protocol = protocol.with_(**options.students)
    if options.family != "lad":
        options.steps = options.steps or 300
    for number, (name, fields) in enumerate(FAMILIES[options.family]):
        asked = {**options.set, **fields}
        given = {"method": name, "asked": asked, "seed": options.seed, "steps": options.steps}
        given |= {"imbalance_factor": options.imbalance_factor, "ipc": options.ipc}
        given["students"] = options.students
        made = any(given.items() <= ({"students": {}} | line).items() for line in done)
        if made or (options.only is not None and number not in options.only):
            continue
        line = measure(name, given, real, held_out, protocol, run)
        print(json.dumps(line), flush=True)
        if options.out:
            with options.out.open("a") as file:
                file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
