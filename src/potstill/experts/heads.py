"""The golden head: a linear classifier on a backbone, trained on all real images, to be shipped.

Classifier inheritance (SFM, arXiv 2602.05391, released code) sends it along with the images; a
receiver projects its own backbone's features onto the sender's and classifies there. A head from a
long-tailed set carries its bias, so how it was debiased stands with it.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from torch import Tensor

from potstill.data import ImageSet
from potstill.data.views import Views
from potstill.experts.features import collect_features
from potstill.labels.projection import LinearMap
from potstill.losses import REMEDIES, priors
from potstill.nets.backbone import Backbone
from potstill.nets.head_training import HeadTraining, train_heads
from potstill.nets.post_hoc import correct
from potstill.run import ArtifactError, InputError, Run
from potstill.run.cache import Cached, key_facts
from potstill.run.checkpoint import load_state, save_state
from potstill.run.fields import OneOf, check_value

__all__ = ["HEAD_PRIORS", "Head", "HeadPrior", "train_head"]

_FILE = "head.safetensors"
_VIEWS = 4  # of each image that are passed through the backbone
_EPOCHS, _BATCH = 10, 128  # as in the released script; Adam, cosine
HEAD_PRIORS = priors(mixing=False, stages=False)  # features of views are stored, images are gone
HeadPrior = Annotated[str, OneOf(*HEAD_PRIORS)]


@dataclass(frozen=True, eq=False)
class Head(LinearMap):
    """A linear classifier on the features of one backbone."""

    classes: tuple[str, ...]
    backbone: str  # key of the backbone
    facts: dict[str, Any]  # label of the backbone, prior, data, epochs, seconds

    def check(self, backbone: Backbone, classes: tuple[str, ...]) -> None:
        """Raise InputError unless it was trained on this backbone and these classes."""
        if self.backbone != backbone.key:
            raise InputError(
                f"head was trained on backbone {self.facts.get('label')!r} ({self.backbone}), not "
                f"on {backbone.label!r} ({backbone.key}); train one for it"
            )
        if self.classes != classes:
            raise InputError("head has other classes than the images; train one for these data")

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and facts from which :meth:`of` makes it again."""
        facts = {"classes": list(self.classes), "backbone": self.backbone, "facts": self.facts}
        return {"weight": self.weight, "bias": self.bias}, {"kind": "potstill-head", **facts}

    def save(self, path: Path) -> None:
        """Write the file that is shipped, in one step."""
        save_state(path, *self.state())

    @staticmethod
    def load(path: Path) -> Head:
        """Read what :meth:`save` wrote.

        Raises:
            ArtifactError: damaged, or something else.
        """
        fix = "copy it again, or delete it to train one"
        tensors, facts = load_state(path, unchecked=True, fix=fix)
        try:
            return Head.of(tensors, facts)
        except ArtifactError:
            raise
        except (KeyError, TypeError, ValueError) as error:
            raise ArtifactError(f"{path} holds no head ({error}); {fix}") from None

    @staticmethod
    def of(tensors: dict[str, Tensor], facts: dict[str, Any]) -> Head:
        """A head from what :meth:`state` returns; raises KeyError or ValueError."""
        if facts.get("kind") != "potstill-head":
            raise ValueError("another kind")
        weight, bias = tensors["weight"].float(), tensors["bias"].float()
        classes = tuple(str(name) for name in facts["classes"])
        sound = bool(weight.isfinite().all()) and bool(bias.isfinite().all())
        if not sound or weight.ndim != 2 or not weight.shape[:1] == bias.shape == (len(classes),):
            raise ValueError("shapes or values do not fit")
        return Head(weight, bias, classes, str(facts["backbone"]), dict(facts["facts"]))


def train_head(
    real: ImageSet,
    backbone: Backbone,
    run: Run,
    *,
    prior: str = "logit_adjusted",
    views: Views | None = None,
    least_steps: int = 10_000,
) -> Head:
    """Train a head on all of ``real``, or read it from the cache.

    Args:
        prior: what is done about uneven classes, of :data:`potstill.losses.REMEDIES`; under
            "plain", as published, a long tail's bias is inherited.
        views: random views of the real images; by default crops and mirrors without noise.
        least_steps: more epochs where the set is so small that there would be fewer steps in 10.

    Raises:
        InputError: unknown prior.
    """
    check_value("prior", prior, HeadPrior)
    began = time.monotonic()
    views = views or Views(noise=0.0)
    row = REMEDIES[prior]
    epochs = max(_EPOCHS, -(-least_steps // -(-len(real) // _BATCH)))
    training = HeadTraining(epochs=epochs, batch=_BATCH, sampling=row.sampling)
    facts = key_facts(
        "head-1",  # raise it when training changes
        run,
        real.checksum,
        backbone=backbone.key,
        prior=prior,
        views=views.facts,
        stored_views=_VIEWS,
        training=training.facts,
    )
    entry = Cached(run.cache, "heads", facts, f"{prior} on {backbone.label} on {real.source}")

    def read(tensors: dict[str, Tensor], facts: dict[str, Any]) -> Head:
        known = Head.of(tensors, facts)
        known.check(backbone, real.classes)
        return known

    if (known := entry.recall(_FILE, "training the head again", read)) is not None:
        return known
    stats = collect_features(real, backbone, run, views=views, count=_VIEWS, bank=True)
    weight, bias = train_heads(
        bank := stats.bank.to(run.device),
        real.labels,
        real.num_classes,
        training,
        heads=1,
        generators=lambda purpose, k, index: run.generator(f"head/{purpose}", k, index),
        loss=row.loss_for(real.counts),
    )
    labels = real.labels.repeat(_VIEWS).to(run.device)
    own = correct(row.post_hoc, weight[0], bias[0], lambda: bank.flatten(0, 1), labels)
    seconds = round(time.monotonic() - began + stats.seconds_saved, 2)
    about = {
        "label": backbone.label,
        "prior": prior,
        "data": real.checksum,
        "images": len(real),
        "epochs": epochs,
        "seconds": seconds,
    }
    head = Head(own[0].cpu(), own[1].cpu(), real.classes, backbone.key, about)
    entry.save(_FILE, *head.state(), seconds)
    return head
