"""Distil long-tailed digits, score the result, write its page. Nothing is downloaded.

Run it with ``python examples/quickstart.py [--quick]``.
"""

from __future__ import annotations

import argparse

import potstill
from potstill.evaluation import write_scores
from potstill.methods import CSDM


def main(quick: bool) -> None:
    # Real data: 8x8 digits, cut to a long tail (128 zeros down to 2 nines), and a balanced test.
    train, test, note = potstill.load_pair("digits")
    train = train.long_tailed(50)
    print(f"{len(train)} real images, per class {train.counts}")

    # A method is a dataclass of hyper-parameters; a budget names a whole set of them.
    method = CSDM.budget("quick")
    protocol, runs = potstill.PROTOCOLS["quick-noflip"], 5
    if quick:
        method = CSDM.budget("quick", steps=40, members=2, pool_epochs=2, entries=5)
        protocol, runs = protocol.with_(epochs=20), 2

    # The run folder holds checkpoints, pictures and the artifact. Without force, a killed run
    # resumes and a finished one is read; with it, every start of this example begins anew.
    folder = "runs/quickstart"
    syn = potstill.distill(method, train, ipc=10, out=folder, force=True)
    print(f"{len(syn)} synthetic images, {syn.nbytes / 1000:.0f} kB -> {folder}/synthetic")

    # Students are trained on the synthetic set and tested once, beside a random real subset.
    scores = potstill.evaluate(
        syn, train, test, network="convnet-w32-in", protocol=protocol, runs=runs, test_note=note
    )
    for score in scores:
        for name, result in (("distilled", score.accuracy), ("random", score.random["accuracy"])):
            print(f"{name:10s} {result['mean']:.1f} ± {result['std']:.1f} % over {runs} students")
        groups = (f"{name} {group['mean']:.1f}" for name, group in score.groups.items())
        print("distilled by class size:", ", ".join(groups))

    write_scores(folder, scores)
    print("page:", potstill.report(folder))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a few steps, to see that it works")
    main(parser.parse_args().quick)
