"""IID: Inter-sample and Inter-feature relations in Dataset Distillation (Deng et al., CVPR 2024).

    L = L_base + sum_c [ l_CM | Cov_c(real) - Cov_c(syn) |_F^2
                         + l_CC sum_{s in syn_c} | g(A(s)) - mean_{s' in syn_c} g(A(s')) |^2 ]

    Cov_c = mean_{x in class c} (X - mean X)(X - mean X)^T,  X = last map of f, channels by pixels

Two relations that a match of means leaves open. Class centralisation draws the images of a class
together behind g, a residual network that was trained on the real set; covariance matching gives
the channels of f the same covariances on both sides. L_base is IDM's with ``networks=queue``, DM's
with random networks (which nothing is known to be right about, so that no cross-entropy enters).
arXiv 2404.00563.

Deviations: those of IDM; ten networks g instead of a thousand, of which the authors say that fewer
do; the exponent and threshold of the paper's centralisation are not in the released code, nor here.
Ours: ``shrinkage`` for classes of few images. Recipe: recipes/iid/.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from potstill.canvas import Canvas, CanvasSpec
from potstill.data import ImageSet
from potstill.methods.base import Matcher, MethodInfo
from potstill.methods.distribution.class_matching import (
    CANVASES,
    LABELS,
    TRAINED,
    ClassMatching,
    Removed,
)
from potstill.methods.distribution.idm import IDM
from potstill.methods.distribution.relations import (
    Centralisation,
    Covariances,
    Related,
    Relations,
)
from potstill.networks import Networks, NetworkSpec
from potstill.networks.view_draws import RealStatistics, SiameseViews
from potstill.run import Run
from potstill.run.descent import Descent
from potstill.run.fields import NotNegative

__all__ = ["IID"]


@dataclass(frozen=True, kw_only=True)
class IID(Matcher):
    """Match means and covariances of classes whose images stay together."""

    info = MethodInfo(
        name="iid",
        title="Inter-sample and Inter-feature relations",
        paper="Deng et al., CVPR 2024",
        year=2024,
        arxiv="2404.00563",
        family="distribution matching",
        labels="hard",
        long_tail="per-class moments; shrinkage lends small classes the covariance of all",
        cost="as IDM, and a pool of residual networks trained before the first step",
    )
    sizes = {
        "quick": IDM.sizes["quick"]
        | {"relation_network": "resnet10-w16-in", "relation_members": 2, "relation_epochs": 5},
        "standard": {"steps": 5000, "relation_members": 5},
    }
    pairs = {"canvas": CANVASES, "labels": LABELS, "networks": ("queue", "random", *TRAINED)}

    canvas: CanvasSpec = IDM().canvas
    networks: NetworkSpec = IDM().networks
    views: SiameseViews = IDM().views
    statistics: RealStatistics = IDM().statistics
    relations: Relations = Relations()
    descent: Descent = IDM().descent
    ce_weight: NotNegative = 0.5  # of IDM's cross-entropy, times accuracy in percent; 0 = off
    ce_prior: Removed = "none"  # its logits as published, or "adjusted": minus log class prior

    def prepare(
        self, real: ImageSet, canvas: Canvas, networks: Networks, run: Run
    ) -> ClassMatching:
        """Train the networks of centralisation where there is one, and open the real side."""
        comparison = Covariances(self, real, networks)
        objective = Related.of(self, real, canvas, networks, run, comparison)
        comparison.rows = torch.tensor(objective.side.draws.rows)
        if self.relations.centralisation:
            pool = self.relations.trained(real, networks, run)
            objective.pool = pool
            weight = self.relations.centralisation
            objective.further = Centralisation(weight, pool, objective.side)
        objective.lr = self.descent.scaled(networks.transform.step_share)
        return objective
