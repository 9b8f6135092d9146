"""Random: a class-balanced random subset of the real images, the baseline that is always shown.

Images are drawn without replacement, uniformly within each class. A class with fewer images than
``ipc`` gives all it has. Deviations: none.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from potstill.data import ImageSet
from potstill.methods.base import MethodInfo
from potstill.methods.selector import Chosen, Selector
from potstill.run import Run

__all__ = ["Random"]


@dataclass(frozen=True, kw_only=True)
class Random(Selector):
    """Choose ``ipc`` real images per class at random."""

    info = MethodInfo(
        name="random",
        title="Random real subset",
        paper="baseline",
        year=0,
        arxiv="",
        family="selection",
        labels="hard",
        long_tail="balanced; small classes give all they have",
        cost="nothing",
    )

    def select(self, real: ImageSet, ipc: int, run: Run) -> Chosen:
        """Return positions (n,), class-sorted."""
        chosen = []
        for label in range(real.num_classes):
            own = real.of_class(label)
            order = torch.randperm(len(own), generator=run.generator("random", label))
            chosen.append(own[order[:ipc]])
        return Chosen(torch.cat(chosen))
