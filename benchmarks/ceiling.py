"""What all images of CIFAR-10-LT reach, by recipe and epochs, on held-out training images.

The long tail leaves out most training images of nine classes; 500 of each are held out here, and
500 of the largest class, which then trains on 4500. By them the recipe and the epochs of the
``ceiling`` reference were chosen (docs/decisions.md). Accuracy on the test set stands beside it in
each record for the documents; nothing is chosen by it. After ``plain``, the corrections of its
classifier that need no training of their own are looked at as well.

A setting is FACTOR|PRIOR|EPOCHS|SEED; one line of JSON each. Settings whose line is in ``--out``
are not trained again:

    python benchmarks/ceiling.py --data CIFAR10 --out ceiling.jsonl '200|plain|60|0' '200|glmc|60|0'
    python benchmarks/ceiling.py --out ceiling.jsonl --table
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

import potstill
from potstill.data import ImageSet, Normalize
from potstill.evaluation import PROTOCOLS, class_accuracy, mean_std
from potstill.experts.recipes import train_recipe
from potstill.losses import REMEDIES
from potstill.nets import Examples, Network, create_for, predict, train_many
from potstill.nets.post_hoc import CORRECTIONS, correct_
from potstill.run import Run
from potstill.run.machine import describe, tune_allocator

HELD = 500  # images per class


def split(whole: ImageSet, factor: float) -> tuple[ImageSet, ImageSet]:
    """The long-tailed set without some of its largest class, and balanced images not in it."""
    real = whole.long_tailed(factor)
    used = torch.zeros(len(whole), dtype=torch.bool)
    used[real.indices] = True
    largest = max(range(len(real.counts)), key=real.counts.__getitem__)
    used[real.indices[real.of_class(largest)[-HELD:]]] = False
    held = [
        torch.nonzero((whole.labels == label) & ~used).flatten()[:HELD]
        for label in range(whole.num_classes)
    ]
    return whole.select(used, op="select"), whole.select(torch.cat(held), op="select")


def accuracy(net: Network, seen: ImageSet, transform: Normalize) -> list[float]:
    """Percent correct per class."""
    found = predict(net, seen.rows(), transform).argmax(1)
    return class_accuracy(found, seen.labels, seen.num_classes).tolist()


def measure(
    train: ImageSet, sets: dict[str, ImageSet], prior: str, epochs: int, run: Run, how: Any
) -> dict[str, Any]:
    """Train one network and look at it."""
    transform = Normalize.fit(train)
    examples = Examples(train.rows(), train.labels, transform)
    net = create_for(train, how.network, run.generator("student", 0))
    training = replace(PROTOCOLS[how.protocol].training, epochs=epochs)
    row, given = REMEDIES[prior], {"generators": run.generator, "quiet": run.quiet}
    given["loss"] = row.loss_for(train.counts)
    learn = partial(train_recipe, row.stages) if row.stages else train_many
    learn([net], examples, training.under(prior), **given)
    correct_(net, row.post_hoc, examples)
    looks = {name: accuracy(net, seen, transform) for name, seen in sets.items()}
    found = {name: round(sum(look) / len(look), 2) for name, look in looks.items()}
    found |= {f"{name}_classes": [round(v, 1) for v in look] for name, look in looks.items()}
    if prior == "plain":
        first = {name: value.clone() for name, value in net.state_dict().items()}
        for name in CORRECTIONS:
            net.load_state_dict(first)
            correct_(net, name, examples)
            look = accuracy(net, sets["held"], transform)
            found |= {f"held_{name}": round(sum(look) / len(look), 2)}
    return found


def table(lines: list[dict[str, Any]]) -> None:
    """Print means over seeds: factor, recipe, epochs, held-out and test accuracy, minutes."""
    rows = defaultdict(list)
    for line in lines:
        rows[line["factor"], line["epochs"], line["prior"]].append(line)
        for name in set(CORRECTIONS) - {"none"}:
            if (value := line.get(f"held_{name}")) is not None:
                corrected = {"held": value, "seconds": line["seconds"]}
                rows[line["factor"], line["epochs"], f"plain, {name}"].append(corrected)
    for key, own in sorted(rows.items()):
        looks = [name for name in ("held", "test") if name in own[0]]
        values = [mean_std([line[name] for line in own]) for name in looks]
        text = [f"{v['mean']:.1f}" + (f" ± {v['std']:.1f}" if v["std"] else "") for v in values]
        minutes = sum(line["seconds"] for line in own) / len(own) / 60
        cells = [*map(str, key), *text, *["–"] * (2 - len(text)), str(len(own)), f"{minutes:.0f}"]
        print("| " + " | ".join(cells) + " |")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("settings", nargs="*", metavar="FACTOR|PRIOR|EPOCHS|SEED")
    parser.add_argument("--data", default="cifar10", help="a local copy, or the hub name")
    parser.add_argument("--out", type=Path, default=Path("ceiling.jsonl"))
    parser.add_argument("--network", default="convnet-w32-in")
    parser.add_argument("--protocol", default="quick", help="whose training is used")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--table", action="store_true", help="print means over seeds")
    options = parser.parse_args()
    lines = options.out.read_text("utf-8").splitlines() if options.out.exists() else []
    known = [json.loads(line) for line in lines]
    if options.table:
        return table(known)
    tune_allocator()
    torch.set_num_threads(options.threads)
    facts = {"network": options.network, "protocol": options.protocol}
    done = {(k["setting"], *(k[name] for name in facts)) for k in known}
    whole, test, _ = potstill.load_pair(options.data)
    for setting in options.settings:
        if (setting, *facts.values()) in done:
            continue
        factor, prior, epochs, seed = setting.split("|")
        train, held = split(whole, float(factor))
        began = time.monotonic()
        run = Run(seed=int(seed), device="cpu", quiet=True)
        sets = {"held": held, "test": test}
        found = measure(train, sets, prior, int(epochs), run, options)
        record = {
            "setting": setting,
            **facts,
            "factor": float(factor), "prior": prior, "epochs": int(epochs), "seed": int(seed),
            **found,
            "images": len(train),
            "seconds": round(time.monotonic() - began),
            "device": describe("cpu")["device"],
        }  # fmt: skip
        with options.out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
