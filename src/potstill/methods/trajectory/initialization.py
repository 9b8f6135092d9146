"""First images and first soft labels, chosen by trained experts (DATM sec. 4.3; LAD sec. 4.3)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

from torch import Tensor
from torch.nn.functional import one_hot

from potstill.canvas import Canvas, start_canvas
from potstill.data import ImageSet
from potstill.data.transform import Transform
from potstill.experts.teachers import mean_right_logits, right_candidates, teacher_logits
from potstill.run import Run
from potstill.run.fields import OneOf

__all__ = ["Beginning", "Judge", "LabelStart"]

LabelStart = Annotated[str, OneOf("right", "one", "hard")]
Judge = Callable[[], Mapping[str, Tensor]]  # reads the parameters of a trained network

_SHARP = 4.6  # logit of the own class when soft labels start from hard ones: 0.92 of ten classes


@dataclass(frozen=True, eq=False)
class Beginning:
    """A real set and the trained networks that judge it."""

    real: ImageSet
    transform: Transform
    network: str
    judges: Sequence[Judge]
    run: Run

    def _read(self, count: int | None = None) -> Iterator[Mapping[str, Tensor]]:
        """One judge in memory at a time."""
        return (judge() for judge in self.judges[:count])

    def canvas(self, counts: Sequence[int], start: str, shortage: str, bounded: bool) -> Canvas:
        """Return ``counts[c]`` first images of class c.

        ``start`` "correct" takes images that some judge classifies rightly, the first judge's
        first; a class with too few is filled up by ``shortage``, one without any starts from noise.
        """
        candidates = None
        if start == "correct":
            candidates = right_candidates(
                self.real, counts, self._read(), self.network, self.transform, self.run
            )
        return start_canvas(
            self.real,
            counts,
            self.run.generator,
            start="noise" if start == "noise" else "real",
            shortage=shortage,
            bounded=bounded,
            candidates=candidates,
        )

    def logits(self, canvas: Canvas, start: str) -> Tensor:
        """Return logits (n, K) for the images of a canvas.

        ``start`` "right": mean over the judges that classify the image rightly, zeros (a uniform
        label) where none does; "one": those of the first judge; "hard": the class, nearly certain.
        """
        images = canvas.images.detach()
        if start == "hard":
            return one_hot(canvas.labels, self.real.num_classes).to(images.dtype) * _SHARP
        if start == "one":
            first = teacher_logits(self._read(1), self.network, images, self.transform, self.run)
            return next(iter(first))
        logits, _ = mean_right_logits(
            self._read(), self.network, images, canvas.labels, self.transform, self.run
        )
        return logits
