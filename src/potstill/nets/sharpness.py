"""Sharpness-aware descent: the slope a little uphill, less its part that the slope here lacks.

With g1 the gradient at the parameters w and ρ the radius, SAM climbs by ρ g1 / |g1|, ASAM (Kwon et
al., ICML 2021) by ρ w² g1 / ||w| g1|, and both descend from w along the gradient g2 found up there.
GSAM (Zhuang et al., ICLR 2022) descends along g2 - α v, where v is the part of g1 orthogonal to g2.
FTD, DATM and LAD train their experts so. Norms run over all trained parameters of one network.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from potstill.run.fields import NotNegative, check_value

__all__ = ["Ascent", "Sharpness"]


@dataclass(frozen=True)
class Sharpness:
    """Radius and kind of sharpness-aware steps; each costs two gradients on the same batch.

    Raises:
        InputError: a number is negative or not finite.
    """

    rho: NotNegative = 0.01  # radius of the climb; 0 is plain descent
    alpha: NotNegative = 0.3  # GSAM: share of the orthogonal part that is taken back; 0 is (A)SAM
    adaptive: bool = True  # ASAM: the climb scales with each parameter's own size

    def __post_init__(self) -> None:
        check_value("rho of sharpness", self.rho, NotNegative)
        check_value("alpha of sharpness", self.alpha, NotNegative)


class Ascent:
    """The way up and down again in one step of ``members`` networks in lockstep.

    Parameters are tensors of one network (``members`` 1) or hold all members along their first
    axis; each member has its own norms, and nothing waits for the device.
    """

    def __init__(self, how: Sharpness, parameters: Iterable[Tensor], members: int) -> None:
        self.how, self.members = how, members
        self.parameters = [p for p in parameters if p.requires_grad]
        self.up_there: list[Tensor] = []  # parameters that are not in their place

    @torch.no_grad()
    def up(self) -> None:
        """Keep gradient and place, clear the gradient and move uphill."""
        moved, slopes = self._moved()
        self.place, self.first = self._rows(moved), self._rows(slopes)
        push = self.place * self.first if self.how.adaptive else self.first
        radius = self.how.rho / (push.norm(dim=1, keepdim=True) + 1e-12)
        climb = self.place * push if self.how.adaptive else push
        high = torch.addcmul(self.place, climb, radius)
        self.up_there = moved
        self._put(moved, high)
        for parameter in moved:
            parameter.grad = None

    @torch.no_grad()
    def down(self) -> None:
        """Return to the very place, with the direction of descent as its gradient."""
        _, slopes = self._moved()
        self.back()
        if self.how.alpha:
            second = self._rows(slopes)
            square = second.square().sum(1, keepdim=True).clamp_min(torch.finfo(second.dtype).tiny)
            along = (self.first * second).sum(1, keepdim=True) / square
            across = torch.addcmul(self.first, along, second, value=-1)
            self._put(slopes, second.sub_(across, alpha=self.how.alpha))

    @torch.no_grad()
    def back(self) -> None:
        """Return to the very place, if the way up was begun."""
        if self.up_there:
            self._put(self.up_there, self.place)
            self.up_there = []

    def _moved(self) -> tuple[list[Tensor], list[Tensor]]:
        """Parameters that have a gradient, and the gradients."""
        pairs = [(p, p.grad) for p in self.parameters if p.grad is not None]
        return [p for p, _ in pairs], [slope for _, slope in pairs]

    def _rows(self, tensors: Sequence[Tensor]) -> Tensor:
        """One row per member, (members, P): a handful of kernels in place of some per tensor."""
        return torch.cat([tensor.reshape(self.members, -1) for tensor in tensors], dim=1)

    def _put(self, tensors: Sequence[Tensor], rows: Tensor) -> None:
        parts = rows.split([tensor.numel() // self.members for tensor in tensors], dim=1)
        shaped = [part.reshape(t.shape) for part, t in zip(parts, tensors, strict=True)]
        torch._foreach_copy_(list(tensors), shaped)
