"""CAFE: Learning to Condense Dataset by Aligning Features (Wang et al., CVPR 2022, 2203.01531).

    L = sum_c sum_l b_l | mean_{x in real_c} F_l(x) - mean_{s in syn_c} F_l(s) |^2
            + w sum_{x real} CE( <F_L(x), M>, y ),     M_c = mean_{s in syn_c} F_L(s)

F_l are the maps behind every ReLU of a network, its last map and its features, of which F_L are the
last. The second, the discrimination loss, classifies real images with the synthetic class means as
weights. The network learns from the images in turns with them, until either has settled
(:mod:`potstill.networks.settling`).

Deviations: both loops have caps (the released inner one may never end); logits of the
discrimination loss plus log batch size of the class, which changes nothing where all are alike;
each step's real images are drawn anew for each class, small classes give all they have.
Recipe: recipes/cafe/.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot

from potstill.canvas import Canvas, CanvasSpec, Pixels
from potstill.data import ImageSet
from potstill.match.moments import mean_distance
from potstill.match.spectral import SegmentMean, segment_mean
from potstill.methods.base import Matcher, MethodInfo, Objective
from potstill.methods.distribution.class_matching import CANVASES
from potstill.nets.taps import relu_layers
from potstill.networks import Networks, NetworkSpec, SettlingNets
from potstill.networks.parts import OwnNets
from potstill.networks.view_draws import RealStatistics, SiameseViews, ViewDraws
from potstill.run import Run
from potstill.run.descent import Descent
from potstill.run.fields import Batch, NotNegative
from potstill.run.machine import CPU_CHUNK
from potstill.run.memory import bytes_per_image, cuts
from potstill.run.objective import Term

__all__ = ["CAFE", "Alignment"]


@dataclass(frozen=True, kw_only=True)
class CAFE(Matcher):
    """Match class means of every layer's maps; synthetic means have to classify real images."""

    info = MethodInfo(
        name="cafe",
        title="Condensing by Aligning Features",
        paper="Wang et al., CVPR 2022",
        year=2022,
        arxiv="2203.01531",
        family="distribution matching",
        labels="hard",
        long_tail="per-class means; the discrimination loss counts classes as they are drawn",
        cost="a pass of real batches, and epochs on the set until the network settles, per step",
    )
    sizes = {
        "quick": {
            "steps": 300,
            "network": "convnet-w32-in",
            "start": "real",
            "batch_real": 32,
            "renew_every": 10,
            "inner_epochs": 5,
            "queries": 16,
        },
        "standard": {"steps": 5000},
    }
    pairs = {
        "canvas": CANVASES,
        "labels": ("hard",),
        "networks": ("settling", "evolving", "random", "pool"),
    }

    canvas: CanvasSpec = Pixels(start="noise", bounded=False)
    networks: NetworkSpec = SettlingNets()
    views: SiameseViews = SiameseViews(augment="none", augment_rule="dc")
    descent: Descent = Descent(  # per normalised pixel; 2000 networks of at least ten steps
        lr_images=0.1, optimizer="sgd", schedule="halved"
    )
    batch_real: Batch = 256  # real images of a class in a step; a small class gives all it has
    inner_weight: NotNegative = 0.1  # weight of the maps in front of the last ReLU's; that has 1
    discrimination: NotNegative = 0.01  # weight of the discrimination loss, a sum over real images

    def check(self, real: ImageSet | None = None) -> None:
        """Refuse networks without inner layers to look at."""
        super().check(real)
        if real is not None and isinstance(self.networks, OwnNets):
            own = self.networks.new(real, torch.Generator().manual_seed(0))
            relu_layers(own, self.networks.network)

    def prepare(self, real: ImageSet, canvas: Canvas, networks: Networks, run: Run) -> Objective:
        """Nothing is computed before step 0."""
        return Alignment(self, real, canvas, networks, run)


