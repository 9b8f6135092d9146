"""One distillation from a source to a run folder that can be killed, resumed, scored and shown.

runs/x/run.json               what runs here and whether it has finished
runs/x/metrics.jsonl          losses and per-class diagnostics over the steps
runs/x/checkpoint.safetensors state to resume from
runs/x/pictures/              real examples and the images at a few steps
runs/x/synthetic/             the artifact (see potstill.synthetic)
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from potstill.app.opening import Data, fold_of, open_data
from potstill.data import ImageSet
from potstill.experts.backbones import check_backbone
from potstill.methods import Method, find
from potstill.nets import parse
from potstill.reports.gallery import Gallery, picture_real
from potstill.run import InputError, Run, logger
from potstill.run.checkpoint import digest, write_json
from potstill.run.errors import system_refusals
from potstill.run.fields import Batch, Runs, check_value
from potstill.run.folder import claimed, read_record, refuse_unfinished
from potstill.synthetic import SyntheticSet

__all__ = ["Data", "distill", "evaluate_run", "evaluated", "open_data"]


def check_probed(name: str) -> None:
    """Refuse a name that is no backbone's under a probe."""
    if name != "same":
        check_backbone(name, None)


def check_student(name: str) -> None:
    """Refuse a name that is no student network's under any other protocol."""
    if name == "same":
        raise InputError("network is 'same', which is a backbone; use a probe (--protocol probe)")
    parse(name)


@system_refusals()
def evaluate_run(
    folder: Path,
    run: Run,
    *,
    network: Sequence[str],
    protocol: Any = "default",
    data: str | None = None,
    inherit: Any = None,
    **options: Any,
) -> list[Any]:
    """Score a run folder on its own source's test split; fill ``scores.json`` and the card.

    Each network's scores are written as soon as they are known. ``options`` go to
    :func:`potstill.evaluate`. ``inherit``: an :class:`potstill.evaluation.Inheritance`; the head
    that is shipped is written to ``head.safetensors``, and taken from there if there is one.
    """
    from potstill.evaluation import (
        InheritedClassifier,
        LinearBench,
        Probe,
        evaluate,
        find_protocol,
        full_name,
        some_networks,
        write_scores,
    )
    from potstill.evaluation.record import check_scores
    from potstill.reports import write_card
    from potstill.synthetic.iterates import list_iterates

    how = find_protocol(protocol)
    probed = isinstance(how, Probe)
    check_value("runs", options.get("runs", 1), Runs)
    for name in some_networks(network):  # before data are decoded
        check_probed(name) if probed else check_student(name)
    if not folder.exists():
        raise InputError(
            f"folder is {folder}, which does not exist; give the folder of a distillation run"
        )
    check_scores(folder)
    if data is not None and not (folder / "run.json").exists():  # an artifact without its run
        syn = SyntheticSet.load(folder)
        train, test, note = Data(data=data).open(run)
    else:
        record = read_record(folder)
        refuse_unfinished(record, folder)
        syn = SyntheticSet.load(folder)
        refuse_unfinished(record, folder, syn.checksum)
        train, test, note = open_data(record, run, data)
        known = record["job"].get("fields")
        sender = known.get("backbone") if isinstance(known, dict) else None
        options.setdefault("sender", sender if isinstance(sender, str) else None)
    for name in () if probed else network:  # before the first of them is trained
        full_name(name, test)
    records = []
    options.setdefault("iterates", list_iterates(folder))
    if inherit is not None and isinstance(how, Probe):
        bench = LinearBench(syn, train, test, how, run, options.get("sender"))
        own = (folder / "run.json").is_file()
        inherit = InheritedClassifier(bench, inherit).kept(folder / "head.safetensors", own)
    for name in network:
        records += evaluate(
            syn,
            train,
            test,
            network=name,
            protocol=protocol,
            run=run,
            test_note=note,
            inherit=inherit,
            **options,
        )
        write_scores(folder, records)
        write_card(folder)
    return records


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
    from potstill.evaluation import Probe, read_scores
    from potstill.evaluation.bench import tiles_per_side
    from potstill.evaluation.inheritance import fits
    from potstill.evaluation.record import names_of
    from potstill.reports import refresh_card

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
            beside = (score.ceiling or not full) and (score.mosaic or not tiled)
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


