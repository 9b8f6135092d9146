"""What selectors share that look at the features of one class after another.

How many images a class gives is its quota. ``balanced``: the same number of each class.
``proportional``: round(f n_c), the same share f = ipc C / n of each, which is what DeepCore (Guo et
al., DEXA 2022) calls "balance" and what leaves a long tail long; a class may end with none. No
class gives more than it has.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor

from potstill.data import ImageSet
from potstill.experts.features import StoredFeatures
from potstill.experts.heads import Head
from potstill.methods.selector import Chosen
from potstill.networks import NetworkSpec, Scorer
from potstill.networks.scorer import residuals, stored_features
from potstill.run import InputError, Run, logger
from potstill.run.fields import OneOf

__all__ = ["ClassByClass", "ClassFeatures", "quotas"]

Quota = Annotated[str, OneOf("balanced", "proportional")]
Weighting = Annotated[str, OneOf("none", "mass")]


@dataclass(frozen=True, eq=False)
class ClassFeatures:
    """The images of one class as the scoring network sees them."""

    label: int
    z: Tensor  # float64 (n, d)
    head: Head | None = None

    @property
    def residuals(self) -> Tensor:
        """p - y of each image, float64 (n, K)."""
        assert self.head is not None, "pairs name networks with a head"
        return residuals(self.z, self.label, self.head)


def quotas(counts: Sequence[int], ipc: int, quota: str) -> list[int]:
    """Return how many images each class gives, (C,), of those it has (``counts``)."""
    share = ipc * len(counts) / sum(counts)
    wanted = [ipc if quota == "balanced" else round(share * n) for n in counts]
    return [min(pair) for pair in zip(wanted, counts, strict=True)]


@dataclass(frozen=True, kw_only=True)
class ClassByClass:
    """To be mixed into a Selector that has a rule for the images of one class."""

    sizes: ClassVar[dict[str, dict[str, Any]]] = {
        "quick": {
            "network": "convnet-w32-in",
            "scorer_epochs": 12,
            "scorer_lr": 0.05,
            "scorer_prior": "balanced_softmax",
            "backbone": "self:convnet-w32-bn",
        },
        "standard": {"scorer_prior": "balanced_softmax"},
    }
    pairs: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "networks": ("scorer", "backbone", "backbone-head")
    }

    networks: NetworkSpec = Scorer()  # what sees the images
    quota: Quota = "balanced"  # as many of each class, or "proportional" to its size (DeepCore)
    # "mass": an image weighs as many of its class as are nearest to it, the mean of a class is 1
    weighting: Weighting = "none"

    def pick(self, seen: ClassFeatures, count: int, run: Run) -> Tensor:
        """Return ``count`` different places (count,) among the images of a class."""
        raise NotImplementedError

    def select(self, real: ImageSet, ipc: int, run: Run) -> Chosen:
        """Return what :meth:`pick` takes of each class."""
        networks = self.networks.open(real, run)
        stats = stored_features(real, networks, run)
        head = getattr(networks, "head", None)
        return self.choose(real, stats, head, ipc, run)._replace(networks=networks)

    def choose(
        self, real: Any, stats: StoredFeatures, head: Head | None, ipc: int, run: Run
    ) -> Chosen:
        """Return what is chosen by stored features; of ``real`` only classes are looked at.

        Raises:
            InputError: the network sees the same in all images.
        """
        bank, chosen, weights = stats.bank[0], [], []
        if bool((bank == bank[:1]).all()):
            raise InputError(
                f"networks is {self.networks.kind!r}, which sees the same in all {len(bank)} "
                "images; train it longer, or use another network or backbone"
            )
        budgets = self.class_budgets(stats, head, ipc, run)
        tell(stats.counts.tolist(), budgets, real.classes, ipc)
        for label, count in enumerate(budgets):
            own = (stats.labels == label).nonzero().flatten()
            seen = ClassFeatures(label, bank[own].double(), head)
            places = self.pick(seen, count, run) if count else own[:0]
            chosen.append(own[places])
            if self.weighting == "mass":
                weights.append(mass(seen.z, places))
        kept = torch.cat(weights).float() if weights else None
        return Chosen(torch.cat(chosen), weights=kept)

    def class_budgets(
        self, stats: StoredFeatures, head: Head | None, ipc: int, run: Run
    ) -> Sequence[int]:
        """Return how many images each class gives, (C,)."""
        return quotas(stats.counts.tolist(), ipc, self.quota)


def tell(counts: Sequence[int], budgets: Sequence[int], classes: Sequence[str], ipc: int) -> None:
    """Say which classes give all they have, or nothing."""
    short = [c for c, n in enumerate(counts) if n < ipc and budgets[c] == n]
    if short:
        least = min(short, key=lambda c: counts[c])
        logger.warning(
            "%d of %d classes have fewer than %d images and give all they have (smallest: %r with "
            "%d)", len(short), len(counts), ipc, classes[least], counts[least],
        )  # fmt: skip
    none = [classes[c] for c, n in enumerate(budgets) if not n]
    if none:
        logger.warning(
            "no image is taken of %d of %d classes (%r first); use quota=balanced, or a larger ipc",
            len(none), len(counts), none[0],
        )  # fmt: skip


def mass(z: Tensor, places: Tensor) -> Tensor:
    """Return the share of ``z`` (n, d) nearest to each of the chosen, times their number, (k,)."""
    if not len(places):
        return z.new_zeros(0)
    nearest = torch.cat([torch.cdist(part, z[places]).argmin(1) for part in z.split(1024)])
    nearest[places] = torch.arange(len(places))  # of equal ones each counts itself
    return torch.bincount(nearest, minlength=len(places)).double() * len(places) / len(z)
