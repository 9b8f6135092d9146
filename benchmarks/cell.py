"""One table cell: distil CIFAR-10-LT or digits, score it, keep both; ended at any time, it goes on.

What ``potstill recipe`` does, with fewer libraries (neither ``tyro`` nor ``datasets``) and files:
in FOLDER ``synthetic/`` (tensors, provenance, start), ``scores.json`` and ``metrics.jsonl``, and
beside it the sheet of images ``FOLDER.png``. ``checkpoint*.safetensors`` (a few MB) are for going
on and are gone once all scores are there. Trained networks and decoded images lie in the library's
cache, ``$POTSTILL_CACHE``.

    python benchmarks/cell.py --method csdm --factor 200 --folder OUT [--data FOLDER]
        [--budget standard] [--ipc 10] [--fields JSON] [--scores JSON] [--runs 5] [--device auto]

``--scores``: [[student, protocol, {changes of the protocol}], ...], in order, each kept at once.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from in_parts import sole_user

from potstill.app.opening import Data
from potstill.evaluation import Score, evaluate, find_protocol, read_scores, write_scores
from potstill.methods import find
from potstill.run import PotstillError, Run
from potstill.run.checkpoint import write_json
from potstill.run.machine import tune_allocator
from potstill.run.resume import CHECKPOINTS
from potstill.run.signals import ENDED, ending_signals
from potstill.synthetic import SyntheticSet, grid
from potstill.synthetic.artifact_folder import PROVENANCE, TENSORS
from potstill.synthetic.started import write_start
from potstill.synthetic.tensors import to_file


def tell(**facts: Any) -> None:
    print(json.dumps(facts), flush=True)


def steps_taken(folder: Path) -> int:
    """Steps that the metrics tell of."""
    path = folder / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return int(json.loads(lines[-1])["step"]) + 1 if lines else 0


def keep(syn: SyntheticSet, folder: Path) -> None:
    """Write the set, without the views of it that need more libraries, and its sheet."""
    place = folder / "synthetic"
    place.mkdir(exist_ok=True)
    (place / TENSORS).write_bytes(to_file(syn))
    write_json(place / PROVENANCE, syn.provenance)
    write_start(place, syn)
    sheet = folder.with_name(f"{folder.name}.png")
    sheet.write_bytes(grid(syn.images, syn.labels, syn.classes))


def shown(scores: Sequence[Score], total: int) -> str:
    """Accuracies with what stands beside them, in a line."""
    said = []
    for score in scores:
        beside = {"start": score.start, "random": score.random, "mosaic": score.mosaic}
        known = [f"{k} {v['accuracy']['mean']:.1f}" for k, v in beside.items() if v is not None]
        spread = f" ± {score.accuracy['std']:.1f}" if score.accuracy.get("std") is not None else ""
        said.append(
            f"{score.accuracy['mean']:.1f}{spread} by {score.network} under "
            f"{score.protocol['name']}" + (f" ({', '.join(known)})" if known else "")
        )
    open_ = [f"{total - len(scores)} of {total} scores to come"] * (len(scores) < total)
    return "; ".join([*said, *open_])


def scored(
    syn: SyntheticSet, real: tuple[Any, Any, str], options: argparse.Namespace, run: Run
) -> None:
    """Score what has not been scored by an earlier call; tell after each."""
    wanted: list[tuple[str, str, Mapping[str, Any]]] = json.loads(options.scores)
    scores: list[Score] = []
    for network, name, changes in wanted:
        protocol = find_protocol(name)
        protocol = protocol.with_(**changes) if changes else protocol
        asked = (syn.checksum, protocol.hash, options.runs)
        known = [
            score for score in read_scores(options.folder)
            if (score.artifact, score.protocol.get("hash"), score.runs) == asked
        ]  # fmt: skip
        if not known:
            known = evaluate(
                syn, real[0], real[1], network=network, protocol=protocol, runs=options.runs,
                run=run, quantized=False, test_note=real[2],
            )  # fmt: skip
            write_scores(options.folder, known)
        scores += known[-1:]
        facts = {"network": known[-1].network, "accuracy": known[-1].accuracy}
        tell(**facts, protocol=protocol.name, hash=protocol.hash, figure=shown(scores, len(wanted)))


def work(options: argparse.Namespace) -> None:
    """Distil and score."""
    kind = find(options.method)
    if options.budget not in ("paper", *kind.sizes):
        tell(skipped=f"{options.method} has no budget of the name {options.budget!r}")
        return
    run = Run(device=options.device, quiet=True)
    method: Any = kind.budget(options.budget, **json.loads(options.fields))
    asked = Data(data=options.data, imbalance_factor=options.factor)
    real = asked.open(run)
    steps = method.fields().get("steps", 0)
    tell(data=asked.facts(), counts=list(real[0].counts), method=method.fields())
    try:
        syn = method(real[0], options.ipc, run.with_(folder=options.folder))
    except ENDED:
        taken = steps_taken(options.folder)
        tell(figure=f"about step {taken} of {steps}" if taken else "before step 0")
        raise
    keep(syn, options.folder)
    spent = {key: syn.provenance[key] for key in ("seconds", "peak_memory_gb", "precision")}
    tell(**spent, device=syn.provenance["device"], figure="distilled, not scored yet")
    scored(syn, real, options, run)
    for name in CHECKPOINTS:
        (options.folder / name).unlink(missing_ok=True)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--method", required=True)
    parser.add_argument("--factor", type=float, default=200.0)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--data", default="digits")
    parser.add_argument("--budget", default="standard")
    parser.add_argument("--ipc", type=int, default=10)
    parser.add_argument("--fields", default="{}", help="JSON: what differs from the budget")
    parser.add_argument("--scores", default='[["convnet-w32-in", "quick", {}]]')
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    tune_allocator()
    try:
        # a process whose caller was killed may still be writing its checkpoint
        with ending_signals(), sole_user(options.folder, wait=True):
            work(options)
    except PotstillError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except ModuleNotFoundError as error:
        print(f"{error.name} is missing, which {options.method} needs; install it", file=sys.stderr)
        return 2
    except ENDED as end:
        print("ended; the same command goes on where this one was", file=sys.stderr)
        return int(getattr(end, "code", 130))
    return 0


if __name__ == "__main__":
    sys.exit(main())
