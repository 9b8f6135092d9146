"""Which batch a network sees at which step."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from potstill.data.augment import cutmix
from potstill.data.mixing import mixup
from potstill.labels.per_view import ViewLabels
from potstill.nets.layers import Network
from potstill.nets.sampling import epoch_length, epoch_order, groups_of
from potstill.nets.training import Examples, Generators, Training, rgb
from potstill.run import InputError
from potstill.run.machine import CPU_CHUNK

__all__ = ["Feed"]


class Feed:
    """What each member sees at each step, drawn from that member's generators."""

    @torch.no_grad()
    def __init__(
        self, examples: Examples, training: Training, generators: Generators, like: Network
    ) -> None:
        weight, classes = like.classifier.weight, like.classifier.out_features
        device, dtype = weight.device, weight.dtype
        self.training, self.generators, self.dtype = training, generators, dtype
        self.classes = classes
        self.transform = examples.transform
        self.images, targets = examples.images.to(device), examples.targets
        self.views, self.teacher = examples.views, examples.teacher
        self.ready = self.images.is_floating_point() and self.views is None
        if self.views is not None:
            self.views, self.images = self.views.to(device), rgb(self.images)
        if self.ready:
            parts = [self.transform.forward(part) for part in self.images.split(CPU_CHUNK)]
            self.images = torch.cat(parts).to(dtype)
        labels = examples.labels
        given = targets.shape[1] if targets.ndim == 2 else int(labels.max()) + 1
        if given > classes or int(labels.min()) < 0 or (targets.ndim == 2 and given != classes):
            raise InputError(f"targets has {given} classes, the network {classes}; make them equal")
        self.groups = groups_of(labels)
        weights = examples.weights
        mixed = training.cutmix > 0 or training.mixing != "none"
        changed = training.augment is not None or training.resized is not None
        self.logits = examples.logits and examples.told
        if self.views is not None and (mixed or changed):
            raise InputError(
                "examples has views that are stored with their labels; train without augmentation, "
                "cutmix and mixing"
            )
        if targets.ndim == 1 and (weights is not None or mixed or self.logits):
            targets = one_hot(targets, classes).to(dtype)
        if weights is not None:
            targets = targets * (weights / weights.mean()).unsqueeze(1)
        self.targets = targets.to(device)
        self.counts = torch.bincount(labels.cpu(), minlength=classes)  # images per class (K,)
        self.length = epoch_length(training.sampling, self.groups, training.epoch_images)

    @property
    def steps(self) -> int:
        """Steps of an epoch."""
        return self.training.steps(self.length)

    def order(self, member: int, epoch: int) -> Tensor:
        """Return the positions of an epoch, (length,)."""
        how, generator = self.training, self.generators("order", member, epoch)
        share = epoch / how.epochs
        order = epoch_order(how.sampling, self.groups, self.length, share, generator)
        return order.to(self.images.device)

    @torch.no_grad()
    def batch(self, member: int, step: int, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Return transformed and augmented images (b, c, h, w) with their targets."""
        if self.views is not None:
            return self.replayed(self.views, positions, step // self.steps)
        x, targets = self.view(positions, "augment", member, step), self.targets[positions]
        if self.training.mixing != "none":
            generator = self.generators("mixup", member, step)
            counts = self.counts if self.training.mixing == "remix" else None
            x, targets = mixup(x, targets, generator, counts)
        if self.training.cutmix > 0:
            generator = self.generators("cutmix", member, step)
            x, targets = cutmix(x, targets, generator, self.training.cutmix)
        if self.teacher is not None:
            said = self.teacher(x)
            if self.logits:
                return x, torch.cat([said.to(targets), targets], 1)
            targets = said.softmax(1).to(self.dtype)
        return x, targets

    def replayed(self, views: ViewLabels, positions: Tensor, epoch: int) -> tuple[Tensor, Tensor]:
        """Return the views of an epoch behind the transform and what was said of them."""
        x = self.transform.forward(views.view(self.images, positions, epoch)).to(self.dtype)
        if not self.logits:
            return x, views.targets(positions, epoch, self.classes).to(x)
        said = views.logits(positions, epoch, self.classes).to(x)
        return x, torch.cat([said, views.mixed(self.targets, positions, epoch, x.shape[2:])], 1)

    def view(self, positions: Tensor, purpose: str, member: int, step: int) -> Tensor:
        """Return images (b, c, h, w), transformed and augmented by a draw for ``purpose``."""
        x = self.images[positions]
        if not self.ready:
            x = self.transform.forward(rgb(x)).to(self.dtype)
        if (views := self.training.resized) is not None:
            drawn = views.draw(len(x), self.generators(f"{purpose}/views", member, step))
            x = views.apply(x, drawn, (x.shape[2], x.shape[3]))
        if self.training.augment is not None:
            generator, size = self.generators(purpose, member, step), (x.shape[2], x.shape[3])
            draw = self.training.augment.draw(len(x), size, generator, False, x.device)
            x = self.training.augment.apply(x, draw)
        return x
