"""Cross-validation: every image is tested once, by students of sets distilled from the others.

Fold k of N is an ordinary run, in ``DIR/fold-k-of-N``, whose data have ``fold="k/N"``; it resumes,
is scored, reported and compared like any other. ``DIR/crossval.json`` holds what they have in
common: the mean over the folds of everything that is measured, with its spread.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from potstill.app.flags import parse_method
from potstill.app.suiting import suiting
from potstill.run.errors import InputError
from potstill.run.fields import Batch, Range, Runs, Seed, check_value

__all__ = ["command", "cross_validate", "pooled"]

_FILE = "crossval.json"
Folds = Annotated[int, Range(2, 1000)]
# parts of a score that are pooled like it
_BESIDE = ("quantized", "random", "mosaic", "full", "ceiling")
_SAME = ("network", "protocol", "label_tier", "classes", "chosen", "receiver_bytes")


def cross_validate(
    method: Any,
    data: Any,
    *,
    out: str | Path,
    folds: int = 5,
    ipc: int = 10,
    run: Any = None,
    networks: Sequence[str] | None = None,
    protocol: str | None = None,
    runs: int = 5,
    full: bool = False,
    force: bool = False,
    label: str | None = None,
) -> list[dict[str, Any]]:
    """Distil and score once for each fold; return the pooled score of each network.

    Finished folds are not repeated, an unfinished one goes on where it was.

    Args:
        method: a method object. data: a :class:`potstill.Data` without a fold; its ``fold_seed``
            says which image is in which fold.
        out: folder of the folds. folds: how many; at most as many as the smallest class has images.
        networks, protocol: as in :func:`potstill.evaluate`; by default what suits the sets.
        runs, full: as there.
        force, label: as in :func:`potstill.distill`.

    Returns:
        Records as in ``scores.json``, whose means and spreads (n - 1) are over folds.

    Raises:
        InputError: an argument does not fit, or a class has too few images.
        DivergedError, StorageError: from the fold that was at work.
    """
    from potstill.app.job import distill
    from potstill.app.scoring import check_networks, evaluated
    from potstill.evaluation import find_protocol
    from potstill.reports import report
    from potstill.run import Run, logger
    from potstill.run.checkpoint import write_json

    run, folder = run or Run(), Path(out).expanduser()
    if protocol is not None:  # mistakes are found before the first fold
        check_networks(networks or (), find_protocol(protocol))
    if data.fold is not None:
        raise InputError(f"fold is {data.fold!r}; crossval runs all folds, so leave it out")
    if data.test is not None:
        raise InputError(f"test is {data.test!r}; crossval tests on the folds, so leave it out")
    check_value("folds", folds, Folds)
    if (folder / "run.json").exists():
        raise InputError(f"out is {folder}, which holds a run of its own; name another folder")
    if force:  # what it pooled is about to be replaced
        (folder / _FILE).unlink(missing_ok=True)
    places, scores = [], []
    for number in range(1, folds + 1):
        place = folder / f"fold-{number}-of-{folds}"
        logger.info("fold %d of %d -> %s", number, folds, place)
        part = replace(data, fold=f"{number}/{folds}")
        distill(method, part, ipc=ipc, out=place, run=run, force=force, label=label)
        names, chosen = suiting(place, None if networks is None else [*networks], protocol)
        how: dict[str, Any] = {"networks": names, "protocol": find_protocol(chosen)}
        scores.append(evaluated(place, run.with_(seed=0), runs=runs, full=full, **how))
        report(place)
        places.append(place.name)
    records = [pooled([score.to_json() for score in of]) for of in zip(*scores, strict=True)]
    about = {"method": method.info.name, "fields": method.fields(), "budget": label, "ipc": ipc}
    facts = {"folds": places, "fold_seed": data.fold_seed, "seed": run.seed, "data": data.facts()}
    write_json(folder / _FILE, about | facts | {"scores": records})
    return records


def pooled(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Condense the scores of all folds, of one network, to a record like one of them.

    Every value of a fold is its mean over students; means and spreads (n - 1) are over folds. Head,
    medium and tail come from the mean class sizes, so that they are the same classes in each fold.
    """
    from potstill.evaluation.record import of_ceiling

    first = records[0]
    sizes = zip(*(record["train_counts"] for record in records), strict=True)
    counts = [round(statistics.mean(of)) for of in sizes]
    tested = [record["test"] for record in records]
    lacks = [n for n in first["classes"] if all(n in test.get("lacks", ()) for test in tested)]
    found: dict[str, Any] = {key: first[key] for key in _SAME} | _pooled(records, counts)
    for name in _BESIDE:
        parts = [record[name] for record in records]
        found[name] = _pooled(parts, counts) | _common(parts) if all(parts) else None
    found["of_ceiling"] = of_ceiling(found)
    return found | {
        "folds": len(records),
        "students": first["runs"],
        "train_counts": counts,
        "artifacts": [record["artifact"] for record in records],
        "seconds": sum(record["seconds"] for record in records),
        "test": {
            "source": tested[0]["source"],
            "images": sum(test["images"] for test in tested),
            "smallest": sum(test["smallest"] for test in tested),
            "sentence": f"Every image is tested in one of {len(records)} folds.",
            **({"lacks": lacks} if lacks else {}),
        },
    }


