"""What trajectory matching gains over the images and labels that it starts from.

    python benchmarks/trajectory_gain.py distances --data FOLDER
    python benchmarks/trajectory_gain.py gains --data FOLDER --out gains.jsonl [--seeds 0 1]

``distances`` prints the normalised distance between a student and its expert before any step, of
the representation and the classifier phase, by student step size eta, number of student steps N and
span, without training a student on anything: a phase whose distance lies above 1 moves away from
its expert, and what descends on it descends on noise.

``gains`` scores the start (before step 0) and the result of figure 6a's variants of LAD under one
protocol with one student step size, said on the command line, on training images that the long tail
leaves out (never the test set). The largest class leaves none; of it, images are looked at that
experts have seen, which favours the start as much as the result. Starts are equal: mosaics of the
same images with labels by the same classifier experts, also for variants that do not match those
(``own-labels`` in front of a variant's name takes its own experts' labels). Experts are those of
seed 0 for all seeds, which draw first images, the order of experts and augmentation. Lines that
``--out`` holds are not computed again; a killed distillation goes on from its folder beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch

from potstill.data import ImageSet, load
from potstill.evaluation import PROTOCOLS, train_students
from potstill.evaluation.examples import random_examples, synthetic_examples
from potstill.evaluation.metrics import overall
from potstill.match import classifier_distance, trajectory_distance
from potstill.methods import DATM, LAD, MTT, Matcher
from potstill.methods.trajectory.expert_networks import ExpertNetworks
from potstill.nets import Examples
from potstill.networks.parts import fit_transform
from potstill.run import Run
from potstill.run.machine import describe, tune_allocator

IPC, NETWORK, PER_CLASS = 10, "convnet-w32-in", 300


class _Shared:
    """Experts of the first seed, whatever the seed of a distillation: they cost more than it."""

    def open(self, real: ImageSet, run: Run) -> ExpertNetworks:
        found: ExpertNetworks = super().open(real, run.with_(seed=0))  # type: ignore[misc]
        return found


@dataclass(frozen=True, kw_only=True)
class Lad(_Shared, LAD):
    """LAD with shared experts."""


@dataclass(frozen=True, kw_only=True)
class Coupled(LAD):
    """LAD without decoupling, whose labels begin as those of LAD."""

    def open(self, real: ImageSet, run: Run) -> ExpertNetworks:
        return LAD.open(replace(self, matching="joint"), real, run.with_(seed=0))


@dataclass(frozen=True, kw_only=True)
class Datm(_Shared, DATM):
    """DATM with shared experts."""


@dataclass(frozen=True, kw_only=True)
class Mtt(_Shared, MTT):
    """MTT with shared experts."""


VARIANTS: dict[str, tuple[type[Matcher], dict[str, Any]]] = {
    "lad": (Lad, {}),
    "dam": (Coupled, {"matching": "plain"}),
    "base": (Coupled, {"matching": "plain", "adjustment": "none"}),
    "own-labels dam": (Lad, {"matching": "plain"}),
    "own-labels base": (Lad, {"matching": "plain", "adjustment": "none"}),
    "datm": (Datm, {}),
    "mtt": (Mtt, {}),
}


def held_out(whole: ImageSet, real: ImageSet) -> ImageSet:
    """Return images of each class that ``real`` leaves out; any where it leaves out none."""
    left = torch.ones(len(whole), dtype=torch.bool)
    left[real.indices] = False
    rows = []
    for label in range(whole.num_classes):
        own = whole.of_class(label)
        free = own[left[own]]
        rows.append((free if len(free) else own)[-PER_CLASS:])
    return whole.select(torch.cat(rows))


def score(
    examples: Examples, real: ImageSet, test: ImageSet, options: argparse.Namespace, run: Run
) -> dict[str, Any]:
    """Train students on a small set with the step size asked for; return their accuracies."""
    protocol = PROTOCOLS[options.protocol]
    outcome = train_students(
        examples,
        protocol.training_for(IPC, options.student_lr),
        protocol,
        network=NETWORK,
        test=test,
        runs=options.students,
        run=run.with_(seed=0),
    )
    accuracies = overall(outcome.last, test.counts)
    groups = {name: outcome.last[:, list(own)].mean() for name, own in real.groups.items()}
    return {
        "accuracy": round(statistics.mean(accuracies), 2),
        "std": round(statistics.stdev(accuracies), 2) if len(accuracies) > 1 else None,
        **{name: round(float(value), 1) for name, value in groups.items()},
    }


def parts(records: list[dict[str, Any]], pieces: int = 5) -> dict[str, list[float]]:
    """Return the mean of each loss over each of ``pieces`` stretches of a run."""
    size = max(1, len(records) // pieces)
    cuts = [records[at : at + size] for at in range(0, size * pieces, size)]
    return {
        name: [round(statistics.mean(r["loss"][name] for r in cut), 3) for cut in cuts if cut]
        for name in records[0]["loss"]
    }


def gains(options: argparse.Namespace, real: ImageSet, test: ImageSet) -> None:
    """Print a line for each start and each result, and a table at the end."""
    done = [json.loads(line) for line in options.out.read_text().splitlines()]
    known = {(line["what"], line["seed"]) for line in done}

    def add(what: str, seed: int, examples: Examples, run: Run, **facts: Any) -> None:
        own = {"what": what, "seed": seed, **score(examples, real, test, options, run), **facts}
        own |= {"student_lr": options.student_lr, "protocol": options.protocol}
        own |= {"set": options.set, "device": describe(run.device)["device"]}
        print(json.dumps(own), flush=True)
        done.append(own)
        with options.out.open("a") as file:
            file.write(json.dumps(own) + "\n")

    for seed in options.seeds:
        run = Run(seed=seed, device=options.device, quiet=True)
        if ("random", seed) not in known and not options.no_random:
            transform = fit_transform(real, LAD.budget("quick", **options.set).networks.preprocess)
            counts = [IPC] * real.num_classes
            add("random", seed, random_examples(real, counts, transform, run), run)
        for name in options.variants:
            kind, fields = VARIANTS[name]
            flat = kind.budget("quick").fields()
            asked = {k: v for k, v in options.set.items() if k in flat}
            method = kind.budget("quick", **asked, **fields)
            start = f"start of {name}" if kind is not Coupled else "start of lad"
            if (start, seed) not in known:
                syn = method.with_(steps=0)(real, IPC, run)
                known.add((start, seed))
                add(start, seed, synthetic_examples(syn), run)
            if (name, seed) in known:
                continue
            folder = options.out.with_suffix("") / f"{name.replace(' ', '-')}-{seed}"
            folder.mkdir(parents=True, exist_ok=True)
            began, records = time.perf_counter(), list[dict[str, Any]]()

            def watch(step: int, record: dict[str, Any], canvas: Any, to: Any = records) -> None:
                to.append(record)

            syn = method(real, IPC, run.with_(watch=watch, folder=folder))
            seconds = round(time.perf_counter() - began)
            facts = {"seconds": seconds, "syn_lr": syn.syn_lr}
            add(name, seed, synthetic_examples(syn), run, loss=parts(records), **facts)
    table(done)


def table(lines: list[dict[str, Any]]) -> None:
    """Print means over seeds, and each result's gain over its start."""
    names = list(dict.fromkeys(line["what"] for line in lines))
    head = ("accuracy", "spread", "gain", "head", "medium", "tail", "seeds")
    print(f"\n{'':18}" + "".join(f"{word:>9}" for word in head))
    means = {}
    for name in names:
        own = [line for line in lines if line["what"] == name]
        means[name] = statistics.mean(line["accuracy"] for line in own)
        spread = statistics.stdev(line["accuracy"] for line in own) if len(own) > 1 else 0.0
        start = next((s for s in (f"start of {name}", "start of lad") if s in names), None)
        gain = ""
        if start is not None and not name.startswith(("start", "random")):
            begun = {line["seed"]: line["accuracy"] for line in lines if line["what"] == start}
            both = [line["accuracy"] - begun[line["seed"]] for line in own if line["seed"] in begun]
            gain = f"{statistics.mean(both):+.1f}" if both else ""
        groups = [statistics.mean(line[g] for line in own) for g in ("head", "medium", "tail")]
        print(
            f"{name:18}{means[name]:9.1f}{spread:9.1f}{gain:>9}"
            f"{groups[0]:9.1f}{groups[1]:9.1f}{groups[2]:9.1f}{len(own):9d}"
        )


