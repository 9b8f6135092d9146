"""The step that LGM and SFM share: images seen by a frozen pre-trained backbone.

Images are a pyramid of resolutions. Every step draws ``augmentations`` random views of each image,
looks at their features and sends the gradient of one global loss back, in the memory of as many
views as fit (two passes, :mod:`potstill.match.two_pass`). A method says what the loss of the
features is.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from potstill.canvas import Canvas
from potstill.canvas.pyramid import Form, Growth, PyramidCanvas
from potstill.data import ImageSet, Normalize
from potstill.data.transform import Transform
from potstill.data.views import Level, Spread, Views, part_of
from potstill.experts.backbones import backbone_for, check_backbone, identify
from potstill.match.rollout import known
from potstill.match.two_pass import feature_gradients
from potstill.methods.base import Matcher
from potstill.nets.backbone import Backbone, split_name
from potstill.run import Run
from potstill.run.checkpoint import digest
from potstill.run.fields import (
    Batch,
    Copies,
    Epochs,
    Every,
    PositiveShare,
    Share,
    check_value,
)
from potstill.run.loop import Term

__all__ = [
    "BackboneMatcher",
    "backbone_facts",
    "check_name",
    "meaning",
    "open_for",
    "without_place",
]


class Looks(Protocol):
    """A method that looks through a backbone."""

    backbone: str
    backbone_epochs: int
    flip: float


def check_name(method: Looks, real: ImageSet | None) -> None:
    """Refuse a backbone before anything is trained or written."""
    check_backbone(method.backbone, real, method.backbone_epochs, method.flip)


def meaning(method: Looks, real: ImageSet, run: Run) -> str:
    """Return what the backbone's name stands for, for the identity of a job."""
    epochs, flip = method.backbone_epochs, method.flip
    return identify(method.backbone, real, run, epochs=epochs, flip=flip)


def open_for(method: Looks, real: ImageSet, run: Run) -> Backbone:
    """Return the backbone of a method."""
    epochs, flip = method.backbone_epochs, method.flip
    return backbone_for(method.backbone, real, run, epochs=epochs, flip=flip)


def without_place(name: str) -> str:
    """Return a backbone's name as it travels in an artifact: a folder without where it lies."""
    base = split_name(name)[0]
    kind = "transformers:" if base.startswith("transformers:") else ""
    place = Path(base[len(kind) :]).expanduser()
    return kind + place.name + name.strip()[len(base) :] if place.is_dir() else name


def backbone_facts(backbone: Backbone) -> dict[str, Any]:
    """What an artifact says about the backbone it was made with, JSON-like."""
    return {
        "label": backbone.label,
        "key": backbone.key,
        "features": backbone.dim,
        "input": [backbone.channels, *backbone.size],
        "mean": backbone.transform.mean.tolist(),
        "std": backbone.transform.std.tolist(),
        "bytes": backbone.nbytes,
        "trained_seconds": backbone.trained_seconds,
    }


