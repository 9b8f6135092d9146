"""What the loop asks of a method and of a canvas."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Protocol

from torch import Tensor

from potstill.run.descent import Rate

__all__ = ["Objective", "Surface", "Term"]


@dataclass
class Term:
    """One part of the loss, for the classes ``first .. first + k - 1`` or for all of them at once.

    ``values`` (k,) is each class's contribution, or () one value for the whole set; their sum is
    back-propagated and freed at once. Values without a graph are logged and move nothing.
    ``facts`` are per-class diagnostics (k,), logged and never differentiated.
    """

    name: str
    values: Tensor
    first: int = 0
    facts: dict[str, Tensor] = field(default_factory=dict)


class Surface(Protocol):
    """What is optimised: a canvas.

    Attributes:
        rounds: how often the steps of a descent are taken, each time on other leaves.
        leaf_labels: class of each row of the leaves.
    """

    rounds: int

    @property
    def leaf_labels(self) -> Tensor:
        """Return the class of each row of the leaves."""

    def parameters(self) -> dict[str, Tensor]:
        """Return the leaves by name."""

    def pixel_parameters(self) -> list[Tensor]:
        """Return those leaves that hold pixels, (n, ...) each, one row per label."""

    def grow_(self, step: int) -> bool:
        """Bring the leaves into their form at ``step``, before it is taken.

        Returns whether they are other leaves now; the optimiser then starts anew. Calling it with
        the step at which a run was killed brings a fresh surface into the same form.
        """

    def project_(self) -> None:
        """Put the leaves back into their domain after a step."""


class Objective:
    """What a method asks of a canvas, with everything that a run computes for it.

    Attributes:
        lr: step size of the pixels, where it is not the descent's.
        rates: step sizes of other leaves, by name.
    """

    lr: float | None = None
    rates: Mapping[str, Rate] = MappingProxyType({})

    def terms(self, step: int, canvas: Any, piece: int) -> Iterator[Term]:
        """Yield the losses of one step in the paper's order, at most ``piece`` units a term."""
        raise NotImplementedError

    def leaves(self) -> dict[str, Tensor]:
        """Return what is learned beside the canvas, by name: labels, a step size."""
        return {}

    def after(self, step: int, canvas: Any) -> None:
        """Be told that ``step`` is done and the canvas has moved."""

    def state(self) -> dict[str, Tensor]:
        """Return what changes from step to step besides canvas and leaves."""
        return {}

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Put back what :meth:`state` returned."""
