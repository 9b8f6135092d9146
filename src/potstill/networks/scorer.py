"""The network by whose features real images are chosen, and the classifier on them, as a part.

A scorer is a backbone with a linear head: a network of ours, trained on the real set under a row of
the long-tail table (``scorer``), or a head on a frozen backbone, which may be pre-trained or have
learned without labels (``backbone-head``). Either way features go through the one stored pass of
:mod:`potstill.experts.features`, so that all selectors share the network, the pass and its checks.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from potstill.data import DSA, ImageSet, Normalize
from potstill.experts.features import StoredFeatures, collect_features
from potstill.experts.heads import Head, HeadPrior, train_head
from potstill.experts.labelling import train_teachers
from potstill.experts.pool import Prior
from potstill.nets import Training, create_for, parse
from potstill.nets.frozen import frozen
from potstill.networks.frozen_backbone import BackboneNetworks, FrozenBackbone
from potstill.networks.parts import NetworkSpec
from potstill.run import Run
from potstill.run.fields import Epoch, Positive, Steps

__all__ = ["HeadedBackbone", "Scorer", "ScoringNetworks", "residuals", "stored_features"]


class ScoringNetworks(BackboneNetworks):
    """A backbone with a head (K classes)."""

    head: Head

    def facts(self) -> dict[str, Any]:
        """What an artifact says of the backbone and the head it was chosen with."""
        return super().facts() | {"head": self.head.facts}


class OwnScorer(ScoringNetworks):
    """A network of ours that was trained to choose, and for nothing else."""

    def facts(self) -> dict[str, Any]:
        """What an artifact says of the network; a receiver is not asked to open it."""
        told = {"label": self.backbone.label, "key": self.key, "features": self.dim}
        return {"scorer": told | self.head.facts}


@dataclass(frozen=True, kw_only=True)
class Scorer(NetworkSpec, kind="scorer"):
    """One network of ours, trained on the real set to choose from it."""

    network: str = "resnet18-bn"  # what is trained; depth from the image size unless given
    scorer_epochs: Epoch = 40  # of its training (SGD with Nesterov momentum 0.9, batch 128, cosine)
    scorer_lr: Positive = 0.1  # step size
    scorer_augment: str = "crop_flip"  # DSA of its training; "crop" for digits, or "none"
    scorer_prior: Prior = "plain"  # "plain", "balanced_softmax", "crt", ...: the long-tail table

    @property
    def prior(self) -> str:
        """What was done about uneven classes in its training."""
        return self.scorer_prior

    def check(self, method: Any, real: ImageSet | None = None) -> None:
        """Refuse an unknown network or augmentation, or a network for larger images."""
        parse(self.network), self.training()
        if real is not None:
            create_for(real, self.network, torch.Generator().manual_seed(0))

    def training(self) -> Training:
        """Return how it is trained."""
        named = self.scorer_augment
        return Training(
            epochs=self.scorer_epochs, batch=128, drop_last=True, lr=self.scorer_lr, momentum=0.9,
            nesterov=True, weight_decay=5e-4, schedule="cosine",
            augment=None if named == "none" else DSA.parse(named, rule="idc"),
        )  # fmt: skip

    def open(self, real: ImageSet, run: Run) -> ScoringNetworks:
        """Train the network or read it from the cache."""
        transform, spec = Normalize.fit(real), str(parse(self.network).at(real.shape[1:]))
        (net,), facts, seconds = train_teachers(
            self.network, self.training(), self.scorer_prior, 1, real, transform, run
        )
        label, size = f"{spec}, {self.scorer_prior}", real.shape[1:]
        found = frozen(label, net.cpu().body, size, real.shape[0], transform, f"potstill:{spec}")
        own = OwnScorer(found.on(run.device, run.precision, run.compile), transform, 0.0)
        weight, bias = (v.detach().cpu() for v in (net.classifier.weight, net.classifier.bias))
        own.head = Head(weight, bias, real.classes, own.key, facts)
        own.seconds_saved = seconds
        return own


@dataclass(frozen=True, kw_only=True)
class HeadedBackbone(FrozenBackbone, kind="backbone-head"):
    """A frozen backbone and a linear classifier, trained on its features of the real set."""

    head_prior: HeadPrior = "balanced_softmax"  # of the head: a row of the long-tail table
    head_steps: Steps = 10_000  # of its training at least (Adam, batch 128); 10 epochs if more

    @property
    def prior(self) -> str:
        """What was done about uneven classes in the head's training."""
        return self.head_prior

    def open(self, real: ImageSet, run: Run) -> ScoringNetworks:
        """Open the backbone and train its head, or read it from the cache."""
        opened, began = super().open(real, run), time.monotonic()
        found = ScoringNetworks(opened.backbone, Normalize.fit(real), opened.seconds_apart)
        found.head = train_head(
            real, found.backbone, run, prior=self.head_prior, least_steps=self.head_steps
        )
        known = float(found.head.facts["seconds"])
        found.seconds_saved = max(0.0, known - (time.monotonic() - began))
        return found


def stored_features(real: ImageSet, networks: BackboneNetworks, run: Run) -> StoredFeatures:
    """Return the features of the clean views of all real images, in half precision.

    Raises:
        InputError: a feature is not finite; the sentence names the image and its class.
    """
    found = collect_features(real, networks.backbone, run, bank=True)
    networks.seconds_saved += found.seconds_saved
    return found


def residuals(features: Tensor, label: int, head: Head) -> Tensor:
    """Return p - y for images of one class, (n, K) float64, of features (n, d).

    p = softmax of the head's logits, y the class. That of the class itself is minus the sum of the
    others, which keeps its digits where p is almost y.
    """
    p = (features.double() @ head.weight.double().T + head.bias.double()).softmax(1)
    p[:, label] = 0
    p[:, label] = -p.sum(1)
    return p
