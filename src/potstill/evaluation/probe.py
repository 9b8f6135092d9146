"""Linear-probe protocols: a student is a linear head on a frozen backbone.

LGM's and SFM's evaluation (Cazenavette et al., NeurIPS 2025, arXiv 2511.16674, released code): a
fresh head on the features of augmented synthetic images, Adam, cosine, no weight decay, the test
set looked at once after the last epoch. Features of ``stored_views`` random views are computed once
and every head draws from them, instead of a new pass of the backbone in every epoch; the protocol
ending in ``-published`` keeps the pass.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Annotated, Any

from potstill.data.views import Views
from potstill.experts.heads import HeadPrior
from potstill.losses import REMEDIES
from potstill.nets.head_training import HeadTraining
from potstill.run import InputError, nearest
from potstill.run.checkpoint import digest
from potstill.run.fields import Copies, OneOf, Range, Steps, check_fields

__all__ = ["PROBES", "Probe", "in_use", "short_hash"]

Stored = Annotated[int, Range(0, 10**3)]
_HEAD, _FULL = HeadTraining(epochs=1000), HeadTraining(epochs=100, batch=128)
_VIEWS = Views(noise=0.0)  # flip and random resized crop, no noise


def short_hash(facts: dict[str, Any]) -> str:
    """8 hexadecimal digits over JSON-like facts; independent of their order, 1 equals 1.0."""
    return digest(json.loads(json.dumps(facts), parse_int=float))[:8]


_OFF: dict[str, Any] = {  # fact and the values under which nothing of the kind is done
    "epochs_by_ipc": ([], ()), "test_every": (0,), "held_out": (None,), "learned_lr": (False,),
    "augment": (None,), "cutmix": (0,), "sharpness": (None,), "reset_momentum": (False,),
    "flip": (0,), "noise": (0,),
}  # fmt: skip
_PART_OF = {  # facts and the operation of an augmentation without which they mean nothing
    "brightness": ("color",), "saturation": ("color",), "contrast": ("color",), "crop": ("crop",),
    "cutout": ("cutout",), "flip": ("flip",), "scale": ("scale",), "rotate": ("rotate",),
    "align_corners": ("scale", "rotate"),
}  # fmt: skip


def in_use(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the facts of a protocol without those of what it does not do.

    A flip of 0.5 among the ranges of an augmentation that never flips is part of the hash, but no
    fact about the training; nor is the momentum of an optimiser that has none. ``facts`` may be
    those in a score file, of any version.
    """
    left_out = {key for key, off in _OFF.items() if key in facts and facts[key] in off}
    if facts.get("optimizer") not in (None, "sgd"):
        left_out |= {"momentum", "reset_momentum"}
    if facts.get("schedule") not in (None, "step"):
        left_out |= {"milestones", "gamma", "reset_momentum"}
    if isinstance(facts.get("ops"), (list, tuple)):
        left_out |= {key for key, ops in _PART_OF.items() if not set(ops) & set(facts["ops"])}
    if facts.get("noise") == 0:
        left_out |= {"noise_mean", "noise_std"}
    if facts.get("crop_min") == 1:
        left_out |= {"aspect"}
    return {
        key: in_use(value) if isinstance(value, Mapping) else value
        for key, value in facts.items()
        if key not in left_out
    }


