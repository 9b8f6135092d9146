"""One static page about a run: self-contained HTML without scripts, readable on paper and phone."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from potstill.canvas import views_per_image
from potstill.data.longtail import size_groups
from potstill.evaluation.probe import in_use
from potstill.evaluation.record import few_test_images, gain, of_ceiling
from potstill.reports import class_lines, figures
from potstill.reports import table_text as tables
from potstill.reports.html import picture, render, svg
from potstill.reports.remarks import remarks
from potstill.reports.source import RunFolder, part, read_run, stored
from potstill.run.checkpoint import write_bytes
from potstill.run.errors import system_refusals
from potstill.synthetic import SyntheticSet

__all__ = ["report"]

_CURVES = ("distance", "amplitude_share", "amplitude_syn", "calibration")
_UNSEEN = "amplitude_real"  # drawn dashed beside amplitude_syn
_REFERENCES = {
    "start": "Its start",
    "random": "Random real images",
    "mosaic": "Random real mosaics",
    "full": "All real images",
    "ceiling": "Ceiling",
}
_MORE = ("many_shot", "medium_shot", "few_shot", "calibration_error")
_FRAMES = 4  # pictures of the way to the result
_VALUES = 24  # entries of a list that are written out
_DEPTH = 6


@system_refusals()
def report(folder: str | Path, out: str | Path | None = None) -> Path:
    """Write the page of a run folder (or a saved synthetic set) and return its path.

    Everything shown is read from ``run.json``, ``metrics.jsonl``, ``scores.json``,
    ``provenance.json``, the pictures and the artifact's labels; without scores the page says how to
    get them.

    Args:
        folder: the run. out: the page; ``report.html`` in the folder by default.

    Raises:
        InputError: no run there. ArtifactError: a file is damaged. StorageError: cannot write.
    """
    run = read_run(folder)
    path = run.folder / "report.html" if out is None else Path(out).expanduser()
    write_bytes(path, _html(run).encode("utf-8", "replace"))
    return path


def _html(run: RunFolder) -> str:
    kept = stored(run)
    shown = [r for r in run.scores if not _looked(r)] or run.scores  # a fair one, if there is one
    last = _foremost(shown)
    grouped = bool(size_groups(run.counts))
    return render(
        "page.html",
        run=run,
        title=_title(run),
        last=last,
        last_protocol=tables.protocol_label(last.get("protocol")),
        last_few=few_test_images(last),
        columns=("balanced", "head", "medium", "tail", *_MORE),
        uneven=bool(last) and "balanced" in tables.score_table([last])[0],
        beside=_beside(run, last),
        of_ceiling=of_ceiling(last),
        gained=gain(last),
        records=[_record(record) for record in reversed(run.scores)],
        total=sum(run.counts),
        views=1 if kept is None else views_per_image(kept.decode),
        grouped=grouped,
        syn_lr=None if kept is None else kept.syn_lr,
        preview=picture(run.preview, 1100),
        real=picture(run.real, 1100),
        counts=svg(figures.counts_bar(run.counts, run.classes), "real images per class")
        if run.counts and len(run.classes) == len(run.counts)
        else None,
        counts_wide=len(run.counts) > 12,
        losses=svg(figures.loss_curves(run.metrics), "loss terms over steps")
        if any(part(r, "loss") for r in run.metrics)
        else None,
        curves=[
            {
                "title": figures.curve_title(name),
                "svg": svg(figures.class_curves(run.metrics, name, run.counts), name),
            }
            for name in _recorded(run)
        ]
        + _imbalance(run),
        frames=_frames(run.pictures),
        tail=_long_tail(run, kept, last),
        protocols=_protocols(run.scores),
        provenance=_sections(run.provenance or run.job),
    )


def _beside(run: RunFolder, record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Tiles of what real images reach: how many of them, and under which protocol."""
    stored, tiles = run.artifact.get("images"), []
    for key, title in _REFERENCES.items():
        facts = part(record, key)
        if not facts or (key == "ceiling" and facts == record.get("full")):
            continue
        images, views = facts.get("images"), facts.get("views")
        if key == "start":
            number = "the same set before step 0"
        elif key in ("full", "ceiling"):
            total = images or sum(run.counts)
            number = f"{total:,} images" if total else "the whole training set"
            epochs = part(part(facts, "protocol"), "training").get("epochs")
            number += f", {epochs} epochs" if epochs else ""
            if key == "ceiling":
                number = f"all real images, {part(facts, 'protocol').get('prior')}; {number}"
        elif key == "mosaic":
            number = f"same storage: {views} small images in each"
            if images is not None and stored and images < views * stored:
                number += f", {images:,} different ones: small classes have no more"
        else:
            fewer = images is not None and stored and images < stored
            number = f"{images:,}: small classes have no more" if fewer else "same number"
            if images is None and run.counts and isinstance(run.ipc, int):  # older records
                number = number if min(run.counts) >= run.ipc else "at most the same number"
        own = facts.get("protocol")
        under = "same protocol"
        if own and own.get("hash") != part(record, "protocol").get("hash"):
            under = f"protocol {tables.protocol_label(own)}"
        about = "; ".join(text for text in (number, under) if text)
        tiles.append({"title": title, "accuracy": facts.get("accuracy"), "about": about})
    return tiles


