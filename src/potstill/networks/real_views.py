"""What is kept of a view of the real data: class means, or the features themselves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

__all__ = ["ClassFeatures", "ClassMeans", "Embedding", "FeatureBank", "KeptFeatures", "RealView"]


@dataclass(frozen=True, eq=False)
class RealView:
    """One view of the real data. ``number`` names every draw that made it."""

    number: int
    augment: dict[str, Tensor]  # Siamese parameters, one set for both sides


@dataclass(frozen=True, eq=False)
class ClassMeans(RealView):
    """A view, and what is averaged over each class."""

    table: Tensor  # (C, q) class means of the embedding
    frequencies: Tensor  # (T, d) of the embedding; T = 0 where it has none


@dataclass(frozen=True, eq=False)
class KeptFeatures(RealView):
    """A view, and the features of its images."""

    features: Tensor


@dataclass(frozen=True, eq=False)
class ClassFeatures(KeptFeatures):
    """``features`` (C, n, d) padded per class, for exact distances."""

    mask: Tensor  # (C, n) true where there is an image


@dataclass(frozen=True, eq=False)
class FeatureBank(KeptFeatures):
    """``features`` (n, d) in half precision, class-sorted, to be embedded anew at each step."""

    labels: Tensor  # (n,)


class Embedding(Protocol):
    """What is averaged over a class."""

    keeps_features: bool  # whether single features are needed, not class means

    @property
    def facts(self) -> dict[str, Any]:
        """JSON-like facts that determine :meth:`embed`."""

    def frequencies(self, number: int, dim: int) -> Tensor:
        """Return the frequencies (T, d) of a view; T = 0 where there are none."""

    def embed(self, features: Tensor, frequencies: Tensor) -> Tensor:
        """Features (n, d) -> (n, q)."""
