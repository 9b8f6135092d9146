"""The named protocols, ours and those of papers.

The published protocols follow the authors' released code (hyper-parameters only); where a paper
reports the best of several looks at the test set, the plain name takes the last epoch instead and
the name ending in ``-published`` keeps the paper's habit.

Those of the decoupled family (SRe2L, RDED, EDC, RLDD) are labelled by a teacher, view by view. What
differs from their code: a crop has up to 4/3 of an aspect and no rejection (:mod:`potstill.data
.views`); RandAugment is colour and rotation of our own augmentation; biases and norms decay, too;
a patch of CutMix takes its class along (released code of EDC and RLDD: the class of the image
beneath); Beta(1, 1) for MixUp's Beta(0.8, 0.8); KL carries T², which Adam does not see; teachers
are trained as all of ours are, :func:`potstill.evaluation.teaching.teacher_training`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from potstill.data.augment import DSA
from potstill.data.views import Views
from potstill.evaluation.probe import PROBES, Probe
from potstill.evaluation.student_protocol import Protocol
from potstill.nets import Training
from potstill.run import InputError, nearest
from potstill.run.fields import (
    Batch,
    Epoch,
    Epochs,
    OneOf,
    Positive,
    Range,
    check_fields,
    check_value,
)

__all__ = ["PROTOCOLS", "Protocol", "find_protocol"]

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
}
_LATER = {  # fields that came later, with what they were before: older hashes stay what they were
    "prior": "plain",
    "loss": "auto",
    "temperature": 1.0,
    "teacher": None,
    "teacher_prior": "balanced_softmax",
    "label_scale": 1.0,
    "centred": False,
}

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
    "squared_error", which takes classes as one-hot rows and soft labels as they are. Under
    ``labels`` "online" and "projected" the same teacher labels the random real images, too.

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
    labels: Annotated[str, OneOf(*_LABELS)] = "auto"  # see the table above
    learned_lr: bool = False  # start from the artifact's learned step size where it has one
    selection: Annotated[str, OneOf(*_SELECTIONS)] = "last"
    test_every: Epoch = 0  # epochs between looks under "val" and "test_max"; the last always counts
    held_out: Batch | None = None  # images per class under "val"; None: 0.1 of the smallest class
    prior: Annotated[str, OneOf(*priors())] = "plain"  # what is done about uneven classes
    loss: Annotated[str, OneOf(*_LOSSES)] = "auto"  # of students, see above
    temperature: Temperature = 1.0  # of a teacher's labels and of students who learn them
    teacher: str | None = None  # network that labels views, with labels "online"
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
        if self.looks_between and REMEDIES[self.prior].stages:
            raise InputError(
                f"prior is {self.prior!r} with selection {self.selection!r}, but a training in "
                "stages has no epochs to choose from; use selection 'last'"
            )
        if self.loss != "squared_error" and (self.centred or self.label_scale != 1):
            raise InputError(
                f"loss is {self.loss!r} with label_scale {self.label_scale:g} and centred "
                f"{self.centred}, which belong to squared error; use loss=squared_error"
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
            parse(self.teacher)
        elif self.teacher_prior != _LATER["teacher_prior"]:
            raise InputError(
                f"teacher_prior is {self.teacher_prior!r} without a teacher; name one, with labels "
                "'online'"
            )
        if self.temperature != 1 and (
            self.labels == "hard" or self.loss in ("cross_entropy", "squared_error")
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
        learns_views = self.labels in ("views", "projected", "online") or self.loss == "kl"
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
        epochs = f"{t.epochs} epochs"
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
        augment = f"{'_'.join(t.augment.ops)} ({t.augment.rule} rule)" if t.augment else "none"
        augment += f", CutMix {t.cutmix:g}" if t.cutmix else ""
        augment += f", mean of weights with decay {t.ema:g}" if t.ema else ""
        sharp = f", GSAM rho {t.sharpness.rho:g} alpha {t.sharpness.alpha:g}" if t.sharpness else ""
        prior = "" if self.prior == "plain" else f"; {self.prior}: {REMEDIES[self.prior].says}"
        loss = f"; {_LOSSES[self.loss]}" if self.loss != "auto" else ""
        loss += f", temperature {self.temperature:g}" if self.temperature != 1 else ""
        loss += f" times {self.label_scale:g}" if self.label_scale != 1 else ""
        loss += ", outputs less those before the training" if self.centred else ""
        by = f" ({self.teacher}, {self.teacher_prior})" if self.teacher else ""
        looks = f", {self.test_every} epochs apart" if self.test_every else ""
        return (
            f"{self.name} [{self.hash}]: {epochs}, {t.optimizer} {rate},{momentum} weight decay "
            f"{t.weight_decay:g}{sharp}, {schedule}, batch {t.batch}; augmentation {augment}"
            f"{prior}; {_LABELS[self.labels]}{by}{loss}; {_SELECTIONS[self.selection]}{looks}"
        )

    def with_(self, **changes: Any) -> Protocol:
        """Return a copy with fields of the protocol or of its training replaced.

        ``augment`` may be a :class:`DSA`, a string such as ``"color_crop_scale_rotate"`` (no flip:
        right for digits and letters) or ``"none"``. A changed copy gets an asterisk after its name.

        Example:
            >>> PROTOCOLS["default"].with_(augment="color_crop_scale_rotate", epochs=300).name
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
        if self.learned_lr and syn_lr is not None:
            training = replace(training, lr=syn_lr)
        return training


