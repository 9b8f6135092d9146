"""The golden head: a linear classifier on a backbone, trained on all real images, to be shipped.

Classifier inheritance (SFM, arXiv 2602.05391, released code) sends it along with the images; a
receiver projects its own backbone's features onto the sender's and classifies there. A head from a
long-tailed set carries its bias, so how it was debiased stands with it.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from potstill.data import ImageSet
from potstill.data.views import Views
from potstill.experts.features import collect_features
from potstill.losses import adjust, cross_entropy, logit_adjusted
from potstill.nets.backbone import Backbone
from potstill.nets.head_training import HeadTraining, train_heads
from potstill.run import ArtifactError, InputError, Run, nearest
from potstill.run.cache import Cached, key_facts
from potstill.run.checkpoint import load_state, save_state

__all__ = ["HEAD_PRIORS", "Head", "train_head"]

_FILE = "head.safetensors"

HEAD_PRIORS = {
    "plain": "cross-entropy, as published; a long tail's bias is inherited",
    "balanced": "class-balanced sampling",
    "logit_adjusted": "logits plus log class prior in training (Menon et al., ICLR 2021, eq. 10)",
    "post_hoc": "plain, then biases minus log class prior (Menon et al., eq. 9)",
}


@dataclass(frozen=True, eq=False)
class Head:
    """A linear classifier on the features of one backbone."""

    weight: Tensor  # (C, d)
    bias: Tensor  # (C,)
    classes: tuple[str, ...]
    backbone: str  # key of the backbone
    facts: dict[str, Any]  # label of the backbone, prior, data, epochs, seconds

    def __call__(self, z: Tensor) -> Tensor:
        """Logits (n, C) of features (n, d)."""
        return z.float() @ self.weight.T.to(z.device) + self.bias.to(z.device)

    @property
    def nbytes(self) -> int:
        """Bytes to ship: (d + 1) C numbers of 4 bytes."""
        return self.weight.nbytes + self.bias.nbytes

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
    stored_views: int = 4,
    epochs: int = 10,
    batch: int = 128,
    least_steps: int = 10_000,
) -> Head:
    """Train a head on all of ``real``, or read it from the cache.

    Args:
        prior: what is done about uneven classes, see :data:`HEAD_PRIORS`.
        views: random views of the real images; by default crops and mirrors without noise.
        stored_views: how many per image are passed through the backbone.
        epochs, batch: 10 and 128 as in the released script; Adam, cosine.
        least_steps: more epochs where the set is so small that there would be fewer steps.

    Raises:
        InputError: unknown prior.
    """
    if prior not in HEAD_PRIORS:
        raise InputError(f"prior is {prior!r}{nearest(prior, HEAD_PRIORS)}")
    began = time.monotonic()
    views = views or Views(noise=0.0)
    sampling = "balanced" if prior == "balanced" else "shuffled"
    epochs = max(epochs, -(-least_steps // -(-len(real) // batch)))
    training = HeadTraining(epochs=epochs, batch=batch, sampling=sampling)
    facts = key_facts(
        "head-1",  # raise it when training changes
        run,
        real.checksum,
        backbone=backbone.key,
        prior=prior,
        views=views.facts,
        stored_views=stored_views,
        training=training.facts,
    )
    entry = Cached(run.cache, "heads", facts, f"{prior} on {backbone.label} on {real.source}")

    def read(tensors: dict[str, Tensor], facts: dict[str, Any]) -> Head:
        known = Head.of(tensors, facts)
        known.check(backbone, real.classes)
        return known

    if (known := entry.recall(_FILE, "training the head again", read)) is not None:
        return known
    stats = collect_features(real, backbone, run, views=views, count=stored_views, bank=True)
    assert stats.bank is not None
    weight, bias = train_heads(
        stats.bank.to(run.device),
        real.labels,
        real.num_classes,
        training,
        heads=1,
        generators=lambda purpose, k, index: run.generator(f"head/{purpose}", k, index),
        loss=logit_adjusted(real.counts) if prior == "logit_adjusted" else cross_entropy,
    )
    own = bias[0].cpu()
    if prior == "post_hoc":
        own = adjust(own[None], real.counts)[0]
    seconds = round(time.monotonic() - began + stats.seconds_saved, 2)
    about = {
        "label": backbone.label,
        "prior": prior,
        "data": real.checksum,
        "images": len(real),
        "epochs": epochs,
        "seconds": seconds,
    }
    head = Head(weight[0].cpu(), own, real.classes, backbone.key, about)
    entry.save(_FILE, *head.state(), seconds)
    return head
