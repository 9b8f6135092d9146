"""Labels as a part of a method: what is stored beside the images, and whether it is learned."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from potstill.canvas import Canvas
from potstill.run.descent import Rate
from potstill.run.fields import Decay, OneOf, Positive
from potstill.run.parts import Part

__all__ = ["Hard", "LabelSpec", "LabelStart", "Labels", "Regression", "Soft", "TeacherLabels"]

LabelStart = Annotated[str, OneOf("right", "one", "hard")]
Opinion = Callable[[Canvas, str], Tensor]  # canvas, LabelStart -> logits (n, K), see Soft
_SHARP = 4.6  # logit of the own class when soft labels start from hard ones: 0.92 of ten classes


class Labels:
    """The labels of a canvas during a run. ``values`` (n, K), or None for hard ones.

    ``values`` are logits of soft labels (``soft``) or the targets themselves.
    """

    def __init__(
        self, canvas: Canvas, values: Tensor | None = None, *, learned: bool, soft: bool = True
    ) -> None:
        self.hard, self.classes, self.views = canvas.labels, canvas.classes, canvas.views
        self.soft = soft
        self.values = None
        if values is not None:
            own = values.detach().clone().to(canvas.labels.device)
            self.values = own.requires_grad_(learned)

    def leaves(self) -> dict[str, Tensor]:
        """Return what is learned or set beside the images, by name."""
        return {} if self.values is None else {"logits" if self.soft else "targets": self.values}

    def stored(self, rows: slice = slice(None)) -> Tensor:
        """Return the targets of stored images (r, K), float32; one-hot rows for hard labels."""
        if self.values is None:
            return one_hot(self.hard[rows], self.classes).to(torch.float32)
        return self.values[rows].softmax(1) if self.soft else self.values[rows]

    def targets(self, rows: slice = slice(None)) -> Tensor:
        """Return the targets of the training images (r * views, K) of stored ones."""
        own = self.stored(rows)
        return own if self.views == 1 else own.repeat_interleave(self.views, dim=0)

    @torch.no_grad()
    def set_(self, logits: Tensor) -> None:
        """Take the mean of these logits (n * views, K) over an image's views."""
        assert self.values is not None
        own = logits if self.views == 1 else logits.unflatten(0, (-1, self.views)).mean(1)
        self.values.copy_(own)

    def outcome(self) -> dict[str, Any]:
        """Return what a receiver gets, as arguments of a synthetic set."""
        if self.values is None or not (self.soft or self.values.requires_grad):
            return {}  # what follows from the class is not stored
        own = self.stored().detach().float().cpu()
        return {"soft_labels" if self.soft else "regression_targets": own}


@dataclass(frozen=True, kw_only=True)
class LabelSpec(Part, room=True):
    """What is stored beside the images."""

    @property
    def judged(self) -> bool:
        """Whether trained networks say what the labels begin as."""
        return False

    @property
    def rates(self) -> Mapping[str, Rate]:
        """Step sizes of what is learned."""
        return {}

    def make(self, canvas: Canvas, opinion: Opinion | None = None) -> Labels:
        """Return the labels of a canvas before step 0; ``opinion`` where networks can be asked."""
        raise NotImplementedError

    def labeller(self, real: Any, spec: Any, transform: Any, run: Any) -> Any:
        """Return who labels images when they are finished; None where labels are there before."""
        return None


@dataclass(frozen=True, kw_only=True)
class Hard(LabelSpec, kind="hard"):
    """The class of an image."""

    def make(self, canvas: Canvas, opinion: Opinion | None = None) -> Labels:
        """Return the classes."""
        return Labels(canvas, learned=False)


def hard_logits(canvas: Canvas) -> Tensor:
    """Return logits (n, K) of which the class is nearly certain."""
    return one_hot(canvas.labels, canvas.classes).to(torch.float32) * _SHARP


@dataclass(frozen=True, kw_only=True)
class Soft(LabelSpec, kind="soft"):
    """One distribution over the classes for each image, learned with it (DATM, ICLR 2024)."""

    label_start: LabelStart = (
        "right"  # mean of the right experts, "one" expert's; "hard" without experts
    )
    lr_labels: Positive = 2.0  # step size of the label logits
    momentum_labels: Decay = 0.9  # of SGD, for the label logits

    @property
    def judged(self) -> bool:
        """Whether trained networks say what the labels begin as."""
        return self.label_start != "hard"

    @property
    def rates(self) -> Mapping[str, Rate]:
        """Step size of the logits."""
        return {"logits": Rate("lr_labels", self.lr_labels, self.momentum_labels)}

    def make(self, canvas: Canvas, opinion: Opinion | None = None) -> Labels:
        """Return logits as experts have them; as the class where there is nobody to ask."""
        asked = opinion if self.judged else None
        logits = asked(canvas, self.label_start) if asked else hard_logits(canvas)
        return Labels(canvas, logits, learned=True)


@dataclass(frozen=True, kw_only=True)
class TeacherLabels(LabelSpec, kind="teacher"):
    """Soft labels that the network of the step gives anew (TESLA, ICML 2023, sec. 3.3)."""

    def make(self, canvas: Canvas, opinion: Opinion | None = None) -> Labels:
        """Return labels to be set."""
        return Labels(canvas, hard_logits(canvas), learned=False)


@dataclass(frozen=True, kw_only=True)
class Regression(LabelSpec, kind="regression"):
    """Real numbers for each image and class: 1 - 1/K for its own, -1/K for others (KIP, FRePo)."""

    learn_labels: bool = False  # descend on them with the images
    lr_targets: Positive = 0.04  # step size of learned targets

    @property
    def rates(self) -> Mapping[str, Rate]:
        """Step size of learned targets."""
        return {"targets": Rate("lr_targets", self.lr_targets)}

    def make(self, canvas: Canvas, opinion: Opinion | None = None) -> Labels:
        """Return centred one-hot rows."""
        own = centred(canvas.labels, canvas.classes)
        return Labels(canvas, own, learned=self.learn_labels, soft=False)


def centred(labels: Tensor, classes: int) -> Tensor:
    """Return one-hot rows less 1 / K, (n, K)."""
    return one_hot(labels, classes).to(torch.float32) - 1 / classes
