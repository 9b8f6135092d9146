"""Choosing real images by what a frozen backbone sees in them."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from potstill.data import ImageSet
from potstill.experts.features import FeatureStats, collect_features
from potstill.methods.base import Selector
from potstill.methods.pretrained.backbone_matching import (
    backbone_facts,
    check_name,
    meaning,
    open_for,
    without_place,
)
from potstill.run import Run
from potstill.run.checkpoint import digest
from potstill.run.fields import Epochs, Share

__all__ = ["BackboneSelector", "free_nearest"]


@dataclass(kw_only=True)
class BackboneSelector(Selector):
    """Selectors that look through a backbone."""

    sizes: ClassVar[dict[str, dict[str, Any]]] = {"quick": {"backbone": "self:convnet-w32-bn"}}

    backbone: str = "dinov2_vitb"  # short name, timm:, transformers:, folder, self:NETWORK
    backbone_epochs: Epochs = 30  # of the training without labels of a self: backbone
    flip: Share = 0.5  # probability of mirrored views in it; 0 for digits and letters

    def check(self, real: ImageSet | None = None) -> None:
        """Check the backbone's name."""
        super().check(real)
        check_name(self, real)

    def shown(self) -> dict[str, Any]:
        """As every method's; a backbone's folder may have a size or constants after it."""
        return super().shown() | {"backbone": without_place(self.backbone)}

    def key(self, real: ImageSet, ipc: int, run: Run) -> str:
        """As every method's, with what the backbone's name stands for."""
        return digest([super().key(real, ipc, run), meaning(self, real, run)])

    def select(self, real: ImageSet, ipc: int, run: Run) -> Tensor:
        """Return positions (n,), class-sorted, as seen by the backbone."""
        began = time.monotonic()
        self.backbone_ = open_for(self, real, run)
        self.apart_ = time.monotonic() - began
        stats = collect_features(real, self.backbone_, run, bank=True)
        self.saved_ = stats.seconds_saved
        return self.choose(real, stats, ipc, run)

    def choose(self, real: ImageSet, stats: FeatureStats, ipc: int, run: Run) -> Tensor:
        """Return positions (n,), class-sorted, by the features of clean views."""
        raise NotImplementedError

    def seconds_saved(self) -> float:
        """The pass of the real images that an earlier run had left behind."""
        return self.saved_

    def seconds_apart(self) -> float:
        """Opening the backbone, or training it: its own cost, named in the provenance."""
        return self.apart_

    def facts(self) -> dict[str, Any]:
        """Which backbone saw the images."""
        return {"backbone": backbone_facts(self.backbone_)}


def free_nearest(gaps: Tensor) -> Tensor:
    """For each row of ``gaps`` (k, n) in turn the nearest column that is still free, (min(k, n),).

    A class with fewer images than are wanted gives all it has.
    """
    gaps, chosen = gaps.clone(), []
    for row in range(min(gaps.shape)):
        best = int(gaps[row].argmin())
        gaps[:, best] = torch.inf
        chosen.append(best)
    return torch.tensor(chosen)
