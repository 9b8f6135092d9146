"""Scores: students on the artifact, on its 8-bit view, on random real images and on all of them.

A tiled set stores several training images in one, so random real images stand beside it twice: as
many as there are stored images, and as many as its storage holds (mosaics).

The test set is looked at once per student, after its last epoch, unless a protocol says otherwise
in its name, its description and its hash.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from potstill.data import ImageSet
from potstill.evaluation.bench import Bench, Beside
from potstill.evaluation.inheritance import Inheritance, InheritedClassifier
from potstill.evaluation.labels import receiver_bytes
from potstill.evaluation.linear_bench import LinearBench
from potstill.evaluation.probe import Probe
from potstill.evaluation.protocol import Protocol, find_protocol
from potstill.evaluation.record import Result, Score, part, read_scores, write_scores
from potstill.evaluation.teaching import teaching
from potstill.nets import create, parse
from potstill.nets.own import named, network_of
from potstill.run import InputError, Run, logger
from potstill.run.errors import system_refusals
from potstill.run.fields import Runs, Students, check_value
from potstill.run.folder import read_record, refuse_unfinished
from potstill.run.machine import describe
from potstill.synthetic import SyntheticSet
from potstill.synthetic.imported import import_set
from potstill.synthetic.iterates import list_iterates

__all__ = ["Score", "evaluate", "full_name", "read_scores", "some_networks", "write_scores"]


@system_refusals()
def evaluate(
    syn: SyntheticSet | str | Path | tuple[Any, Any],
    train: ImageSet,
    test: ImageSet,
    *,
    network: Any = "convnet-w128-in",
    protocol: str | Protocol | Probe = "default",
    runs: int = 5,
    run: Run | None = None,
    baseline: bool = True,
    quantized: bool = True,
    full: bool | int = False,
    test_note: str = "",
    iterates: Sequence[Path] | None = None,
    inherit: Inheritance | None = None,
    sender: str | None = None,
) -> list[Score]:
    """Train students on a synthetic set, test them, and score a random real subset beside them.

    Args:
        syn: the artifact or its folder (or that of its run), or images (RGB 0-1) and labels as
            :func:`potstill.import_set` takes them.
        train: the real set it was distilled from: groups and references come from it.
        test: what students are tested on; same classes, same shape.
        network: one or several student networks, by their names or a mapping of names to
            constructors of yours; under a probe, backbones ("same" is the one that distilled).
        protocol: a name of :data:`PROTOCOLS` or :data:`PROBES`, or your own.
        runs: students per network. run: seed, device, cache.
        baseline: score the images and labels that the artifact was before step 0, a random real
            subset with as many images per class and, where a stored image holds several, random
            real images at the same storage (all cached by content).
        quantized: score the 8-bit view as well.
        full: score training on all of ``train``, plainly and under the recipe of the ceiling
            (:mod:`potstill.evaluation.references`): the number of students of each, True for one
            (costly, cached by content).
        test_note: where the test set comes from, in a sentence.
        iterates: files of :mod:`potstill.synthetic.iterates`, for selection "test_max_iterates";
            by default those in the folder.
        inherit: under a probe, score the sender's classifier beside the images, too.
        sender: the backbone that distilled (or that a projection is of), where the artifact does
            not tell its place.

    Returns:
        One score per network.

    Raises:
        InputError: classes, shapes or arguments do not fit; the sentence says which.

    Example:
        >>> train, test, note = potstill.load_pair("digits")
        >>> (score,) = potstill.evaluate("runs/demo", train, test, protocol="quick", test_note=note)
    """
    run = run or Run()
    if isinstance(syn, tuple):
        syn = import_set(*syn, real=train)
    if not isinstance(syn, SyntheticSet):
        folder, syn = Path(syn), SyntheticSet.load(syn)
        iterates = list_iterates(folder) if iterates is None else iterates
        if (folder / "run.json").is_file():
            refuse_unfinished(read_record(folder), folder, syn.checksum)
    protocol = find_protocol(protocol)
    check_value("runs", runs, Runs)
    check_value("full", full, bool | Students)
    _check(syn, train, test)
    names = some_networks(network)
    best_of_all = protocol.selection == "test_max_iterates"
    wanted = _Wanted(baseline, quantized and not best_of_all, int(full))
    if isinstance(protocol, Probe):
        heads = LinearBench(syn, train, test, protocol, run, sender)
        return [_probed(heads, name, runs, wanted, inherit, test_note) for name in names]
    if inherit is not None:
        raise InputError(
            f"inherit is given under protocol {protocol.name!r}; a classifier is inherited under "
            "a probe, as with protocol='probe'"
        )
    if best_of_all and not iterates:
        raise InputError(
            f"protocol is {protocol.name!r} but no iterates were kept; distil with --iterate-every "
            "500 (trajectory methods) and give the run's folder"
        )
    names = [full_name(name, test) for name in names]
    rest, watch = train, None
    if protocol.selection == "val":
        rest, watch = train.hold_out(protocol.held_out, run.seed)
    who = teaching(syn, rest, protocol, run, sender)
    of_whole = teaching(syn, rest, protocol, run, sender, whole=True) if baseline else None
    bench = Bench(syn, train, test, protocol, run, rest, watch, who, of_whole)
    scores = []
    for name in names:
        own = partial(bench.best_iterate, name, iterates or ()) if best_of_all else None
        scores.append(_score(bench, name, name, runs, wanted, test_note, own))
    return scores


class _Wanted(NamedTuple):
    """What is scored beside the artifact."""

    baseline: bool
    quantized: bool
    full: int  # students


def _check(syn: SyntheticSet, train: ImageSet, test: ImageSet) -> None:
    """Raise InputError unless everything fits together."""
    for split, real in (("train", train), ("test", test)):
        if len(real.classes) != len(syn.classes):
            raise InputError(
                f"{split} has {len(real.classes)} classes and the artifact {len(syn.classes)}; "
                "give the data the artifact was made from"
            )
        for label, (own, other) in enumerate(zip(syn.classes, real.classes, strict=True)):
            if own != other:
                raise InputError(
                    f"class {label} is {other!r} in {split} and {own!r} in the artifact; "
                    "give the data the artifact was made from"
                )
        if real.shape != syn.shape:
            raise InputError(
                f"{split} has images of shape {real.shape} and the artifact {syn.shape}; "
                "load it with the same image size and channels"
            )
    made_from = part(syn.provenance, "data").get("checksum")
    if made_from not in (None, train.checksum):
        logger.warning(
            "train (checksum %s) is not the set the artifact was made from (%s): its groups and "
            "references are those of another set", train.checksum, made_from,
        )  # fmt: skip


def some_networks(network: Any) -> list[str]:
    """Return the names; none at all would be scored without a word.

    Modules and constructors get one (:mod:`potstill.nets.own`), a mapping says which.
    """
    if isinstance(network, Mapping):
        return [network_of(make, name=name) for name, make in network.items()]
    several = isinstance(network, Iterable) and not isinstance(network, str | nn.Module)
    names = [named(one) for one in (network if several else [network])]
    if not names:
        raise InputError("network names none; give at least one, such as convnet-w128-in")
    return names


def full_name(network: str, test: ImageSet) -> str:
    """Return the network's name with its depth; building it finds mistakes before any training."""
    c, h, w = test.shape
    spec = parse(network).at((h, w))
    generator = torch.Generator().manual_seed(0)
    create(spec, channels=c, size=(h, w), classes=test.num_classes, generator=generator)
    return str(spec)


