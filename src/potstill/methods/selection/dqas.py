"""DQAS: Dataset Quantization whose budgets go to the classes that gain most by more images.

Dataset Quantization with Active Learning based Adaptive Sampling (Zhao et al., ECCV 2024, arXiv
2407.07268), after a summary: we have neither the paper's rule nor code, so this is the idea. With
the gain of a class, the held-out accuracy of a learner on a subset minus that on half of it,

    s_c = mean over rounds of max(0, a_c(b) - a_c(b / 2)),    b_c = least_c + rest s_c / sum s .

One round: draw a subset of budgets b from the bins of :mod:`.dq`, train on it and on half of it,
and move b. Gains of few held-out images are drawn to the mean of all. A class that no network
learns seems to gain nothing, so none gets less than half of its balanced quota, and none more than
it has. Deviations: the learner is a class-balanced linear classifier on the features of a scorer
that never saw the held-out images; images are drawn from bins, not by expected error reduction;
patches are kept, as in DQ. Recipe: recipes/dqas/.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from potstill.canvas.start import dealt
from potstill.data import ImageSet
from potstill.experts.features import StoredFeatures
from potstill.experts.heads import Head
from potstill.methods.base import MethodInfo
from potstill.methods.selection.class_by_class import ClassByClass, ClassFeatures, quotas
from potstill.methods.selection.dq import binned, from_each
from potstill.methods.selector import Chosen, Selector
from potstill.nets.post_hoc import correct
from potstill.networks.scorer import stored_features
from potstill.run import Run
from potstill.run.fields import Count, Inside, NotNegative, Share

__all__ = ["DQAS"]

_PRIOR = 10  # held-out images that the mean gain of all classes is worth


@dataclass(frozen=True, kw_only=True)
class DQAS(ClassByClass, Selector):
    """Choose real images from bins, more of the classes that gain by more."""

    info = MethodInfo(
        name="dqas",
        title="Dataset Quantization with adaptive sampling (DQAS-style)",
        paper="Zhao et al., ECCV 2024",
        year=2024,
        arxiv="2407.07268",
        family="selection",
        labels="hard",
        long_tail="budgets by measured gain, with half of the balanced quota as a floor",
        cost="as dq, twice, and some linear classifiers",
    )
    pairs: ClassVar[Mapping[str, tuple[str, ...]]] = {"networks": ("scorer", "backbone-head")}

    bins: Count = 10  # N of DQ
    coverage: NotNegative = 1.0  # λ of Graph-Cut
    rounds: Count = 5  # times that gains are measured and budgets move
    held_share: Inside = 0.2  # of each class, on which gains are measured; one image at least
    least_share: Share = 0.5  # of the balanced quota, which every class gets

    def pick(self, seen: ClassFeatures, count: int, run: Run) -> Tensor:
        """Return places (count,), bin by bin."""
        bins = binned(seen.residuals, seen.z, self.bins, self.coverage)
        return from_each(bins, count, run.generator("dq/draw", seen.label))

    def select(self, real: ImageSet, ipc: int, run: Run) -> Chosen:
        """Choose of all images, by a network that learned from those not held out."""
        rest = real.select(~self.held(real.labels, run), op="dqas", part="rest")
        networks = self.networks.open(rest, run)
        stats = stored_features(real, networks, run)
        return self.choose(real, stats, networks.head, ipc, run)._replace(networks=networks)

    def held(self, labels: Tensor, run: Run) -> Tensor:
        """Return which images are held out, bool (n,); a class of one image has none."""
        found = torch.zeros(len(labels), dtype=torch.bool)
        for label in labels.unique().tolist():
            own = (labels == label).nonzero().flatten()
            order = torch.randperm(len(own), generator=run.generator("dqas/held", label))
            found[own[order[: min(len(own) - 1, max(1, int(self.held_share * len(own))))]]] = True
        return found

    def class_budgets(
        self, stats: StoredFeatures, head: Head | None, ipc: int, run: Run
    ) -> Sequence[int]:
        """Return how many images each class gives, (C,)."""
        counts, held = stats.counts, self.held(stats.labels, run)
        now = torch.tensor(quotas(counts.tolist(), ipc, self.quota))
        total, even = int(now.sum()), torch.tensor(quotas(counts.tolist(), ipc, "balanced"))
        least = (self.least_share * even).ceil().long()
        bins, gains = self.bins_of(stats, head, ~held), torch.zeros(len(counts)).double()
        for turn in range(self.rounds):
            draw = run.generator("dqas/subset", turn)
            whole = [from_each(own, min(n, sum(map(len, own))), draw)
                     for own, n in zip(bins, now.tolist(), strict=True)]  # fmt: skip
            half = [own[torch.randperm(len(own), generator=draw)[: max(1, len(own) // 2)]]
                    for own in whole]  # fmt: skip
            better = self.accuracy(stats, whole, held) - self.accuracy(stats, half, held)
            gains += shrunk(better.clamp_min(0), stats.labels[held].bincount(minlength=len(counts)))
            now = dealt(total - int(least.sum()), gains, least, counts)
        return now.tolist()

    def bins_of(
        self, stats: StoredFeatures, head: Head | None, allowed: Tensor
    ) -> list[list[Tensor]]:
        """Return the bins of each class among the ``allowed`` images, positions in the set."""
        found = []
        for label in range(len(stats.counts)):
            own = ((stats.labels == label) & allowed).nonzero().flatten()
            seen = ClassFeatures(label, stats.bank[0, own].double(), head)
            bins = binned(seen.residuals, seen.z, self.bins, self.coverage)
            found.append([own[places] for places in bins])
        return found

    def accuracy(self, stats: StoredFeatures, chosen: list[Tensor], held: Tensor) -> Tensor:
        """Return the share of each class's held-out images that a learner gets right, (C,)."""
        rows, classes = torch.cat(chosen), len(stats.counts)
        z, labels = stats.bank[0, rows].double(), stats.labels[rows]
        scale = z.std().clamp_min(1e-12)
        blank = torch.zeros(classes, z.shape[1]).double(), torch.zeros(classes).double()
        weight, bias = correct("crt", *blank, lambda: z / scale, labels)
        own = stats.labels[held]
        right = (stats.bank[0, held].double() / scale @ weight.T + bias).argmax(1) == own
        images = own.bincount(minlength=classes)
        return own[right].bincount(minlength=classes).double() / images.clamp_min(1)


def shrunk(gains: Tensor, images: Tensor) -> Tensor:
    """Draw gains (C,) that few held-out ``images`` (C,) show to the mean of all."""
    mean = (gains * images).sum() / images.sum()
    return (gains * images + _PRIOR * mean) / (images + _PRIOR)
