"""First images and first soft labels, chosen by trained experts (DATM sec. 4.3; LAD sec. 4.3)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from potstill.canvas import Canvas, decode_images
from potstill.data import ImageSet
from potstill.data.transform import Transform
from potstill.experts.teachers import mean_right_logits, right_candidates, teacher_logits
from potstill.labels.parts import hard_logits
from potstill.run import Run, logger

__all__ = ["Initialization", "Teacher"]

Teacher = Callable[[], Mapping[str, Tensor]]  # reads the parameters of a trained network


@dataclass(frozen=True, eq=False)
class Initialization:
    """A real set and the trained networks that judge it."""

    real: ImageSet
    transform: Transform
    network: str
    teachers: Sequence[Teacher]
    run: Run

    def _read(self, count: int | None = None) -> Iterator[Mapping[str, Tensor]]:
        """One teacher in memory at a time."""
        return (teacher() for teacher in self.teachers[:count])

    def candidates(self, counts: Sequence[int]) -> list[Tensor]:
        """Return positions of images that some teacher classifies rightly, the first one's first.

        ``counts``: how many are needed of each class. A class of which no teacher classifies any
        image rightly gives all its images, in a drawn order: better than the noise that the
        released code begins with.
        """
        found = right_candidates(
            self.real, counts, self._read(), self.network, self.transform, self.run
        )
        lacking = [label for label, own in enumerate(found) if not len(own)]
        if lacking:
            logger.warning(
                "no expert classifies an image of %d of %d classes rightly; they start from any",
                len(lacking),
                len(found),
            )
        return [own if len(own) else self._all(label) for label, own in enumerate(found)]

    def _all(self, label: int) -> Tensor:
        own = self.real.of_class(label)
        return own[torch.randperm(len(own), generator=self.run.generator("right", label))]

    def logits(self, canvas: Canvas, start: str) -> Tensor:
        """Return logits (n, K) for the stored images of a canvas.

        ``start`` "right": mean over the teachers that classify the image rightly; "one": those of
        the first teacher. A stored image of several views has the mean of its views' logits, with
        "right" of those that some teacher gets right. Where none is, the class is nearly certain
        (the released code: zeros, a uniform label).
        """
        images, labels = decode_images(canvas.pictures().cpu(), canvas.labels.cpu(), canvas.spec)
        if start == "one":
            first = teacher_logits(self._read(1), self.network, images, self.transform, self.run)
            return next(iter(first)).unflatten(0, (-1, canvas.views)).mean(1)
        logits, right = mean_right_logits(
            self._read(), self.network, images, labels, self.transform, self.run
        )
        told = (right > 0).unflatten(0, (-1, canvas.views)).sum(1, keepdim=True)
        mean = logits.unflatten(0, (-1, canvas.views)).sum(1) / told.clamp_min(1)
        return torch.where(told > 0, mean, hard_logits(canvas).cpu())