def _foremost(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The newest score; under a probe that of the backbone that distilled, if it has one."""
    if not records:
        return {}
    newest = records[-1]
    own = [
        r
        for r in records
        if part(r, "backbone").get("same") and r.get("protocol") == newest.get("protocol")
    ]
    return (own or [newest])[-1]


def _imbalance(run: RunFolder) -> list[dict[str, Any]]:
    """The curve of how uneven the gradients of the classes are, where it was recorded."""
    if not any(part(record, "imbalance") for record in run.metrics):
        return []
    title = "Gradient of the images: largest class over smallest"
    drawn = figures.loss_curves(run.metrics, quantity="imbalance")
    return [{"title": title, "svg": svg(drawn, title)}]


def _long_tail(
    run: RunFolder, kept: SyntheticSet | None, record: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Figures of what the tail does to experts, students and labels, where the facts are there."""
    classes, shown = run.classes, []
    counts = run.counts or [0] * len(classes)
    if not classes or len(counts) != len(classes):
        return []
    kinds = part(part(run.provenance, "experts"), "classifier_norms")
    norms = {str(k): v for k, v in kinds.items() if figures.numbers(v, len(classes))}
    if norms:
        drawn = class_lines.classifier_norms(norms, counts, classes)
        about = "length of each class's row in the classifiers of the experts"
        shown.append({"title": "Classifier norms", "about": about, "svg": svg(drawn, about)})
    by = {"synthetic": record} | {key: part(record, key) for key in _REFERENCES}
    own = {key: facts.get("classifier_norms") for key, facts in by.items()}
    norms = {k: v for k, v in own.items() if figures.numbers(v, len(classes))}
    if "synthetic" in norms:
        drawn = class_lines.classifier_norms(norms, counts, classes, name="student-norms")
        about = "length of each class's row in the classifiers of students, mean, by what they saw"
        title = "Classifier norms of students"
        shown.append({"title": title, "about": about, "svg": svg(drawn, about)})
    if kept is not None and kept.soft_labels is not None and kept.num_classes == len(classes):
        drawn = class_lines.label_confidence(kept.soft_labels, kept.labels, counts, classes)
        about = "mean over the synthetic images of a class"
        shown.append({"title": "Soft labels", "about": about, "svg": svg(drawn, "soft labels")})
    return shown


def _title(run: RunFolder) -> str:
    source = run.data.get("source") or "A synthetic set"
    made = "chosen" if run.chosen else "distilled"
    return f"{source}, {made} by {run.method}" if run.method else str(source)


def _record(record: dict[str, Any]) -> dict[str, Any]:
    """What the template needs of one score record."""
    classes = part(record, "per_class").get("mean")
    return {
        "facts": record,
        "rows": tables.score_table([record]),
        "protocol": tables.protocol_label(record.get("protocol")),
        "warn": _looked(record),
        "few": few_test_images(record),
        "remarks": [r for r in remarks(record) if not _told(r, record)],
        "full_students": len(part(part(record, "full"), "accuracy").get("values") or ()),
        "classes": svg(figures.per_class_bars(record), "accuracy per class") if classes else None,
        "wide": len(classes or ()) > 12,
    }


def _told(remark: str, record: Mapping[str, Any]) -> bool:
    """Whether the sentence about the test images says the same already."""
    start = remark.split(" of ")[0]
    return start.startswith("Few") and start in str(part(record, "test").get("sentence"))


def _looked(record: Mapping[str, Any]) -> bool:
    """Whether the score is the best of several looks at the test set."""
    return str(part(record, "protocol").get("selection")).startswith("test_max")


def _recorded(run: RunFolder) -> list[str]:
    """Per-class quantities in the metrics that get a figure: known ones first, then any other."""
    names = dict.fromkeys(
        name
        for record in run.metrics
        for name, values in part(record, "classes").items()
        if isinstance(values, list) and not name.startswith(_UNSEEN)
    )
    return [n for n in _CURVES if n in names] + [n for n in names if n not in _CURVES]


def _protocols(records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Every protocol that some score was taken under, once."""
    seen: dict[str, dict[str, Any]] = {}
    for record in reversed(records):
        others = (part(record, key).get("protocol") for key in _REFERENCES)
        for protocol in (record.get("protocol"), *others):
            if isinstance(protocol, Mapping):
                rest = {k: v for k, v in in_use(protocol).items() if k != "description"}
                label = tables.protocol_label(protocol)
                about = str(protocol.get("description", ""))
                about = about.removeprefix(f"{label.removesuffix(' TEST-MAX')}: ")
                seen[label] = {"label": label, "about": about, "rows": _flat(rest)}
    return list(seen.values())


def _sections(facts: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Provenance by its top-level keys; single values come first, without a heading."""
    facts = {key: _without_profile(value) for key, value in facts.items()}
    single = {k: v for k, v in facts.items() if not isinstance(v, (dict, list))}
    nested = {k: v for k, v in facts.items() if k not in single and k != "scores"}
    parts = [{"name": "", "rows": _flat(single)}] if single else []
    return parts + [{"name": key, "rows": _flat(value)} for key, value in nested.items()]


def _without_profile(options: Any) -> Any:
    """Older files name a profile for data that were not cut."""
    if isinstance(options, Mapping) and options.get("imbalance_factor") == 1:
        return {key: value for key, value in options.items() if key != "profile"}
    return options


def _flat(value: Any, name: str = "", depth: int = 0) -> list[tuple[str, str]]:
    """Nested facts as (dotted name, text); long lists are cut."""
    if isinstance(value, Mapping) and depth < _DEPTH:
        nested = [_flat(v, f"{name}.{k}" if name else str(k), depth + 1) for k, v in value.items()]
        return [row for rows in nested for row in rows]
    if isinstance(value, list) and depth < _DEPTH and any(isinstance(v, Mapping) for v in value):
        return _flat({str(i): v for i, v in enumerate(value[:_VALUES])}, name, depth + 1)
    if isinstance(value, list):
        text = ", ".join(str(v)[:200] for v in value[:_VALUES])
        more = f", … ({len(value):,} in all)" if len(value) > _VALUES else ""
        return [(name, (text or "none") + more)]
    return [(name, "–" if value is None else str(value)[:2000])]


def _frames(pictures: Sequence[Path]) -> list[dict[str, Any]]:
    """An even choice of the pictures drawn on the way, first and last included."""
    last = len(pictures) - 1
    chosen = [pictures[round(i * last / (_FRAMES - 1))] for i in range(_FRAMES)] if pictures else []
    frames = [
        {"step": int(re.sub(r"\D", "", path.stem) or 0), "image": picture(path, 480, cut=True)}
        for path in dict.fromkeys(chosen)
    ]
    return [frame for frame in frames if frame["image"]]
