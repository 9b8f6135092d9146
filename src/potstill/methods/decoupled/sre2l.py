"""SRe2L: Squeeze, Recover and Relabel (Yin, Xing & Shen, NeurIPS 2023, arXiv 2306.13092).

    L = CE(f(view), y) + w sum_l r_l ( |mean_l - running mean_l|_2 + |var_l - running var_l|_2 )

f is a network with batch norm that was trained on the real set (squeeze) and rests. Shards of 100
images, one of each class where there are as many, begin as noise; at each step a resized crop, a
mirror and a roll, drawn once for all, are looked at through f; mean_l and var_l are those of the
shard in front of batch norm l, and r_l is 10 for the first (recover). Labels of the finished images
are a teacher's (relabel): ``labels=taught``, or ``potstill relabel`` for labels of every view.

Deviations: networks are trained as our residual teachers (SGD 0.05 with Nesterov and CutMix,
batches of 64, 40 epochs; there 0.1, 128, 200 on CIFAR-100), under any row of the long-tail table;
images begin as grey noise in RGB; a crop's side is cut to the image where another is drawn there.
Recipe: recipes/sre2l/.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from potstill.canvas import CanvasSpec, Pixels
from potstill.labels import Hard, LabelSpec
from potstill.methods.base import Matcher, MethodInfo
from potstill.methods.decoupled.recovery import Recovers, RecoveryDescent, RecoveryViews
from potstill.networks import NetworkSpec, SqueezedNets
from potstill.run.fields import NotNegative

__all__ = ["SRe2L"]


@dataclass(frozen=True, kw_only=True)
class SRe2L(Recovers, Matcher):
    """Recover images from a trained network and the statistics that its batch norm kept."""

    info = MethodInfo(
        name="sre2l",
        title="Squeeze, Recover and Relabel",
        paper="Yin, Xing & Shen, NeurIPS 2023",
        year=2023,
        arxiv="2306.13092",
        family="decoupled",
        labels="hard or soft labels of a teacher",
        long_tail="the network under any row of the long-tail table; its statistics are the set's",
        cost="one network with batch norm trained before the first step; no real image in a step",
    )
    sizes: ClassVar[dict[str, dict[str, Any]]] = {
        "quick": {"steps": 300, "observers": "resnet10-w16-bn", "squeeze_epochs": 20},
        "standard": {"steps": 1000, "observers": "resnet10-w32-bn"},
    }

    canvas: CanvasSpec = Pixels(start="noise", bounded=True)
    labels: LabelSpec = Hard()
    networks: NetworkSpec = SqueezedNets()
    views: RecoveryViews = RecoveryViews()
    descent: RecoveryDescent = RecoveryDescent(lr_images=0.25, schedule="cosine")
    norm_weight: NotNegative = 0.01  # of the batch-norm statistics; 0 = off
