"""Continual learning: classes come two at a time, and only a distilled memory of each is kept.

Run it with ``python examples/continual.py [--quick]``. After every step a network is trained anew
on the memory alone and tested on all classes seen so far (GDumb; Prabhu et al., ECCV 2020).
"""

from __future__ import annotations

import argparse
import itertools

import torch

import potstill
from potstill.evaluation import train_students
from potstill.nets import Examples
from potstill.reports.table_text import markdown

MEMORY = 5  # images per class


def main(quick: bool) -> None:
    run, order = potstill.Run(quiet=True), [3, 8, 0, 5, 1, 9, 2, 7, 4, 6][: 4 if quick else 10]
    protocol = potstill.PROTOCOLS["quick-noflip"].with_(epochs=15 if quick else 100)
    students = {"network": "convnet-w32-in", "runs": 2 if quick else 3, "run": run}
    small = {"steps": 40} if quick else {}
    methods = {
        "random": potstill.CATALOGUE["random"].budget("quick"),
        "dm": potstill.CATALOGUE["dm"].budget("quick", network="convnet-w32-in", **small),
    }
    rows = []
    for name, method in methods.items():
        images, labels, row = [], [], {"memory": name}
        for step in itertools.count():
            new = order[2 * step : 2 * step + 2]
            if not new:
                break
            train, _, _ = potstill.load_pair("digits", subset=",".join(map(str, new)))
            made = method(train, MEMORY, run)  # these classes alone; the others are gone
            shown, hard, _, _ = made.decoded()
            images.append(shown)
            labels.append(hard + 2 * step)
            seen = order[: 2 * step + 2]
            _, test, _ = potstill.load_pair("digits", subset=",".join(map(str, seen)))
            memory = Examples(torch.cat(images), torch.cat(labels), made.transform)
            result = train_students(memory, protocol.training, protocol, test=test, **students)
            row[f"{len(seen)} classes"] = float(result.last.mean())
        rows.append(row)
    print(markdown([{k: round(v, 1) if k != "memory" else v for k, v in r.items()} for r in rows]))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a few steps, to see that it works")
    main(parser.parse_args().quick)