__all__ = ["PROTOCOLS", "Protocol", "find_protocol"]


def find_protocol(
    protocol: str | Protocol | Probe, prior: str | None = None, **changes: Any
) -> Protocol | Probe:
    """Return the protocol or probe of that name, or the given one; InputError names the nearest.

    A ``prior`` other than its own goes into its name, as in "quick-balanced_softmax", and so do
    other ``changes`` (labels, loss, temperature, teacher, teacher_prior) that are not None, as in
    "quick-hard".
    """
    known: dict[str, Protocol | Probe] = {**PROTOCOLS, **PROBES}
    if isinstance(protocol, str) and protocol not in known:
        raise InputError(f"protocol is {protocol!r}{nearest(protocol, known)}")
    found = known[protocol] if isinstance(protocol, str) else protocol
    told = {"prior": prior} | changes
    own = {k: v for k, v in told.items() if v is not None and v != getattr(found, k, None)}
    if not own:
        return found
    if isinstance(found, Probe) and (wrong := {*own} - {"prior", "labels"}):
        raise InputError(f"{min(wrong)} is given under probe {found.name!r}, which has none")
    words = (f"T{v:g}" if k == "temperature" else str(v) for k, v in own.items())
    return found.with_(**own, name="-".join([found.name, *words]))


_ALL = "color_crop_cutout_flip_scale_rotate"  # DSA, Zhao & Bilen, ICML 2021
_NO_CUTOUT = "color_crop_flip_scale_rotate"  # IDC's evaluation: CutMix takes cutout's place