def distances(options: argparse.Namespace, real: ImageSet, test: ImageSet) -> None:
    """Print how far students are from their experts before the first step."""
    run = Run(seed=options.seeds[0], device=options.device, quiet=True)
    most = max(options.spans)
    sized = {"start_max": max(options.starts) + 1, "span": most, "experts": 1}
    method = LAD.budget("quick", **{**options.set, **sized})
    objective, networks = method.begin(real, IPC, run)
    x = objective.canvas.seen(networks.transform).detach()
    targets, students = objective.labels.targets().detach(), objective.students
    experts = networks.classifiers
    body = {n.removeprefix("body."): v for n, v in experts.backbone(0, run.device).items()}
    looks: dict[str, Any] = {
        f"representation from {start} over {span}": partial(
            trajectory_distance, forward=students.forward, loss=objective.loss,
            start=objective.expert(0, start), target=objective.expert(0, start + span),
            matched=students.backbone,
        )
        for start in options.starts for span in options.spans
    }  # fmt: skip
    looks |= {
        f"classifier over {span}": partial(
            classifier_distance, features=partial(students.features, body),
            start=experts.at(0, 0), target=experts.at(0, span),
        )
        for span in options.spans
    }  # fmt: skip
    print(f"{'':34}   N " + "".join(f"{eta:>8g}" for eta in options.etas))
    for name, distance in looks.items():
        for count in options.student_steps:
            steps = students.draw("look", 0, x, count)
            at = partial(distance, x, targets, steps=steps, dsa=objective.dsa)
            with torch.no_grad():
                row = [float(at(torch.tensor(eta))) for eta in options.etas]
            print(f"{name:34}{count:4d} " + "".join(f"{value:8.3f}" for value in row), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=("distances", "gains"))
    parser.add_argument("--data", default="../shared/data/cifar10")
    parser.add_argument("--imbalance-factor", type=float, default=200)
    parser.add_argument("--set", type=json.loads, default={}, help="fields of all, as JSON")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, default=Path("gains.jsonl"))
    parser.add_argument("--variants", nargs="+", default=["lad", "dam", "base"], choices=VARIANTS)
    parser.add_argument("--protocol", default="lad-quick")
    parser.add_argument("--student-lr", type=float, default=0.02)
    parser.add_argument("--students", type=int, default=3)
    parser.add_argument("--no-random", action="store_true")
    parser.add_argument("--etas", type=float, nargs="+", default=[0.005, 0.01, 0.02, 0.05])
    parser.add_argument("--student-steps", type=int, nargs="+", default=[10, 40])
    parser.add_argument("--starts", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--spans", type=int, nargs="+", default=[1, 2])
    options = parser.parse_args()
    tune_allocator()
    torch.set_num_threads(options.threads)
    whole = load(options.data, quiet=True)
    real = whole.long_tailed(options.imbalance_factor)
    if options.what == "gains":
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.touch()
    {"distances": distances, "gains": gains}[options.what](options, real, held_out(whole, real))


if __name__ == "__main__":
    main()
