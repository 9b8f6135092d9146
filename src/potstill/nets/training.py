"""How networks are trained, on what, and which batch a network sees at which step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from potstill.data.augment import DSA, cutmix
from potstill.nets.sharpness import Sharpness
from potstill.run import InputError
from potstill.run.fields import (
    Batch,
    Decay,
    Epoch,
    NotNegative,
    OneOf,
    PositiveShare,
    Share,
    check_fields,
)
from potstill.run.machine import CPU_CHUNK

if TYPE_CHECKING:
    from potstill.data.transform import Transform
    from potstill.nets.layers import Network

__all__ = ["Examples", "Feed", "Generators", "Training", "balanced_order", "rgb"]

Generators = Callable[[str, int, int], torch.Generator]  # (purpose, member, epoch or step)
_RUN = 4  # "cyclic": images of one class in a row


@dataclass(frozen=True, kw_only=True)
class Training:
    """How a network is trained; equal trainings are equal values.

    Raises:
        InputError: a field is out of range.
    """

    epochs: Epoch
    batch: Batch  # images per step; the last batch of an epoch may be smaller
    optimizer: Annotated[str, OneOf("sgd", "adamw")] = "sgd"  # "sgd" or "adamw" (betas .9, .999)
    lr: NotNegative = 0.01
    momentum: Decay = 0.9  # sgd only
    weight_decay: NotNegative = 5e-4
    # cosine: to zero; either changes once per epoch
    schedule: Annotated[str, OneOf("constant", "step", "cosine")] = "constant"
    milestones: tuple[PositiveShare, ...] = ()  # "step": shares of the epochs, each: lr * gamma
    gamma: NotNegative = 0.1
    reset_momentum: bool = False  # start the optimiser anew at a milestone, as DC's code does
    augment: DSA | None = None  # one draw per step, parameters per image
    cutmix: Share = 0.0  # probability per step
    # balanced: every class equally often, in an epoch of equal length; cyclic: four at a time of
    # each class in turn, as often as the largest class has images
    sampling: Annotated[str, OneOf("shuffled", "balanced", "cyclic")] = "shuffled"
    sharpness: Sharpness | None = None  # sharpness-aware steps; two gradients each

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def facts(self) -> dict[str, Any]:
        """Every field, for keys and hashes; later additions are left out at their default."""
        facts = asdict(self)
        if self.sharpness is None:  # keys made before there was such a field stay what they were
            del facts["sharpness"]
        return facts

    @property
    def memoryless(self) -> bool:
        """Whether a step depends on nothing but the weights, the batch and the epoch."""
        return self.optimizer == "sgd" and self.momentum == 0

    def milestones_before(self, epoch: int) -> int:
        """Return how many milestones have passed when ``epoch`` (from 0) begins."""
        # 1e-9: a share such as 0.6 of 5 epochs must mean epoch 3 although 0.6 * 5 may round up.
        return sum(epoch >= int(share * self.epochs + 1e-9) for share in self.milestones)

    def lr_at(self, epoch: int) -> float:
        """Return the learning rate of ``epoch`` (from 0)."""
        if self.schedule == "step":
            return self.lr * self.gamma ** self.milestones_before(epoch)
        if self.schedule == "cosine":
            return self.lr * 0.5 * (1 + math.cos(math.pi * epoch / self.epochs))
        return self.lr

    def optimizer_for(self, parameters: Iterable[Tensor]) -> torch.optim.Optimizer:
        """Return a fresh optimiser of those ``parameters`` that require gradients."""
        wanted, decay = [p for p in parameters if p.requires_grad], self.weight_decay
        if self.optimizer == "adamw":
            return torch.optim.AdamW(wanted, self.lr, weight_decay=decay, fused=True)
        return torch.optim.SGD(wanted, self.lr, self.momentum, weight_decay=decay, fused=True)


@dataclass(frozen=True, eq=False)
class Examples:
    """What networks are trained on.

    ``images`` (n, c, h, w) are uint8 or float RGB 0-1, ``targets`` (n,) int64 or (n, K) float.
    ``weights`` (n,) are relative; they multiply the targets, in which every loss is linear.
    Float images pass the transform once, uint8 images batch by batch to save memory.
    """

    images: Tensor
    targets: Tensor
    transform: Transform
    weights: Tensor | None = None

    def __post_init__(self) -> None:
        if not 0 < len(self.images) == len(self.targets):
            raise InputError(
                f"examples has {len(self.images)} images and {len(self.targets)} targets; "
                "give one target per image, and at least one image"
            )


def rgb(images: Tensor) -> Tensor:
    """Return images uint8 or float 0-1 as floats in 0-1."""
    return images if images.is_floating_point() else images.float().div_(255)


class Feed:
    """What each member sees at each step, drawn from that member's generators."""

    @torch.no_grad()
    def __init__(
        self, examples: Examples, training: Training, generators: Generators, like: Network
    ) -> None:
        weight, classes = like.classifier.weight, like.classifier.out_features
        device, dtype = weight.device, weight.dtype
        self.training, self.generators, self.dtype = training, generators, dtype
        self.transform = examples.transform
        self.images, targets = examples.images.to(device), examples.targets
        self.ready = self.images.is_floating_point()
        if self.ready:
            parts = [self.transform.forward(part) for part in self.images.split(CPU_CHUNK)]
            self.images = torch.cat(parts).to(dtype)
        labels = targets.argmax(1) if targets.ndim == 2 else targets
        given = targets.shape[1] if targets.ndim == 2 else int(labels.max()) + 1
        if given > classes or int(labels.min()) < 0 or (targets.ndim == 2 and given != classes):
            raise InputError(f"targets has {given} classes, the network {classes}; make them equal")
        self.groups = [(labels == label).nonzero().flatten().cpu() for label in labels.unique()]
        weights = examples.weights
        if targets.ndim == 1 and (weights is not None or training.cutmix > 0):
            targets = one_hot(targets, classes).to(dtype)
        if weights is not None:
            targets = targets * (weights / weights.mean()).unsqueeze(1)
        self.targets = targets.to(device)
        self.length = len(self.images)  # images seen in an epoch
        if training.sampling == "cyclic":
            self.length = max(map(len, self.groups)) * len(self.groups)

    @property
    def steps(self) -> int:
        """Steps of an epoch."""
        return -(-self.length // self.training.batch)

    def order(self, member: int, epoch: int) -> Tensor:
        """Return the positions of an epoch, (length,)."""
        generator, n = self.generators("order", member, epoch), len(self.images)
        if self.training.sampling == "shuffled":
            return torch.randperm(n, generator=generator).to(self.images.device)
        if self.training.sampling == "cyclic":
            return _cycled(self.groups, self.length, generator).to(self.images.device)
        return balanced_order(self.groups, n, generator).to(self.images.device)

    @torch.no_grad()
    def batch(self, member: int, step: int, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Return transformed and augmented images (b, c, h, w) with their targets."""
        x, targets = self.images[positions], self.targets[positions]
        if not self.ready:
            x = self.transform.forward(rgb(x)).to(self.dtype)
        if self.training.augment is not None:
            generator, size = self.generators("augment", member, step), (x.shape[2], x.shape[3])
            draw = self.training.augment.draw(len(x), size, generator, False, x.device)
            x = self.training.augment.apply(x, draw)
        if self.training.cutmix > 0:
            generator = self.generators("cutmix", member, step)
            x, targets = cutmix(x, targets, generator, self.training.cutmix)
        return x, targets


def balanced_order(groups: Sequence[Tensor], length: int, generator: torch.Generator) -> Tensor:
    """Return ``length`` positions in random order, of every group equally many.

    Each group gives whole shuffled rounds and a part of one; which groups give an odd position is
    drawn.
    """

    def shuffled(positions: Tensor) -> Tensor:
        return positions[torch.randperm(len(positions), generator=generator)]

    picks, share = [], length // len(groups)
    for rank, place in enumerate(torch.randperm(len(groups), generator=generator)):
        group, want = groups[place], share + (rank < length % len(groups))
        rounds = [shuffled(group) for _ in range(-(-want // len(group)))]
        if rounds:
            picks.append(torch.cat(rounds)[:want])
    return shuffled(torch.cat(picks))


def _cycled(groups: Sequence[Tensor], length: int, generator: torch.Generator) -> Tensor:
    """Visit classes in shuffled rounds, each for the next images of its own shuffled rounds.

    The class-aware sampler of OLTR (Liu et al., CVPR 2019, released code) as LAD uses it; returns
    ``length`` positions in which the classes' shares differ by four at most.
    """

    def rounds(count: int, size: int) -> Tensor:
        """``count`` permutations of ``size`` things, (count, size)."""
        draw = torch.rand(count, size, generator=generator, dtype=torch.float64)
        return draw.argsort(dim=1, stable=True)

    visits = -(-length // (_RUN * len(groups)))  # of each class
    turns = rounds(visits, len(groups))
    lines = [
        group[rounds(-(-visits * _RUN // len(group)), len(group)).flatten()[: visits * _RUN]]
        for group in groups
    ]
    table = torch.stack(lines).view(len(groups), visits, _RUN)
    return table[turns, torch.arange(visits)[:, None]].flatten()[:length]
