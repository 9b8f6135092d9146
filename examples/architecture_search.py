"""Architecture search: rank networks by a small proxy set instead of all real images.

Run it with ``python examples/architecture_search.py [--quick]``. Depth, width, activation and
pooling vary, as in DC (Zhao et al., ICLR 2021), which has 720 networks on CIFAR-10.
"""

from __future__ import annotations

import argparse
import itertools
import time

from scipy.stats import spearmanr

import potstill
from potstill.evaluation import train_students
from potstill.evaluation.examples import random_examples, real_examples, synthetic_examples
from potstill.reports.table_text import markdown


def main(quick: bool) -> None:
    run = potstill.Run(quiet=True)
    train, test, _ = potstill.load_pair("digits")
    train, held = train.hold_out(10)  # by these networks are ranked; the test set is left alone
    grid = itertools.product((1, 2), (4, 16), ("relu", "sigmoid"), ("avg", "max", "nopool"))
    names = [f"convnet-d{d}-w{w}-in-{act}-{pool}" for d, w, act, pool in grid]
    names = names[:: 6 if quick else 1]
    method = potstill.CATALOGUE["dm"].budget("quick", network="convnet-w32-in")
    syn = method.with_(steps=20 if quick else 300)(train, 5, run)

    def accuracy(name, examples, epochs, images):
        how = potstill.PROTOCOLS["quick-noflip"].with_(epochs=epochs)
        shared = {"network": name, "runs": 1, "run": run}
        return float(train_students(examples, how.training, how, test=images, **shared).last.mean())

    real = real_examples(train, syn.transform), 2 if quick else 8
    few = 8 if quick else 60  # epochs
    sets = {
        "all real images": real,
        "dm": (synthetic_examples(syn), few),
        "random": (random_examples(train, syn.counts, syn.transform, run), few),
    }
    found, rows = {}, []
    for title, (examples, epochs) in sets.items():
        began = time.monotonic()
        found[title] = [accuracy(name, examples, epochs, held) for name in names]
        seconds = time.monotonic() - began
        best = names[max(range(len(names)), key=found[title].__getitem__)]
        agree = float(spearmanr(found[title], found["all real images"]).statistic)
        row = {"ranked by": title, "best": best, "its test accuracy": accuracy(best, *real, test)}
        rows.append(row | {"rank correlation": agree, "seconds": seconds})
    print(markdown([{k: round(v, 2) if isinstance(v, float) else v
                     for k, v in row.items()} for row in rows]))  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a few steps, to see that it works")
    main(parser.parse_args().quick)
