"""One page about several runs: a table of methods x student networks, and accuracies by class.

A score is only as comparable as its conditions: protocol (by its hash), test images, training
images, images per class and label tier stand with every row, and rows that differ from the first
one are marked.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from potstill.evaluation.record import below, few_test_images, gain, of_ceiling
from potstill.reports import class_lines
from potstill.reports import table_text as tables
from potstill.reports.html import render, svg
from potstill.reports.remarks import REFERENCES, remarks
from potstill.reports.source import RunFolder, part, read_run
from potstill.run import InputError
from potstill.run.checkpoint import write_bytes
from potstill.run.errors import system_refusals

__all__ = ["compare"]

_WHOLE = {"full": "all real images", "ceiling": "all real images, debiased (ceiling)"}
_REFERENCES = REFERENCES | _WHOLE
_MARKS = {  # what a row that differs from the first is marked with, and what then differs
    "protocol": ("other protocol", "protocols"),
    "test": ("other test images", "test images"),
    "train": ("other training images", "training images"),
    "ipc": ("other images per class", "images per class"),
    "tier": ("other label tier", "label tiers"),
    "updates": ("other number of updates", "numbers of updates of a student"),
}


@system_refusals()
def compare(folders: Sequence[str | Path], out: str | Path) -> Path:
    """Write a page that sets the scores of several runs side by side, and return its path.

    Args:
        folders: run folders (or saved sets) with scores; the first is what others are marked
            against. out: the page.

    Raises:
        InputError: no folder, one given twice, one without a run or without scores.
        ArtifactError: a file is damaged. StorageError: cannot write.
    """
    if not folders:
        raise InputError("there is no run to compare; give the folders of one or more runs")
    runs = _told_apart([_scored(Path(folder)) for folder in folders])
    twice = [str(run.folder) for run in runs if [r.folder for r in runs].count(run.folder) > 1]
    if twice:
        raise InputError(f"{twice[0]} is given twice; give each run once")
    path = Path(out).expanduser()
    write_bytes(path, _html(runs).encode("utf-8", "replace"))
    return path


def _scored(folder: Path) -> RunFolder:
    run = read_run(folder)
    if not _current(run):
        raise InputError(
            f"{folder} has no scores; evaluate it first: potstill evaluate {run.folder}"
        )
    return run


def _told_apart(runs: Sequence[RunFolder]) -> list[RunFolder]:
    """The runs with part of the key after the names of backbones that share theirs with another."""
    keys: dict[Any, set[Any]] = {}
    for run in runs:
        for record in run.scores:
            keys.setdefault(record.get("network"), set()).add(part(record, "backbone").get("key"))

    def named(record: dict[str, Any]) -> dict[str, Any]:
        key = part(record, "backbone").get("key")
        if key is None or len(keys[record.get("network")]) == 1:
            return record
        return record | {"network": f"{record.get('network')} {str(key)[:4]}"}

    return [replace(run, scores=[named(record) for record in run.scores]) for run in runs]


def _current(run: RunFolder) -> list[dict[str, Any]]:
    """Scores of the artifact that is there, oldest first."""
    own = run.artifact.get("checksum")
    return [r for r in run.scores if own is None or r.get("artifact") in (None, own)]


def _html(runs: Sequence[RunFolder]) -> str:
    names = _names(runs)
    rows = [row for run, name in zip(runs, names, strict=True) for row in _rows(run, name)]
    _set_beside_ceilings(rows)
    networks = list(dict.fromkeys(network for row in rows for network in row["cells"]))
    for row in rows:
        row["differ"] = [key for key in _MARKS if _differ(key, row["facts"], rows[0]["facts"])]
        row["marks"] = [_MARKS[key][0] for key in row["differ"]]
    return render(
        "compare.html",
        title=" · ".join(names) if len(names) <= 4 else f"{len(names)} runs",
        runs=len(runs),
        networks=networks,
        inheriting=_inheriting(rows, networks),
        rows=rows,
        best=_best(rows, networks),
        references=_reference_rows(rows),
        mixed=[
            title for key, (_, title) in _MARKS.items() if any(key in r["differ"] for r in rows)
        ],
        figures=_figures(rows, networks),
        settings=_settings(runs, names),
    )


def _differ(key: str, own: Mapping[str, str], first: Mapping[str, str]) -> bool:
    """Whether two rows differ; older ones do not say how many updates there were."""
    unknown = key == "updates" and "" in (own[key], first[key])
    return own[key] != first[key] and not unknown


def _names(runs: Sequence[RunFolder]) -> list[str]:
    """Methods; where two runs share one, the folder (or its whole path) tells them apart."""
    names = [run.method or run.folder.name for run in runs]
    longer = [
        [f"{name} ({run.folder.name})", f"{name} ({run.folder})"]
        for run, name in zip(runs, names, strict=True)
    ]
    for forms in zip(*longer, strict=True):
        several = Counter(names)
        names = [
            form if several[name] > 1 else name for form, name in zip(forms, names, strict=True)
        ]
    return names


def _rows(run: RunFolder, name: str) -> list[dict[str, Any]]:
    """A row for each condition that a run was scored under; the newest score of each network."""
    rows: dict[tuple[Any, ...], dict[str, Any]] = {}
    for record in _current(run):
        protocol = record.get("protocol")
        facts = {
            "protocol": part(record, "protocol").get("hash", protocol),
            "test": record.get("test_checksum") or part(record, "test").get("source"),
            "train": record.get("train_checksum") or part(run.provenance, "data").get("checksum"),
            "ipc": run.ipc,
            "tier": record.get("label_tier"),
            "updates": record.get("updates"),
        }
        facts = {key: str(value or "") for key, value in facts.items()}
        row = rows.setdefault(
            tuple(facts.values()),
            {
                "name": name,
                "facts": facts,
                "protocol": tables.protocol_label(protocol),
                "warn": str(part(record, "protocol").get("selection")).startswith("test_max"),
                "few": few_test_images(record),
                "cells": {},
            },
        )
        row["cells"][str(record.get("network") or "?")] = record
    for row in rows.values():
        records = list(row["cells"].values())
        row["bytes"] = records[-1].get("receiver_bytes")
        row["devices"] = _unique(record.get("device") for record in records)
        row["groups"] = {network: _groups(record) for network, record in row["cells"].items()}
        row["starts"] = {
            network: part(part(record, "start"), "accuracy")
            for network, record in row["cells"].items()
        }
        row["gained"] = {network: gain(record) for network, record in row["cells"].items()}
        row["worse"] = {network: _worse(record) for network, record in row["cells"].items()}
        row["students"] = _unique(record.get("runs") for record in records)
    return list(rows.values())


def _groups(record: Mapping[str, Any]) -> str:
    """Means of head, medium and tail classes, "" where classes are of one size."""
    means = [part(part(record, "groups"), name).get("mean") for name in tables.GROUPS]
    return "" if None in means else " / ".join(f"{mean:.1f}" for mean in means)


def _set_beside_ceilings(rows: Sequence[dict[str, Any]]) -> None:
    """Say of each cell which percent of the ceiling of its data, test and network it reaches."""
    ceilings = {
        (row["facts"]["train"], row["facts"]["test"], network): part(record, "ceiling")
        for row in rows
        for network, record in row["cells"].items()
        if part(record, "ceiling")
    }
    for row in rows:
        of = (row["facts"]["train"], row["facts"]["test"])
        row["of_ceiling"] = {
            network: of_ceiling(record, part(record, "ceiling") or ceilings.get((*of, network), {}))
            for network, record in row["cells"].items()
        }


def _worse(record: Mapping[str, Any]) -> list[str]:
    """In how many classes a score is below its references, in a few words each."""
    classes = len(part(record, "per_class").get("mean") or ())
    short = {"random": "random", "mosaic": "random mosaics"}
    found = {name: len(below(record, key)) for key, name in short.items()}
    return [f"{n} of {classes} classes below {name}" for name, n in found.items() if n]


def _inheriting(rows: Sequence[dict[str, Any]], networks: Sequence[str]) -> list[str]:
    """Backbones under which some run was scored with its sender's classifier."""
    return [
        network
        for network in networks
        if any(part(row["cells"].get(network), "inherited") for row in rows)
    ]