_DC = Training(  # DC, Zhao et al., ICLR 2021: released evaluation code
    epochs=300, batch=256, optimizer="sgd", lr=0.01, momentum=0.9, weight_decay=5e-4,
    schedule="step", milestones=(1 / 2,), gamma=0.1, reset_momentum=True,
)  # fmt: skip
_DSA = replace(_DC, epochs=1000, augment=DSA.parse(_ALL, rule="dc"))
# MTT, Cazenavette et al., CVPR 2022: DSA's with the learned step size and its own sampling grid
_MTT = replace(_DSA, augment=DSA.parse(_ALL, rule="dc", align_corners=True))
# LAD, Zhao et al., CVPR 2025: released evaluation code; lr falls after epoch 501, counted from 0
_LAD = replace(_MTT, epochs=1001, batch=128, milestones=(502 / 1001,))
_IDC = Training(  # IDC, Kim et al., ICML 2022: released evaluation code
    epochs=1000, batch=64, optimizer="sgd", lr=0.01, momentum=0.9, weight_decay=5e-4,
    schedule="step", milestones=(2 / 3, 5 / 6), gamma=0.2,
    augment=DSA.parse(_NO_CUTOUT, rule="idc"), cutmix=0.5,
)  # fmt: skip
_NCFM = Training(  # NCFM, Wang et al., CVPR 2025: released evaluation code
    epochs=2000, batch=128, optimizer="adamw", lr=1e-3, weight_decay=0.01,
    schedule="step", milestones=(1 / 5, 2 / 5, 3 / 5, 4 / 5), gamma=0.5,
    augment=DSA.parse(_NO_CUTOUT, rule="idc"), cutmix=0.5,
)  # fmt: skip
_FREPO = Training(  # FRePo, Zhou et al., NeurIPS 2022; steps, lr and batch are recalled
    epochs=1000, batch=500, optimizer="adamw", lr=3e-4, weight_decay=0.0, schedule="cosine",
    augment=DSA.parse(_ALL, rule="dc"), ema=0.995,
)  # fmt: skip
_RFAD = Training(  # RFAD, Loo et al., NeurIPS 2022: full batches; steps and lr are ours
    epochs=3000, batch=1000, optimizer="sgd", lr=3e-4, momentum=0.9, weight_decay=0.0,
)  # fmt: skip
_BPTT = Training(  # RaT-BPTT, Feng et al., ICLR 2024: as the students of its distillation
    epochs=1000, batch=1000, optimizer="adamw", lr=1e-3, weight_decay=0.0,
    augment=DSA.parse("flip_rotate", rule="dc", align_corners=True),
)  # fmt: skip
_TINY = ((1, 2000), (10, 300), (50, 40))  # NCFM's epochs for Tiny ImageNet

# Ours: what the strong published recipes share (AdamW, IDC-rule augmentation, CutMix) with the one
# schedule that needs no milestones, at half of NCFM's epochs; the same for every method, scored
# after the last epoch. One number to choose (epochs), nothing chosen on any test set.
_DEFAULT = replace(_NCFM, epochs=1000, schedule="cosine", milestones=(), gamma=1.0)
# For 2 CPU cores: a tenth of the images of `default`. Small batches and a larger lr make up for
# most of it: on 10 images per class of long-tailed digits, within a point of `default`.
_QUICK = replace(_DEFAULT, epochs=100, batch=32, lr=3e-3)
# SRe2L, Yin et al., NeurIPS 2023: its CIFAR-100 trainer, and ImageNet's, which replays FKD's views
_SRE2L = Training(
    epochs=400, batch=128, optimizer="adamw", lr=1e-3, weight_decay=0.01, schedule="cosine",
    augment=DSA.parse("crop_flip", rule="idc"), mixing="mixup",
)  # fmt: skip
_CROPS = Views(noise=0.0)  # from 0.08 of the area, half of them mirrored
_FKD = replace(_SRE2L, epochs=300, batch=1024, augment=None, mixing="none", cutmix=1.0)
_FKD = replace(_FKD, resized=_CROPS)
_RDED = Training(  # RDED, Sun et al., CVPR 2024: released code at factor 1, where crops are whole
    epochs=300, batch=50, optimizer="adamw", lr=1e-3, weight_decay=0.01, schedule="cosine",
    stretch=2.0, resized=Views(crop_min=1.0, noise=0.0), cutmix=1.0,
)  # fmt: skip
_EDC = Training(  # EDC, Shao et al., NeurIPS 2024: released CIFAR-10 trainer; RLDD's is the same
    epochs=1000, batch=25, optimizer="adamw", lr=1e-3, weight_decay=0.01, schedule="step",
    milestones=(0.8, 0.9, 0.95), gamma=0.5, resized=_CROPS,
    augment=DSA.parse("color_rotate", rule="idc"), cutmix=1.0, ema=0.99,
)  # fmt: skip
_KL = {"labels": "online", "loss": "kl", "teacher_prior": "plain"}
_MSE_GT = {"labels": "online", "loss": "logits", "hard_weight": 0.025}
_DECOUPLED: dict[str, dict[str, Any]] = {
    "sre2l": {**_KL, "training": _SRE2L, "teacher": "resnet18-bn", "temperature": 30.0},
    "sre2l-fkd": {"training": _FKD, "labels": "views", "loss": "kl", "temperature": 20.0},
    "rded": {
        **_KL,
        "training": _RDED,
        "batch_by_ipc": ((1, 10), (10, 50), (50, 100)),
        "teacher": "convnet-w128-bn",
        "temperature": 20.0,
    },
    "edc": {
        **_MSE_GT,
        "training": _EDC,
        "batch_by_ipc": ((1, 10), (10, 25)),  # of IPC 1 published; 25 is RLDD's
        "teacher": "resnet18-bn+wrn16-w32-bn+convnet-w128-bn+convnet-d2-w128-bn"
        "+convnet-d1-w128-bn+convnet-w32-bn",  # of its eight those that there are here
        "teacher_prior": "plain",
    },
    "rldd": {
        **_MSE_GT,
        "training": _EDC,
        "teacher": "convnet-w128-in",
        "teacher_prior": "glmc",
    },
}
_LOOKS: dict[str, dict[str, Any]] = {  # at the test set, of those papers that take the best
    "rded": {"test_every": 10, "looks_from": 0.8},
    "edc": {"test_every": 20},
    "rldd": {"test_every": 20},
}
_UPRIGHT = DSA.parse(_NO_CUTOUT, rule="idc").without("flip")  # digits, letters: mirrors mislead

