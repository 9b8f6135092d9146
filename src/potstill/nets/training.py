"""How networks are trained, and on what."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any

import torch
from torch import Tensor

from potstill.data.augment import DSA
from potstill.data.views import Views
from potstill.losses import REMEDIES
from potstill.nets.sampling import Sampling
from potstill.nets.sharpness import Sharpness
from potstill.run import InputError
from potstill.run.descent import cosine
from potstill.run.fields import (
    Batch,
    BatchOrAll,
    Decay,
    Epoch,
    NotNegative,
    OneOf,
    PositiveShare,
    Range,
    Share,
    check_fields,
)

if TYPE_CHECKING:
    from potstill.data.transform import Transform
    from potstill.labels.per_view import ViewLabels

__all__ = ["Examples", "Generators", "Training", "rgb"]

Stretch = Annotated[float, Range(1, 100)]
Generators = Callable[[str, int, int], torch.Generator]  # (purpose, member, epoch or step)


@dataclass(frozen=True, kw_only=True)
class Training:
    """How a network is trained; equal trainings are equal values.

    Raises:
        InputError: a field is out of range.
    """

    epochs: Epoch
    batch: Batch  # images per step; the last batch of an epoch may be smaller
    drop_last: bool = False  # leave such a batch out; few images make a poor batch norm
    optimizer: Annotated[str, OneOf("sgd", "adamw")] = "sgd"  # "sgd" or "adamw" (betas .9, .999)
    lr: NotNegative = 0.01
    momentum: Decay = 0.9  # sgd only
    nesterov: bool = False  # sgd only: the gradient is taken where the momentum leads
    weight_decay: NotNegative = 5e-4
    warmup: Decay = 0.0  # share of the epochs over which lr rises evenly, before the schedule
    # cosine: to zero; either changes once per epoch
    schedule: Annotated[str, OneOf("constant", "step", "cosine")] = "constant"
    stretch: Stretch = 1.0  # of the cosine: it would end after so many times the epochs
    milestones: tuple[PositiveShare, ...] = ()  # "step": shares of the epochs, each: lr * gamma
    gamma: NotNegative = 0.1
    reset_momentum: bool = False  # start the optimiser anew at a milestone, as DC's code does
    resized: Views | None = None  # crops and mirrors of each image, before ``augment``; no noise
    augment: DSA | None = None  # one draw per step, parameters per image
    cutmix: Share = 0.0  # probability per step
    sampling: Sampling = "shuffled"  # see potstill.nets.sampling
    epoch_images: BatchOrAll = 0  # images of an epoch at most; 0 = as many as the sampling has
    sharpness: Sharpness | None = None  # sharpness-aware steps; two gradients each
    mixing: Annotated[str, OneOf("none", "mixup", "remix")] = "none"  # in every step; not w. cutmix
    # rows of the classifier are cut after each step to what lies this share of the way from the
    # smallest to the largest norm that they began with (MaxNorm, Alshammari et al., CVPR 2022)
    max_norm: Share | None = None
    ema: Decay = 0.0  # a network is its weights' running mean, of this decay per step; 0: itself

    def __post_init__(self) -> None:
        check_fields(self)
        if self.resized is not None and self.resized.noise:
            raise InputError(f"noise is {self.resized.noise:g} in resized; use noise=0")
        if self.cutmix and self.mixing != "none":
            raise InputError(f"mixing is {self.mixing!r} with cutmix {self.cutmix}; use cutmix=0")
        if self.ema and self.reset_momentum and self.optimizer != "sgd":
            raise InputError(
                f"ema is {self.ema} with reset_momentum and {self.optimizer}, whose memory holds "
                "the mean; use sgd, or reset_momentum=False"
            )
        if self.nesterov and (self.optimizer != "sgd" or not self.momentum):
            raise InputError(
                f"nesterov is True with {self.optimizer} and momentum {self.momentum:g}; it "
                "belongs to sgd with momentum"
            )

    @property
    def facts(self) -> dict[str, Any]:
        """Every field, for keys and hashes; later additions are left out at their default."""
        facts = asdict(self)  # keys made before there was such a field stay what they were
        later: dict[str, Any] = {"sharpness": None, "mixing": "none", "max_norm": None}
        later |= {"epoch_images": 0, "nesterov": False, "warmup": 0.0, "drop_last": False}
        later |= {"ema": 0.0, "stretch": 1.0, "resized": None}
        for name, default in later.items():
            if facts[name] == default:
                del facts[name]
        return facts

    @property
    def mirrors(self) -> bool:
        """Whether images are mirrored, which misleads where a mirrored one is of another class."""
        drawn = self.resized is not None and self.resized.flip > 0
        return drawn or (self.augment is not None and "flip" in self.augment.ops)

    def steps(self, images: int) -> int:
        """Return the steps of an epoch of so many images."""
        return max(1, images // self.batch) if self.drop_last else -(-images // self.batch)

    def under(self, prior: str) -> Training:
        """Return the same training with sampling and mixing of a row of ``losses.REMEDIES``.

        Mixing takes the place of CutMix; a row that says nothing leaves what there is.
        """
        row, changes = REMEDIES[prior], dict[str, Any]()
        if row.sampling != "shuffled":
            changes["sampling"] = row.sampling
        if row.mixing != "none":
            changes |= {"mixing": row.mixing, "cutmix": 0.0}
        return replace(self, **changes)

    @property
    def memoryless(self) -> bool:
        """Whether a step depends on nothing but the weights, the batch and the epoch."""
        return self.optimizer == "sgd" and self.momentum == 0 and not self.ema

    def milestones_before(self, epoch: int) -> int:
        """Return how many milestones have passed when ``epoch`` (from 0) begins."""
        # 1e-9: a share such as 0.6 of 5 epochs must mean epoch 3 although 0.6 * 5 may round up.
        return sum(epoch >= int(share * self.epochs + 1e-9) for share in self.milestones)

    def lr_at(self, epoch: int) -> float:
        """Return the learning rate of ``epoch`` (from 0)."""
        rising = int(self.warmup * self.epochs + 1e-9)  # see milestones_before
        if epoch < rising:
            return self.lr * (epoch + 1) / (rising + 1)
        if self.schedule == "step":
            return self.lr * self.gamma ** self.milestones_before(epoch)
        if self.schedule == "cosine":
            return self.lr * cosine(epoch - rising, (self.epochs - rising) * self.stretch)
        return self.lr

    def optimizer_for(self, parameters: Iterable[Tensor]) -> torch.optim.Optimizer:
        """Return a fresh optimiser of those ``parameters`` that require gradients."""
        wanted, decay = [p for p in parameters if p.requires_grad], self.weight_decay
        if self.optimizer == "adamw":
            return torch.optim.AdamW(wanted, self.lr, weight_decay=decay, fused=True)
        how: dict[str, Any] = {"weight_decay": decay, "nesterov": self.nesterov, "fused": True}
        return torch.optim.SGD(wanted, self.lr, self.momentum, **how)


@dataclass(frozen=True, eq=False)
class Examples:
    """What networks are trained on.

    ``images`` (n, c, h, w) are uint8 or float RGB 0-1, ``targets`` (n,) int64 or (n, K) float.
    ``weights`` (n,) are relative; they multiply the targets, in which losses of classes are linear.
    Float images pass the transform once, uint8 images batch by batch to save memory.
    """

    images: Tensor
    targets: Tensor
    transform: Transform
    weights: Tensor | None = None
    regression: bool = False  # targets are real numbers, for squared error
    views: ViewLabels | None = None  # replayed in the place of augmentation, with their labels
    # labels what is seen: images (b, c, h, w) behind the transform, augmented, to logits (b, K)
    teacher: Callable[[Tensor], Tensor] | None = None
    logits: bool = False  # what is told is given as logits, and beside them the class: (b, 2 K)

    @property
    def told(self) -> bool:
        """Whether each view of an image has a label of its own, told by a teacher."""
        return self.views is not None or self.teacher is not None

    def __post_init__(self) -> None:
        if self.told and self.weights is not None:
            raise InputError("examples has weights beside labels of views; leave out one of them")
        if not 0 < len(self.images) == len(self.targets):
            raise InputError(
                f"examples has {len(self.images)} images and {len(self.targets)} targets; "
                "give one target per image, and at least one image"
            )

    @property
    def labels(self) -> Tensor:
        """The class of each image (n,); of soft labels the one they favour."""
        return self.targets.argmax(1) if self.targets.ndim == 2 else self.targets


def rgb(images: Tensor) -> Tensor:
    """Return images uint8 or float 0-1 as floats in 0-1."""
    return images if images.is_floating_point() else images.float().div_(255)
