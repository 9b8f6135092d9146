"""The running mean of a network's weights over the steps of its training (EMA)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

__all__ = ["Average"]

_NAME = "mean"  # beside what the optimiser remembers of a parameter


class Average:
    """mean <- decay * mean + (1 - decay) * weights after each step, from the first one's weights.

    It lies in the optimiser's memory, and so in every file that holds that. Buffers (batch norm's
    running statistics) are means already and stay as they are.

    Args:
        optimizer: of the weights. decay: in [0, 1); at 0 nothing is ever done.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, decay: float) -> None:
        self.optimizer, self.decay = optimizer, decay

    def _weights(self) -> list[Tensor]:
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    @torch.no_grad()
    def follow_(self) -> None:
        """Take the weights of a finished step in."""
        if self.decay:
            for weight in self._weights():
                memory = self.optimizer.state[weight]
                if _NAME not in memory:
                    memory[_NAME] = weight.detach().clone()
                memory[_NAME].lerp_(weight, 1 - self.decay)

    def move(self, optimizer: torch.optim.Optimizer) -> None:
        """Go on beside another optimiser of the same weights."""
        for weight, memory in self.optimizer.state.items():
            if _NAME in memory:
                optimizer.state[weight][_NAME] = memory[_NAME]
        self.optimizer = optimizer

    @contextmanager
    def shown(self, *, stay: bool) -> Iterator[None]:
        """Put the mean in the place of the weights, for good if it is to ``stay``."""
        self._swap_()
        yield
        if not stay:
            self._swap_()

    @torch.no_grad()
    def _swap_(self) -> None:
        if self.decay:
            for weight in self._weights():
                mean = self.optimizer.state[weight][_NAME]
                weights = weight.detach().clone()
                weight.copy_(mean)
                mean.copy_(weights)
