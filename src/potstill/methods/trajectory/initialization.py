"""First images and first soft labels, chosen by trained experts (DATM sec. 4.3; LAD sec. 4.3)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from potstill.canvas import Canvas
from potstill.data import ImageSet
from potstill.data.transform import Transform
from potstill.experts.teachers import mean_right_logits, right_candidates, teacher_logits
from potstill.run import Run

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

        ``counts``: how many are needed of each class.
        """
        return right_candidates(
            self.real, counts, self._read(), self.network, self.transform, self.run
        )

    def logits(self, canvas: Canvas, start: str) -> Tensor:
        """Return logits (n, K) for the stored images of a canvas.

        ``start`` "right": mean over the teachers that classify the image rightly, zeros (a uniform
        label) where none does; "one": those of the first teacher. Of the views of an image the
        whole stored image is judged.
        """
        images = canvas.pictures().cpu()
        if start == "one":
            first = teacher_logits(self._read(1), self.network, images, self.transform, self.run)
            return next(iter(first))
        logits, _ = mean_right_logits(
            self._read(), self.network, images, canvas.labels.cpu(), self.transform, self.run
        )
        return logits
