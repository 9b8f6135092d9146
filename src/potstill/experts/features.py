"""One streaming pass of a real set through a frozen backbone, and what is kept of it.

Per class: how many, and the sum of the features; for all: second moments; on demand the features
themselves, in half precision on disk. Images are read in order, once per view,
and never held together, so a class may be of any size. The pass goes on where it was killed, and
what it found is cached by content: data, backbone, views and seed.
"""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any, Literal, overload

import numpy as np
import torch
from torch import Tensor

from potstill.data import ImageSet
from potstill.data.views import Views, clean_view, part_of
from potstill.experts.feature_pass import FeaturePass
from potstill.experts.feature_stats import (
    ABOUT,
    BANK,
    BLOCK,
    MOMENTS,
    STATS,
    FeatureStats,
    StoredFeatures,
    open_bank,
)
from potstill.nets.backbone import Backbone
from potstill.run import ArtifactError, InputError, Run
from potstill.run.cache import Cached, key_facts
from potstill.run.memory import Portion
from potstill.run.recall import tell_damage

__all__ = [
    "FeatureStats",
    "StoredFeatures",
    "collect_features",
    "image_features",
    "k_means",
    "sub_centres",
]


@overload
def collect_features(
    real: ImageSet, backbone: Backbone, run: Run, *, views: Views | None = ..., count: int = ...,
    moment: str = ..., bank: Literal[True],
) -> StoredFeatures: ...  # fmt: skip
@overload
def collect_features(
    real: ImageSet, backbone: Backbone, run: Run, *, views: Views | None = ..., count: int = ...,
    moment: str = ..., bank: bool = ...,
) -> FeatureStats: ...  # fmt: skip
def collect_features(
    real: ImageSet,
    backbone: Backbone,
    run: Run,
    *,
    views: Views | None = None,
    count: int = 1,
    moment: str = "none",
    bank: bool = False,
) -> FeatureStats:
    """Pass ``real`` through ``backbone`` once per view, or read what an earlier pass found.

    Args:
        views: random views; None = the clean view (centre crop).
        count: views per image; 1 for the clean view.
        moment: second moments: "none", "natural" (mean over images) or "balanced" (over classes).
        bank: keep the features, (count, n, d) in half precision on disk.

    Raises:
        InputError: a feature is not finite (names the image and its class), or bad arguments.
        StorageError: the bank does not fit on the disk; said before the pass begins.
    """
    backbone.check(real.shape)
    if moment not in MOMENTS:
        raise InputError(f"moment is {moment!r}; use one of {', '.join(MOMENTS)}")
    if count < 1 or (views is None and count != 1):
        raise InputError(
            f"count is {count}; use 1 for the clean view and at least 1 for random ones"
        )
    facts = key_facts(
        "features-3",  # raise it when views or sums change
        run,
        real.checksum,
        backbone=backbone.key,
        views=None if views is None else views.facts,
        count=count,
        moment=moment,
        seed=run.seed if views is not None else 0,
        precision=backbone.precision,
    )
    entry = Cached(run.cache, "features", facts, f"{backbone.label} on {real.source}, {count} x")
    if (known := _recalled(entry, real, backbone, bank, run)) is not None:
        return known
    one = FeaturePass(real, backbone, run, views, bank, entry)
    stats = one.finish()
    return _with_bank(stats, real, entry, one.checks, run) if bank else stats


def _recalled(
    entry: Cached, real: ImageSet, backbone: Backbone, bank: bool, run: Run
) -> FeatureStats | None:
    """What an earlier pass found; None where there was none, or none to be believed."""
    again = "passing the images again"

    def read(tensors: dict[str, Tensor], facts: dict[str, Any]) -> FeatureStats:
        stats = FeatureStats.of(tensors, facts)
        stats.check(real, backbone)
        return stats

    stats = entry.recall(STATS, again, read)
    about = entry.recall(ABOUT, again, lambda own, facts: (own, float(facts["seconds"])))
    if stats is None or about is None:
        return None
    checks, seconds = about
    stats = replace(stats, seconds_saved=seconds)
    if not bank:
        return stats
    if "bank" not in checks:  # that pass kept none
        return None
    try:
        return _with_bank(stats, real, entry, checks["bank"].numpy().view(np.uint64), run)
    except ArtifactError as error:
        tell_damage(error, again)
        return None


def _with_bank(
    stats: FeatureStats, real: ImageSet, entry: Cached, checks: np.ndarray, run: Run
) -> StoredFeatures:
    """Open the bank: in memory up to a quarter of the budget, else mapped."""
    shape = (stats.views, len(real), stats.sums.shape[1])
    mapped = 2 * int(np.prod(shape)) > run.budget.mapped
    bank = open_bank(entry.folder / BANK, shape, checks, mapped=mapped)
    return StoredFeatures(**vars(stats), bank=bank, labels=real.labels, entry=entry)


@torch.no_grad()
def image_features(images: Tensor, backbone: Backbone, views: Views | None, draw: Any) -> Tensor:
    """Return features (n, d) of float RGB images (n, c, h, w), on the backbone's device.

    ``draw`` is one of ``views`` for all n images; without views the clean view is taken.
    """
    found, fits = [], Portion("images", f"a pass of backbone {backbone.label!r}")
    for first in range(0, len(images), BLOCK):
        rows = slice(first, first + BLOCK)
        x = images[rows].to(backbone.device)
        if views is None:
            x = clean_view(x, backbone.size)
        else:
            x = views.apply(x, part_of(draw, rows), backbone.size)
        found.append(fits.over(backbone.features, x))
    return torch.cat(found)


def sub_centres(stats: StoredFeatures, parts: int, run: Run) -> Tensor:
    """K-means centres of every class's features, (C, parts, d), class by class from the bank.

    A class with fewer images than ``parts`` gives its images' features in turn.
    """
    found = []
    for label in range(len(stats.counts)):
        rows = (stats.labels == label).nonzero().flatten()
        z = stats.bank[:, rows].float()
        if len(rows) <= parts:
            found.append(z.mean(0)[torch.arange(parts) % len(rows)])
            continue
        found.append(k_means(z.flatten(0, 1), parts, run.generator("features/k-means", label)))
    return torch.stack(found)


def k_means(z: Tensor, parts: int, draw: torch.Generator, starts: int = 4) -> Tensor:
    """Return the k-means centres (parts, d) of rows ``z`` (n, d) on the CPU, n >= parts.

    Lloyd's, the best of ``starts`` beginnings (k-means++, seeded by ``draw``).
    """
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import threadpool_limits

    seed = int(torch.randint(2**31, (), generator=draw))
    with threadpool_limits(1), warnings.catch_warnings():  # sums of threads come in any order
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer distinct rows than parts
        means = KMeans(parts, n_init=starts, random_state=seed).fit(z.numpy())
    return torch.from_numpy(means.cluster_centers_).float()
