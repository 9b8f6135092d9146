"""What a protocol is: everything about training and testing a student that moves its score.

The evaluation protocol alone is worth several points of accuracy, so it is an object with a name, a
sentence and a hash, and two scores with different hashes are not compared unmarked.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields, replace
from typing import Annotated, Any

from potstill.data.augment import DSA
from potstill.evaluation.probe import in_use, short_hash
from potstill.losses import REMEDIES, priors
from potstill.nets import Training, parse
from potstill.run import InputError, nearest
from potstill.run.fields import (
    Batch,
    Decay,
    Epoch,
    Epochs,
    NotNegative,
    OneOf,
    Positive,
    Range,
    check_fields,
    check_value,
)

__all__ = ["Protocol"]

_SELECTIONS = {
    "last": "accuracy after the last epoch",
    "val": "epoch chosen on images held out of the real training set",
    "test_max": "BEST TEST ACCURACY of all looks (test_max, only to compare with papers)",
    "test_max_iterates": "BEST TEST ACCURACY of all saved iterates of the distillation, one "
    "student each (test_max, only to compare with papers)",
}
_LABELS = {
    "auto": "the richest labels that the artifact has (of stored views, in the place of "
    "augmentation; projected; regression targets; soft), else hard labels",
    "hard": "hard labels, whatever else is stored is ignored",
    "soft": "soft labels, which the artifact must have",
    "views": "stored views with a label each in the place of augmentation, which the artifact must "
    "have",
    "projected": "labels of augmented views from the artifact's projection of a backbone",
    "online": "labels of augmented views from a teacher trained on all real images",
}
_LOSSES = {
    "auto": "",
    "cross_entropy": "cross-entropy",
    "kl": "KL divergence",
    "squared_error": "squared error of logits to probabilities",
    "logits": "mean squared error to a teacher's logits",
}
_LATER = {  # fields that came later, with what they were before: older hashes stay what they were
    "prior": "plain",
    "loss": "auto",
    "temperature": 1.0,
    "teacher": None,
    "teacher_prior": "balanced_softmax",
    "hard_weight": 0.0,
    "batch_by_ipc": (),
    "looks_from": 0.0,
    "label_scale": 1.0,
    "centred": False,
}

_OF_VIEWS = ("views", "projected", "online")  # labels by a teacher of what is seen
Temperature = Annotated[float, Range(0.01, 1000)]


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """How a student is trained and which of its epochs counts.

    ``prior`` is a row of :data:`potstill.losses.REMEDIES`, by the counts of what is trained on: it
    changes the ceiling on all real images most (:mod:`potstill.evaluation.references`), and, unless
    it goes in stages, nothing that has equally many of each class.

    ``loss`` "auto" is the divergence from a teacher's labels of views (Hinton et al., 2015), the
    squared error of regression targets and cross-entropy of everything else. It is the loss on what
    is distilled; real images with classes alone are learned by cross-entropy beside it, or by
    "squared_error", which takes classes as one-hot rows and soft labels as they are. "logits" is
    what G-VBSM, EDC and RLDD call MSE-GT: the mean over classes of the squared error to a teacher's
    logits of a view, with ``hard_weight`` of the cross-entropy of its class. Under ``labels``
    "online" and "projected" the same teacher labels the random real images, too.

    ``label_scale`` and ``centred`` are RFAD's, of squared error: targets (of classes 1 - 1/K and
    -1/K then) are multiplied by the one, and from outputs are taken those of the same network
    before its training.

    ``selection="val"`` holds images out of the real training set before the random baseline is
    drawn from it. The artifact may have been distilled from those very images,
    which favours no particular method but makes the choice optimistic.
    """

    name: str  # for people; not part of the hash
    training: Training  # epochs, batch, optimiser, schedule, augmentation, CutMix
    epochs_by_ipc: tuple[tuple[Batch, Epochs], ...] = ()  # (from this ipc, epochs), ascending
    batch_by_ipc: tuple[tuple[Batch, Batch], ...] = ()  # (from this ipc, batch), ascending
    labels: Annotated[str, OneOf(*_LABELS)] = "auto"  # see the table above
    learned_lr: bool = False  # start from the artifact's learned step size where it has one
    selection: Annotated[str, OneOf(*_SELECTIONS)] = "last"
    test_every: Epoch = 0  # epochs between looks under "val" and "test_max"; the last always counts
    looks_from: Decay = 0.0  # share of the epochs before which nobody looks
    held_out: Batch | None = None  # images per class under "val"; None: 0.1 of the smallest class
    prior: Annotated[str, OneOf(*priors())] = "plain"  # what is done about uneven classes
    loss: Annotated[str, OneOf(*_LOSSES)] = "auto"  # of students, see above
    hard_weight: NotNegative = 0.0  # of the class beside a teacher's logits, loss "logits"
    temperature: Temperature = 1.0  # of a teacher's labels and of students who learn them
    teacher: str | None = None  # network that labels views, with labels "online"; several: A+B
    teacher_prior: Annotated[str, OneOf(*priors())] = "balanced_softmax"  # how it was trained
    label_scale: Positive = 1.0  # what targets of squared error are multiplied by
    centred: bool = False  # outputs are less what they were before the training

    def __post_init__(self) -> None:
        check_fields(self)
        check_value(f"epochs of protocol {self.name!r}", self.training.epochs, Epochs)
        if self.looks_between == (self.test_every == 0):
            raise InputError(
                f"test_every is {self.test_every} with selection {self.selection!r}; "
                "use at least 1 epoch with 'val' and 'test_max' and 0 otherwise"
            )
        if self.looks_from and not self.looks_between:
            raise InputError(
                f"looks_from is {self.looks_from:g} with selection {self.selection!r}, under which "
                "nobody looks before the end; use 0"
            )
        if self.looks_between and REMEDIES[self.prior].stages:
            raise InputError(
                f"prior is {self.prior!r} with selection {self.selection!r}, but a training in "
                "stages has no epochs to choose from; use selection 'last'"
            )
        self._check_teacher()

    def _check_teacher(self) -> None:
        """Refuse what a student cannot be taught by."""
        if (self.labels == "online") != (self.teacher is not None):
            raise InputError(
                f"labels is {self.labels!r} with teacher {self.teacher!r}; name a network as the "
                "teacher of labels 'online', and of no others"
            )
        if self.teacher is not None:
            [parse(name) for name in self.teacher.split("+")]
        elif self.teacher_prior != _LATER["teacher_prior"]:
            raise InputError(
                f"teacher_prior is {self.teacher_prior!r} without a teacher; name one, with labels "
                "'online'"
            )
        if self.temperature != 1 and (
            self.labels == "hard" or self.loss in ("cross_entropy", "squared_error", "logits")
        ):
            raise InputError(
                f"temperature is {self.temperature:g} with labels {self.labels!r} and loss "
                f"{self.loss!r}; it belongs to a teacher's labels and loss 'kl'"
            )
        if self.loss == "squared_error" and self.prior != "plain":
            raise InputError(
                f"prior is {self.prior!r} with loss 'squared_error', which knows none; use "
                "prior=plain"
            )
        if self.loss != "squared_error" and (self.centred or self.label_scale != 1):
            raise InputError(
                f"loss is {self.loss!r} with label_scale {self.label_scale:g} and centred "
                f"{self.centred}, which belong to squared error; use loss=squared_error"
            )
        if self.loss == "logits" and self.labels in ("hard", "soft"):
            raise InputError(
                f"loss is 'logits' with labels {self.labels!r}; it belongs to a teacher's labels "
                "of views: use labels=views, projected or online"
            )
        if self.hard_weight and self.loss != "logits":
            raise InputError(
                f"hard_weight is {self.hard_weight:g} with loss {self.loss!r}; it stands beside a "
                "teacher's logits: use loss=logits, or 0"
            )
        learns_views = self.labels in _OF_VIEWS or self.loss in ("kl", "logits")
        row = REMEDIES[self.prior]
        if learns_views and (row.loss != "plain" or row.stages):
            raise InputError(
                f"prior is {self.prior!r}, a loss of classes, where students learn a teacher's "
                "labels; use prior=plain, and debias the teacher"
            )

    @property
    def looks_between(self) -> bool:
        """Whether a student is looked at before its last epoch."""
        return self.selection in ("val", "test_max")

    def students(self, runs: int) -> int:
        """How many students one score comes from when ``runs`` are asked for."""
        return 1 if self.selection == "test_max_iterates" else runs

    @property
    def reference(self) -> Protocol:
        """Under which real images are scored: there is one set of them, so no iterate to choose."""
        if self.selection != "test_max_iterates":
            return self
        return replace(self, name=self.name.removesuffix("-published"), selection="last")

    @property
    def facts(self) -> dict[str, Any]:
        """Every field but the name, JSON-like."""
        facts = asdict(self) | {"training": self.training.facts}
        del facts["name"]
        for name, before in _LATER.items():
            if facts[name] == before:
                del facts[name]
        return json.loads(json.dumps(facts))

    @property
    def hash(self) -> str:
        """8 hexadecimal digits over :attr:`facts`; independent of field order, 1 equals 1.0."""
        return short_hash(self.facts)

    def to_json(self) -> dict[str, Any]:
        """Return name, hash, the sentence of :meth:`describe` and the facts in use."""
        return {
            "name": self.name,
            "hash": self.hash,
            "description": self.describe(),
            **in_use(self.facts),
        }

    def describe(self) -> str:
        """Return one line that says what a student goes through."""
        t = self.training
        epochs, batch = f"{t.epochs} epochs", f"{t.batch}"
        if self.epochs_by_ipc:
            steps = ", ".join(f"{e} from ipc {i}" for i, e in self.epochs_by_ipc)
            epochs = f"epochs by ipc ({steps})"
        kind = " Nesterov momentum" if t.nesterov else " momentum"
        momentum = f"{kind} {t.momentum:g}," if t.optimizer == "sgd" else ""
        schedule = t.schedule
        if t.schedule == "step":
            at = "/".join(f"{m:.3g}" for m in t.milestones)
            schedule = f"lr x{t.gamma:g} at {at} of the epochs"
            schedule += " with momentum reset" if t.reset_momentum else ""
        schedule += f" after a rise over {t.warmup:.3g} of the epochs" if t.warmup else ""
        rate = f"lr {t.lr:g}" + (" (or the artifact's learned one)" if self.learned_lr else "")
        if self.batch_by_ipc:
            batch = "by ipc " + ", ".join(f"{b} from {i}" for i, b in self.batch_by_ipc)
        schedule += f" stretched by {t.stretch:g}" if t.stretch != 1 else ""
        seen = [f"crops from {t.resized.crop_min:g} of the area"] if t.resized else []
        seen += ["mirrors"] if t.resized and t.resized.flip else []
        seen += [f"{'_'.join(t.augment.ops)} ({t.augment.rule} rule)"] if t.augment else []
        augment = ", ".join(seen) or "none"
        augment += f", {t.mixing}" if t.mixing != "none" else ""
        augment += f", CutMix {t.cutmix:g}" if t.cutmix else ""
        augment += f", mean of weights with decay {t.ema:g}" if t.ema else ""
        sharp = f", GSAM rho {t.sharpness.rho:g} alpha {t.sharpness.alpha:g}" if t.sharpness else ""
        prior = "" if self.prior == "plain" else f"; {self.prior}: {REMEDIES[self.prior].says}"
        loss = f"; {_LOSSES[self.loss]}" if self.loss != "auto" else ""
        loss += f" and {self.hard_weight:g} cross-entropy" if self.hard_weight else ""
        loss += f" times {self.label_scale:g}" if self.label_scale != 1 else ""
        loss += ", outputs less those before the training" if self.centred else ""
        loss += f", temperature {self.temperature:g}" if self.temperature != 1 else ""
        by = f" ({self.teacher}, {self.teacher_prior})" if self.teacher else ""
        looks = f", {self.test_every} epochs apart" if self.test_every else ""
        looks += f" in the last {1 - self.looks_from:.2g}" if self.looks_from else ""
        return (
            f"{self.name} [{self.hash}]: {epochs}, {t.optimizer} {rate},{momentum} weight decay "
            f"{t.weight_decay:g}{sharp}, {schedule}, batch {batch}; augmentation {augment}"
            f"{prior}; {_LABELS[self.labels]}{by}{loss}; {_SELECTIONS[self.selection]}{looks}"
        )

    def with_(self, **changes: Any) -> Protocol:
        """Return a copy with fields of the protocol or of its training replaced.

        ``augment`` may be a :class:`DSA`, a string such as ``"color_crop_scale_rotate"`` (no flip:
        right for digits and letters) or ``"none"``. A changed copy gets an asterisk after its name.

        Example:
            >>> default = potstill.PROTOCOLS["default"]
            >>> default.with_(augment="color_crop_scale_rotate", epochs=300).name
            'default*'
        """
        if isinstance(changes.get("augment"), str):
            rule = self.training.augment.rule if self.training.augment else "idc"
            text = changes["augment"]
            changes["augment"] = None if text == "none" else DSA.parse(text, rule=rule)
        own = {field.name for field in fields(self)}
        inner = {field.name for field in fields(self.training)}
        for key in changes:
            if key not in own | inner:
                raise InputError(f"{key} is not a field of a protocol{nearest(key, own | inner)}")
        if "epochs" in changes:
            changes.setdefault("epochs_by_ipc", ())
        if "batch" in changes:
            changes.setdefault("batch_by_ipc", ())
        training = changes.pop("training", self.training)
        training = replace(training, **{k: changes.pop(k) for k in inner & changes.keys()})
        changed = replace(self, training=training, **changes)
        if changed.hash != self.hash and "name" not in changes:
            changed = replace(changed, name=self.name.rstrip("*") + "*")
        return changed

    def training_for(self, ipc: int, syn_lr: float | None = None) -> Training:
        """Return the training of a student on ``ipc`` stored images per class."""
        training = self.training
        for least, epochs in self.epochs_by_ipc:
            if ipc >= least:
                training = replace(training, epochs=epochs)
        for least, batch in self.batch_by_ipc:
            if ipc >= least:
                training = replace(training, batch=batch)
        if self.learned_lr and syn_lr is not None:
            training = replace(training, lr=syn_lr)
        return training
