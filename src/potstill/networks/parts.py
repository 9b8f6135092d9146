"""Through what both sides are seen, as a part of a method: chosen by name, with its own fields."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch

from potstill.data import DSA, ZCA, ImageSet, Normalize
from potstill.data.transform import Transform
from potstill.experts.pool import Prior, train_pool
from potstill.experts.trajectories import ExpertPrior, Trajectories, train_experts
from potstill.nets import Network, Sharpness, create_for, parse
from potstill.nets.layers import initialise_normal
from potstill.nets.many import Training
from potstill.nets.own import named
from potstill.networks.feature_networks import Networks, PoolNetworks, RandomNetworks
from potstill.run import InputError, Run
from potstill.run.fields import (
    Batch,
    Count,
    Epoch,
    Epochs,
    NotNegative,
    OneOf,
    Positive,
    Share,
)
from potstill.run.parts import Part

__all__ = [
    "Experts",
    "GaussianNets",
    "NetworkSpec",
    "NoNets",
    "OwnNets",
    "PoolNets",
    "RandomNets",
    "TrainedNets",
    "fit_transform",
]

Preprocess = Annotated[str, OneOf("normalize", "zca")]
Blend = Annotated[str, OneOf("random", "initial", "trained")]


def fit_transform(real: ImageSet, preprocess: str) -> Transform:
    """Return what stands between RGB 0-1 and networks: "normalize" (mean, std) or "zca"."""
    return ZCA.fit(real) if preprocess == "zca" else Normalize.fit(real)


@dataclass(frozen=True, kw_only=True)
class NetworkSpec(Part, room=True):
    """Through what both sides are seen."""

    judges: ClassVar[bool] = False  # whether trained networks can choose images and labels
    has_trained: ClassVar[bool] = False  # whether a trained network stands behind each that sees
    moves: ClassVar[bool] = False  # whether they change while the canvas moves

    def __post_init__(self) -> None:
        for field in ("network", "backbone"):  # modules and constructors get a name
            given = getattr(self, field, "")
            if not isinstance(given, str):
                object.__setattr__(self, field, named(given))

    @property
    def prior(self) -> str:
        """What was done about uneven classes in their training, of ``losses.REMEDIES``."""
        return "plain"

    @property
    def travelling(self) -> Mapping[str, str]:
        """Fields that stand otherwise in an artifact, which others get."""
        return {}

    def meaning(self, real: ImageSet, run: Run) -> str:
        """Return what the fields stand for beyond their values, for the identity of a job."""
        return ""

    def open(self, real: ImageSet, run: Run) -> Any:
        """Make or read the networks."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class NoNets(NetworkSpec, kind="none"):
    """Nothing is seen through a network."""

    preprocess: Preprocess = "normalize"  # mean and std, or "zca" whitening

    def open(self, real: ImageSet, run: Run) -> Networks:
        """Return no networks, with the transform of a receiver."""
        none = Networks()
        none.transform = fit_transform(real, self.preprocess)
        return none


@dataclass(frozen=True, kw_only=True)
class OwnNets(NetworkSpec):
    """Networks of ours, for the images and classes of the real set."""

    network: str = "convnet-w128-in"  # depth from the image size unless given
    preprocess: Preprocess = "normalize"  # what networks see: mean and std, or "zca" whitening

    def check(self, method: Any, real: ImageSet | None = None) -> None:
        """Refuse an unknown network, one for larger images, or statistics of nothing."""
        parse(self.network)
        if real is None:
            return
        network = self.new(real, torch.Generator().manual_seed(0))
        if self.moves and any(True for _ in network.buffers()):
            raise InputError(
                f"network is {self.network!r}, whose batch norm has no statistics when it is "
                "new; use one with instance norm, such as convnet-w128-in"
            )

    def new(self, real: ImageSet, generator: torch.Generator) -> Network:
        """Return a new network."""
        return create_for(real, self.network, generator)


@dataclass(frozen=True, kw_only=True)
class RandomNets(OwnNets, kind="random"):
    """A randomly initialised network for each view of the real side."""

    def open(self, real: ImageSet, run: Run) -> RandomNetworks:
        """Return the networks."""
        transform = fit_transform(real, self.preprocess)
        return RandomNetworks(lambda draw: self.new(real, draw), self.network, transform, run)


