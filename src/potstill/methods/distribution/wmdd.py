"""WMDD: Dataset Distillation via the Wasserstein Metric (Liu et al., ICCV 2025, 2311.18531).

    L = mean_c  p | F_c - B_c |_F + w CE(s_c, c)
                + b sum_l r_l ( |var_l(syn_c) - var_l(real_c)| + |mean_l(syn_c) - mean_l(real_c)| )

F_c are the features of a class's synthetic images behind a network trained on the real set, B_c the
Wasserstein barycentre of its real features: as many points of equal weight, each the target of one
image. var and mean are those in front of batch norm l, of the images of one class; r_l is 10 for
the first and 1 for the others. A decoupled method: the network is trained once and looked at only.

Deviations: one norm |F_c - B_c| for each class instead of one over a batch of classes, with the
weight p that this batch has; exact class statistics instead of means over batches; shifts, scales
and flips of DSA instead of a resized crop, a flip and a roll, one draw for all images as there;
Adam's first beta is 0.9 instead of 0.5; all classes in one step. Soft labels of the teacher are
``potstill relabel``'s. Ours: ``shrinkage``, more than one member. Recipe: recipes/wmdd/.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from potstill.canvas import Canvas, CanvasSpec, Pixels
from potstill.data import DSA, ImageSet
from potstill.match.batch_statistics import statistics, statistics_apart
from potstill.match.spectral import segment_mean
from potstill.match.transport import barycentre
from potstill.methods.base import Matcher, MethodInfo, Objective
from potstill.methods.distribution.class_matching import CANVASES
from potstill.nets.taps import image_moments
from potstill.networks import Networks, NetworkSpec, PoolNets
from potstill.networks.class_moments import class_moments
from potstill.networks.extractor import FeatureExtractor
from potstill.networks.feature_networks import member_of
from potstill.networks.parts import OwnNets
from potstill.networks.view_draws import SiameseViews
from potstill.run import InputError, Run
from potstill.run.descent import Descent
from potstill.run.fields import NotNegative
from potstill.run.memory import bytes_per_image, cuts
from potstill.run.objective import Term

__all__ = ["WMDD"]

_FIRST = 10.0  # weight of the first batch norm (released code)


@dataclass(frozen=True, kw_only=True)
class WMDD(Matcher):
    """Lead images to the Wasserstein barycentre of their class, under its batch-norm statistics."""

    info = MethodInfo(
        name="wmdd",
        title="Wasserstein Metric-based Dataset Distillation",
        paper="Liu et al., ICCV 2025",
        year=2025,
        arxiv="2311.18531",
        family="distribution matching",
        labels="hard",
        long_tail="barycentre and statistics per class; shrinkage steadies those of small classes",
        cost="one network with batch norm trained before the first step; no real image in a step",
    )
    sizes = {
        "quick": {"steps": 300, "network": "resnet10-w16-bn", "pool_epochs": 15},
        "standard": {"network": "resnet10-w32-bn"},
    }
    pairs = {"canvas": CANVASES, "labels": ("hard",), "networks": ("pool",)}

    canvas: CanvasSpec = Pixels(start="noise", bounded=True)
    networks: NetworkSpec = PoolNets(
        network="resnet18-bn", members=1, pool_epochs=50, pool_cutmix=0.0, blend="trained"
    )
    views: SiameseViews = SiameseViews(augment="crop_scale_flip", augment_rule="idc")
    descent: Descent = Descent(
        steps=2000, lr_images=0.25, schedule="cosine"
    )  # per normalised pixel
    point_weight: NotNegative = 3.2  # of distances to barycentre points; 0 = off
    ce_weight: NotNegative = 1.0  # of the network's cross-entropy; 0 = off
    norm_weight: NotNegative = 10.0  # of the classes' batch-norm statistics; 0 = off
    shrinkage: NotNegative = 0.0  # images that the statistics of all classes are worth; 0 = off

    def check(self, real: ImageSet | None = None) -> None:
        """Refuse a network without batch norm."""
        super().check(real)
        if real is not None and isinstance(self.networks, OwnNets):
            own = self.networks.new(real, torch.Generator().manual_seed(0))
            if not any(isinstance(layer, nn.BatchNorm2d) for layer in own.modules()):
                raise InputError(
                    f"network is {self.networks.network!r}, which has no batch norm whose "
                    "statistics could be compared; use resnet18-bn or convnet-w128-bn"
                )

    def prepare(self, real: ImageSet, canvas: Canvas, networks: Networks, run: Run) -> Objective:
        """Take the barycentres and statistics of the real set."""
        return _Recovery(self, real, canvas, networks, run)


class _Recovery(Objective):
    """Images that a network sees as it sees their class."""

    def __init__(
        self, how: WMDD, real: ImageSet, canvas: Canvas, networks: Networks, run: Run
    ) -> None:
        self.how, self.canvas, self.networks, self.run = how, canvas, networks, run
        self.dsa, self.real = how.views.dsa(), real
        self.lr = how.descent.scaled(networks.transform.step_share)
        self.counts = torch.bincount(canvas.decode()[1], minlength=canvas.classes).tolist()
        self.plans: list[Tensor] = []  # shares of real images in the points of a class
        # of each member: points (n, d) of all decoded images, class-sorted, and a (C, 2c) per layer
        self.known = [(torch.empty(0), list[Tensor]())] * networks.members
        for number in range(networks.members):
            self.known[member_of(number, networks.members, run)] = self._of_real(number)

    @torch.no_grad()
    def _of_real(self, number: int) -> tuple[Tensor, list[Tensor]]:
        """Barycentre points and moments of every layer, of the member behind a number."""
        network, real = self.networks.trained_at(number), self.real
        features: list[Tensor] = []

        def look(images: Tensor) -> list[Tensor]:
            seen, moments = _seen(network, images)
            features.append(seen)
            return moments

        kept = class_moments(look, real, self.run)
        share = self.how.shrinkage / (self.how.shrinkage + torch.tensor(real.counts) + 1e-12)
        pooled = [m.lerp(m.mean(0, keepdim=True), share.to(m)[:, None]) for m in kept]
        classes = torch.cat(features).split(list(real.counts))
        self.plans = self.plans or [self._plan(c, own) for c, own in enumerate(classes)]
        points = [p @ own.double() for p, own in zip(self.plans, classes, strict=True)]
        return torch.cat(points).float(), pooled

    def _plan(self, label: int, own: Tensor) -> Tensor:
        """Shares (k, n) of a class's real images in its points; where there are few, again."""
        k, n = self.counts[label], len(own)
        if n <= k:
            return torch.eye(n, dtype=torch.float64, device=own.device)[torch.arange(k) % n]
        draw = self.run.generator("barycentre", label)
        return barycentre(own, torch.randn(k, own.shape[1], generator=draw).to(own.device))

    def terms(self, step: int, canvas: Canvas, piece: int) -> Iterator[Term]:
        """Yield what a class's images lack of its barycentre, label and statistics."""
        how, augment = self.how, dict[str, Tensor]()
        network = self.networks.trained_at(step)
        points, kept = self.known[member_of(step, self.networks.members, self.run)]
        if self.dsa is not None:
            size = (self.real.shape[1], self.real.shape[2])
            draw = self.run.generator("augment", step)
            augment = self.dsa.draw(1, size, draw, siamese=True, device=self.run.device)
        for part in cuts(canvas.classes, piece):
            images, labels = canvas.decode(part.start, part.stop)
            own, classes = labels - part.start, part.stop - part.start
            features, moments = _seen(network, images, self.dsa, augment)
            first = sum(self.counts[: part.start])
            apart = (features - points[first : first + len(features)]).square().sum(1)
            away = apart.new_zeros(classes).index_add(0, own, apart).clamp_min(1e-12).sqrt()
            losses = cross_entropy(network.net.classifier(features), labels, reduction="none")
            entropy = segment_mean(losses[:, None], own, classes)[:, 0]
            norms = away.new_zeros(classes)
            for layer, (values, of_real) in enumerate(zip(moments, kept, strict=True)):
                syn = segment_mean(values, own, classes)
                norms = norms + (1 if layer else _FIRST) * statistics_apart(
                    statistics(syn), statistics(of_real[part])
                )
            facts = {"points": away, "cross_entropy": entropy, "statistics": norms}
            total = how.point_weight * away + how.ce_weight * entropy + how.norm_weight * norms
            yield Term("recovery", total / canvas.classes, part.start, facts)

    def image_bytes(self) -> int:
        """Measured with one image."""
        image, network = self.canvas.pictures()[:1], self.networks.trained_at(0)

        def look(n: int) -> Tensor:
            features, moments = _seen(network, image.repeat(n, 1, 1, 1).requires_grad_())
            return torch.cat([features, *moments], dim=1)

        return bytes_per_image(look)


def _seen(
    network: FeatureExtractor,
    images: Tensor,
    dsa: DSA | None = None,
    augment: dict[str, Tensor] | None = None,
) -> tuple[Tensor, list[Tensor]]:
    """Features (n, d) and moments (n, 2c) in front of each batch norm."""
    with image_moments(network.net) as moments:
        (features,) = network.maps((), images, dsa, augment)
    return features, list(moments.values())
