"""Labels that a teacher gives to what a canvas has become: a soft one for each training image.

A label is worth what its teacher is: residual networks reach far more on a long tail than the
narrow networks through which images are matched, and static labels carry part of that over to the
student (Sun et al., RDED, CVPR 2024; ADSA, NeurIPS 2025, for the long tail). The teacher plays no
part in matching. Of a tiled canvas it sees tiles as they are stored, and learns from real images of
that size, see :mod:`potstill.experts.looks`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

import torch
from torch import Tensor

from potstill.canvas import decode_images, views_per_image
from potstill.data import ImageSet, Normalize
from potstill.data.transform import Transform
from potstill.experts.labelling import (
    HardShare,
    logits_of,
    mixed,
    residual_training,
    shift_for,
    softened,
    train_teachers,
)
from potstill.experts.looks import shrunk
from potstill.labels import LabelSpec
from potstill.losses import priors
from potstill.nets import Network, create, parse
from potstill.run import InputError, Run
from potstill.run.fields import Epoch, OneOf, Positive, Runs

__all__ = ["Labeller", "Taught", "Teachers"]


@dataclass(frozen=True, eq=False)
class Labeller:
    """What finished teachers say of stored images.

    Attributes:
        facts: JSON-like, for the provenance.
        seconds_saved: what making teachers that were read from a cache once took.
    """

    label: Callable[[Tensor, Tensor, dict[str, Any]], tuple[Tensor, dict[str, Any]]]  # and facts
    facts: dict[str, Any]
    seconds_saved: float


@dataclass(frozen=True, eq=False)
class Teachers:
    """Trained networks and what stands before them."""

    nets: list[Network]
    transform: Transform
    device: str

    def logits(self, images: Tensor) -> list[Tensor]:
        """Return what each says of images (n, c, h, w), RGB 0-1: logits (n, K)."""
        return logits_of(self.nets, images, self.transform, self.device)


@dataclass(frozen=True, kw_only=True)
class Taught(LabelSpec, kind="taught"):
    """A soft label for each training image by residual teachers, when the images are finished."""

    teacher: str = "wrn16-w32-bn"  # network of the teachers
    teachers: Runs = 1  # how many, trained side by side; labels are their mean
    teacher_prior: Annotated[str, OneOf(*priors())] = "balanced_softmax"  # the long-tail table
    # of each (SGD 0.05, Nesterov, cosine, CutMix; batches of 64); 0 = 40, and at least 5000 steps
    teacher_epochs: Epoch = 0
    teacher_mirror: bool = True  # whether it sees mirrored images (no for digits and letters)
    label_temperature: Positive = 2.0  # of the labels; above 1 flattens
    label_calibration: Annotated[str, OneOf("none", "adsa", "even")] = "even"  # as of relabel
    hard_share: HardShare = 0.0  # share of the class itself in a label

    def check(self, method: Any, real: ImageSet | None = None) -> None:
        """Refuse an unknown network, or one for larger images."""
        try:
            parse(self.teacher)
            if real is not None:
                channels, high, wide = real.shape
                factor = method.canvas.factor_for((high, wide))
                create(
                    self.teacher,
                    channels=channels,
                    size=(-(-high // factor), -(-wide // factor)),
                    classes=real.num_classes,
                    generator=torch.Generator().manual_seed(0),
                )
        except InputError as error:
            raise InputError(str(error).replace("network is", "teacher is", 1)) from None

    def trained(
        self, real: ImageSet, factor: int, transform: Transform, run: Run
    ) -> tuple[Teachers, dict[str, Any], float]:
        """Train the teachers or read them from the cache, see :func:`train_teachers`.

        Args:
            factor: by how much smaller than ``real`` images are seen. transform: at factor 1.
        """
        epochs, mirror = self.teacher_epochs or None, self.teacher_mirror
        training = residual_training(len(real), epochs, mirror=mirror)
        small = shrunk(real, factor)
        own = transform if factor == 1 else Normalize.fit(small)
        nets, facts, saved = train_teachers(
            self.teacher, training, self.teacher_prior, self.teachers, small, own, run
        )
        return Teachers(nets, own, str(run.device)), facts, saved

    def labeller(
        self, real: ImageSet, spec: Mapping[str, Any], transform: Transform, run: Run
    ) -> Labeller:
        """Return what labels finished images that are decoded by ``spec``."""
        teachers, facts, saved = self.trained(real, spec.get("factor", 1), transform, run)
        return Labeller(partial(self._label, teachers, real.counts), facts, saved)

    def _label(
        self,
        teachers: Teachers,
        real_counts: Sequence[int],
        images: Tensor,
        labels: Tensor,
        spec: dict[str, Any],
    ) -> tuple[Tensor, dict[str, Any]]:
        """Labels (n, v, K), or (n, K) where a stored image is one training image; facts.

        Among these "right", the share of images whose likeliest class is their own.
        """
        seen, own = decode_images(images, labels, spec, small=True)
        said = teachers.logits(seen)
        rule, temperature = self.label_calibration, self.label_temperature
        tau, counts = (0.0, None) if rule == "none" else (rule, real_counts)
        shift, facts = shift_for(tau, said, own, counts, temperature)
        plain = softened(said, temperature, shift)
        facts["right"] = round(float((plain.argmax(1) == own.cpu()).double().mean()), 4)
        soft = mixed(plain, own, self.hard_share)
        v = views_per_image(spec)
        return soft if v == 1 else soft.unflatten(0, (len(images), v)), facts
