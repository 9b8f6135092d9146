"""K-Center Greedy: every image of a class is close to a chosen one.

Active Learning for Convolutional Neural Networks: A Core-Set Approach (Sener & Savarese, ICLR 2018,
arXiv 1708.00489), class by class. The greedy rule, at most twice as wide as the best cover:

    next = argmax_j min_{i chosen} | f_j - f_i |

One step: the distance to the newest centre, and the smaller of it and the running minimum; O(n d)
and no matrix. Deviations: features in half precision; the scorer's step size falls as a cosine.
Recipe: recipes/kcenter/.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from potstill.methods.base import MethodInfo
from potstill.methods.selection.class_by_class import ClassByClass, ClassFeatures
from potstill.methods.selector import Selector
from potstill.run import Run
from potstill.run.fields import OneOf

__all__ = ["KCenter"]

First = Annotated[str, OneOf("random", "central")]


@dataclass(frozen=True, kw_only=True)
class KCenter(ClassByClass, Selector):
    """Choose real images that cover their class."""

    info = MethodInfo(
        name="kcenter",
        title="K-Center Greedy",
        paper="Sener & Savarese, ICLR 2018",
        year=2018,
        arxiv="1708.00489",
        family="selection",
        labels="hard",
        long_tail="balanced quotas; the scorer under any row of the long-tail table",
        cost="one network and one pass of the real set",
    )

    first: First = "random"  # first centre: drawn by the seed, or "central", nearest to the mean

    def pick(self, seen: ClassFeatures, count: int, run: Run) -> Tensor:
        """Return places (count,), the farthest first."""
        z = seen.z
        if self.first == "central":
            newest = int((z - z.mean(0)).square().sum(1).argmin())
        else:
            draw = run.generator("kcenter/first", seen.label)
            newest = int(torch.randint(len(z), (), generator=draw))
        chosen, gaps = [newest], torch.full((len(z),), torch.inf, dtype=z.dtype)
        while len(chosen) < count:
            gaps = torch.minimum(gaps, (z - z[newest]).square().sum(1))
            gaps[newest] = -1  # not again, even where all are at the same place
            newest = int(gaps.argmax())
            chosen.append(newest)
        return torch.tensor(chosen)
