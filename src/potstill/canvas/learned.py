"""A canvas on which labels and the student's step size are learned together with the images.

Trajectory matching descends on images in the space that networks see (after ZCA or normalisation),
because its published step sizes act there, and on the logits of soft labels and a positive student
step size. What is stored are RGB images: the transform is inverted, and a receiver applies it.
"""

from __future__ import annotations

import math
from typing import Annotated

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from potstill.canvas.pixels import Canvas, canvas_spec
from potstill.data.transform import Transform
from potstill.run import InputError
from potstill.run.fields import OneOf, Positive, check_value

__all__ = ["LearnedCanvas", "Space"]

Space = Annotated[str, OneOf("network", "rgb")]
_BEND, _FLOOR = 0.1, 1e-3  # shares of the first student step size, see LearnedCanvas.syn_lr


class LearnedCanvas(Canvas):
    """Images, soft labels and a student step size; all leaves that are learned require gradients.

    Args:
        start: images RGB 0-1 with their hard labels; pixels only, no tiles.
        transform: from RGB to network space.
        space: "network" (descend behind the transform) or "rgb" (in front of it, clamped to [0, 1]
            if ``start`` is bounded).
        logits: (n, K) of the soft labels, or None for hard labels.
        learn_labels: descend on them; otherwise they are stored and may be set by the method.
        syn_lr: student step size, positive; see :meth:`syn_lr` for why it stays so.
    """

    def __init__(
        self,
        start: Canvas,
        transform: Transform,
        *,
        space: str = "network",
        logits: Tensor | None = None,
        learn_labels: bool = True,
        syn_lr: float = 0.01,
    ) -> None:
        check_value("space", space, Space)
        check_value("syn_lr", syn_lr, Positive)
        if start.views != 1:
            raise InputError(
                "factor is above 1; trajectory matching has one image per stored image"
            )
        images = start.images.detach()
        images = transform.forward(images) if space == "network" else images
        bounded = start.bounded and space == "rgb"
        super().__init__(images, start.labels, start.classes, canvas_spec(), bounded=bounded)
        self.transform, self.space = transform, space
        self.logits = None if logits is None else logits.clone().requires_grad_(learn_labels)
        self.lr_start = float(syn_lr)
        inverse = math.log(math.expm1((1 - _FLOOR) / _BEND)) * _BEND * syn_lr
        self.raw_lr = torch.tensor(inverse, dtype=images.dtype).requires_grad_(True)

    def to(self, device: str) -> LearnedCanvas:
        """Return the same canvas on another device."""
        moved = super().to(device)
        assert isinstance(moved, LearnedCanvas)
        for name in ("logits", "raw_lr"):
            leaf = getattr(self, name)
            if leaf is not None:
                setattr(moved, name, leaf.detach().to(device).requires_grad_(leaf.requires_grad))
        return moved

    def parameters(self) -> dict[str, Tensor]:
        """Return the leaves: images, raw_lr and, with soft labels, logits."""
        labels = {} if self.logits is None else {"logits": self.logits}
        return {"images": self.images, "raw_lr": self.raw_lr} | labels

    def seen(self) -> Tensor:
        """Return what networks see, (n, c, h, w) in network space."""
        return self.images if self.space == "network" else self.transform.forward(self.images)

    def targets(self) -> Tensor:
        """Return soft labels (n, K), rows sum to 1; one-hot rows for hard labels."""
        if self.logits is None:
            return one_hot(self.labels, self.classes).to(self.images.dtype)
        return self.logits.softmax(1)

    def syn_lr(self) -> Tensor:
        """Return the student's step size eta, a scalar that cannot become zero or negative.

        A leaf r with eta = f + b softplus(r / b), b a tenth and f a thousandth of the first eta:
        steps on r are steps on eta, as published, as long as eta is not far below where it began.
        """
        bend = _BEND * self.lr_start
        return _FLOOR * self.lr_start + bend * torch.nn.functional.softplus(self.raw_lr / bend)

    @torch.no_grad()
    def pictures(self, images: Tensor | None = None) -> Tensor:
        """Return RGB images (n, c, h, w) of the canvas (or of others in its space)."""
        images = self.images if images is None else images
        return self.transform.inverse(images) if self.space == "network" else images.detach()
