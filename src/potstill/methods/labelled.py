"""Objectives whose finished images a teacher may label (``labels=taught``)."""

from __future__ import annotations

from typing import Any

from potstill.canvas import Canvas
from potstill.experts.taught_labels import Labeller
from potstill.methods.base import Objective
from potstill.run import logger
from potstill.synthetic.eight_bit import rounded

__all__ = ["LabelledObjective"]

_POOR = 0.5  # share of images that a teacher gets right, below which it is warned about


class LabelledObjective(Objective):
    """An objective with a labeller, or None."""

    from_noise = False  # whether the first images are none that a teacher could get right
    labeller: Labeller | None = None
    calibrated: dict[str, Any] | None = None  # what was added to logits of the newest labels

    def outcome(self, canvas: Canvas) -> dict[str, Any]:
        """Return the images, with labels by a teacher where there is one: of what is stored."""
        found = super().outcome(canvas)
        if self.labeller is not None:
            if self.bits == 8:
                found["images"] = rounded(found["images"])
            labels, spec = canvas.labels.cpu(), canvas.spec
            found["soft_labels"], told = self.labeller.label(found["images"], labels, spec)
            first = not self.calibrated and not self.from_noise
            if first and told["right"] < _POOR:
                logger.warning(
                    "the teacher gets %.0f %% of the first images right, and a poor teacher's "
                    "labels harm; use more teacher_epochs, another teacher, or hard_share=0.5",
                    100 * told["right"],
                )
            self.calibrated = told
        return found

    def facts(self) -> dict[str, Any]:
        """Who labelled the images."""
        if self.labeller is None:
            return {}
        return {"labelled_by": self.labeller.facts | (self.calibrated or {})}
