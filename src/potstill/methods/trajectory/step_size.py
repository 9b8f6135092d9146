"""The student's step size, learned with the images and always positive."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["StepSize"]

_BEND, _FLOOR = 0.1, 1e-3  # shares of the first step size


class StepSize:
    """A leaf r with eta = f + b softplus(r / b), b a tenth and f a thousandth of the first eta.

    Steps on r are steps on eta, as published, as long as eta is not far below where it began; eta
    cannot become zero or negative.
    """

    def __init__(self, first: float, device: str) -> None:
        self.first = float(first)
        inverse = math.log(math.expm1((1 - _FLOOR) / _BEND)) * _BEND * first
        self.leaf = torch.tensor(inverse, device=device).requires_grad_(True)

    def __call__(self) -> Tensor:
        """Return eta, a scalar."""
        bend = _BEND * self.first
        return _FLOOR * self.first + bend * torch.nn.functional.softplus(self.leaf / bend)