@dataclass(frozen=True, kw_only=True)
class Probe:
    """How a linear head is trained on an artifact and on real images.

    Raises:
        InputError: a field is out of range.
    """

    name: str  # for people; not part of the hash
    training: HeadTraining = _HEAD  # on the artifact and on random images
    views: Views = _VIEWS
    stored_views: Stored = 64  # per image; 0 = fresh views in every epoch, as published
    full: HeadTraining = _FULL  # on all real images; more epochs where they are few
    full_steps: Steps = 10_000  # at least as many steps on all real images
    full_views: Copies = 4  # stored views of each real image
    labels: Annotated[str, OneOf("auto", "hard", "soft")] = "auto"  # soft where there are any
    prior: HeadPrior = "plain"  # what is done about uneven classes, of losses.REMEDIES

    selection = "last"  # of the epoch that counts; for tables

    def __post_init__(self) -> None:
        check_fields(self)

    def full_training(self, images: int) -> HeadTraining:
        """Return how heads are trained on so many real images."""
        steps = -(-images // min(self.full.batch, images))
        return replace(self.full, epochs=max(self.full.epochs, -(-self.full_steps // steps)))

    @property
    def facts(self) -> dict[str, Any]:
        """Every field but the name, JSON-like."""
        full = {
            "full": self.full.facts,
            "full_views": self.full_views,
            "full_steps": self.full_steps,
        }
        return self._facts(self.training, self.stored_views, self.labels, full)

    def _facts(
        self, training: HeadTraining, stored: int, labels: str, full: dict[str, Any]
    ) -> dict[str, Any]:
        """Without a prior that is none: hashes made before there was one stay what they were."""
        return {
            "kind": "linear probe",
            "training": training.facts,
            "views": self.views.facts,
            "stored_views": stored,
            **full,
            "labels": labels,
            "selection": self.selection,
            **({} if self.prior == "plain" else {"prior": self.prior}),
        }

    @property
    def hash(self) -> str:
        """8 hexadecimal digits over :attr:`facts`; independent of field order, 1 equals 1.0."""
        return short_hash(self.facts)

    def to_json(self) -> dict[str, Any]:
        """Return name, hash, the sentence of :meth:`describe` and the facts in use."""
        seen = f"{self.stored_views} stored views" if self.stored_views else "fresh views"
        return self._json(self.name, self.facts, self.training, seen)

    def full_json(self, images: int, what: str = "full") -> dict[str, Any]:
        """Return name, hash, sentence and facts of how heads are trained on so many real images."""
        training, views = self.full_training(images), self.full_views
        facts = self._facts(training, views, "hard", {})
        return self._json(f"{self.name}-{what}", facts, training, f"{views} stored views")

    def _json(
        self, name: str, facts: dict[str, Any], training: HeadTraining, seen: str
    ) -> dict[str, Any]:
        key = short_hash(facts)
        about = f"{name} [{key}]: {self._described(training, seen)}"
        return {"name": name, "hash": key, "description": about, **in_use(facts)}

    def describe(self) -> str:
        """Return one line that says what a head goes through."""
        return str(self.to_json()["description"])

    def _described(self, training: HeadTraining, seen: str) -> str:
        mirror = f", flip {self.views.flip:g}" if self.views.flip else ", no flip"
        prior = "" if self.prior == "plain" else f"; {self.prior}: {REMEDIES[self.prior].says}"
        return (
            f"linear head on a frozen backbone, {training.epochs} epochs, Adam lr {training.lr:g} "
            f"for 256 images, cosine, batch {training.batch}; {seen} of each image (crops from "
            f"{self.views.crop_min:g} of the area{mirror}){prior}; accuracy after the last epoch"
        )

    def students(self, runs: int) -> int:
        """How many heads one score comes from when ``runs`` are asked for."""
        return runs

    def with_(self, **changes: Any) -> Probe:
        """Return a copy with fields replaced; it gets an asterisk after its name.

        ``epochs``, ``batch`` and ``lr`` are those of the heads on the artifact.
        """
        own, inner = {f.name for f in fields(self)}, {f.name for f in fields(HeadTraining)}
        for key in changes:
            if key not in own | inner:
                raise InputError(f"{key} is not a field of a probe{nearest(key, own | inner)}")
        training = replace(
            changes.pop("training", self.training),
            **{key: changes.pop(key) for key in inner & changes.keys()},
        )
        changed = replace(self, training=training, **changes)
        if changed.hash != self.hash and "name" not in changes:
            changed = replace(changed, name=self.name.rstrip("*") + "*")
        return changed


PROBES: dict[str, Probe] = {
    probe.name: probe
    for probe in (
        Probe(name="probe"),
        Probe(name="probe-noflip", views=Views(noise=0.0, flip=0.0)),
        Probe(name="probe-published", stored_views=0, full_views=10),
    )
}
