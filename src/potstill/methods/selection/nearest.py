"""Choosing real images by what a frozen backbone sees in them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from potstill.data import ImageSet
from potstill.experts.features import StoredFeatures
from potstill.methods.selector import Chosen
from potstill.nets.backbone import Backbone
from potstill.networks import FrozenBackbone
from potstill.networks.scorer import stored_features
from potstill.run import Run

__all__ = ["BackboneSelector", "free_nearest"]


class BackboneSelector:
    """What selectors that look through a backbone share; to be mixed into a Selector."""

    sizes = {"quick": {"backbone": "self:convnet-w32-bn"}}
    pairs: ClassVar[Mapping[str, tuple[str, ...]]] = {"networks": ("backbone",)}

    networks: FrozenBackbone

    def select(self, real: ImageSet, ipc: int, run: Run) -> Chosen:
        """Return positions (n,), class-sorted, as seen by the backbone."""
        networks = self.networks.open(real, run)
        stats = stored_features(real, networks, run)
        return Chosen(self.choose(real, stats, networks.backbone, ipc, run), networks)

    def choose(
        self, real: ImageSet, stats: StoredFeatures, backbone: Backbone, ipc: int, run: Run
    ) -> Tensor:
        """Return positions (n,), class-sorted, by the features of clean views."""
        raise NotImplementedError


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
