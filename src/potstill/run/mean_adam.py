"""Adam whose step keeps the proportions of the gradient."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

__all__ = ["MeanAdam"]


class MeanAdam(torch.optim.Optimizer):
    """Adam (Kingma and Ba, ICLR 2015) with one second moment for a whole leaf: its mean.

    Adam divides each pixel by the size of its own gradients, so that every pixel of every class
    moves about as fast, whatever a loss weighs it with. Here all pixels are divided by the root
    mean square over all of them: a class with twice the weight moves twice as fast, and the root
    mean square of a step is still about ``lr``.

    Args:
        params: tensors or groups of them, as for any optimiser.
        lr: step size. betas: decay of the first and the second moment.
        eps: added to the root of the second moment.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Take one step along ``grad``."""
        for group in self.param_groups:
            first, second = group["betas"]
            for leaf in (p for p in group["params"] if p.grad is not None):
                own = self.state[leaf]
                if not own:
                    own["step"] = torch.zeros(())
                    own["mean"] = torch.zeros_like(leaf)
                    own["square"] = leaf.new_zeros(())
                own["step"] += 1
                done = float(own["step"])
                own["mean"].lerp_(leaf.grad, 1 - first)
                own["square"].lerp_(leaf.grad.square().mean(), 1 - second)
                size = (own["square"] / (1 - second**done)).sqrt() + group["eps"]
                leaf.addcdiv_(own["mean"], size, value=-group["lr"] / (1 - first**done))
