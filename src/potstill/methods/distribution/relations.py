"""What IID asks beyond class means: covariances of channels, and images that stay together.

Inter-feature and inter-sample relations (Deng et al., CVPR 2024);
:mod:`potstill.methods.distribution.iid` says how they go together.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from potstill.canvas import Canvas
from potstill.data import ImageSet
from potstill.experts.pool import Prior, train_pool
from potstill.match.moments import channel_products, covariance, shrunken
from potstill.match.spectral import segment_mean
from potstill.methods.distribution.class_matching import ClassMatching, FurtherTerm
from potstill.methods.distribution.idm import ClassAware
from potstill.nets import create_for, parse
from potstill.nets.training import Training
from potstill.networks import Networks, PoolNetworks
from potstill.networks.real_statistics import RealSide
from potstill.networks.real_views import ClassMeans
from potstill.run import InputError, Run
from potstill.run.fields import Count, Epoch, NotNegative
from potstill.run.memory import cuts
from potstill.run.objective import Term
from potstill.run.parts import Part

__all__ = ["Centralisation", "Covariances", "Related", "Relations"]


@dataclass(frozen=True, kw_only=True)
class Relations(Part):
    """Inter-feature and inter-sample relations, and the networks of the latter."""

    covariance: NotNegative = 0.03  # weight of covariance matching; 0 = off; 0.01 on DM
    shrinkage: NotNegative = 0.0  # images that the mean covariance of classes is worth; 0 = off
    centralisation: NotNegative = 0.01  # weight of class centralisation; 0 = off; 0.05 on DM
    relation_network: str = "resnet18-in"  # behind which images of a class are drawn together
    relation_members: Count = 10  # of these networks, which take turns
    relation_epochs: Epoch = 40  # training epochs of each on the real set
    relation_prior: Prior = "plain"  # what is done about uneven classes in it: the long-tail table

    def check(self, method: Any, real: ImageSet | None = None) -> None:
        """Refuse an unknown network, or one for larger images."""
        try:
            parse(self.relation_network)
            if real is not None:
                create_for(real, self.relation_network, torch.Generator().manual_seed(0))
        except InputError as error:
            raise InputError(f"relation_{error}") from error

    def trained(self, real: ImageSet, networks: Networks, run: Run) -> PoolNetworks:
        """Train the networks of centralisation, or read them from the cache."""
        training = Training(epochs=self.relation_epochs, batch=256, lr=0.01)
        pool = train_pool(
            real,
            networks.transform,
            self.relation_network,
            self.relation_members,
            training,
            run,
            prior=self.relation_prior,
        )
        like = create_for(real, self.relation_network, run.generator("network", 0))
        return PoolNetworks(pool, "trained", like, networks.transform, run)


class Covariances(ClassAware):
    """The base's distance and that of the covariances of the last map's channels."""

    def __init__(self, method: Any, real: ImageSet, networks: Networks) -> None:
        super().__init__(method, real, networks)
        self.how: Relations = method.relations
        one = networks.at(0)
        self.channels = one.net.body(torch.zeros(1, *real.shape, device=one.run.device)).shape[1]
        self.rows: Tensor = torch.empty(0)  # real images of each class in a view

    @property
    def facts(self) -> dict[str, Any]:
        """Means and products determine the table."""
        return {"embed": "mean and channel products"}

    def embed(self, features: Tensor, frequencies: Tensor) -> Tensor:
        """Features (n, d) and the products of their channels, (n, d + c²)."""
        return torch.cat([features, channel_products(self._maps(features)).flatten(1)], dim=1)

    def _maps(self, features: Tensor) -> Tensor:
        return features.unflatten(1, (self.channels, -1))

    def class_distance(
        self, view: ClassMeans, features: Tensor, labels: Tensor, first: int, last: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the base's distance + l_CM |Cov real - Cov synthetic|^2 of each class."""
        dim, classes = features.shape[1], last - first
        means, products = view.table[:, :dim], view.table[:, dim:].unflatten(1, (self.channels, -1))
        base = replace(view, table=means)
        distance, facts = super().class_distance(base, features, labels, first, last)
        real = shrunken(covariance(self._maps(means), products), self.rows, self.how.shrinkage)
        centred = self._maps(features - segment_mean(features, labels, classes)[labels])
        syn = segment_mean(channel_products(centred).flatten(1), labels, classes)
        apart = (real[first:last].flatten(1) - syn).square().sum(1)
        return distance + self.how.covariance * apart, facts | {"covariance": apart}


class Centralisation(FurtherTerm):
    """l_CC sum_s |g(s) - mean g|^2 of each class, under the augmentation of the match."""

    def __init__(self, weight: float, networks: PoolNetworks, side: RealSide) -> None:
        self.weight, self.networks, self.side = weight, networks, side

    def terms(self, step: int, number: int, canvas: Canvas, piece: int) -> Iterator[Term]:
        """Yield the spread of each class behind the network of a view."""
        network, draws = self.networks.at(number), self.side.draws
        augment = draws.augment(number)
        for part in cuts(canvas.classes, piece):
            images, labels = canvas.decode(part.start, part.stop)
            own = labels - part.start
            seen = network.features(images, self.side.dsa, draws.of_images(augment, labels))
            classes = part.stop - part.start
            away = (seen - segment_mean(seen, own, classes)[own]).square().sum(1)
            spread = away.new_zeros(classes).index_add(0, own, away)
            yield Term("centralisation", self.weight * spread, part.start, {"spread": spread})


class Related(ClassMatching):
    """Matching beside a pool of its own."""

    pool: PoolNetworks | None = None

    def image_bytes(self) -> int:
        """Measured with one image, of whichever network keeps more of it."""
        own = super().image_bytes()
        image = self.canvas.pictures()[:1]
        return own if self.pool is None else max(own, self.pool.at(0).image_bytes(image))

    @property
    def seconds_saved(self) -> float:  # type: ignore[override]
        """As without the pool, and what its training once took."""
        return super().seconds_saved + (0.0 if self.pool is None else self.pool.seconds_saved)
