"""Which views a step looks at, and of what a view is: real images, and their augmentation."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any

import torch
from torch import Tensor

from potstill.data import DSA, ImageSet
from potstill.data.augment import Rule, moved, reach_of
from potstill.run import InputError, Run
from potstill.run.fields import BatchOrAll, Count, Every, OneOf, Share
from potstill.run.parts import Part

__all__ = ["Policy", "RealStatistics", "SiameseViews", "ViewDraws"]

Policy = Annotated[str, OneOf("rolling", "fixed", "features", "fresh")]
Owner = Annotated[str, OneOf("view", "class")]


@dataclass(frozen=True, kw_only=True)
class RealStatistics(Part):
    """How much of the real side is computed, and how often anew."""

    real_side: Policy = "rolling"  # cache: "rolling", "fixed", "features" or "fresh" (as published)
    entries: Count = 200  # cached views of the real data
    refresh: Every = 10  # rolling: steps until a new view replaces the oldest
    batch_real: BatchOrAll = 0  # real images per class in a view; 0 = all of them
    views_per_step: Count = 1  # views whose distances a step averages
    augment_per: Owner = "view"  # one augmentation for all classes of a "view", or for each "class"
    tail_images: BatchOrAll = 0  # copies bring smaller classes of a view up to this many; 0 = none
    tail_flip: Share = 0.5  # probability that a copy is mirrored (0 for digits and letters)

    def check(self, method: Any, real: ImageSet | None = None) -> None:
        """Refuse to keep what networks that move have seen, and what would be ignored."""
        if method.networks.moves and self.real_side != "fresh":
            raise InputError(
                f"real_side is {self.real_side!r} and networks is {method.networks.kind!r}, of "
                "which nothing can be kept; use real_side=fresh"
            )
        if self.real_side == "features" and self.augment_per == "class":
            raise InputError(
                "augment_per is 'class' with real_side 'features', which keeps images as they are; "
                "use another real_side or augment_per=view"
            )


@dataclass(frozen=True, kw_only=True)
class SiameseViews(Part):
    """The augmentation that both sides of a match share."""

    augment: str = "color_crop_cutout"  # Siamese augmentation while matching; "none" = off
    augment_rule: Rule = "idc"  # "idc": colour and cutout always; "dc": one operation per draw

    def check(self, method: Any, real: ImageSet | None = None) -> None:
        """Refuse an unknown operation."""
        self.dsa()

    def dsa(self) -> DSA | None:
        """Return the augmentation, or None."""
        return None if self.augment == "none" else DSA.parse(self.augment, rule=self.augment_rule)


class ViewDraws:
    """What is drawn for a step and for the number of a view; nothing is looked at.

    Args:
        members: networks that take turns, 0 = a new one for every number.
        dsa: the augmentation, or None.
    """

    def __init__(
        self, real: ImageSet, run: Run, how: RealStatistics, members: int, dsa: DSA | None
    ) -> None:
        self.real, self.run, self.how, self.members = real, run, how, members
        self.dsa = dsa if how.real_side != "features" else None
        self._moves = -1, torch.empty(0), torch.empty(0)  # of the copies of the newest view
        self._order = torch.argsort(real.labels, stable=True)

    @property
    def facts(self) -> dict[str, Any]:
        """What determines a view besides its number and the networks, for keys of caches."""
        how = self.how
        facts: dict[str, Any] = {"dsa": str(self.dsa), "batch_real": how.batch_real}
        if how.augment_per != "view":
            facts["augment_per"] = how.augment_per
        if how.tail_images:
            facts |= {"tail_images": how.tail_images, "tail_flip": how.tail_flip}
        return facts

    def numbers(self, step: int) -> list[int]:
        """Return the numbers of the views that a step looks at."""
        how, several = self.how, self.how.views_per_step
        first = step * several
        if how.real_side == "fresh":
            return list(range(first, first + several))
        size = how.entries
        if how.real_side == "features" and self.members:
            size = min(size, self.members)
        if how.real_side == "rolling":
            drawn = torch.randint(size, (several,), generator=self.run.generator("entry", step))
            return [step // how.refresh + number for number in drawn.tolist()]
        return [self._turn(look, size) for look in range(first, first + several)]

    def _turn(self, look: int, size: int) -> int:
        """Each of the views once before any comes again."""
        turn = torch.randperm(size, generator=self.run.generator("entry", look // size))
        return int(turn[look % size])

    def augment(self, number: int) -> dict[str, Tensor]:
        """Return the augmentation's parameters, for all images or (C, ...) for each class."""
        if self.dsa is None:
            return {}
        draw, each = self.run.generator("augment", number), self.how.augment_per == "class"
        size = (self.real.shape[1], self.real.shape[2])
        return self.dsa.draw(
            self.real.num_classes, size, draw, siamese=not each, device=self.run.device
        )

    def of_images(self, augment: dict[str, Tensor], labels: Tensor) -> dict[str, Tensor]:
        """Return parameters for images of these classes (n,)."""
        if self.how.augment_per == "view":
            return augment
        return {name: value[labels.to(value.device)] for name, value in augment.items()}

    @cached_property
    def rows(self) -> list[int]:
        """Images of each class in a view, copies included."""
        most = self.how.batch_real or len(self.real)
        wanted = min(self.how.tail_images, most)
        return [max(min(count, most), wanted) for count in self.real.counts]

    def positions(self, number: int) -> Tensor:
        """Class-sorted positions of a view's real images; a small class gives all it has.

        Where copies are wanted, all of a class come once before any comes again.
        """
        how = self.how
        if not how.batch_real and not how.tail_images:
            return self._order
        draw, chosen = self.run.generator("batch_real", number), []
        for label, rows in enumerate(self.rows):
            own = self.real.of_class(label)
            if how.batch_real:
                own = own[torch.randperm(len(own), generator=draw)]
            chosen.append(own[torch.arange(rows) % len(own)])
        return torch.cat(chosen)

    def images(self, number: int, positions: Tensor, rows: slice) -> Tensor:
        """Return the images (n, c, h, w) of some rows of a view, its copies mirrored and moved."""
        images, copies = self.real.batch(positions[rows], self.run.device), self._copies[rows]
        if not bool(copies.any()):
            return images
        if self._moves[0] != number:
            draw, reach = self.run.generator("tail", number), reach_of(self.real.shape[2])
            shifts = torch.randint(-reach, reach + 1, (len(positions), 2), generator=draw)
            mirrored = torch.rand(len(positions), generator=draw) < self.how.tail_flip
            self._moves = number, shifts, mirrored
        own, (shifts, mirrored) = copies.to(images.device), (of[rows] for of in self._moves[1:])
        images[own] = moved(images[own], shifts[copies], mirrored[copies])
        return images

    @cached_property
    def _copies(self) -> Tensor:
        """Which rows of a view repeat an image."""
        pairs = zip(self.rows, self.real.counts, strict=True)
        return torch.cat([torch.arange(rows) >= count for rows, count in pairs])