def _pooled(parts: Sequence[dict[str, Any]], counts: Sequence[int]) -> dict[str, Any]:
    """Accuracies of several folds as one result."""
    import torch

    from potstill.data.longtail import size_groups
    from potstill.evaluation import mean_std, summary

    rows = [part["per_class"]["mean"] for part in parts]
    matrix = torch.tensor([[float("nan") if v is None else v for v in row] for row in rows])
    errors = [part["calibration"]["mean"] for part in parts if part.get("calibration")]
    by_class = summary(
        matrix.double(),
        [1] * len(counts),
        size_groups(counts),
        counts,
        errors if len(errors) == len(parts) else (),
    )
    more = {name: by_class[name] for name in ("shots", "calibration") if name in by_class}
    return more | {
        "accuracy": mean_std([part["accuracy"]["mean"] for part in parts]),
        "balanced": mean_std([part["balanced"]["mean"] for part in parts]),
        "per_class": by_class["per_class"],
        "groups": by_class["groups"],
    }


def _common(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What the folds have in common besides: the protocol, as far as it is one."""
    known = [part.get("protocol") for part in parts]
    if known[0] is None:
        return {}
    if all(protocol == known[0] for protocol in known):
        return {"protocol": known[0]}
    epochs = sorted({protocol["training"]["epochs"] for protocol in known if protocol})
    shown = f"{epochs[0]} to {epochs[-1]}" if len(epochs) > 1 else epochs[0]
    return {
        "protocol": {
            **{key: known[0][key] for key in ("name", "prior") if key in known[0]},
            "hash": "one for each fold",
            "training": {"epochs": shown},
        }
    }


@dataclass(kw_only=True)
class _CrossVal:
    """What a cross-validation needs besides the method's own fields."""

    out: Path  # folder of the folds' run folders; a killed run resumes there
    folds: Folds = 5  # parts of the train split, each of which is tested once
    ipc: Batch = 10  # stored images per class
    seed: Seed = 0  # every random draw of the method descends from it
    student: list[str] | None = None  # student networks; default as potstill evaluate
    protocol: str | None = None  # how students are trained; default as potstill evaluate
    runs: Runs = 5  # students per network and fold
    full: bool = False  # score training on all real images of each fold, too
    force: bool = False  # replace finished or foreign runs in --out


def command(words: list[str]) -> str:
    """Run ``potstill crossval METHOD [flags]``; return what it prints."""
    from potstill.methods import CATALOGUE
    from potstill.reports.remarks import printed

    if not words or words[0] in ("-h", "--help"):
        return (
            "usage: potstill crossval METHOD [flags]\n\n"
            f"methods: {', '.join(CATALOGUE)}\n\n"
            "potstill crossval METHOD --help lists its flags: those of distill and of evaluate."
        )
    about = "Cross-validation: distil and score once for each fold, then pool."
    with parse_method(words, "crossval", _CrossVal, about) as (chosen, method):
        job, run = chosen.job, chosen.machine.run(chosen.job.seed)
        asked = {key: value for key, value in vars(job).items() if key not in ("seed", "student")}
        asked |= {"networks": job.student, "label": chosen.budget}
        records = cross_validate(method, chosen.data, run=run, **asked)
        students = f"{job.runs} student{'s' if job.runs > 1 else ''} each"
        return (
            f"{printed(records)}\nMeans and spreads are over {job.folds} folds, {students}; every "
            f"one of {records[0]['test']['images']} images is tested once.\n{job.out / _FILE}"
        )