PROTOCOLS: dict[str, Protocol] = {
    protocol.name: protocol
    for protocol in (
        Protocol(name="default", training=_DEFAULT),
        Protocol(name="quick", training=_QUICK),
        Protocol(name="default-noflip", training=replace(_DEFAULT, augment=_UPRIGHT)),
        Protocol(name="quick-noflip", training=replace(_QUICK, augment=_UPRIGHT)),
        Protocol(name="dc", training=_DC),
        Protocol(name="dsa", training=_DSA),  # also DM, IDM, IID, FreD
        Protocol(name="idc", training=_IDC),  # also DREAM, DANCE
        Protocol(name="idc-published", training=_IDC, selection="test_max", test_every=250),
        Protocol(name="ncfm", training=_NCFM),
        Protocol(name="ncfm-published", training=_NCFM, selection="test_max", test_every=100),
        Protocol(name="ncfm-tiny", training=_NCFM, epochs_by_ipc=_TINY),
        Protocol(  # an epoch is one step as long as the set has no more images than a batch
            name="frepo",
            training=_FREPO,
            epochs_by_ipc=((1, 1000), (10, 2000), (50, 5000)),
            loss="squared_error",
        ),
        Protocol(name="rfad", training=_RFAD, loss="squared_error", label_scale=8.0, centred=True),
        Protocol(name="rat-bptt", training=_BPTT),  # also AT-BPTT
        Protocol(name="mtt", training=_MTT, learned_lr=True),  # also FTD, TESLA, DATM
        Protocol(name="lad", training=_LAD, learned_lr=True),
        Protocol(
            name="lad-published", training=_LAD, learned_lr=True, selection="test_max_iterates"
        ),
        Protocol(name="lad-quick", training=replace(_LAD, epochs=300), learned_lr=True),
        *(Protocol(name=name, **own) for name, own in _DECOUPLED.items()),
        *(
            Protocol(name=f"{name}-published", selection="test_max", **_DECOUPLED[name], **looks)
            for name, looks in _LOOKS.items()
        ),
    )
}