@dataclass(frozen=True, kw_only=True)
class GaussianNets(OwnNets, kind="gaussian"):
    """As random, with the normal weights of wide networks whose kernel is known (RFAD)."""

    def new(self, real: ImageSet, generator: torch.Generator) -> Network:
        """Return a new network of normal weights."""
        network = super().new(real, generator)
        initialise_normal(network, generator)
        return network

    def open(self, real: ImageSet, run: Run) -> RandomNetworks:
        """Return the networks."""
        transform = fit_transform(real, self.preprocess)
        label = f"gaussian-{self.network}"  # part of keys
        return RandomNetworks(lambda draw: self.new(real, draw), label, transform, run)


@dataclass(frozen=True, kw_only=True)
class TrainedNets(OwnNets):
    """Networks trained on the real set before a canvas is looked at."""

    has_trained: ClassVar[bool] = True

    members: Count = 20  # trained networks
    pool_epochs: Epoch = 60  # training epochs of each
    pool_lr: Positive = 0.01  # their step size (SGD, momentum 0.9, x0.2 at 2/3 and 5/6)
    pool_cutmix: Share = 0.5  # probability of CutMix in their training
    pool_prior: Prior = "plain"  # "plain", "balanced", "logit_adjusted", ...: the long-tail table

    @property
    def prior(self) -> str:
        """What was done about uneven classes in their training."""
        return self.pool_prior

    def training(self) -> Training:
        """Return how a member is trained."""
        return Training(
            epochs=self.pool_epochs,
            batch=128,
            optimizer="sgd",
            lr=self.pool_lr,
            momentum=0.9,
            weight_decay=5e-4,
            schedule="step",
            milestones=(2 / 3, 5 / 6),
            gamma=0.2,
            augment=DSA.parse("color_crop", rule="idc"),
            cutmix=self.pool_cutmix,
        )


@dataclass(frozen=True, kw_only=True)
class PoolNets(TrainedNets, kind="pool"):
    """A pool of networks trained on the real set, see :mod:`potstill.experts.pool`."""

    blend: Blend = "random"  # point between initial and trained weights: "random" or an end

    def open(self, real: ImageSet, run: Run) -> PoolNetworks:
        """Train the pool or read it from the cache."""
        transform = fit_transform(real, self.preprocess)
        pool = train_pool(
            real,
            transform,
            self.network,
            self.members,
            self.training(),
            run,
            prior=self.pool_prior,
        )
        like = self.new(real, run.generator("network", 0))
        return PoolNetworks(pool, self.blend, like, transform, run)


@dataclass(frozen=True, kw_only=True)
class Experts(OwnNets, kind="experts"):
    """Networks trained on the real set with what they were after each epoch (MTT, CVPR 2022)."""

    judges: ClassVar[bool] = True

    preprocess: Preprocess = "zca"
    experts: Count = 100  # trajectories to match
    expert_epochs: Epochs = 50  # training epochs of each expert
    expert_lr: Positive = 0.01  # their step size (SGD, constant)
    expert_batch: Batch = 256  # images per step
    expert_decay: NotNegative = 0.0  # weight decay
    expert_rho: NotNegative = 0.0  # radius of adaptive GSAM; 0 = plain SGD
    expert_alpha: NotNegative = 0.3  # GSAM: share of the orthogonal gradient that is taken back
    expert_prior: ExpertPrior = "plain"  # "plain", "balanced" (oversampled), ...: the table
    augment: str = "color_crop_cutout_flip_scale_rotate"  # DSA of experts and students, or "none"

    def check(self, method: Any, real: ImageSet | None = None) -> None:
        """Refuse an unknown network, augmentation or training."""
        super().check(method, real)
        self.training()

    def dsa(self) -> DSA | None:
        """Return the augmentation of experts and students, or None."""
        return None if self.augment == "none" else DSA.parse(self.augment, align_corners=True)

    def training(self) -> Training:
        """Return how an expert is trained."""
        return Training(
            epochs=self.expert_epochs,
            batch=self.expert_batch,
            lr=self.expert_lr,
            momentum=0.0,
            weight_decay=self.expert_decay,
            augment=self.dsa(),
            sharpness=Sharpness(self.expert_rho, self.expert_alpha) if self.expert_rho else None,
        )

    def trained(
        self,
        real: ImageSet,
        run: Run,
        epochs: Collection[int],
        transform: Transform,
        *,
        reserve: int = 0,
    ) -> Trajectories:
        """Train the experts, or read them, as far as ``epochs`` are needed."""
        return train_experts(
            real,
            transform,
            self.network,
            self.experts,
            self.training(),
            run,
            epochs=sorted(epochs),
            # the balanced stream of this family is OLTR's, as in LAD's code
            prior={"balanced": "class_aware"}.get(self.expert_prior, self.expert_prior),
            reserve=reserve,
        )
