"""Real images that stand for their class: those nearest to centres of its features (DREAM)."""

from __future__ import annotations

import torch
from torch import Tensor

from potstill.data import ImageSet
from potstill.experts.features import k_means
from potstill.methods.selection.nearest import free_nearest
from potstill.networks.extractor import FeatureExtractor
from potstill.run import DivergedError
from potstill.run.machine import CPU_CHUNK

__all__ = ["representatives"]


@torch.no_grad()
def representatives(
    real: ImageSet, own: Tensor, network: FeatureExtractor, count: int, draw: torch.Generator
) -> Tensor:
    """Return ``count`` of the positions ``own`` (n,), n >= count: one near each k-means centre.

    Centres are those of the network's features of the images as they are; each in turn takes the
    image that is nearest to it, Euclidean, among those that are still free (Liu et al., ICCV 2023,
    section 3.2; the released code may take one twice).
    """
    parts = own.split(CPU_CHUNK if network.run.device == "cpu" else 1024)
    found = [network.features(real.batch(rows, network.run.device)).cpu() for rows in parts]
    z = torch.cat(found)
    if not bool(z.isfinite().all()):
        raise DivergedError("features of the real images are not finite; use a smaller inner_lr")
    centres = k_means(z, count, draw, starts=1)
    return own[free_nearest(torch.cdist(centres.double(), z.double()))]