@dataclass(kw_only=True)
class BackboneMatcher(Matcher):
    """Match what a frozen backbone sees; children say what the loss of the features is."""

    steps: int = 5001  # released: 0 to 5000 inclusive
    lr_images: float = 2e-3  # Adam, all levels alike
    backbone: str = "dinov2_vitb"  # short name, timm:, transformers:, folder, self:NETWORK
    backbone_epochs: Epochs = 30  # of the training without labels of a self: backbone
    augmentations: Copies = 10  # random views of each image per step
    canvas: Form = "pyramid"  # or "pixels": one level of full size
    grow_every: Every = 200  # steps until the pyramid gets its next level
    growth: Growth = "noise"  # a new level: "noise", or "zero" (the others, enlarged)
    decorrelate: bool = True  # steps along the principal colours of natural images
    crop_min: PositiveShare = 0.08  # smallest area of a view's crop
    flip: Share = 0.5  # probability of a mirrored view; 0 for digits and letters
    noise: Share = 0.5  # probability of noise in a view
    noise_mean: Level = 0.5  # as released: it brightens those views
    noise_std: Spread = 0.2  # standard deviation of that noise

    def check(self, real: ImageSet | None = None) -> None:
        """Check the backbone's name."""
        super().check(real)
        check_name(self, real)

    def shown(self) -> dict[str, Any]:
        """As every method's; a backbone's folder may have a size or constants after it."""
        return super().shown() | {"backbone": without_place(self.backbone)}

    def _views(self) -> Views:
        return Views(
            crop_min=self.crop_min,
            flip=self.flip,
            noise=self.noise,
            noise_mean=self.noise_mean,
            noise_std=self.noise_std,
        )

    def key(self, real: ImageSet, ipc: int, run: Run) -> str:
        """As every method's, with what the backbone's name stands for."""
        return digest([super().key(real, ipc, run), meaning(self, real, run)])

    def make_canvas(self, real: ImageSet, ipc: int, run: Run) -> PyramidCanvas:
        """Open the backbone, so that nothing is made in vain, and return the coarsest level."""
        check_value("ipc", ipc, Batch)
        began = time.monotonic()
        self.backbone_ = open_for(self, real, run)
        self.apart_ = time.monotonic() - began
        labels = torch.arange(real.num_classes).repeat_interleave(ipc)
        return PyramidCanvas(
            labels,
            real.num_classes,
            real.shape,
            run.generator,
            form=self.canvas,
            grow_every=self.grow_every,
            growth=self.growth,
            decorrelate=self.decorrelate,
        )

    def transform(self, real: ImageSet) -> Transform:
        """For students; the backbone has its own constants, which stand in the provenance."""
        return Normalize.fit(real)

    def prepare(self, real: ImageSet, run: Run) -> None:
        """Make the real side; runs again, with the same result, on resume."""

    def begin(self, step: int) -> None:
        """Make what the loss of this step compares with."""

    def loss(self, z: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Features (views, n, d) of all images, class-sorted, to a scalar and facts per class."""
        raise NotImplementedError

    def setup(self, real: ImageSet, canvas: Canvas, run: Run) -> None:
        """Prepare the real side."""
        self.run_, self.labels_ = run, canvas.labels
        self.classes_, self.ipc_ = real.num_classes, len(canvas.labels) // real.num_classes
        self.fit_ = max(1, int(0.5e9 * run.memory_gb / self.image_bytes(canvas)))
        self.prepare(real, run)

    def image_bytes(self, canvas: Canvas) -> int:
        """Bytes that one view keeps alive: the backbone's graph, the view and its image."""
        pixels = 4 * self.backbone_.channels * self.backbone_.size[0] * self.backbone_.size[1]
        assert isinstance(canvas, PyramidCanvas)
        image = 4 * math.prod(canvas.shape)
        return self.backbone_.image_bytes() + 3 * pixels + 3 * image

    def _chunk(self, canvas: Canvas, run: Run) -> int:
        """The pieces are views here, not classes: as many as fit."""
        return min(self.fit_, len(canvas.labels) * self.augmentations)

    def terms(self, step: int, canvas: Canvas, chunk: int) -> Iterator[Term]:
        """One global loss, back-propagated in as much memory as there is."""
        assert isinstance(canvas, PyramidCanvas)
        self.begin(step)
        views, leaves = self._views(), canvas.parameters()
        draws = [
            views.draw(len(canvas.labels), self.run_.generator("views", step, number))
            for number in range(self.augmentations)
        ]

        def see(images: Tensor, rows: slice, view: int) -> Tensor:
            seen = views.apply(images, part_of(draws[view], rows), self.backbone_.size)
            return self.backbone_.features(seen)

        facts: dict[str, Tensor] = {}

        def loss(z: Tensor) -> Tensor:
            value, found = self.loss(z)
            facts.update({name: fact.detach() for name, fact in found.items()})
            return value

        value, grads = feature_gradients(
            leaves,
            canvas.render,
            see,
            loss,
            views=self.augmentations,
            budget=chunk,
        )
        own = [grads.pop(name) for name in leaves]  # the only hands on them, so none is copied
        matched = known(value, own, list(leaves.values()), hand_out=True)
        del own
        yield Term("match", matched, facts=facts)

    def seconds_apart(self) -> float:
        """Opening the backbone, or training it: its own cost, named in the provenance."""
        return self.apart_

    def facts(self) -> dict[str, Any]:
        """Which backbone saw the images."""
        return {"backbone": backbone_facts(self.backbone_)}
