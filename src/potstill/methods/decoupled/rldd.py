"""RLDD: Rethinking Long-tailed Dataset Distillation (AAAI 2026, arXiv 2511.18858).

    L = CE(f(view), y) + w sum_l r_l ( (1 - a) D(S_l, B_l) + a D(S_l, C_l) )
    B_l = (mean_c mean_{l,c},  mean_c var_{l,c})

EDC's recovery on a long tail, with one network f that was debiased (GLMC) and whose statistics are
debiased, too: those of every class are measured in one pass, mean_{l,c} and var_{l,c} in front of
convolution l, and B_l gives each class the same weight, however many images it has; C_l does so
with the classes of the shard. Images begin as the crops of real ones of which f is surest: in every
round each image offers its best crop that is left, until there are enough, so that a class with
few images fills up. Labels are those of a teacher that was debiased in the same way
(``labels=taught``, the same network), evened out (rectified).

Deviations: the paper queries its teacher on every view of 1000 epochs, which ``potstill relabel``
or a protocol with online labels can do; here each image has one soft label. Crops are a quarter of
the image or more, there 0.08. Networks are trained with our step size of 0.05, there 0.01. The
variances of a class are exact, those between its images included; ``between`` adds those between
the classes, which a batch has, too (ours). Recipe: recipes/rldd/.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from potstill.canvas import Canvas, CanvasSpec, Pixels
from potstill.data import ImageSet
from potstill.experts.taught_labels import Taught
from potstill.labels import LabelSpec
from potstill.match.batch_statistics import mixed_statistics, statistics_apart
from potstill.methods.base import Matcher, MethodInfo, Objective
from potstill.methods.decoupled.recovery import Recovers, RecoveryDescent, RecoveryViews
from potstill.methods.decoupled.table_recovery import MatchedLayers, TableRecovery
from potstill.networks import NetworkSpec, SqueezedNets, SqueezedNetworks
from potstill.run import Run
from potstill.run.fields import NotNegative, Share

__all__ = ["RLDD"]

_NETWORK, _EPOCHS, _QUICK = "convnet-w128-in", 200, 20


@dataclass(frozen=True, kw_only=True)
class RLDD(Recovers, Matcher):
    """Move the surest crops to statistics in which every class weighs the same."""

    info = MethodInfo(
        name="rldd",
        title="Rethinking Long-tailed Dataset Distillation",
        paper="AAAI 2026",
        year=2026,
        arxiv="2511.18858",
        family="decoupled",
        labels="soft labels of a debiased teacher",
        long_tail="debiased network, statistics and labels; small classes give several crops",
        cost="one network trained by GLMC and one pass of the real set before the first step",
    )
    sizes = {
        "quick": {
            "observers": "convnet-w32-in", "squeeze_epochs": _QUICK,
            "teacher": "convnet-w32-in", "teacher_epochs": _QUICK,
        },
        "standard": {"squeeze_epochs": 60, "teacher_epochs": 60},
    }  # fmt: skip
    layer = (nn.Conv2d, "convolution")

    canvas: CanvasSpec = Pixels(start="crops", bounded=True)
    labels: LabelSpec = Taught(teacher=_NETWORK, teacher_prior="glmc", teacher_epochs=_EPOCHS)
    networks: NetworkSpec = SqueezedNets(
        observers=_NETWORK, squeeze_epochs=_EPOCHS, squeeze_prior="glmc"
    )
    views: RecoveryViews = RecoveryViews(roll=0)
    layers: MatchedLayers = MatchedLayers(layer_drop=0.0)
    descent: RecoveryDescent = RecoveryDescent(
        steps=75, lr_images=0.05, schedule="cosine", shard_order="classes"
    )
    norm_weight: NotNegative = 0.01  # of the statistics; 0 = off
    class_share: Share = 0.5  # of the class-aware part of the aim
    between: bool = False  # count what lies between the classes to the variances; no as published

    def prepare(
        self, real: ImageSet, canvas: Canvas, networks: SqueezedNetworks, run: Run
    ) -> Objective:
        """Measure every class behind the network."""
        return _Debiased(self, real, canvas, networks, run)


class _Debiased(TableRecovery):
    """Statistics of all classes with equal weight, and of the shard's."""

    def distance(self, own: Tensor, table: Tensor, labels: Tensor) -> Tensor:
        """Return the two distances, weighted."""
        how: Any = self.how
        there = torch.bincount(labels, minlength=len(table))
        of_all, of_classes = (
            mixed_statistics(table, weights, between=how.between)
            for weights in (torch.ones_like(there), there)
        )
        apart, aware = statistics_apart(own, of_all), statistics_apart(own, of_classes)
        return (1 - how.class_share) * apart + how.class_share * aware
