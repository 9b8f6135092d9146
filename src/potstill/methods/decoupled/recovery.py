"""The recover step that SRe2L, CDA, G-VBSM, EDC and RLDD share.

Images descend in shards. At a step one of the squeezed networks looks at a shard through a random
crop, mirror and roll, and

    L = CE(f(view), y) + w sum_l r_l ( |mean_l - M_l| + |var_l - V_l| )

is taken of the whole shard: mean_l and var_l are its statistics in front of layer l, M_l and V_l
those that a method says it should have, r_l is 10 for the first layer of a kind and 1 for others.
A method brings the layers and their aims, and what it asks besides. However many images there are,
memory is that of one shard, and less where the shard is passed in pieces.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from potstill.canvas import Canvas, CanvasSpec
from potstill.canvas.shards import Order, ShardedCanvas
from potstill.data import ImageSet
from potstill.data.views import Draw, Views, part_of
from potstill.labels import LabelSpec
from potstill.match.batch_statistics import statistics, statistics_apart
from potstill.match.rollout import known
from potstill.match.spectral import segment_mean
from potstill.match.two_pass import feature_gradients
from potstill.methods.base import Objective
from potstill.methods.labelled import LabelledObjective
from potstill.nets import Network
from potstill.nets.taps import image_moments
from potstill.networks import SqueezedNetworks
from potstill.networks.extractor import FeatureExtractor
from potstill.run import Run
from potstill.run.descent import Descent
from potstill.run.fields import Batch, Decay, OneOf, PositiveShare, Range, Share
from potstill.run.memory import bytes_per_image, cuts
from potstill.run.objective import Term
from potstill.run.parts import Part

__all__ = ["FIRST", "Moments", "Recovers", "Recovery", "RecoveryDescent", "RecoveryViews"]

Moments = Mapping[str, Tensor]  # by layer
Roll = Annotated[int, Range(0, 10_000)]
Per = Annotated[str, OneOf("step", "image")]
FIRST = 10.0  # weight of the first layer of a kind (all released codes)
_PLAIN = Views(noise=0.0)  # how a draw is applied


@dataclass(frozen=True, kw_only=True)
class RecoveryViews(Part):
    """How the images of a shard are looked at."""

    crop_min: PositiveShare = 0.08  # smallest area of a crop as a share of the image; 1 = no crop
    flip: Share = 0.5  # probability of a mirrored view
    roll: Roll = 4  # pixels by which a view is moved round at most, in both directions
    view_per: Per = "step"  # one draw for all images of a "step", or one for each "image"

    def smallest(self, done: float) -> float:
        """Return the smallest crop when a share ``done`` of a shard's steps are over."""
        return self.crop_min

    def draw(self, n: int, done: float, generator: torch.Generator) -> Draw:
        """Draw the views of a shard of ``n`` images; see :meth:`apply`."""
        views = Views(crop_min=self.smallest(done), flip=self.flip, noise=0.0)
        drawn = views.draw(n if self.view_per == "image" else 1, generator)
        box = drawn["box"]
        drawn["box"] = torch.cat([box[:, :2].clamp_min(0), box[:, 2:].clamp_max(1)], dim=1)
        drawn["roll"] = torch.randint(-self.roll, self.roll + 1, (1, 2), generator=generator)
        return {name: v.expand(n, *v.shape[1:]) for name, v in drawn.items()}

    def apply(self, x: Tensor, draw: Draw) -> Tensor:
        """Return the views of images ``x`` (n, c, h, w), RGB, for a draw of as many.

        Crops lie within the image: a side that would be longer is cut to it.
        """
        cropped = bool(draw["flip"].any()) or bool((draw["box"][:, 2:] < 1).any())
        x = _PLAIN.apply(x, draw, (x.shape[2], x.shape[3])) if cropped else x
        return x.roll(draw["roll"][0].tolist(), (2, 3)) if self.roll else x


@dataclass(frozen=True, kw_only=True)
class RecoveryDescent(Descent):
    """How the images of a shard move."""

    steps: int = 4000  # optimisation steps of each shard
    optimizer: str = "adam"  # "adam" (0.5, 0.9), "mean_adam" (0.9, 0.999, one second moment), "sgd"
    decay_mean: Decay = 0.5  # of Adam's mean, as in DeepInversion
    decay_square: Decay = 0.9  # of Adam's mean square
    shard_images: Batch = 100  # images that descend together
    shard_order: Order = "spread"  # "spread": an image of each class, then the next of each

    def build(
        self, leaves: Any, rates: Any = None, lr: float | None = None
    ) -> torch.optim.Optimizer:
        """Return the optimiser."""
        found = super().build(leaves, rates, lr)
        if self.optimizer == "adam":
            for group in found.param_groups:
                group["betas"] = (self.decay_mean, self.decay_square)
        return found


class Recovers:
    """What the methods of this family do before step 0; to be mixed into a ``Matcher``."""

    pairs: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "canvas": ("pixels",),
        "labels": ("hard", "taught"),
        "networks": ("squeezed",),
    }
    layer: ClassVar[tuple[type[nn.Module], str]] = (nn.BatchNorm2d, "batch norm")

    canvas: CanvasSpec
    labels: LabelSpec
    networks: Any
    views: RecoveryViews
    descent: RecoveryDescent

    def check(self, real: ImageSet | None = None) -> None:
        """Refuse networks without the layers in front of which the method looks."""
        super().check(real)  # type: ignore[misc]
        if real is not None:
            self.networks.need(*self.layer, real)

    def start(self, real: ImageSet, ipc: int, networks: Any, run: Run) -> ShardedCanvas:
        """Return the canvas before step 0, in shards."""
        whole, how = super().start(real, ipc, networks, run), self.descent  # type: ignore[misc]
        return ShardedCanvas(whole, how.steps, how.shard_images, how.shard_order, run.folder)

    def prepare(
        self, real: ImageSet, canvas: Canvas, networks: SqueezedNetworks, run: Run
    ) -> Objective:
        """Return the loss of a shard."""
        return Recovery(self, real, canvas, networks, run)


