"""Scoring a run folder: what is measured, and what stands there already."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from potstill.app.opening import Data, open_data
from potstill.data import ImageSet
from potstill.evaluation import (
    InheritedClassifier,
    LinearBench,
    Probe,
    evaluate,
    find_protocol,
    full_name,
    read_scores,
    some_networks,
    write_scores,
)
from potstill.evaluation.bench import tiles_per_side
from potstill.evaluation.inheritance import fits
from potstill.evaluation.record import check_scores, names_of
from potstill.experts.backbones import check_backbone
from potstill.nets import parse
from potstill.reports import refresh_card, write_card
from potstill.run import InputError, Run
from potstill.run.errors import system_refusals
from potstill.run.fields import Runs, check_value
from potstill.run.folder import read_record, refuse_unfinished
from potstill.synthetic import SyntheticSet
from potstill.synthetic.artifact_folder import TENSORS
from potstill.synthetic.iterates import list_iterates

__all__ = ["check_networks", "evaluate_run", "evaluated"]


def check_networks(names: Iterable[str], protocol: Any) -> None:
    """Refuse names that are no backbones' under a probe, no student networks' otherwise."""
    for name in names:
        if isinstance(protocol, Probe):
            if name != "same":
                check_backbone(name, None)
        elif name == "same":
            raise InputError(
                "network is 'same', which is a backbone; use a probe (--protocol probe)"
            )
        else:
            parse(name)


@system_refusals()
def evaluate_run(
    folder: Path,
    run: Run,
    *,
    network: Sequence[str],
    protocol: Any = "default",
    data: str | None = None,
    test: str | None = None,
    image_size: int | None = None,
    imbalance_factor: float = 1.0,
    inherit: Any = None,
    **options: Any,
) -> list[Any]:
    """Score a run folder on its own source's test split; fill ``scores.json`` and the card.

    Each network's scores are written as soon as they are known. ``options`` go to
    :func:`potstill.evaluate`. ``inherit``: an :class:`potstill.evaluation.Inheritance`; the head
    that is shipped is written to ``head.safetensors``, and taken from there if there is one.
    ``data`` and ``test`` name other places of real images; ``image_size`` and ``imbalance_factor``
    say how those of an artifact without its run are read.
    """
    how = find_protocol(protocol)
    check_value("runs", options.get("runs", 1), Runs)
    network = some_networks(network)
    check_networks(network, how)  # before data are decoded
    if not folder.exists():
        raise InputError(
            f"folder is {folder}, which does not exist; give the folder of a distillation run"
        )
    check_scores(folder)
    asked = {"image_size": image_size, "imbalance_factor": imbalance_factor, "test": test}
    syn, train, held, note, sender = _opened(folder, run, data, asked)
    options["sender"] = options.get("sender") or sender
    for name in () if isinstance(how, Probe) else network:  # before the first of them is trained
        full_name(name, held)
    records = []
    options.setdefault("iterates", list_iterates(folder))
    if inherit is not None and isinstance(how, Probe):
        bench = LinearBench(syn, train, held, how, run, options["sender"])
        own = (folder / "run.json").is_file()
        inherit = InheritedClassifier(bench, inherit).kept(folder / "head.safetensors", own)
    options |= {"protocol": protocol, "run": run, "test_note": note, "inherit": inherit}
    for name in network:
        records += evaluate(syn, train, held, network=name, **options)
        write_scores(folder, records)
        write_card(folder)
    return records


def _opened(
    folder: Path, run: Run, data: str | None, asked: dict[str, Any]
) -> tuple[SyntheticSet, ImageSet, ImageSet, str, str | None]:
    """The set in a folder, its real data, a sentence about the test, and the sender's backbone."""
    if data is not None and not (folder / "run.json").exists():  # an artifact without its run
        syn = SyntheticSet.load(folder)
        return syn, *Data(data=data, **asked).open(run), None
    if not (folder / "run.json").exists() and (folder / TENSORS).is_file():
        raise InputError(f"data is not given, and {folder} is an artifact without its run; name it")
    for name, plain in (("image_size", None), ("imbalance_factor", 1.0)):
        if asked[name] != plain:
            raise InputError(
                f"{name} is {asked[name]}, but run.json of {folder} says it; leave it out"
            )
    record = read_record(folder)
    refuse_unfinished(record, folder)
    syn = SyntheticSet.load(folder)
    refuse_unfinished(record, folder, syn.checksum)
    known, key = record["job"].get("fields"), "backbone"
    if syn.projection is not None:  # of a backbone that need not be the one that distilled
        known, key = record.get("relabelled"), "teacher"
    sender = known.get(key) if isinstance(known, dict) else None
    return (
        syn,
        *open_data(record, run, data, asked["test"]),
        sender if isinstance(sender, str) else None,
    )


def evaluated(
    folder: Path,
    run: Run,
    *,
    networks: Sequence[str],
    protocol: Any,
    runs: int = 5,
    full: bool | int = False,
    inherit: Any = None,
    **options: Any,
) -> list[Any]:
    """Return the scores of a finished run under these conditions, one for each network.

    Those that stand in its folder are read: of this artifact, data, protocol, number of runs and
    seed, with what is asked for beside. Only the others are measured.
    """
    syn = SyntheticSet.load(folder)
    train, test, _ = open_data(read_record(folder), run)
    size, tiled = (syn.shape[1], syn.shape[2]), tiles_per_side(syn) > 1
    probed = isinstance(protocol, Probe)
    wanted = list(networks) if probed else [str(parse(name).at(size)) for name in networks]
    asked = (syn.checksum, protocol.hash, protocol.students(runs), run.seed)
    data = (train.checksum, test.checksum)

    def known() -> dict[str, Any]:
        found = {}
        for score in read_scores(folder):
            same = (score.artifact, score.protocol.get("hash"), score.runs, score.seed) == asked
            own = (score.train_checksum, score.test_checksum) == data
            trained = (score.ceiling or {}).get("accuracy", {}).get("values") or ()
            beside = len(trained) >= int(full) and (score.mosaic or not tiled)
            beside = beside and (score.start or syn.start is None)
            if same and own and beside and fits(inherit, score.inherited, score.kd):
                found.update(dict.fromkeys(names_of(score.network, score.backbone), score))
        return found

    there = known()
    missing = [name for name in wanted if name not in there]
    if missing:
        options |= {"network": missing, "protocol": protocol, "inherit": inherit}
        evaluate_run(folder, run, runs=runs, full=full, **options)
        there = known()
    else:
        refresh_card(folder)
    return [there[name] for name in wanted]
