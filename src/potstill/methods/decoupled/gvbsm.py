"""G-VBSM: Generalized Various Backbone and Statistical Matching (Shao et al., CVPR 2024).

arXiv 2311.17950.

    L = CE(f_t(view), y) + w sum_l r_l d_l ( |mean_l - M_l|_2 + |var_l - V_l|_2 )
                         + v sum_c KL( softmax(s_c / T) | softmax(s_c) )

SRe2L with three more things. Several networks f_t take turns, step by step. Statistics are also
those in front of every convolution l, of its channels and of the patches of its maps; M_l and V_l
are those of the real set; mean_l and var_l are running means over the steps, of which only this
step's share moves; d_l drops a convolution now and then. s_c are the eigenvalues of the Gram
matrix of a class's images in the shard: a flatter spectrum is a denser class (data densification),
so shards go class by class.

Deviations: as SRe2L; M_l and V_l are exact, of the images as they are, also in front of batch
norms; Gram matrices are over the number of pixel values, for both softmaxes would be saturated
otherwise; a roll instead of a crop of padded images and a roll; WRN-16-2 and the thin ResNet-10
stand for MobileNetV2 and ShuffleNetV2. Recipe: recipes/gvbsm/.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d

from potstill.canvas import Canvas, CanvasSpec, Pixels
from potstill.canvas.shards import ShardedCanvas
from potstill.data import ImageSet
from potstill.labels import Hard, LabelSpec
from potstill.match.batch_statistics import densification, mixed_statistics, statistics_apart
from potstill.methods.base import Matcher, MethodInfo, Objective
from potstill.methods.decoupled.recovery import Recovers, RecoveryDescent, RecoveryViews
from potstill.methods.decoupled.table_recovery import MatchedLayers, TableRecovery
from potstill.networks import NetworkSpec, SqueezedNets, SqueezedNetworks
from potstill.run import Run
from potstill.run.fields import NotNegative, Positive
from potstill.run.objective import Term

__all__ = ["GVBSM"]

_SIDE = 32  # to which larger images are pooled before their Gram matrix
_QUICK = {
    "observers": "resnet10-w16-bn+convnet-w32-bn", "squeeze_epochs": 20, "steps": 300,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class GVBSM(Recovers, Matcher):
    """Recover images from several networks, with statistics in front of all their layers."""

    info = MethodInfo(
        name="gvbsm",
        title="Generalized Various Backbone and Statistical Matching",
        paper="Shao et al., CVPR 2024",
        year=2024,
        arxiv="2311.17950",
        family="decoupled",
        labels="hard or soft labels of a teacher",
        long_tail="networks under any row of the long-tail table; statistics are the set's",
        cost="several networks trained, and one pass of the real set through each, before step 0",
    )
    sizes = {
        "quick": _QUICK,
        "standard": {
            "observers": "resnet10-w32-bn+convnet-w64-bn+wrn16-w16-bn", "steps": 1000,
        },
    }  # fmt: skip
    layer = (nn.Conv2d, "convolution")

    canvas: CanvasSpec = Pixels(start="noise", bounded=True)
    labels: LabelSpec = Hard()
    networks: NetworkSpec = SqueezedNets(
        observers="resnet18-bn+convnet-w128-bn+wrn16-w32-bn+resnet10-w32-bn"
    )
    views: RecoveryViews = RecoveryViews(crop_min=1.0, roll=32)
    layers: MatchedLayers = MatchedLayers()
    descent: RecoveryDescent = RecoveryDescent(
        lr_images=0.05, schedule="cosine", shard_order="classes"
    )
    norm_weight: NotNegative = 0.01  # of the statistics; 0 = off
    dense_weight: NotNegative = 1.0  # of data densification; 0 = off
    dense_temperature: Positive = 4.0  # T

    def prepare(
        self, real: ImageSet, canvas: Canvas, networks: SqueezedNetworks, run: Run
    ) -> Objective:
        """Measure the real set behind each network."""
        return _Generalised(self, real, canvas, networks, run)


class _Generalised(TableRecovery):
    """Statistics of the whole set, and densification."""

    def __init__(self, how: GVBSM, real: ImageSet, *more: Any) -> None:
        super().__init__(how, real, *more)
        self.sizes = torch.tensor(real.counts, device=self.run.device)

    def distance(self, own: Tensor, table: Tensor, labels: Tensor) -> Tensor:
        """Return how far a shard is from all real images."""
        return statistics_apart(own, mixed_statistics(table, self.sizes))

    def further(self, canvas: ShardedCanvas) -> Iterator[Term]:
        """Yield data densification of the images as networks see them."""
        if not self.how.dense_weight:
            return
        x = self.networks.transform.forward(canvas.images)
        if min(x.shape[2:]) > _SIDE:
            x = adaptive_avg_pool2d(x, _SIDE)
        value = densification(x, canvas.leaf_labels, canvas.classes, self.how.dense_temperature)
        yield Term("densification", self.how.dense_weight * value)
