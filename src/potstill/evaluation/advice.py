"""Which step size suits a network on a synthetic set: a small sweep, kept with the artifact.

A protocol's step size was chosen for one network. What another one should have is read off real
*training* images, never off the test set; they are those the set was made from, which favours no
step size over another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from potstill.data import ImageSet
from potstill.evaluation.examples import synthetic_examples
from potstill.evaluation.protocol import Protocol, find_protocol
from potstill.evaluation.scores import full_name
from potstill.evaluation.student import train_students
from potstill.run import InputError, Run
from potstill.run.checkpoint import write_json
from potstill.run.fields import Positive, Runs, check_value
from potstill.synthetic import SyntheticSet
from potstill.synthetic.artifact_folder import PROVENANCE, find

__all__ = ["advise_lr"]

_FACTORS = (0.1, 0.3, 1.0, 3.0, 10.0)
_WATCHED = 100  # real training images of a class that are looked at


def advise_lr(
    syn: SyntheticSet | str | Path,
    train: ImageSet,
    *,
    network: str = "convnet-w128-in",
    protocol: str | Protocol = "default",
    rates: Sequence[float] = (),
    runs: int = 2,
    run: Run | None = None,
) -> dict[str, Any]:
    """Train students with several step sizes and say which did best on real training images.

    Args:
        syn: the artifact, or its folder (or that of its run), in whose provenance the sweep is
            kept: the same one is not trained again.
        train: the real set it was distilled from; 100 images of a class are looked at.
        network: the student. protocol: how it is trained. rates: step sizes; by default a tenth
            to ten times the protocol's. runs: students of each.

    Returns:
        ``lr``, and with it ``accuracy`` (rate to the mean over classes, percent), the network, the
        protocol's hash and the artifact. Use it as ``protocol.with_(lr=advice["lr"])``.

    Raises:
        InputError: a protocol that is a probe, or a rate out of range.

    Example:
        >>> advice = advise_lr("runs/demo", train, network="mlp-w8", protocol="quick")
        >>> sorted(advice["accuracy"], key=float)
        ['0.0003', '0.0009', '0.003', '0.009', '0.03']
    """
    run, how = run or Run(), find_protocol(protocol)
    folder = None if isinstance(syn, SyntheticSet) else find(Path(syn))
    syn = syn if isinstance(syn, SyntheticSet) else SyntheticSet.load(syn)
    if not isinstance(how, Protocol):
        raise InputError(f"protocol is {how.name!r}, a probe; step sizes are those of students")
    check_value("runs", runs, Runs)
    training = how.training_for(syn.ipc, syn.syn_lr)
    chosen = [float(f"{rate:.3g}") for rate in rates or (f * training.lr for f in _FACTORS)]
    for rate in chosen:
        check_value("rates", rate, Positive)
    name = full_name(network, train)
    facts = {
        "network": name, "protocol": how.hash, "artifact": syn.checksum, "runs": runs,
        "seed": run.seed, "train": train.checksum, "rates": chosen,
    }  # fmt: skip
    kept = [entry for entry in syn.provenance.get("advice", []) if isinstance(entry, dict)]
    for entry in kept:
        if all(entry.get(key) == value for key, value in facts.items()):
            return entry
    plain = replace(how, selection="last", test_every=0, held_out=None)
    watched = train.select(_watched(train, run))
    examples = synthetic_examples(syn, how.labels)
    found = {}
    for rate in chosen:
        outcome = train_students(
            examples, replace(training, lr=rate), plain, network=name, test=watched, runs=runs,
            run=run, label=f"step size {rate:g}",
        )  # fmt: skip
        found[f"{rate:g}"] = float(outcome.last.nanmean())
    advice = facts | {"accuracy": found, "lr": float(max(found, key=lambda rate: found[rate]))}
    if folder is not None:
        write_json(folder / PROVENANCE, syn.provenance | {"advice": [*kept, advice]})
    return advice


def _watched(train: ImageSet, run: Run) -> torch.Tensor:
    rows = []
    for label in range(train.num_classes):
        own = train.of_class(label)
        order = torch.randperm(len(own), generator=run.generator("advice", label))
        rows.append(own[order[:_WATCHED]])
    return torch.cat(rows).sort().values
