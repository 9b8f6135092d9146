"""DQ: the same share of every bin, from the images that Graph-Cut takes first to those left over.

Dataset Quantization (Zhou et al., ICCV 2023, arXiv 2308.10524, released code). The images of a
class are parted into N bins: bin 1 is what Graph-Cut (:mod:`.graphcut`) takes of all, bin 2 what it
takes of those left, and so on, |bin| = n / N. The chosen are a uniform draw of the same share of
each bin, so that they are as like the class as the first bins and as varied as the last.

One class: N selections on what is left, n picks of O(n (K + d)) in all; then the draw. Where the
quota is no multiple of N, the bins that give one more are drawn. Deviations: the scorer learns from
the real set (released: a network pre-trained on ImageNet; ``backbone-head`` takes one); patches are
not dropped and there is no MAE that fills them in, so this is DQ at a kept patch share of 1;
features in half precision. Recipe: recipes/dq/.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from potstill.methods.base import MethodInfo
from potstill.methods.selection.class_by_class import ClassByClass, ClassFeatures
from potstill.methods.selection.graphcut import Likeness
from potstill.methods.selector import Selector
from potstill.run import Run
from potstill.run.fields import Count, NotNegative

__all__ = ["DQ", "binned", "from_each"]


@dataclass(frozen=True, kw_only=True)
class DQ(ClassByClass, Selector):
    """Choose real images evenly from bins that Graph-Cut makes."""

    info = MethodInfo(
        name="dq",
        title="Dataset Quantization",
        paper="Zhou et al., ICCV 2023",
        year=2023,
        arxiv="2308.10524",
        family="selection",
        labels="hard",
        long_tail="balanced quotas; the scorer or its head under any row of the long-tail table",
        cost="one network, one pass of the real set, and n picks of O(n) in each class",
    )
    pairs: ClassVar[Mapping[str, tuple[str, ...]]] = {"networks": ("scorer", "backbone-head")}

    bins: Count = 10  # N; a class with fewer images has as many bins as images
    coverage: NotNegative = 1.0  # λ of Graph-Cut

    def pick(self, seen: ClassFeatures, count: int, run: Run) -> Tensor:
        """Return places (count,), bin by bin."""
        bins = binned(seen.residuals, seen.z, self.bins, self.coverage)
        return from_each(bins, count, run.generator("dq/draw", seen.label))


def binned(residuals: Tensor, features: Tensor, bins: int, coverage: float) -> list[Tensor]:
    """Part n images into at most ``bins`` bins, places in the order in which they were taken.

    Sizes differ by one at most, the larger ones first.
    """
    left, found = torch.arange(len(features)), list[Tensor]()
    for number in range(min(bins, len(features)), 0, -1):
        size = -(-len(left) // number)
        if number == 1:  # all that is left, in whatever order
            return [*found, left]
        taken = Likeness(residuals[left], features[left]).greedy(size, coverage)
        found.append(left[taken])
        rest = torch.ones(len(left), dtype=torch.bool)
        rest[taken] = False
        left = left[rest]
    return found


def from_each(bins: list[Tensor], count: int, draw: torch.Generator) -> Tensor:
    """Draw ``count`` places, as many from each bin or one more, without replacement."""
    each, more = divmod(count, len(bins))
    sizes = torch.tensor([len(own) for own in bins])
    able = (sizes > each).nonzero().flatten()
    numbers = torch.full_like(sizes, each)
    numbers[able[torch.randperm(len(able), generator=draw)[:more]]] += 1
    return torch.cat(
        [
            own[torch.randperm(len(own), generator=draw)[:number]]
            for own, number in zip(bins, numbers.tolist(), strict=True)
        ]
    )
