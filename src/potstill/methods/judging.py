"""By what real images judge a set, where that is the only place in which they enter.

Methods of kernel regression and of unrolled training ask what a classifier that knows nothing but
the synthetic set makes of real images. So this is where a long tail can be met: by the loss, or by
how they are drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor

from potstill.data import ImageSet
from potstill.losses.table import LOSSES
from potstill.nets.sampling import balanced_order
from potstill.run import InputError
from potstill.run.fields import OneOf
from potstill.run.parts import Part

__all__ = ["Judging"]

Balance = Annotated[str, OneOf("none", "sampling")]


@dataclass(frozen=True, kw_only=True)
class Judging(Part):
    """The outer loss and the draw of real images; losses are those of the long-tail table."""

    # of what is said of real images: "cross_entropy", or "balanced_softmax" (+ log n_c)
    outer_loss: Annotated[str, OneOf("cross_entropy", "balanced_softmax")] = "cross_entropy"
    balance: Balance = "none"  # long tails: "none" as published, or "sampling"

    def check(self, method: Any, real: ImageSet | None = None) -> None:
        """Refuse to take the class prior out twice."""
        if self.outer_loss == "balanced_softmax" and self.balance == "sampling":
            raise InputError(
                "balance is 'sampling' with outer_loss 'balanced_softmax', and each of them takes "
                "the class prior out; use balance=none"
            )

    def loss_for(self, counts: Sequence[int]) -> Any:
        """Return the loss of logits (b, K) and classes (b,) on real images of these ``counts``."""
        return LOSSES["plain" if self.outer_loss == "cross_entropy" else self.outer_loss](counts)

    def drawn(self, groups: Sequence[Tensor], size: int, draw: torch.Generator) -> Tensor:
        """Return the positions of real images (b,) of a step: ``size`` of them, or all.

        ``groups`` are the positions of each class (n_c,).
        """
        total = sum(map(len, groups))
        if self.balance == "sampling":
            return balanced_order(groups, min(size, total), draw)
        return torch.randperm(total, generator=draw)[:size]
