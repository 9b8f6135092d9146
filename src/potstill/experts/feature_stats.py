"""What a pass of a real set through a backbone leaves: statistics, and a bank of the features."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash
from torch import Tensor

from potstill.data import ImageSet
from potstill.nets.backbone import Backbone
from potstill.run import ArtifactError, InputError
from potstill.run.cache import Cached
from potstill.run.checkpoint import digest

__all__ = [
    "ABOUT",
    "BANK",
    "BLOCK",
    "MOMENTS",
    "STATS",
    "FeatureStats",
    "StoredFeatures",
    "bank_is_whole",
    "open_bank",
]

MOMENTS = ("none", "natural", "balanced")  # second moments: off, over images, over classes
STATS, BANK, ABOUT = "stats.safetensors", "bank.f16", "about.safetensors"
BLOCK = 64  # images per pass; part of what "features-2" stands for, because sums round by it


@dataclass(frozen=True, eq=False)
class FeatureStats:
    """What a backbone sees in a real set. ``facts`` say of what, and are compared before use."""

    counts: Tensor  # int64 (C,): real images
    sums: Tensor  # float64 (C, d), over images and views
    views: int  # per image
    facts: dict[str, Any]
    key: str
    moment: Tensor | None = None  # float64 (d, d), mean of z z^T (see MOMENTS)
    seconds_saved: float = 0.0  # what the pass read from the cache once took

    @property
    def centres(self) -> Tensor:
        """Mean feature of each class, float32 (C, d)."""
        return (self.sums / (self.counts * self.views)[:, None]).float()

    def check(self, real: ImageSet, backbone: Backbone) -> None:
        """Raise InputError unless these are statistics of ``real`` seen by ``backbone``."""
        for name, own, wanted in (
            ("backbone", self.facts.get("backbone"), backbone.key),
            ("data", self.facts.get("data"), real.checksum),
        ):
            if own != wanted:
                raise InputError(
                    f"statistics were taken with {name} {own}, not {wanted}; collect them again "
                    f"with this {name}"
                )

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and facts, for :meth:`of`."""
        tensors = {"counts": self.counts, "sums": self.sums}
        tensors |= {} if self.moment is None else {"moment": self.moment}
        return tensors, {"kind": "feature-stats", "views": self.views, "facts": self.facts}

    @staticmethod
    def of(tensors: dict[str, Tensor], facts: dict[str, Any]) -> FeatureStats:
        """Statistics from what :meth:`state` returns; raises KeyError or TypeError."""
        if facts.get("kind") != "feature-stats":
            raise KeyError("another kind")
        sums = tensors["sums"]
        if tensors["counts"].shape != sums.shape[:1]:
            raise KeyError("shapes")
        return FeatureStats(
            counts=tensors["counts"],
            sums=sums,
            views=int(facts["views"]),
            facts=dict(facts["facts"]),
            key=digest(facts["facts"]),
            moment=tensors.get("moment"),
        )


@dataclass(frozen=True, eq=False, kw_only=True)
class StoredFeatures(FeatureStats):
    """The same, with the features of every image."""

    bank: Tensor  # float16 (views, n, d), perhaps mapped from disk
    labels: Tensor  # int64 (n,), of the bank's rows
    entry: Cached | None = None  # where the bank lies; stays there while these are looked at


def bank_is_whole(path: Path, shape: tuple[int, int, int]) -> bool:
    """Whether a bank of this shape lies at ``path``, by its size."""
    return path.is_file() and path.stat().st_size == 2 * int(np.prod(shape))


def open_bank(
    path: Path,
    shape: tuple[int, int, int],
    checks: np.ndarray,
    *,
    mapped: bool = True,
    blocks: int | None = None,
) -> Tensor:
    """Return the bank (views, n, d) at ``path``, mapped or in memory.

    Args:
        checks: uint64, of its blocks. blocks: compare only the first so many of them.

    Raises:
        ArtifactError: it is missing, or a block is not what was written.
    """
    if not bank_is_whole(path, shape):
        raise ArtifactError(f"{path} is missing or of another size")
    if mapped:
        size = int(np.prod(shape))
        bank = torch.from_file(str(path), shared=False, size=size, dtype=torch.float16).view(shape)
    else:
        bank = torch.from_numpy(np.fromfile(path, np.float16)).view(shape)
    parts = chain.from_iterable(view.split(BLOCK) for view in bank)
    for block, part in enumerate(islice(parts, blocks)):
        if xxhash.xxh3_64_intdigest(part.numpy().data) != checks[block]:
            raise ArtifactError(f"{path} is damaged (block {block})")
    return bank
