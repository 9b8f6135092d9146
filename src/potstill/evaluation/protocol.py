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