class Alignment(Objective):
    """Distances of class means of every map, and the discrimination loss."""

    def __init__(
        self, how: CAFE, real: ImageSet, canvas: Canvas, networks: Networks, run: Run
    ) -> None:
        self.how, self.real, self.networks, self.run = how, real, networks, run
        self.canvas, self.dsa = canvas, how.views.dsa()
        self.lr = how.descent.scaled(networks.transform.step_share)
        drawn = RealStatistics(real_side="fresh", batch_real=how.batch_real, augment_per="class")
        self.draws = ViewDraws(real, run, drawn, networks.members, self.dsa)
        self.layers = relu_layers(networks.at(0).net)
        # the last map counts twice, as a map and as the features that it is flattened to
        self.weights = [how.inner_weight] * (len(self.layers) - 1) + [1.0, 2.0]

    def maps(self, images: Tensor, labels: Tensor, step: int) -> list[Tensor]:
        """Return maps and features (n, q) of RGB images (n, c, h, w) of these classes in a step."""
        augment = self.draws.of_images(self.draws.augment(step), labels)
        return self.networks.at(step).maps(self.layers, images, self.dsa, augment)

    @torch.no_grad()
    def real_side(self, step: int) -> tuple[list[Tensor], Tensor, Tensor]:
        """Return class means (C, q) of every map, and features (n, d) and labels (n,)."""
        rows, features = self.draws.positions(step), []
        labels = self.real.labels[rows].to(self.run.device)
        means = [SegmentMean(self.real.num_classes) for _ in self.weights]
        for part in cuts(len(rows), 16 * CPU_CHUNK if self.run.on_gpu else CPU_CHUNK):
            seen = self.maps(self.draws.images(step, rows, part), labels[part], step)
            features.append(seen[-1])
            for mean, values in zip(means, seen, strict=True):
                mean.add(values, labels[part])
        return [mean.mean() for mean in means], torch.cat(features), labels

    @torch.no_grad()
    def centres(self, step: int, canvas: Canvas, piece: int) -> Tensor:
        """Return the synthetic class means M (C, d) of the features."""
        found = []
        for part in cuts(canvas.classes, piece):
            images, labels = canvas.decode(part.start, part.stop)
            features = self.maps(images, labels, step)[-1]
            found.append(segment_mean(features, labels - part.start, part.stop - part.start))
        return torch.cat(found)

    def discriminated(self, centres: Tensor, features: Tensor, labels: Tensor) -> Tensor:
        """Return w sum_x CE(<F(x), M> + log n_c, y), n_c real images of a class in the batch."""
        counts = one_hot(labels, len(centres)).sum(0).to(features)
        logits = features @ centres.T + counts.log()
        return self.how.discrimination * cross_entropy(logits, labels, reduction="sum")

    def terms(self, step: int, canvas: Canvas, piece: int) -> Iterator[Term]:
        """Yield the distances of each class, which carry the slope of the discrimination loss.

        That depends on all classes at once, but only through their means: its slope there is taken
        first, without a graph of the images.
        """
        real, features, truth = self.real_side(step)
        centres = self.centres(step, canvas, piece).requires_grad_()
        loss = self.discriminated(centres, features, truth)
        (slope,) = torch.autograd.grad(loss, centres)
        for part in cuts(canvas.classes, piece):
            images, labels = canvas.decode(part.start, part.stop)
            own, classes = labels - part.start, part.stop - part.start
            means = [segment_mean(v, own, classes) for v in self.maps(images, labels, step)]
            pairs = zip(self.weights, real, means, strict=True)
            distance = sum(weight * mean_distance(r[part], m) for weight, r, m in pairs)
            assert isinstance(distance, Tensor)
            pull = (slope[part] * means[-1]).sum(1)
            yield Term("match", distance + pull - pull.detach(), part.start, {"distance": distance})
        yield Term("discrimination", loss.detach())

    def after(self, step: int, canvas: Canvas) -> None:
        """Let the network learn from the canvas, augmented as in the match."""
        targets = one_hot(canvas.labels, canvas.classes).float()
        targets = targets.repeat_interleave(canvas.views, dim=0)
        self.networks.after(step, canvas, targets, self.dsa)

    def image_bytes(self) -> int:
        """Measured with one image, all maps kept."""
        image, network = self.canvas.pictures()[:1], self.networks.at(0)
        return bytes_per_image(
            lambda n: network.maps(self.layers, image.repeat(n, 1, 1, 1).requires_grad_())
        )
