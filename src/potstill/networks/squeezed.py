"""Squeezed networks: trained on the real set and then only looked at, several kinds side by side.

The first stage of the decoupled methods (SRe2L, NeurIPS 2023). They are trained as teachers of soft
labels are (:func:`potstill.experts.labelling.residual_training`), so that a teacher of the same
network, prior and epochs is the same one, read from the cache.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import nn

from potstill.data import ImageSet
from potstill.data.transform import Transform
from potstill.experts.labelling import residual_training, train_teachers
from potstill.experts.pool import Prior
from potstill.nets import Network, create_for, parse
from potstill.networks.extractor import FeatureExtractor
from potstill.networks.feature_networks import Networks
from potstill.networks.parts import NetworkSpec, Preprocess, fit_transform
from potstill.run import InputError, Run
from potstill.run.fields import Batch, Epoch, Positive, Share

__all__ = ["SqueezedNets", "SqueezedNetworks"]


class SqueezedNetworks(Networks):
    """Trained networks that take turns, step by step.

    Args:
        nets: of the classes of ``real``. facts: JSON-like, for the provenance.
        key: identifies them. seconds: what making those read from a cache once took.

    Raises:
        InputError: one is of other classes.
    """

    def __init__(
        self,
        nets: Sequence[Network],
        real: ImageSet,
        transform: Transform,
        run: Run,
        *,
        key: str = "",
        facts: dict[str, Any] | None = None,
        seconds: float = 0.0,
    ) -> None:
        for net in nets:
            if net.classifier.out_features != real.num_classes:
                raise InputError(
                    f"network is of {net.classifier.out_features} classes and the real set of "
                    f"{real.num_classes}; give one that was trained on this set"
                )
        self.key, self.transform, self.members = key, transform, len(nets)
        self._eyes = [FeatureExtractor(net, transform, run) for net in nets]
        self.dim, self.seconds_saved, self._facts = self._eyes[0].dim, seconds, facts or {}

    def at(self, number: int) -> FeatureExtractor:
        """Return the network whose turn a number is."""
        return self._eyes[number % self.members]

    trained_at = at

    def finished(self) -> Iterator[FeatureExtractor]:
        """Yield all of them."""
        return iter(self._eyes)

    def facts(self) -> dict[str, Any]:
        """Who they are."""
        return {"squeezed": self._facts} if self._facts else {}


@dataclass(frozen=True, kw_only=True)
class SqueezedNets(NetworkSpec, kind="squeezed"):
    """Networks of one or several kinds, trained on the real set before anything is recovered."""

    has_trained: ClassVar[bool] = True

    observers: str = "resnet18-bn"  # networks, joined by "+": they take turns, step by step
    preprocess: Preprocess = "normalize"  # what networks see: mean and std, or "zca" whitening
    # training epochs of each; 0 = 40, and at least 5000 steps, as teachers of labels
    squeeze_epochs: Epoch = 0
    squeeze_lr: Positive = 0.05  # their step size (SGD, Nesterov 0.9, cosine)
    squeeze_batch: Batch = 64  # images of a step
    squeeze_cutmix: Share = 0.5  # probability of CutMix in their training
    squeeze_prior: Prior = "plain"  # "plain", "balanced_softmax", "glmc", ...: the long-tail table
    squeeze_mirror: bool = True  # whether they see mirrored images (no for digits and letters)

    @property
    def names(self) -> list[str]:
        """The networks' names."""
        return self.observers.split("+")

    @property
    def _told(self) -> str:
        return f"observers is {self.observers!r}"

    @property
    def prior(self) -> str:
        """What was done about uneven classes in their training."""
        return self.squeeze_prior

    def check(self, method: Any, real: ImageSet | None = None) -> None:
        """Refuse unknown networks, or one for larger images."""
        for name in self.names:
            try:
                parse(name)
                if real is not None:
                    create_for(real, name, torch.Generator().manual_seed(0))
            except InputError as error:
                own = f"network is {name!r}, which", f"{self._told}, of which {name!r}"
                told = str(error).replace(*own).replace("network is", "observers is", 1)
                raise InputError(told) from None

    def need(self, layer: type[nn.Module], what: str, real: ImageSet) -> None:
        """Refuse networks without a layer of a kind, which ``what`` names."""
        for name in self.names:
            net = create_for(real, name, torch.Generator().manual_seed(0))
            if not any(isinstance(module, layer) for module in net.modules()):
                raise InputError(
                    f"{self._told}, of which {name!r} has no {what} whose statistics could be "
                    "matched; use resnet18-bn or convnet-w128-bn"
                )

    def open(self, real: ImageSet, run: Run) -> SqueezedNetworks:
        """Train the networks or read them from the cache."""
        transform = fit_transform(real, self.preprocess)
        training = replace(
            residual_training(len(real), self.squeeze_epochs or None, mirror=self.squeeze_mirror),
            lr=self.squeeze_lr,
            batch=self.squeeze_batch,
            cutmix=self.squeeze_cutmix,
        )
        nets: dict[str, list[Network]] = {}
        told, saved = list[dict[str, Any]](), 0.0
        for name in dict.fromkeys(self.names):
            count = self.names.count(name)
            nets[name], facts, seconds = train_teachers(
                name, training, self.squeeze_prior, count, real, transform, run
            )
            told, saved = [*told, facts], saved + seconds
        key = "+".join(str(facts["key"]) for facts in told)
        return SqueezedNetworks(
            [nets[name].pop(0) for name in self.names],
            real,
            transform,
            run,
            key=key,
            facts={"observers": told},
            seconds=saved,
        )
