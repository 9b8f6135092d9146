"""SFM: statistical flow matching for pre-trained backbones.

"Efficient dataset distillation for pre-trained models via Statistical Flow Matching", arXiv
2602.05391 (abstract and released code; the text was not available to us).

    L = 1 - cos(F, F~),    f_k = ν_k - μ_k,    ν_k = mean of the other C - 1 class centres

μ are class means of a frozen backbone's features: F of the real set, computed once, F~ of the
synthetic images at each step. This is LGM's gradient for a head near zero on balanced classes
(docs/methods/sfm.md), without its noise: no real image, no head and no label inside the loop.
Class means do not depend on class sizes, so a long tail shifts nothing; what remains is noise of
small classes' means, against which ``shrinkage`` pulls them towards neighbours of the head.

Real centres come from clean centre crops, synthetic ones from random views, as released
(``centre_views`` "augmented" takes both from views). The step averages the views of an image, then
the images of a class.

Deviations: ν~ divides by C - 1 at every IPC. The released code divides by the number of synthetic
images less 1, which at IPC above 1 makes the images cancel the common offset of all features.
``sub_centres`` (k-means centres inside a class, one per image; saved but not used by the released
loss), ``reduction`` "per_class" and ``shrinkage`` are ours; ``decouple`` is the released ablation
sfm_decouple. Recipe: recipes/sfm/.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor

from potstill.canvas import Canvas, CanvasSpec, Pyramid
from potstill.data import ImageSet
from potstill.experts.features import collect_features, sub_centres
from potstill.match.linear import (
    REDUCTIONS,
    cosine_distance,
    flows,
    row_cosines,
    shrink_centres,
    sub_flows,
)
from potstill.match.spectral import segment_mean
from potstill.methods.base import Matcher, MethodInfo
from potstill.methods.pretrained.backbone_matching import (
    CANVASES,
    BackboneObjective,
    RandomViews,
)
from potstill.networks import BackboneNetworks, FrozenBackbone
from potstill.run import InputError, Run
from potstill.run.descent import Descent
from potstill.run.fields import Copies, NotNegative, OneOf, Share

__all__ = ["SFM"]

CentreViews = Annotated[str, OneOf("clean", "augmented")]
Reduction = Annotated[str, OneOf(*REDUCTIONS)]
SubCentres = Annotated[str, OneOf("off", "only", "both")]


@dataclass(frozen=True, kw_only=True)
class SFM(Matcher):
    """Match the flows between class centres, computed once on the real side."""

    info = MethodInfo(
        name="sfm",
        title="Statistical Flow Matching",
        paper="arXiv 2602.05391",
        year=2026,
        arxiv="2602.05391",
        family="pre-trained backbone",
        labels="hard",
        long_tail="class means carry no class sizes; shrinkage steadies the tail's",
        cost="one pass of the real set, then only synthetic views",
    )
    sizes = {
        "quick": {
            "backbone": "self:convnet-w32-bn",
            "steps": 500,
            "grow_every": 40,
            "lr_images": 3e-2,
            "sub_centres": "both",
        },
        "standard": {"sub_centres": "both"},
    }

    pairs = {"canvas": CANVASES, "labels": ("hard",), "networks": ("backbone",)}

    canvas: CanvasSpec = Pyramid()
    networks: FrozenBackbone = FrozenBackbone()
    views: RandomViews = RandomViews(augmentations=1)  # features averaged; released code
    descent: Descent = Descent(steps=5001, lr_images=2e-3)  # released: 0 to 5000 inclusive; Adam
    centre_views: CentreViews = "clean"  # real centres: centre crops as released, or "augmented"
    centre_count: Copies = 8  # augmented: views per real image
    reduction: Reduction = "global"  # one cosine over everything, or "per_class"
    sub_centres: SubCentres = "off"  # k-means flows for IPC > 1: "off" (released), "only" or "both"
    shrinkage: NotNegative = 0.0  # images' worth of trust in the nearest head centres; 0 = off
    decouple: bool = False  # released ablation: mean squares instead of the cosine
    decouple_alpha: Share = 1.0  # share of the centres' square; the rest is that of their others

    def check(self, real: ImageSet | None = None) -> None:
        """Check the form of the loss."""
        super().check(real)
        if self.decouple and self.sub_centres != "off":
            raise InputError(
                f"decouple is set with sub_centres {self.sub_centres!r}; use sub_centres=off"
            )
        if self.sub_centres != "off" and getattr(self.canvas, "ipc_profile", "") == "long_tailed":
            raise InputError(
                f"ipc_profile is 'long_tailed' with sub_centres {self.sub_centres!r}, one part for "
                "each image of a class; use sub_centres=off"
            )

    def prepare(
        self, real: ImageSet, canvas: Canvas, networks: BackboneNetworks, run: Run
    ) -> BackboneObjective:
        """Take the real centres, and their parts for ``sub_centres``."""
        return _Flows(self, real, canvas, networks, run)


class _Flows(BackboneObjective):
    """1 - cos of the flows between class centres."""

    how: SFM

    def prepare(self) -> None:
        """Take the real centres, and their parts for ``sub_centres``."""
        how, device = self.how, self.run.device
        clean = how.centre_views == "clean"
        parts = how.sub_centres != "off"
        seen = {} if clean else {"views": self.views, "count": how.centre_count}
        stats: Any = collect_features(self.real, self.backbone, self.run, bank=parts, **seen)
        self.ipc = len(self.labels) // self.classes
        self.seconds_saved = stats.seconds_saved
        centres = shrink_centres(stats.centres, stats.counts, how.shrinkage)
        self.centres = centres.to(device)
        self.flows = flows(self.centres)
        if parts:
            found = sub_centres(stats, self.ipc, self.run)
            # a shrunken class moves as a whole
            found = found + (centres - stats.centres)[:, None]
            self.sub_flows = sub_flows(self.centres, found.to(device))

    def loss(self, z: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """One cosine between the flows, or what replaces it."""
        images = z[0] if len(z) == 1 else z.mean(0)  # over views
        centres = segment_mean(images, self.labels.to(z.device), self.classes)
        found = flows(centres)
        facts = {"cosine": row_cosines(self.flows, found)}
        if self.how.decouple:
            return self._decoupled(centres), facts
        losses = []
        if self.how.sub_centres != "only":
            losses.append(cosine_distance(self.flows, found, self.how.reduction))
        if self.how.sub_centres != "off":
            own = sub_flows(centres, images.unflatten(0, (self.classes, self.ipc)))
            losses.append(cosine_distance(self.sub_flows, own, self.how.reduction))
        return torch.stack(losses).mean(), facts

    def _decoupled(self, centres: Tensor) -> Tensor:
        """alpha |μ - μ~|^2 + (1 - alpha) |ν - ν~|^2, means over all entries (sfm_decouple)."""
        own = (self.centres - centres).square().mean()
        others = (self.flows + self.centres - flows(centres) - centres).square().mean()
        return self.how.decouple_alpha * own + (1 - self.how.decouple_alpha) * others
