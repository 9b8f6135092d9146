"""The command ``potstill relabel``: the same images with the labels of a teacher."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import tyro

from potstill.app.flags import FLAT, Machine, parse
from potstill.app.opening import open_data
from potstill.app.suiting import default_student
from potstill.data import ImageSet
from potstill.data.views import Views
from potstill.evaluation import (
    Protocol,
    find_protocol,
    trained_teachers,
    with_projection,
    with_soft_labels,
    with_view_labels,
)
from potstill.experts.backbones import backbone_for, check_backbone
from potstill.experts.heads import train_head
from potstill.experts.labelling import HardShare
from potstill.experts.looks import blurring
from potstill.losses import priors
from potstill.nets import parse as parse_network
from potstill.nets.backbone import is_own_network
from potstill.run import InputError, Run
from potstill.run.checkpoint import digest, write_json
from potstill.run.fields import (
    Count,
    Epochs,
    OneOf,
    Positive,
    PositiveShare,
    Runs,
    Seed,
    Share,
    check_fields,
)
from potstill.run.folder import claimed, read_record, refuse_unfinished
from potstill.synthetic import SyntheticSet

__all__ = ["Teacher", "command", "relabel"]


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """Which labels a set gets, and from whom.

    Raises:
        InputError: see :func:`relabel`.
    """

    # soft: one for each training image; views: one for each view of an image in --epochs epochs;
    # projected: none, but a map on a backbone's features that labels any view
    labels: Annotated[str, OneOf("soft", "views", "projected")] = "views"
    teacher: str | None = None  # network, trained on all real images; for projected a backbone
    teacher_prior: Annotated[str, OneOf(*priors())] = (
        "balanced_softmax"  # what is done about uneven classes in its training
    )
    teachers: Runs = 1  # how many such networks, trained side by side; labels are their mean
    # default: 40 of residual networks, 120 of others, as the ceiling; and at least 5000 steps
    teacher_epochs: Epochs | None = None
    protocol: str | None = None  # of the students it is trained beside; default quick, no GPU
    temperature: Positive = 1.0  # of soft labels; above 1 flattens (students choose that of views)
    # adsa: take so much of the real images' log class prior out of the teacher's logits that its
    # confidence in the classes of the set differs least (ADSA, NeurIPS 2025); even: give each class
    # its share of all labels together
    calibration: Annotated[str, OneOf("none", "adsa", "even")] = "none"
    hard_share: HardShare = 0.0  # soft: share of the class itself in a label
    epochs: Epochs = 100  # views: of how many epochs; longer trainings begin again
    top: Count | None = None  # views: keep the likeliest classes alone
    crop_min: PositiveShare = 0.08  # views: smallest crop as a share of the area; 1 = no crops
    flip: Share = 0.5  # views: probability of a mirrored one (0 for digits and letters)
    cutmix: Share = 0.0  # views: how many get a patch of another one

    def check(self) -> None:
        """Find mistakes before data are decoded."""
        check_fields(self)
        for name, value in vars(self).items():
            kinds, default = _OF.get(name), type(self).__dataclass_fields__[name].default
            if kinds and self.labels not in kinds and value != default:
                raise InputError(
                    f"{name} is {value!r} with labels {self.labels!r}; it belongs to "
                    f"labels={' or '.join(kinds)}"
                )
        if self.labels != "projected":
            self.beside()
            parse_network(self.complete().teacher or "")
        elif self.teacher is None or self.teacher.startswith("self:") or _random(self.teacher):
            raise InputError(
                f"teacher is {self.teacher!r} with labels 'projected'; name a backbone that a "
                "receiver can open: a folder, such as potstill backbone train writes, or "
                "pre-trained weights"
            )
        else:
            try:
                check_backbone(self.teacher, None)
            except InputError as error:
                raise InputError(str(error).replace("backbone is", "teacher is", 1)) from None

    def complete(self) -> Teacher:
        """Return the same with what the machine decides where nothing is said."""
        if self.labels == "projected":
            return self
        network, protocol = default_student()
        return replace(self, teacher=self.teacher or network, protocol=self.protocol or protocol)

    def beside(self) -> Protocol:
        """Return the protocol of the students beside whom a network teaches."""
        protocol = find_protocol(self.complete().protocol or "")
        if not isinstance(protocol, Protocol):
            raise InputError(
                f"protocol is {protocol.name!r}, a probe; name one that trains networks"
            )
        return protocol


_OF = {  # what belongs to some kinds of labels alone
    "protocol": ("soft", "views"),
    "teacher_epochs": ("soft", "views"),
    "teachers": ("soft", "views"),
    "temperature": ("soft",),
    "hard_share": ("soft",),
    "calibration": ("soft", "views"),
    "epochs": ("views",),
    "top": ("views",),
    "cutmix": ("views",),
    "crop_min": ("views", "projected"),
    "flip": ("views", "projected"),
}


def _random(name: str) -> bool:
    """Whether a backbone's weights are drawn, so that no receiver has the same."""
    return is_own_network(name) or name.startswith("timm-random:")


