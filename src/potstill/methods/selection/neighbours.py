"""Neighbours: the real images that are most like the images of a distilled set.

A baseline of LGM (Cazenavette et al., NeurIPS 2025, arXiv 2511.16674, released code): for each
distilled image the real image of its class with the highest cosine of a frozen backbone's
features. Whatever a distilled set is worth beyond it cannot be had by choosing real images.
Deviations: an image is taken once; the next best stands in for a second time. Recipe:
recipes/neighbours/.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import normalize

from potstill.data import ImageSet
from potstill.experts.features import StoredFeatures, image_features
from potstill.methods.base import MethodInfo
from potstill.methods.selection.nearest import BackboneSelector, free_nearest
from potstill.methods.selector import Selector
from potstill.nets.backbone import Backbone
from potstill.networks import FrozenBackbone
from potstill.run import InputError, Run
from potstill.run.checkpoint import digest
from potstill.synthetic import SyntheticSet

__all__ = ["Neighbours"]


@dataclass(frozen=True, kw_only=True)
class Neighbours(BackboneSelector, Selector):
    """Choose the real neighbours of a distilled set."""

    info = MethodInfo(
        name="neighbours",
        title="Real neighbours of a distilled set",
        paper="baseline of LGM",
        year=2025,
        arxiv="2511.16674",
        family="selection",
        labels="hard",
        long_tail="as the distilled set; small classes give all they have",
        cost="one pass of the real set",
    )

    networks: FrozenBackbone = FrozenBackbone()  # what sees the images
    of: str = ""  # run folder or artifact of the distilled set

    def check(self, real: ImageSet | None = None) -> None:
        """Check that there is a distilled set."""
        super().check(real)
        if not self.of:
            raise InputError("of is empty; give the run folder of a distilled set (--of runs/lgm)")
        if real is not None:
            self._distilled(real)

    def _distilled(self, real: ImageSet) -> SyntheticSet:
        syn = SyntheticSet.load(Path(self.of).expanduser())
        if syn.classes != real.classes or syn.shape != real.shape:
            raise InputError(
                f"of is {self.of!r}, whose classes or image shape {syn.shape} are not those of the "
                f"real set {real.shape}; give a set distilled from these data"
            )
        return syn

    def key(self, real: ImageSet, ipc: int, run: Run) -> str:
        """As every method's, with the content of the distilled set."""
        return digest([super().key(real, ipc, run), self._distilled(real).checksum])

    def choose(
        self, real: ImageSet, stats: StoredFeatures, backbone: Backbone, ipc: int, run: Run
    ) -> Tensor:
        """Return positions (n,), class-sorted."""
        syn = self._distilled(real)
        images, labels, _, _ = syn.decoded()
        counts = torch.bincount(labels, minlength=real.num_classes)
        if int(counts.max()) != ipc:
            raise InputError(
                f"ipc is {ipc}, but {self.of!r} has {int(counts.max())} images per class; use "
                f"--ipc {int(counts.max())}"
            )
        goals = normalize(image_features(images, backbone, None, None).cpu(), dim=1)
        chosen = []
        for label in range(real.num_classes):
            own = real.of_class(label)
            z = normalize(stats.bank[0, own].float(), dim=1)
            chosen.append(own[free_nearest(-(goals[labels == label] @ z.T))])
        return torch.cat(chosen)