def _unique(values: Any) -> str:
    return ", ".join(str(v) for v in dict.fromkeys(values) if v not in (None, ""))


def _best(rows: Sequence[dict[str, Any]], networks: Sequence[str]) -> dict[str, float]:
    """The best mean of each network among rows under the first row's conditions, if several."""
    best = {}
    for network in networks:
        means = [
            row["cells"][network]["accuracy"]["mean"]
            for row in rows
            if network in row["cells"] and not row["marks"]
        ]
        if len(means) > 1:
            best[network] = max(means)
    return best


def _reference_rows(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Random subsets and full sets that were scored beside the runs, equal ones once."""
    found: dict[str, dict[str, Any]] = {}
    for key, title in _REFERENCES.items():
        for row in rows:
            parts = {n: part(record, key) for n, record in row["cells"].items()}
            cells = {n: facts for n, facts in parts.items() if part(facts, "accuracy")}
            if not cells:
                continue
            own = next(iter(cells.values())).get("protocol")
            label = tables.protocol_label(own) if own else row["protocol"]
            means = {n: facts["accuracy"].get("mean") for n, facts in cells.items()}
            # The same draw scored beside several runs; networks that only some have are added.
            tier = next(iter(cells.values())).get("label_tier", "hard")
            same = f"{title} {label} {tier} {row['facts']['train']} {row['facts']['test']}"
            same += f" {row['facts']['ipc']}" if key not in _WHOLE else ""
            known = found.setdefault(
                f"{same} {row['name']}" if _differs(found.get(same), means) else same,
                {"title": title, "protocol": label, "tier": tier, "cells": {}, "beside": []},
            )
            known["cells"] = cells | known["cells"]
            known["beside"].append(row["name"])
    return list(found.values())


def _differs(known: dict[str, Any] | None, means: Mapping[str, Any]) -> bool:
    cells = known["cells"] if known else {}
    return any(cells[n]["accuracy"].get("mean") != m for n, m in means.items() if n in cells)


def _figures(rows: Sequence[dict[str, Any]], networks: Sequence[str]) -> list[dict[str, Any]]:
    """Accuracy by class for each network (LAD fig. 7c), over the classes of its first row."""
    shown = []
    titles = Counter(row["name"] for row in rows)
    for index, network in enumerate(networks):
        lines: dict[str, dict[str, Any]] = {}
        counts: list[int] = []
        classes: list[str] = []
        others: list[str] = []
        for row in rows:
            record = row["cells"].get(network, {})
            means, names = part(record, "per_class").get("mean"), record.get("classes")
            if not means or not names or len(means) != len(names):
                continue
            if classes not in ([], names):
                others.append(row["name"])
                continue
            if not classes:
                classes, counts = names, record.get("train_counts") or [0] * len(names)
            title = row["name"]
            title += f", {row['protocol'].split(' [')[0]}" if titles[title] > 1 else ""
            while title in lines:
                title += "'"
            lines[title] = record
        if lines and len(counts) == len(classes):
            drawn = class_lines.accuracy_lines(lines, counts, classes, name=f"lines-{index}")
            label = f"accuracy by class, {network}"
            wide = len(classes) > 12 or class_lines.has_long_names(lines)
            said = [f"{title}: {r}" for title, own in lines.items() for r in remarks(own)]
            if others:
                said.append(f"Not drawn, because their classes are others: {', '.join(others)}.")
            shown.append({"title": network, "wide": wide, "svg": svg(drawn, label), "said": said})
    return shown


def _settings(runs: Sequence[RunFolder], names: Sequence[str]) -> list[dict[str, Any]]:
    """What each run is, and the fields in which runs differ that have them in common."""
    fields = [_fields(run) for run in runs]
    different = [
        key
        for key in dict.fromkeys(key for known in fields for key in known)
        if len({str(known[key]) for known in fields if key in known}) > 1
    ]
    return [
        {
            "name": name,
            "method": run.method,
            "source": run.data.get("source"),
            "imbalance": None if run.imbalance is None else run.imbalance.sentence,
            "asked": run.asked_cut.get("imbalance_factor"),
            "views": _views(run),
            "ipc": run.ipc,
            "seconds": run.provenance.get("seconds"),
            "device": run.device,
            "checksum": run.artifact.get("checksum"),
            "fields": [(key, known[key]) for key in different if key in known],
        }
        for run, name, known in zip(runs, names, fields, strict=True)
    ]


def _views(run: RunFolder) -> int:
    """Training images in a stored one, as far as a score tells of it."""
    known = [part(record, "mosaic").get("views") for record in _current(run)]
    return next((views for views in known if views), 1)


def _fields(run: RunFolder) -> dict[str, Any]:
    """Hyper-parameters, budget and seed of a run."""
    fields = part(run.job, "fields") or part(part(run.provenance, "method"), "fields")
    shared = {key: run.job.get(key, run.provenance.get(key)) for key in ("budget", "seed")}
    return {key: value for key, value in shared.items() if value is not None} | fields