@system_refusals()
def distill(
    method: Method | str,
    data: Any = "digits",
    *,
    ipc: int = 10,
    out: str | Path | None = None,
    run: Run | None = None,
    budget: str = "quick",
    imbalance_factor: float = 1.0,
    force: bool = False,
    label: str | None = None,
    **options: Any,
) -> SyntheticSet:
    """Distil a data set.

    Args:
        method: a method object, or its name at a ``budget`` ("quick", "standard", "paper").
        data: any source of :func:`potstill.load`, an :class:`ImageSet`, or a :class:`Data`.
        ipc: stored images per class.
        out: run folder; ``None`` keeps nothing on disk.
        imbalance_factor: cut the train split to a long tail first; 1 leaves it as it is.
        force: replace a finished run, or that of another job, in ``out``.
        label: name of the budget that a method object was made from, for the provenance.
        options: further fields of :class:`Data`.

    Returns:
        The synthetic set. A finished run of the same job is read, not repeated.

    Example:
        >>> syn = potstill.distill("csdm", "digits", ipc=10, imbalance_factor=50, out="runs/csdm")
    """
    run = run or Run()
    check_value("ipc", ipc, Batch)
    if isinstance(method, str):
        method = find(method).budget(budget)
        chosen: str | None = budget
    else:
        chosen = label
    method.check()  # before data are decoded; _run checks again whether they fit
    twice = [*options, *(["imbalance_factor"] if imbalance_factor != 1 else [])]
    if (isinstance(data, ImageSet) and options) or (isinstance(data, Data) and twice):
        raise InputError(
            f"{twice[0]} is given beside data that are a {type(data).__name__} already; "
            "choose it there"
        )
    note, history = "", None
    if isinstance(data, ImageSet):
        train = data if imbalance_factor == 1 else data.long_tailed(imbalance_factor)
        described: dict[str, Any] = {"data": data.source, "in_memory": True}
        history = list(train.history)
        described |= fold_of(history)
    else:
        named = isinstance(data, (str, Path))
        if not isinstance(data, Data):
            options |= {"imbalance_factor": imbalance_factor}
            data, source = Data(data=str(data) if named else "arrays", **options), data
        else:
            named, source = True, None
        train, _, note = data.open(run, None if named else source)
        described = data.facts() | ({} if named else {"in_memory": True})
    return _run(
        method, train, ipc, run, Path(out) if out else None, described, chosen, note, force, history
    )


def _run(
    method: Method,
    train: ImageSet,
    ipc: int,
    run: Run,
    folder: Path | None,
    described: dict[str, Any],
    budget: str | None,
    note: str,
    force: bool,
    history: list[dict[str, Any]] | None = None,
) -> SyntheticSet:
    _sensible(train, ipc)
    method.check(train)
    if folder is None:
        return method(train, ipc, run)
    job: dict[str, Any] = {
        "method": method.info.name,
        "fields": method.fields(),
        "budget": budget,
        "ipc": ipc,
        "seed": run.seed,
        "data": described,
        "train_checksum": train.checksum,
        "test_note": note,
    }
    if history is not None:  # how an ImageSet was cut, to repeat it
        job["history"] = history
    # run.json used to name a profile for sets that are not cut, too: such runs keep their key
    named = {"profile": "exponential"} if "imbalance_factor" in described else {}
    key = digest([method.key(train, ipc, run), named | described])
    with claimed(folder, key, force) as finished:
        if finished:
            logger.warning(
                "%s is already finished with this very job; nothing to do (--force runs it again)",
                folder,
            )
            return SyntheticSet.load(folder / "synthetic")
        record = {"status": "running", "job": job, "key": key, "started": _now()}
        write_json(folder / "run.json", record)
        picture_real(folder, train, ipc)
        steps = int(method.fields().get("steps", 0))
        gallery = Gallery(folder, train.classes, steps, run.watch)
        syn = method(train, ipc, run.with_(folder=folder, watch=gallery))
        syn.provenance.update(
            {"budget": budget, "test_note": note, "data_options": _travelling(described, train)}
        )
        syn.save(folder / "synthetic")
        done = {"status": "finished", "finished": _now(), "seconds": syn.provenance["seconds"]}
        write_json(folder / "run.json", record | done | {"artifact": syn.checksum})
    return syn


def _now() -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S")


def _travelling(described: dict[str, Any], train: ImageSet) -> dict[str, Any]:
    """Options as they stand in an artifact, which others get: without this machine's paths."""
    test = described.get("test")
    shown = Path(test).name if test and Path(test).exists() else test
    return described | {"data": train.source} | ({"test": shown} if test else {})


def _sensible(train: ImageSet, ipc: int) -> None:
    most = max(1, (len(train) - 1) // train.num_classes)
    if not 1 <= ipc <= most:
        raise InputError(
            f"ipc is {ipc} for {len(train)} real images in {train.num_classes} classes; use 1 to "
            f"{most}, so that the synthetic set is smaller than the real one"
        )
