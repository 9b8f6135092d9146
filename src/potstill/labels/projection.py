"""A projector: what turns a frozen backbone's features of any view into its label.

HeLlO (Yu et al., ICCV 2025) sends no labels per view but a small map on the features of a public
backbone, which a receiver has already or can download: labels of endless views for a few thousand
numbers. Published with low-rank changes of the backbone beside the map; here the map alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["LinearMap", "Projection"]

_LONGEST = 300  # characters of a name


@dataclass(frozen=True, eq=False)
class LinearMap:
    """From features to logits."""

    weight: Tensor  # float32 (K, d)
    bias: Tensor  # float32 (K,)

    def __call__(self, z: Tensor) -> Tensor:
        """Logits (n, K) of features (n, d)."""
        return z.float() @ self.weight.T.to(z.device) + self.bias.to(z.device)

    @property
    def nbytes(self) -> int:
        """Bytes of the map: (d + 1) K numbers of 4 bytes; the backbone's are its owner's."""
        return self.weight.nbytes + self.bias.nbytes


@dataclass(frozen=True, eq=False)
class Projection(LinearMap):
    """A linear map from the features of one backbone to logits."""

    backbone: str  # the name by which a receiver opens it, see potstill.nets.backbone
    key: str  # what identifies weights, input and normalisation of that backbone

    @property
    def facts(self) -> dict[str, Any]:
        """What the tensors alone do not say."""
        return {"backbone": self.backbone, "key": self.key}

    def fault(self, classes: int) -> str | None:
        """Return what is wrong for K ``classes``, as a sentence."""
        for name in ("backbone", "key"):
            text = getattr(self, name)
            if not isinstance(text, str) or not 0 < len(text) <= _LONGEST:
                return f"projection has the {name} {str(text)[:40]!r}; a name is expected"
        w, b = self.weight, self.bias
        if w.dtype != torch.float32 or b.dtype != torch.float32 or w.ndim != 2 or not w.shape[1]:
            return "projection has no float32 weight (K, d) and bias (K,)"
        if w.shape[0] != classes or b.shape != (classes,):
            return f"projection gives {w.shape[0]} classes where there are {classes}"
        if not bool(w.isfinite().all()) or not bool(b.isfinite().all()):
            return "projection has NaN or infinite numbers"
        return None
