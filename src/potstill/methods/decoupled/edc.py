"""EDC: Elucidating the Design Space of Dataset Condensation (Shao et al., NeurIPS 2024).

arXiv 2404.13733.

    L = CE(f_t(view), y) + w sum_l r_l ( (1 - a) D(S_l, G_l) + a D(S_l, C_l) )
                         + v KL( softmax(z'/T) | softmax(z/T) ),       D = |means|_2 + |variances|_2

G-VBSM from real images instead of noise, without densification, rolls and dropped layers. S_l are
the shard's running statistics in front of layer l; half of the aim are those of the whole real set,
G_l, half those of a batch of the shard's classes, C_l (soft category-aware matching). z are the
logits of the views, z' those of the same views of the images' own running mean: where both differ,
the loss is sharp (flatness; its weight v is 0 in all released scripts, and so here).

Deviations: as G-VBSM; C_l is the exact mixture of the classes' moments (the release averages their
variances and swaps means and variances of patches); the smoothed step size and the small batches of
EDC's student are the receiver's. Recipe: recipes/edc/.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import kl_div

from potstill.canvas import Canvas, CanvasSpec, Pixels
from potstill.data import ImageSet
from potstill.labels import Hard, LabelSpec
from potstill.match.batch_statistics import mixed_statistics, statistics_apart
from potstill.methods.base import Matcher, MethodInfo, Objective
from potstill.methods.decoupled.recovery import Recovers, RecoveryDescent, RecoveryViews
from potstill.methods.decoupled.table_recovery import MatchedLayers, TableRecovery
from potstill.networks import NetworkSpec, SqueezedNets, SqueezedNetworks
from potstill.run import Run
from potstill.run.fields import Decay, NotNegative, Positive, Share

__all__ = ["EDC"]

_IMAGES = "images-mean"  # in the state


@dataclass(frozen=True, kw_only=True)
class EDC(Recovers, Matcher):
    """Move real images to the statistics of all real images and of their classes, half and half."""

    info = MethodInfo(
        name="edc",
        title="Elucidating the Design Space of Dataset Condensation",
        paper="Shao et al., NeurIPS 2024",
        year=2024,
        arxiv="2404.13733",
        family="decoupled",
        labels="hard or soft labels of a teacher",
        long_tail="half of the aim are statistics per class; networks under any row of the table",
        cost="several networks trained, and one pass of the real set through each, before step 0",
    )
    sizes = {
        "quick": {"observers": "resnet10-w16-bn+convnet-w32-bn", "squeeze_epochs": 20},
        "standard": {"observers": "resnet10-w32-bn+convnet-w64-bn+wrn16-w16-bn"},
    }
    layer = (nn.Conv2d, "convolution")

    canvas: CanvasSpec = Pixels(start="real", bounded=True)
    labels: LabelSpec = Hard()
    networks: NetworkSpec = SqueezedNets(
        observers="resnet18-bn+convnet-w128-bn+wrn16-w32-bn+resnet10-w32-bn"
        "+convnet-d1-w128-bn+convnet-d2-w128-bn+convnet-w32-bn"
    )
    views: RecoveryViews = RecoveryViews(roll=0)
    layers: MatchedLayers = MatchedLayers(layer_drop=0.0)
    descent: RecoveryDescent = RecoveryDescent(
        steps=75, lr_images=0.05, schedule="cosine", shard_order="classes"
    )
    norm_weight: NotNegative = 0.01  # of the statistics; 0 = off
    class_share: Share = 0.5  # of the class-aware part of the aim
    flat_weight: NotNegative = 0.0  # of flatness; 1 in the paper; 0 = off
    flat_decay: Decay = 0.99  # of the images' running mean
    flat_temperature: Positive = 4.0  # T

    def prepare(
        self, real: ImageSet, canvas: Canvas, networks: SqueezedNetworks, run: Run
    ) -> Objective:
        """Measure the real set behind each network."""
        return _CategoryAware(self, real, canvas, networks, run)


class _CategoryAware(TableRecovery):
    """Statistics of the whole set and of the shard's classes, and flatness."""

    def __init__(self, how: EDC, real: ImageSet, *more: Any) -> None:
        super().__init__(how, real, *more)
        self.sizes = torch.tensor(real.counts, device=self.run.device)
        self.shadow: Tensor | None = None  # running mean of the shard's images

    def distance(self, own: Tensor, table: Tensor, labels: Tensor) -> Tensor:
        """Return the two distances, weighted."""
        share, there = self.how.class_share, torch.bincount(labels, minlength=len(table))
        of_all, of_classes = (mixed_statistics(table, n) for n in (self.sizes, there))
        apart, aware = statistics_apart(own, of_all), statistics_apart(own, of_classes)
        return (1 - share) * apart + share * aware

    def beside(self, logits: Tensor, look: Callable[[Tensor], Tensor]) -> Tensor | None:
        """Return flatness; nothing while the running mean is the images themselves."""
        how = self.how
        if not how.flat_weight or self.shadow is None:
            return None
        aim = (look(self.shadow) / how.flat_temperature).softmax(1)
        found = (logits / how.flat_temperature).log_softmax(1)
        return how.flat_weight * kl_div(found, aim, reduction="batchmean")

    @torch.no_grad()
    def after(self, step: int, canvas: Any) -> None:
        """Keep the running means; a shard begins without any."""
        super().after(step, canvas)
        if self.how.flat_weight:
            now = canvas.images.detach()
            last = (step + 1) % self.how.descent.steps == 0
            before = now if self.shadow is None else self.shadow
            self.shadow = None if last else before.lerp(now, 1 - self.how.flat_decay)

    def state(self) -> dict[str, Tensor]:
        """Return the running means."""
        return super().state() | ({} if self.shadow is None else {_IMAGES: self.shadow})

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Put them back."""
        super().load_state(tensors)
        kept = tensors.get(_IMAGES)
        self.shadow = None if kept is None else kept.to(self.run.device)