def _probed(
    bench: LinearBench,
    name: str,
    runs: int,
    wanted: _Wanted,
    inherit: Inheritance | None,
    note: str,
) -> Score:
    """Score one backbone, and what else is wanted under it."""
    backbone, own = bench.open(name)
    place = Path(own).expanduser()
    heir = None if inherit is None else InheritedClassifier(bench, inherit)
    return replace(
        _score(bench, backbone, backbone.label, runs, wanted, note),
        backbone={
            "label": backbone.label,
            "key": backbone.key,
            "name": place.name if place.is_dir() else own,
            "same": backbone.key == part(bench.syn.provenance, "backbone").get("key"),
        },
        inherited=None
        if heir is None
        else heir.inherited(backbone, runs, random=wanted.baseline, whole=bool(wanted.full)),
        kd=heir.kd(backbone, runs) if heir and heir.how.kd else None,
    )


def _tested(test: ImageSet, note: str) -> dict[str, Any]:
    """What the record says about the test images; the fold that they are, if they are one."""
    smallest = min(count for count in test.counts if count)
    facts = {"source": test.source, "images": len(test), "smallest": smallest, "sentence": note}
    fold = next((f for f in reversed(test.history) if f.get("op") == "fold"), None)
    facts |= {"lacks": list(test.lacking)} if test.lacking else {}
    return facts | ({"fold": f"{fold['fold']}/{fold['folds']}"} if fold else {})


def _score(
    bench: Beside, student: Any, network: str, runs: int, wanted: _Wanted, note: str,
    measure: Callable[[], Result] | None = None,
) -> Score:  # fmt: skip
    """Score the artifact by students of one kind, and what is wanted beside it."""
    begin = time.perf_counter()
    result = measure() if measure else bench.artifact(bench.syn, student, runs)
    seconds = time.perf_counter() - begin
    syn, test, machine = bench.syn, bench.test, describe(bench.run.device)
    who = bench.teaching if isinstance(bench, Bench) else None
    score = Score(
        network=network,
        protocol=bench.protocol.to_json(),
        label_tier=bench.tier,
        runs=bench.protocol.students(runs),
        seed=bench.run.seed,
        artifact=syn.checksum,
        **result,
        classes=list(syn.classes),
        train_counts=list(bench.train.counts),
        seconds=seconds,
        receiver_bytes=receiver_bytes(syn, bench.tier, held=who.held if who else 0),
        teacher=who.facts if who else None,
        device=machine["device"],
        threads=machine["threads"],
        date=date.today().isoformat(),
        test=_tested(test, note),
        test_checksum=test.checksum,
        train_checksum=bench.train.checksum,
        chosen=part(syn.provenance, "method").get("family") == "selection",
        quantized=bench.eight_bit(student, runs, result) if wanted.quantized else None,
        start=bench.start(student, runs) if wanted.baseline else None,
        random=bench.random(student, runs) if wanted.baseline else None,
        mosaic=bench.mosaic(student, runs) if wanted.baseline else None,
    )
    if not wanted.full:
        return score
    plain, ceiling = bench.whole(student, wanted.full)  # last, for it takes longest
    return replace(score, full=plain, ceiling=ceiling)
