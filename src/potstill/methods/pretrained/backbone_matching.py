"""The step that LGM and SFM share: images seen by a frozen pre-trained backbone.

Every step draws ``augmentations`` random views of each image, looks at their features and sends the
gradient of one global loss back, in the memory of as many views as fit (two passes,
:mod:`potstill.match.two_pass`). A method says what the loss of the features is.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from potstill.canvas import Canvas, decode_images
from potstill.data import ImageSet
from potstill.data.views import Level, Spread, Views, part_of
from potstill.match.rollout import known
from potstill.match.two_pass import feature_gradients
from potstill.methods.base import Objective
from potstill.networks import BackboneNetworks
from potstill.run import Run
from potstill.run.fields import Copies, PositiveShare, Share
from potstill.run.objective import Term
from potstill.run.parts import Part

__all__ = ["CANVASES", "BackboneObjective", "RandomViews"]

CANVASES = ("pyramid", "pixels", "tiled", "multi-formation", "subsampled", "frequency")


@dataclass(frozen=True, kw_only=True)
class RandomViews(Part):
    """Random views of each image in a step."""

    augmentations: Copies = 10  # random views of each image per step
    crop_min: PositiveShare = 0.08  # smallest area of a view's crop
    noise: Share = 0.5  # probability of noise in a view
    noise_mean: Level = 0.5  # as released: it brightens those views
    noise_std: Spread = 0.2  # standard deviation of that noise

    def with_flip(self, flip: float) -> Views:
        """Return how views are drawn; ``flip`` is the backbone's probability of mirrored ones."""
        own = asdict(self)
        del own["augmentations"]
        return Views(flip=flip, **own)


class BackboneObjective(Objective):
    """One global loss of the features of all images; ``how`` is the method."""

    def __init__(
        self, how: Any, real: ImageSet, canvas: Canvas, networks: BackboneNetworks, run: Run
    ) -> None:
        self.how, self.real, self.canvas, self.run = how, real, canvas, run
        self.views, self.count = how.views.with_flip(how.networks.flip), how.views.augmentations
        self.backbone, self.classes = networks.backbone, real.num_classes
        self.labels = canvas.labels.repeat_interleave(canvas.views)
        self.prepare()

    def prepare(self) -> None:
        """Make the real side; runs again, with the same result, on resume."""

    def begin(self, step: int) -> None:
        """Make what the loss of this step compares with."""

    def loss(self, z: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Features (views, n, d) of all images, class-sorted, to a scalar and facts per class."""
        raise NotImplementedError

    def image_bytes(self) -> int:
        """Bytes that one view keeps alive: the backbone's graph, the view and its image."""
        pixels = 4 * self.backbone.channels * self.backbone.size[0] * self.backbone.size[1]
        image = 4 * math.prod(self.real.shape)
        return self.backbone.image_bytes() + 3 * pixels + 3 * image

    def pieces(self, run: Run) -> int:
        """The units are views of stored images here, not classes: as many as fit."""
        fit = run.budget.step // (self.image_bytes() * self.canvas.views)
        return max(1, min(fit, len(self.canvas.labels) * self.count))

    def terms(self, step: int, canvas: Canvas, piece: int) -> Iterator[Term]:
        """One global loss, back-propagated in as much memory as there is."""
        self.begin(step)
        leaves, tiles = canvas.parameters(), canvas.views
        draws = [
            self.views.draw(len(self.labels), self.run.generator("views", step, number))
            for number in range(self.count)
        ]

        def see(stored: Tensor, rows: slice, view: int) -> Tensor:
            images, _ = decode_images(stored, canvas.labels[rows], canvas.spec)
            own = part_of(draws[view], slice(rows.start * tiles, rows.stop * tiles))
            found = self.backbone.features(self.views.apply(images, own, self.backbone.size))
            return found if tiles == 1 else found.unflatten(0, (-1, tiles))

        facts: dict[str, Tensor] = {}

        def loss(z: Tensor) -> Tensor:
            value, found = self.loss(z if tiles == 1 else z.flatten(1, 2))
            facts.update({name: fact.detach() for name, fact in found.items()})
            return value

        value, grads = feature_gradients(
            leaves, canvas.render, see, loss, views=self.count, budget=piece
        )
        own = [grads.pop(name) for name in leaves]  # the only hands on them, so none is copied
        matched = known(value, own, list(leaves.values()), hand_out=True)
        del own
        yield Term("match", matched, facts=facts)
