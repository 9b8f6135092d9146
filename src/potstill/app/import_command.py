"""The command ``potstill import``: somebody else's distilled set becomes an artifact."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro

from potstill.app.flags import FLAT, Machine, data_flags, parse, redeclared
from potstill.canvas.pixels import Factor, Formation
from potstill.run import InputError
from potstill.run.checkpoint import digest, write_json
from potstill.run.fields import Count, Positive
from potstill.run.folder import claimed
from potstill.synthetic import SyntheticSet
from potstill.synthetic.artifact_folder import TENSORS
from potstill.synthetic.foreign import read_foreign
from potstill.synthetic.imported import import_set

__all__ = ["command"]

_NO_DATA: Any = redeclared(data_flags(()), [("data", str | None, field(default=None))])


@dataclass(kw_only=True)
class Import:
    """Make an artifact of a set that another program distilled."""

    place: tyro.conf.Positional[Path]  # images_best.pt, data_best.pt, .npz, .safetensors, a folder
    out: Path  # run folder (with --data) or artifact
    # class names joined by commas, in the order of the labels, or how many; default: of --data
    classes: str | None = None
    # what was done to the pixels: none (RGB 0-1), data (mean and deviation of --data), zca (fitted
    # on --data), or published constants: cifar10, cifar100, imagenet, svhn, mnist
    normalisation: str = "none"
    lr: Positive | None = None  # step size for students, where no lr_best.pt tells it
    factor: Factor = 1  # tiles per side of a stored image (IDC, DREAM, NCFM: 2)
    formation: Formation = "single"  # tiles, or multi: the whole image, too
    experiment: Count | None = None  # which one of a file of DC, DSA or DM; default: the first
    force: bool = False  # replace a finished or foreign run in --out
    data: Annotated[_NO_DATA, FLAT] = field(default_factory=_NO_DATA)
    machine: Annotated[Machine, FLAT] = field(default_factory=Machine)


def command(words: list[str]) -> str:
    """Run ``potstill import PLACE [flags]``; return what it prints."""
    with parse(Import, words, "import") as chosen:
        run, asked = chosen.machine.run(0), chosen.data
        found = read_foreign(
            chosen.place, experiment=chosen.experiment, image_size=asked.image_size
        )
        train, note = None, ""
        if asked.data is not None:
            train, _, note = asked.open(run)
        syn = import_set(
            found.images,
            found.labels,
            classes=_classes(chosen.classes) if chosen.classes else _own(found.classes, train),
            normalisation=chosen.normalisation,
            real=train,
            lr=chosen.lr or found.lr,
            factor=chosen.factor,
            formation=chosen.formation,
            source=chosen.place.name,
        )
        syn.provenance["imported"]["layout"] = found.layout
        syn.provenance["imported"]["artifact"] = syn.checksum
        if train is None:
            if (chosen.out / TENSORS).exists() and not chosen.force:
                raise InputError(f"out is {chosen.out}, which holds a set already; add --force")
            syn.save(chosen.out)
            goes_on = f"potstill evaluate {chosen.out} --data SOURCE"
        else:
            _write(syn, chosen, train, note)
            goes_on = f"potstill evaluate {chosen.out}"
        return f"{len(syn)} images ({found.layout}) -> {chosen.out}\nnext: {goes_on}"


def _classes(text: str) -> Any:
    return int(text) if text.isdecimal() else [name.strip() for name in text.split(",")]


def _own(classes: tuple[str, ...] | None, train: Any) -> tuple[str, ...] | None:
    """Names of folders, unless the real images have their own; both have to agree."""
    if classes and train is not None and classes != train.classes:
        raise InputError(
            f"classes are {', '.join(classes[:5])}, but those of data are "
            f"{', '.join(train.classes[:5])}; name the folders alike, or number them in that order"
        )
    return classes


def _write(syn: SyntheticSet, chosen: Import, train: Any, note: str) -> None:
    """A run folder that evaluates like that of a distillation."""
    job = {
        "method": "imported",
        "fields": syn.provenance["method"]["fields"],
        "budget": None,
        "ipc": syn.ipc,
        "seed": 0,
        "data": chosen.data.facts(),
        "train_checksum": train.checksum,
        "test_note": note,
    }
    with claimed(chosen.out, digest([syn.checksum, job]), chosen.force) as finished:
        if finished:
            return
        record = {"job": job, "key": digest([syn.checksum, job])}
        write_json(chosen.out / "run.json", record | {"status": "running"})
        syn.provenance["test_note"] = note
        syn.save(chosen.out / "synthetic")
        done = {"status": "finished", "artifact": syn.checksum}
        write_json(chosen.out / "run.json", record | done)