class Recovery(LabelledObjective):
    """The loss of a shard; ``how`` is the method. SRe2L's as it stands."""

    canvas: ShardedCanvas

    def __init__(
        self, how: Any, real: ImageSet, canvas: Any, networks: SqueezedNetworks, run: Run
    ) -> None:
        self.how, self.real, self.canvas, self.run = how, real, canvas, run
        self.networks, self.views = networks, how.views
        self.lr = how.descent.scaled(networks.transform.step_share)
        self.labeller = how.labels.labeller(real, canvas.spec, networks.transform, run)
        self.from_noise = how.canvas.start == "noise"

    @property
    def seconds_saved(self) -> float:  # type: ignore[override]
        """Teachers of labels that an earlier run had left behind."""
        return 0.0 if self.labeller is None else self.labeller.seconds_saved

    def moments(self, net: Network) -> Any:
        """Open a look at ``net``: moments (n, 2q) of each image by layer, see ``nets/taps.py``."""
        return image_moments(net)

    def apart(self, moments: Moments, labels: Tensor, step: int) -> Tensor:
        """Return how far a shard is from what it should be.

        Args:
            moments: of the shard (2q,), by layer. labels: of its images. step: within the shard.
        """
        net, total = self.networks.at(step).net, []
        for number, (name, own) in enumerate(moments.items()):
            norm: Any = net.get_submodule(name)
            aim = torch.cat([norm.running_mean, norm.running_var])
            total.append((1 if number else FIRST) * statistics_apart(statistics(own), aim))
        return torch.stack(total).sum()

    def beside(self, logits: Tensor, look: Callable[[Tensor], Tensor]) -> Tensor | None:
        """Return what is asked of the shard's logits (n, K) besides, or None.

        Args:
            look: other images of the shard's shape to their logits, through the same views.
        """
        return None

    def further(self, canvas: ShardedCanvas) -> Iterator[Term]:
        """Yield what is asked of the images themselves."""
        yield from ()

    def terms(self, step: int, canvas: Any, piece: int) -> Iterator[Term]:
        """Yield the loss of a shard, back-propagated in ``piece`` images at a time."""
        labels, own = canvas.leaf_labels, step % self.how.descent.steps
        observer, transform = self.networks.at(own), self.networks.transform
        done, drawn = own / self.how.descent.steps, self.run.generator("views", step)
        draw = self.views.draw(len(labels), done, drawn)
        layout: dict[str, int] = {}  # logits and the layers, as they stand in a row of ``see``
        facts: dict[str, Tensor] = {}

        def see(images: Tensor, rows: slice, view: int = 0) -> Tensor:
            x = transform.forward(self.views.apply(images, part_of(draw, rows)))
            with self.moments(observer.net) as found:
                logits = observer.net.classifier(observer.seen(x))
            said = {"": logits, **found}
            layout.update({name: value.shape[1] for name, value in said.items()})
            return torch.cat(list(said.values()), dim=1)

        @torch.no_grad()
        def look(images: Tensor) -> Tensor:
            parts = cuts(len(images), piece)
            return torch.cat([see(images[p], p)[:, : canvas.classes] for p in parts])

        def loss(z: Tensor) -> Tensor:
            said = dict(zip(layout, z[0].split(list(layout.values()), dim=1), strict=True))
            logits = said.pop("")
            losses = cross_entropy(logits, labels, reduction="none")
            facts["cross_entropy"] = _by_class(losses, labels, canvas.classes)
            moments = {name: values.mean(0) for name, values in said.items()}
            total = losses.mean() + self.how.norm_weight * self.apart(moments, labels, own)
            more = self.beside(logits, look)
            return total if more is None else total + more

        leaves = canvas.parameters()
        value, grads = feature_gradients(leaves, canvas.render, see, loss, views=1, budget=piece)
        matched = known(value, list(grads.values()), list(leaves.values()))
        yield Term("recovery", matched, facts=facts)
        yield from self.further(canvas)

    def image_bytes(self) -> int:
        """Measured with one image, of the hungriest network."""
        image = self.canvas.images.detach()[:1]

        def look(observer: FeatureExtractor, n: int) -> Tensor:
            x = self.networks.transform.forward(image.repeat(n, 1, 1, 1).requires_grad_())
            with self.moments(observer.net) as found:
                return torch.cat([observer.seen(x), *found.values()], dim=1)

        return max(bytes_per_image(partial(look, one)) for one in self.networks.finished())

    def pieces(self, run: Run) -> int:
        """The units are images of a shard here, not classes: as many as fit."""
        fit = run.budget.step // self.image_bytes()
        return max(1, min(fit, self.how.descent.shard_images))


def _by_class(losses: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Mean loss of each class (classes,); NaN of those that are not in the shard."""
    there = torch.bincount(labels, minlength=classes) > 0
    means = segment_mean(losses.detach()[:, None], labels, classes)[:, 0]
    return means.where(there, torch.nan)