def relabel(
    folder: Path, out: Path, how: Teacher, run: Run, *, data: str | None = None, force: bool = False
) -> SyntheticSet:
    """Write the set of a run into another run folder, labelled by a teacher.

    Args:
        folder: a finished run. out: a new run folder; one with this very job is read.
        data: where the real images are, if not where ``run.json`` says.
        force: replace what is in ``out``.

    Raises:
        InputError: the run is not finished, or an argument that cannot be used.
    """
    how.check()
    if folder.resolve() == out.resolve():
        raise InputError(f"out is {out}, the very set that gets labels; choose another folder")
    how = how.complete()
    record = read_record(folder)
    syn = SyntheticSet.load(folder)
    refuse_unfinished(record, folder, syn.checksum)
    if syn.weights is not None and how.labels != "soft":
        raise InputError(f"{folder} has images with weights; labels of views know none, use soft")
    facts = {
        name: value
        for name, value in vars(how).items()
        if value is not None and how.labels in _OF.get(name, (how.labels,))
    }
    look = blurring(syn.transform, syn.decode)
    told_apart = [] if look is syn.transform or how.labels == "projected" else [look.kind]
    key = digest([syn.checksum, facts, run.seed, *told_apart])
    with claimed(out, key, force) as finished:
        if finished:
            return SyntheticSet.load(out)
        known = {name: record[name] for name in ("job", "started") if name in record}
        record = known | {"status": "running", "key": key, "relabelled": facts}
        write_json(out / "run.json", record)
        train, _, _ = open_data(record, run, data)
        former = dict.fromkeys(("soft_labels", "regression_targets", "view_labels", "projection"))
        told = {k: v for k, v in syn.provenance.items() if k not in (*former, "labelled_by")}
        bare: SyntheticSet = replace(syn, **former, start=None, provenance=told)  # type: ignore[arg-type]
        found = _LABELLED[how.labels](bare, train, how, run)
        found.save(out / "synthetic")
        write_json(out / "run.json", record | {"status": "finished", "artifact": found.checksum})
    return found


def _networks(syn: SyntheticSet, train: ImageSet, how: Teacher, run: Run) -> SyntheticSet:
    name = str(how.teacher)  # there, see Teacher.complete
    training: dict[str, Any] = {"epochs": how.teacher_epochs, "members": how.teachers}
    nets, about = trained_teachers(
        name,
        how.teacher_prior,
        how.beside(),
        train,
        blurring(syn.transform, syn.decode),
        run,
        **training,
    )
    shift: dict[str, Any] = {}
    if how.calibration != "none":
        shift = {"counts": train.counts, "tau": how.calibration}
    if how.labels == "soft":
        mixed: dict[str, Any] = {"temperature": how.temperature, "hard_share": how.hard_share}
        found = with_soft_labels(syn, nets, **mixed, **shift, device=str(run.device))
    else:
        views = Views(crop_min=how.crop_min, flip=how.flip, noise=0.0)
        kept: dict[str, Any] = {"cutmix": how.cutmix, "top": how.top}
        found = with_view_labels(syn, nets, run, epochs=how.epochs, views=views, **kept, **shift)
    what = "soft_labels" if how.labels == "soft" else "view_labels"
    told = {**found.provenance, what: found.provenance[what] | {"teacher": about}}
    return replace(found, provenance=told)


def _projected(syn: SyntheticSet, train: ImageSet, how: Teacher, run: Run) -> SyntheticSet:
    name = str(how.teacher)  # there, see Teacher.check
    backbone = backbone_for(name, train, run)
    views = Views(crop_min=how.crop_min, flip=how.flip, noise=0.0)
    head = train_head(train, backbone, run, prior=how.teacher_prior, views=views)
    place = Path(name).expanduser()  # which is this machine's: a receiver names his own
    return with_projection(syn, head, place.name if place.is_dir() else name)


_LABELLED: dict[str, Callable[[SyntheticSet, ImageSet, Teacher, Run], SyntheticSet]] = {
    "soft": _networks,
    "views": _networks,
    "projected": _projected,
}


@dataclass(kw_only=True)
class _Relabel:
    """Give the images of a finished run the labels of a teacher that has seen all real ones."""

    folder: tyro.conf.Positional[Path]  # run folder
    out: Path  # another run folder, for the same images with these labels
    how: Annotated[Teacher, FLAT] = field(default_factory=Teacher)
    seed: Seed = 0  # of the teacher and of the views
    data: str | None = None  # where the real images are, if not where run.json says
    force: bool = False  # replace a finished or foreign run in --out
    machine: Annotated[Machine, FLAT] = field(default_factory=Machine)


def command(words: list[str]) -> str:
    """Run the command; return what it prints."""
    from potstill.reports.table_text import size

    with parse(_Relabel, words, "relabel") as chosen:
        before = SyntheticSet.load(chosen.folder).nbytes
        run = chosen.machine.run(chosen.seed)
        how: dict[str, Any] = {"data": chosen.data, "force": chosen.force}
        found = relabel(chosen.folder, chosen.out, chosen.how, run, **how)
        return (
            f"{len(found)} images, labels {found.label_tier}: {size(before)} -> "
            f"{size(found.nbytes)}, {chosen.out}/synthetic\nnext: potstill evaluate {chosen.out}"
        )
