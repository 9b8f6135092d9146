"""Labels of augmented views: stored for a number of epochs and replayed without the teacher.

The decoupled family trains a receiver's network on what a teacher says of every augmented view
(FKD, Shen & Xing, ECCV 2022; SRe2L, Yin et al., NeurIPS 2023). A view is written down as what was
drawn for it (crop, flip, CutMix box and partner), not as pixels, so that a receiver sees the very
view that the teacher saw; a label is a row of log-probabilities in half precision, of all classes
or of the likeliest ones alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Annotated

import torch
from torch import Tensor

from potstill.data.augment import cut_box
from potstill.data.views import Draw, Views
from potstill.run import InputError
from potstill.run.fields import Count, Range, Share, check_value
from potstill.run.machine import CPU_CHUNK

__all__ = ["ViewLabels"]

EpochsKept = Annotated[int, Range(1, 100_000)]
_LEAST = 1e-8  # what classes that were not stored share at least
_LOWEST = -1000.0  # log-probability, where half precision has none
_PLAIN = Views(noise=0.0)  # crop and flip alone; how a stored draw is applied
# name -> (type in a file, rank); the first two axes are epochs and training images
STORED = {
    "values": ("F16", 3),
    "classes": ("I16", 3),
    "box": ("F32", 3),
    "flip": ("U8", 2),
    "partner": ("I32", 2),
    "patch": ("I16", 3),
}
_TYPES = {
    "F16": torch.float16,
    "I16": torch.int16,
    "F32": torch.float32,
    "U8": torch.uint8,
    "I32": torch.int32,
}


@dataclass(frozen=True, eq=False)
class ViewLabels:
    """What teachers say of one view of every training image in each of E epochs.

    N counts training images, those of :meth:`potstill.SyntheticSet.decoded` in their order. Epoch e
    of a training replays epoch ``e % E``.

    Example:
        >>> images = torch.rand(4, 3, 8, 8)
        >>> told = ViewLabels.of(
        ...     images, lambda x: x.flatten(1)[:, :5], 2, lambda *i: torch.Generator()
        ... )
        >>> told.view(images, torch.arange(4), 1).shape, told.targets(torch.arange(4), 1, 5).shape
        (torch.Size([4, 3, 8, 8]), torch.Size([4, 5]))
    """

    values: Tensor  # float16 (E, N, k): log-probabilities, descending where k classes are named
    box: Tensor  # float32 (E, N, 4): left, top, width, height of the crop, shares of the image
    flip: Tensor  # uint8 (E, N): mirrored where 1
    classes: Tensor | None = None  # int16 (E, N, k): which classes; None: all of them in order
    partner: Tensor | None = None  # int32 (E, N): the training image whose view fills the patch
    patch: Tensor | None = None  # int16 (E, N, 4): top, bottom, left, right in pixels; CutMix

    @staticmethod
    def of(
        images: Tensor,
        teacher: Callable[[Tensor], Tensor],
        epochs: int,
        generators: Callable[[str, int], torch.Generator],
        *,
        views: Views = _PLAIN,
        cutmix: float = 0.0,
        top: int | None = None,
    ) -> ViewLabels:
        """Draw the views of ``epochs`` epochs and write down what ``teacher`` says of them.

        Args:
            images: (N, c, h, w), RGB 0-1. teacher: views (N, c, h, w), RGB, to logits (N, K).
            generators: ("views" or "cutmix", epoch) to a fresh generator.
            views: how crops and flips are drawn; without noise.
            cutmix: probability that a view gets a patch of another's (Yun et al., ICCV 2019), each
                with a share of Beta(1, 1) and a partner of its own.
            top: how many classes to keep of a label; None keeps all.

        Raises:
            InputError: a number out of range, or views with noise, which cannot be replayed.
        """
        check_value("epochs", epochs, EpochsKept)
        check_value("cutmix", cutmix, Share)
        if views.noise:
            raise InputError(f"noise is {views.noise} in views that are stored; use noise=0")
        drawn = [_drawn(images.shape, views, cutmix, generators, epoch) for epoch in range(epochs)]
        kept = {name: torch.stack([one[name] for one in drawn]) for name in drawn[0]}
        blank = ViewLabels(torch.empty(epochs, len(images), 0), **kept)
        values, named = list[Tensor](), list[Tensor]()
        for epoch in range(epochs):
            rows = torch.arange(len(images)).split(CPU_CHUNK)
            said = torch.cat([teacher(blank.view(images, some, epoch)).cpu() for some in rows])
            said = said.float().log_softmax(1)
            if top is not None and top < said.shape[1]:
                check_value("top", top, Count)
                said, likeliest = said.topk(top, dim=1)
                named.append(likeliest.to(torch.int16))
            values.append(said.half())
        classes = torch.stack(named) if named else None
        return replace(blank, values=torch.stack(values), classes=classes)

    @property
    def epochs(self) -> int:
        """E."""
        return len(self.values)

    @property
    def nbytes(self) -> int:
        """Bytes of all that is stored."""
        return sum(value.nbytes for value in self.tensors().values())

    def tensors(self) -> dict[str, Tensor]:
        """Return what is stored, by name."""
        named = {name: getattr(self, name) for name in STORED}
        return {name: value for name, value in named.items() if value is not None}

    def to(self, device: torch.device | str) -> ViewLabels:
        """Return the same on a device, so that a step copies nothing to it."""
        return ViewLabels(**{name: value.to(device) for name, value in self.tensors().items()})

    def view(self, images: Tensor, rows: Tensor, epoch: int) -> Tensor:
        """Return the views (b, c, h, w), RGB, that ``rows`` (b,) of ``images`` (N, ...) have.

        Images, rows and what is stored here lie on one device.
        """
        at = epoch % self.epochs
        x = self._cropped(images, rows, at)
        if self.partner is None or self.patch is None:
            return x
        other = self._cropped(images, self.partner[at, rows].long(), at)
        top, bottom, left, right = self.patch[at, rows][:, :, None, None].unbind(1)
        down = torch.arange(x.shape[2], device=x.device)[:, None]
        across = torch.arange(x.shape[3], device=x.device)
        inside = (down >= top) & (down < bottom) & (across >= left) & (across < right)
        return torch.where(inside[:, None], other, x)

    def _cropped(self, images: Tensor, rows: Tensor, at: int) -> Tensor:
        none = torch.full((len(rows),), -1)  # read on the CPU
        draw: Draw = {"box": self.box[at, rows], "flip": self.flip[at, rows].bool(), "noise": none}
        return _PLAIN.apply(images[rows], draw, (images.shape[2], images.shape[3]))

    def targets(self, rows: Tensor, epoch: int, classes: int) -> Tensor:
        """Return the probabilities (b, K) of ``rows`` (b,), float32.

        Classes that were not stored share what is left alike (FKD's marginal smoothing).
        """
        at = epoch % self.epochs
        kept = self.values[at, rows].float()
        if self.classes is None:
            return kept.softmax(1)
        p, others = kept.exp(), classes - kept.shape[1]
        rest = (1 - p.sum(1, keepdim=True)).clamp_min(_LEAST) / max(1, others)
        every = rest.expand(-1, classes).scatter(1, self.classes[at, rows].long(), p)
        return every / every.sum(1, keepdim=True)

    def logits(self, rows: Tensor, epoch: int, classes: int) -> Tensor:
        """Return logits (b, K) of mean 0 whose softmax are the targets; none below -1000.

        What a teacher's logits had in common for all classes is not in a probability.
        """
        if self.classes is None:
            z = self.values[epoch % self.epochs, rows].float()
        else:
            z = self.targets(rows, epoch, classes).log()
        z = z.clamp_min(_LOWEST)
        return z - z.mean(1, keepdim=True)

    def mixed(self, targets: Tensor, rows: Tensor, epoch: int, size: Sequence[int]) -> Tensor:
        """Return rows (b, K) of ``targets`` (N, K), mixed by area where views of ``size`` are."""
        own, at = targets[rows], epoch % self.epochs
        if self.partner is None or self.patch is None:
            return own
        top, bottom, left, right = self.patch[at, rows].to(own).unbind(1)
        area = (bottom - top) * (right - left) / (size[0] * size[1])
        return torch.lerp(own, targets[self.partner[at, rows].long()], area[:, None])

    def fault(self, images: int, classes: int) -> str | None:
        """Return what is wrong for N training ``images`` and K ``classes``, as a sentence."""
        epochs, _, k = self.values.shape if self.values.ndim == 3 else (0, 0, 0)
        last = {"values": k, "classes": k, "box": 4, "patch": 4}
        for name, value in self.tensors().items():
            kind, rank = STORED[name]
            wanted = (epochs, images, last[name]) if rank == 3 else (epochs, images)
            if value.dtype != _TYPES[kind] or tuple(value.shape) != wanted:
                return (
                    f"view_labels has {name} of type {value.dtype} and shape {tuple(value.shape)}; "
                    f"{_TYPES[kind]} {wanted} is expected"
                )
        if not epochs or not 1 <= k <= classes or (self.classes is None and k != classes):
            return f"view_labels has {epochs} epochs of {k} values for {classes} classes"
        if (self.partner is None) != (self.patch is None):
            return "view_labels has one of partner and patch; store both or none"
        if not bool((self.values <= 0).all()) or not bool(self.values.amax(-1).isfinite().all()):
            return "view_labels has values that are no log-probabilities"
        if not bool(torch.isfinite(self.box).all()):
            return "view_labels has crops that are not finite"
        for name, most in (("classes", classes), ("partner", images)):
            value = getattr(self, name)
            if value is not None and (int(value.min()) < 0 or int(value.max()) >= most):
                return f"view_labels has {name} outside 0 to {most - 1}"
        return None


def _drawn(
    shape: torch.Size,
    views: Views,
    probability: float,
    generators: Callable[[str, int], torch.Generator],
    epoch: int,
) -> dict[str, Tensor]:
    """What is drawn for each of the images (N, c, h, w); empty boxes mix nothing in."""
    n, _, *size = shape
    draw = views.draw(n, generators("views", epoch))
    found = {"box": draw["box"], "flip": draw["flip"].to(torch.uint8)}
    if not probability:
        return found
    generator = generators("cutmix", epoch)
    chance, keep, down, across = torch.rand(4, n, generator=generator).tolist()
    patch = [
        cut_box(keep[i], down[i], across[i], size) if chance[i] < probability else (0, 0, 0, 0)
        for i in range(n)
    ]
    partner = torch.randperm(n, generator=generator).to(torch.int32)
    return found | {"partner": partner, "patch": torch.tensor(patch, dtype=torch.int16)}
