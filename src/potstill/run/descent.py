"""How the loop descends: optimiser, step sizes per leaf, and their schedule."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor

from potstill.run.fields import Decay, OneOf, Positive, Steps, check_value
from potstill.run.mean_adam import MeanAdam
from potstill.run.parts import Part

__all__ = ["Course", "Descent", "Optimizer", "Rate", "Schedule", "cosine", "pack", "unpack"]

Optimizer = Annotated[str, OneOf("adam", "mean_adam", "sgd")]
_PATIENCE = 500  # plateau: steps without improvement before the rate is halved
_HALVED = (0.6, 0.8, 0.9)  # shares of the steps after which CAFE halves the rate
Course = Annotated[str, OneOf("constant", "cosine", "plateau", "halved")]  # of the step size


@dataclass(frozen=True)
class Rate:
    """Step size of one leaf. ``name`` is the hyper-parameter it comes from, for messages."""

    name: str
    lr: Positive
    momentum: Decay = 0.5  # SGD only

    def __post_init__(self) -> None:
        check_value(self.name, self.lr, Positive)
        check_value(f"momentum of {self.name}", self.momentum, Decay)


@dataclass(frozen=True, kw_only=True)
class Descent(Part):
    """How the canvas moves: all classes together in each step."""

    steps: Steps = 20_000  # optimisation steps, all classes together in each
    lr_images: Positive = 1e-3  # step size of the images
    # "adam" (0.9, 0.999), "mean_adam" (one second moment: weights of classes stay) or "sgd"
    optimizer: Optimizer = "adam"
    momentum: Decay = 0.5  # of SGD
    # step size over time: "constant", "cosine", "plateau", or "halved" thrice at the end (CAFE)
    schedule: Course = "constant"

    def scaled(self, share: float) -> float:
        """Return ``lr_images`` in pixels a unit of which is ``share ** -0.5`` units of its own.

        A plain step scales with the square, because the gradient does too; Adam's does not.
        """
        return self.lr_images * (share if self.optimizer == "sgd" else share**0.5)

    def build(
        self,
        leaves: Mapping[str, Tensor],
        rates: Mapping[str, Rate] | None = None,
        lr: float | None = None,
    ) -> torch.optim.Optimizer:
        """Return the optimiser, one group per leaf with its own ``base`` step size.

        Args:
            rates: of leaves that differ from the images. lr: instead of ``lr_images``.
        """
        own = Rate("lr_images", self.lr_images if lr is None else lr, self.momentum)
        groups: list[dict[str, Any]] = []
        for name, leaf in leaves.items():
            rate = (rates or {}).get(name, own)
            group = {"params": [leaf], "lr": rate.lr, "base": rate.lr}
            groups.append(group | ({"momentum": rate.momentum} if self.optimizer == "sgd" else {}))
        if self.optimizer == "sgd":
            return torch.optim.SGD(groups, lr=own.lr)
        if self.optimizer == "mean_adam":
            return MeanAdam(groups, lr=own.lr)
        # fused: without temporaries of the size of the largest leaf
        return torch.optim.Adam(groups, lr=own.lr, fused=True)


def cosine(done: float, total: float) -> float:
    """Return the share of a step size when ``done`` of ``total`` steps are over: half a wave."""
    return 0.5 * (1 + math.cos(math.pi * done / total))


class Schedule:
    """Share of the base step size at each step; only the plateau rule has state."""

    def __init__(self, descent: Descent) -> None:
        self.descent, self.factor, self.best, self.since = descent, 1.0, math.inf, 0

    def share(self, step: int) -> float:
        """Return what every leaf's step size is multiplied by at ``step``."""
        if self.descent.schedule == "cosine":
            return cosine(step, max(1, self.descent.steps))
        if self.descent.schedule == "halved":
            done = step / max(1, self.descent.steps)
            return 0.5 ** sum(done >= share for share in _HALVED)
        return self.factor

    def observe(self, step: int, loss: float) -> None:
        """Halve the rate after 500 steps without a relative improvement of 1e-4."""
        if loss < self.best * (1 - 1e-4):
            self.best, self.since = loss, step
        elif step - self.since > _PATIENCE and self.descent.schedule == "plateau":
            self.factor, self.since = self.factor * 0.5, step

    def state(self) -> dict[str, Any]:
        """Return the state as JSON-like values."""
        return {"factor": self.factor, "best": min(self.best, 1e300), "since": self.since}

    def load_state(self, facts: Mapping[str, Any]) -> None:
        """Put back what :meth:`state` returned."""
        self.factor, self.best, self.since = facts["factor"], facts["best"], facts["since"]


def pack(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the tensors of the optimiser's state, by "optimizer.LEAF.NAME"."""
    packed = {}
    for index, slots in optimizer.state_dict()["state"].items():
        for name, value in slots.items():
            if isinstance(value, Tensor):
                packed[f"optimizer.{index}.{name}"] = value
    return packed


def unpack(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Put back what :func:`pack` returned; other names are left alone."""
    slots: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith("optimizer."):
            _, index, name = key.split(".", 2)
            slots.setdefault(int(index), {})[name] = value
    if slots:
        optimizer.load_state_dict({**optimizer.state_dict(), "state": slots})
    for leaf, own in optimizer.state.items():  # fused steps want one layout, e.g. channels last
        for name, value in own.items():
            alike = isinstance(value, Tensor) and value.shape == leaf.shape
            if alike and value.stride() != leaf.stride():
                own[name] = torch.empty_like(leaf).copy_(value)
