"""The two masks of EDF, for any trajectory matching (Wang et al., CVPR 2025, arXiv 2410.17193).

Common pattern dropout leaves the parameters out of the distance in which student and expert agree
best: they hold what all images share (potstill.match.rollout.far_apart). Discriminative area
enhancement weighs the images' gradient, pixel by pixel, by where a trained network sees the class:

    W = β + M  where M is above its mean (or above a fixed value),  1 elsewhere

M is the Grad-CAM map, in 0-1, made anew every so many steps (potstill.nets.class_maps).
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from potstill.canvas import Canvas
from potstill.data import ImageSet
from potstill.methods.trajectory.expert_networks import ExpertNetworks
from potstill.nets import Network
from potstill.nets.class_maps import class_maps
from potstill.run.fields import Decay, NotNegative, Share, Steps
from potstill.run.machine import CPU_CHUNK
from potstill.run.parts import Part

__all__ = ["Areas", "Masks", "area_weights"]


@dataclass(frozen=True, kw_only=True)
class Masks(Part):
    """What of the distance and of the images' gradient counts."""

    drop_share: Decay = 0.0  # of the parameters, those that agree best, left out of the distance
    area_every: Steps = 0  # steps between maps that weigh the images' gradient; 0 = no weights
    area_gain: NotNegative = 1.0  # beta: what is added to the map where it is high
    area_above: Share = 0.0  # a map is high above this; 0 = above its mean

    def check(self, method: Any, real: ImageSet | None = None) -> None:
        """Refuse a network without maps before it is trained."""
        if real is not None and self.area_every:
            network = method.networks.new(real, torch.Generator().manual_seed(0))
            label = torch.zeros(1, dtype=torch.int64)
            class_maps(network, torch.zeros(1, *real.shape), label, method.networks.network)


def area_weights(maps: Tensor, gain: float = 1.0, above: float = 0.0) -> Tensor:
    """Return the weights (n, 1, h, w) of the gradient of pixels, of maps in 0-1 (EDF eq. 5)."""
    high = above or maps.mean((1, 2, 3), keepdim=True)
    return torch.where(maps > high, maps + gain, torch.ones_like(maps))


class Areas:
    """The images as networks see them, with the weights of their gradient.

    Args:
        how: which weights. canvas: the images, whose class is known.
        networks: experts, of which the first looks, trained to its end. like: a network.
    """

    def __init__(self, how: Masks, canvas: Canvas, networks: ExpertNetworks, like: Network) -> None:
        self.how, self.transform, self.made = how, networks.transform, -1
        self.weights: Tensor | None = None
        if how.area_every:
            self.labels = canvas.labels.repeat_interleave(canvas.views)
            self.network = deepcopy(like)
            self.network.load_state_dict(networks.teachers[0]())
            self.weights = torch.ones_like(canvas.seen(self.transform).detach()[:, :1])

    def seen(self, step: int, canvas: Canvas) -> Tensor:
        """Return the images (n, c, h, w) of this step; their gradient is weighed."""
        x = canvas.seen(self.transform)
        if self.weights is None:
            return x
        if step % self.how.area_every == 0 and self.made != step:
            self.weights, self.made = self._weights(x.detach()), step
        if not x.requires_grad:
            return x
        x, weights = x.view_as(x), self.weights  # a leaf would keep the hook
        x.register_hook(lambda slope: slope * weights)
        return x

    def _weights(self, x: Tensor) -> Tensor:
        """In chunks of a size of their own: the loop's may change, a weight may then jump."""
        parts = zip(x.split(CPU_CHUNK), self.labels.split(CPU_CHUNK), strict=True)
        maps = torch.cat([class_maps(self.network, images, own) for images, own in parts])
        return area_weights(maps, self.how.area_gain, self.how.area_above)

    def state(self) -> dict[str, Tensor]:
        """The weights, which were made of images that have moved since."""
        return {} if self.weights is None else {"area": self.weights}

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Put them back."""
        if self.weights is not None:
            self.weights = tensors["area"].to(self.weights)
