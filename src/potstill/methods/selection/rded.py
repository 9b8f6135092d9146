"""RDED: Diversity and Realism of Distilled Dataset (Sun et al., CVPR 2024, arXiv 2312.03526).

No optimisation. Of ``looked_at`` random images of a class each gives ``crops`` random square crops;
an observer that was trained on the real set scores the realism of a crop as it would be stored,

    score(crop) = log p_observer(class | crop) ,

the best crop of each image is kept, and the IPC factor^2 best of these are tiled, factor x factor
to a stored image. The labels are the receiver's (protocol ``rded``, or ``potstill relabel``).

Where a class has fewer images than that, RDED cannot fill it. Here every image then gives its next
best crop, round after round, as in RLDD (AAAI 2026, stage 3): never one crop twice.

Deviations: the rounds; a crop is enlarged bilinearly and averaged down to a tile; a receiver is
shown the tiles one by one and enlarged, not a whole mosaic with its patches shuffled (at factor 1,
which is published for small images, they are the same). Recipe: recipes/rded/.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from typing import Annotated

import torch
from torch import Tensor
from torch.nn.functional import interpolate, pad

from potstill.canvas import start_canvas
from potstill.canvas.crops import confident_crops
from potstill.canvas.pixels import Factor
from potstill.data import ImageSet
from potstill.data.views import clean_view
from potstill.methods.base import Method, MethodInfo
from potstill.methods.selection.class_by_class import ClassByClass
from potstill.methods.selector import real_set
from potstill.networks import NetworkSpec, Scorer
from potstill.networks.scorer import ScoringNetworks
from potstill.run import InputError, Run, logger
from potstill.run.fields import Batch, Copies, OneOf, PositiveShare, check_value
from potstill.synthetic import SyntheticSet

__all__ = ["RDED", "log_realism"]

Shown = Annotated[str, OneOf("padded", "enlarged")]


@dataclass(frozen=True, kw_only=True)
class RDED(Method):
    """Store the crops of real images of which an observer is surest."""

    info = MethodInfo(
        name="rded",
        title="Realistic, Diverse and Efficient Dataset Distillation",
        paper="Sun et al., CVPR 2024",
        year=2024,
        arxiv="2312.03526",
        family="selection",
        labels="hard",
        long_tail="balanced; small classes give several crops of an image; observer under any row "
        "of the long-tail table",
        cost="one network and a pass of a few crops of each image",
    )
    sizes = ClassByClass.sizes
    pairs = {"networks": ("scorer", "backbone-head")}

    networks: NetworkSpec = Scorer()  # the observer, which scores crops
    factor: Factor = 1  # tiles per side of a stored image
    crops: Copies = 5  # random square crops of each image
    crop_min: PositiveShare = 0.08  # smallest crop as a share of the area
    looked_at: Batch = 300  # images of a class that give crops, at random; more where needed
    # how tiles are shown to the observer: "padded" to the size of an image, or "enlarged" to it
    shown_as: Shown = "padded"

    def __call__(self, real: ImageSet, ipc: int, run: Run) -> SyntheticSet:
        """Return mosaics of the crops with the highest scores."""
        check_value("ipc", ipc, Batch)
        self.check(real)
        began, networks = time.monotonic(), self.networks.open(real, run)
        needed = [ipc * self.factor**2] * real.num_classes
        _tell(real, needed[0])
        judge = partial(log_realism, networks, self.factor, self.shown_as)
        said = judge(real.batch(torch.arange(min(64, len(real))), run.device))
        if len(said) > 1 and bool((said == said[:1]).all()):
            raise InputError(
                f"networks is {self.networks.kind!r}, which says the same of all images; train it "
                "longer, or use another network or backbone"
            )
        crops = confident_crops(
            real,
            needed,
            judge,
            run.generator,
            run.device,
            crops=self.crops,
            crop_min=self.crop_min,
            looked_at=self.looked_at,
        )
        canvas = start_canvas(
            real, ipc, run.generator, start="crops", factor=self.factor, crops=crops
        )
        seconds = time.monotonic() - began + networks.seconds_saved - networks.seconds_apart
        told = self.provenance(real, ipc, run, seconds) | networks.facts()
        images = canvas.images.detach()
        return self.stored(real_set(real, images, canvas.labels, told, decode=canvas.spec))


@torch.no_grad()
def log_realism(networks: ScoringNetworks, factor: int, shown_as: str, crops: Tensor) -> Tensor:
    """Return what an observer says of crops (n, c, h, w) as tiles, log-probabilities (n, K).

    A tile is ``factor`` times smaller than an image. "padded": it lies in the middle of an image
    that is zero behind the normalisation. "enlarged": as a receiver is shown it.
    """
    if factor > 1:
        size = high, wide = crops.shape[2], crops.shape[3]
        crops = interpolate(crops, (-(-high // factor), -(-wide // factor)), mode="area")
        if shown_as == "enlarged":
            crops = interpolate(crops, size, mode="bilinear", align_corners=False)
        else:
            down, across = high - crops.shape[2], wide - crops.shape[3]
            mean = networks.transform.inverse(crops.new_zeros(1, crops.shape[1], 1, 1))
            sides = (across // 2, across - across // 2, down // 2, down - down // 2)
            crops = pad(crops - mean, sides) + mean
    head, backbone = networks.head, networks.backbone
    return head(backbone.features(clean_view(crops, backbone.size))).log_softmax(1)


def _tell(real: ImageSet, needed: int) -> None:
    """Say which classes give several crops of an image."""
    short = [count for count in real.counts if count < needed]
    if short:
        logger.warning(
            "%d of %d classes have fewer images than the %d crops that they store (smallest: %d) "
            "and give several of an image", len(short), real.num_classes, needed, min(short),
        )  # fmt: skip
