"""The order in which an epoch visits images of unlike classes.

========================  ==========================================================================
``shuffled``              every image once: a class is drawn as n_c / Σ n
``balanced``              every class equally often, in an epoch of equal length
``sqrt``                  a class is drawn as √n_c (Kang et al., ICLR 2020, eq. 1 with q = 1/2)
``progressive``           as (1 - t/T) n_c / Σ n + (t/T) / C in epoch t of T (Kang et al., eq. 3)
``cyclic``                four images at a time of each class in turn, as often as the largest class
                          has images (class-aware sampling, OLTR)
========================  ==========================================================================

Classes give whole shuffled rounds of their images and a part of one, so that their shares are exact
to an image where independent draws would vary. ``groups`` are the positions of each class that has
images.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated

import torch
from torch import Tensor

from potstill.run.fields import OneOf

__all__ = [
    "Sampling",
    "balanced_order",
    "epoch_length",
    "epoch_order",
    "groups_of",
    "shared_order",
]

Sampling = Annotated[str, OneOf("shuffled", "balanced", "sqrt", "progressive", "cyclic")]
_RUN = 4  # "cyclic": images of one class in a row


def groups_of(labels: Tensor) -> list[Tensor]:
    """Return the positions of the images of each class that has some, on the CPU."""
    return [(labels == label).nonzero().flatten().cpu() for label in labels.unique()]


def epoch_length(sampling: str, groups: Sequence[Tensor], most: int = 0) -> int:
    """Return how many images an epoch has: at most ``most``, where that is not 0."""
    sizes = [len(group) for group in groups]
    length = max(sizes) * len(sizes) if sampling == "cyclic" else sum(sizes)
    return min(length, most or length)


def epoch_order(
    sampling: str,
    groups: Sequence[Tensor],
    length: int,
    share: float,
    generator: torch.Generator,
) -> Tensor:
    """Return the ``length`` positions of an epoch; ``share`` of the epochs are over, in [0, 1)."""
    if sampling == "shuffled":
        return torch.randperm(sum(map(len, groups)), generator=generator)[:length]
    if sampling == "cyclic":
        return _cycled(groups, length, generator)
    if sampling == "balanced":
        return balanced_order(groups, length, generator)
    sizes = torch.tensor([len(group) for group in groups]).double()
    if sampling == "sqrt":
        return shared_order(groups, sizes.sqrt(), length, generator)
    return shared_order(
        groups, (1 - share) * sizes / sizes.sum() + share / len(sizes), length, generator
    )


def balanced_order(groups: Sequence[Tensor], length: int, generator: torch.Generator) -> Tensor:
    """Return ``length`` positions in random order, of every group equally many.

    Which groups give an odd position is drawn.
    """
    ranks = torch.randperm(len(groups), generator=generator).tolist()
    wanted = [length // len(groups) + (rank < length % len(groups)) for rank in range(len(groups))]
    return _dealt([groups[k] for k in ranks], wanted, generator)


def shared_order(
    groups: Sequence[Tensor], shares: Tensor, length: int, generator: torch.Generator
) -> Tensor:
    """Return ``length`` positions in random order, of the groups as their ``shares`` (G,) say.

    A group gives the whole number below or above its part; which one is drawn so that the mean over
    draws is its part exactly (systematic sampling).
    """
    ranks = torch.randperm(len(groups), generator=generator)
    start = torch.rand((), generator=generator, dtype=torch.float64)
    ends = (shares.double()[ranks].cumsum(0) * (length / shares.sum()) + start).floor().long()
    ends[-1] = length  # also where the sum was rounded
    wanted = ends.diff(prepend=ends.new_zeros(1)).tolist()
    return _dealt([groups[k] for k in ranks.tolist()], wanted, generator)


def _dealt(groups: Iterable[Tensor], wanted: Iterable[int], generator: torch.Generator) -> Tensor:
    """Return so many positions of each group, all in random order."""

    def shuffled(positions: Tensor) -> Tensor:
        return positions[torch.randperm(len(positions), generator=generator)]

    picks = []
    for group, want in zip(groups, wanted, strict=True):
        rounds = [shuffled(group) for _ in range(-(-want // len(group)))]
        if rounds:
            picks.append(torch.cat(rounds)[:want])
    return shuffled(torch.cat(picks))


def _cycled(groups: Sequence[Tensor], length: int, generator: torch.Generator) -> Tensor:
    """Visit classes in shuffled rounds, each for the next images of its own shuffled rounds.

    The class-aware sampler of OLTR (Liu et al., CVPR 2019, released code) as LAD uses it; returns
    ``length`` positions in which the classes' shares differ by four at most.
    """

    def rounds(count: int, size: int) -> Tensor:
        """``count`` permutations of ``size`` things, (count, size)."""
        draw = torch.rand(count, size, generator=generator, dtype=torch.float64)
        return draw.argsort(dim=1, stable=True)

    visits = -(-length // (_RUN * len(groups)))  # of each class
    turns = rounds(visits, len(groups))
    lines = [
        group[rounds(-(-visits * _RUN // len(group)), len(group)).flatten()[: visits * _RUN]]
        for group in groups
    ]
    table = torch.stack(lines).view(len(groups), visits, _RUN)
    return table[turns, torch.arange(visits)[:, None]].flatten()[:length]
