"""What sees at a step: random networks, or a pool of trained ones, by the number of a view."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor

from potstill.canvas import Canvas
from potstill.data import DSA
from potstill.data.transform import Transform
from potstill.experts.pool import Pool
from potstill.losses import REMEDIES, adjust
from potstill.nets import Network
from potstill.networks.extractor import FeatureExtractor
from potstill.run import Run
from potstill.run.machine import CPU_CHUNK

__all__ = ["Networks", "PoolNetworks", "RandomNetworks", "member_of"]


def member_of(number: int, members: int, run: Run) -> int:
    """Return whose turn a number is: each member once before any comes again."""
    draw = run.generator("member", number // members)
    return int(torch.randperm(members, generator=draw)[number % members])


class Networks:
    """What a run sees through; kinds differ in which network answers to a number.

    Attributes:
        key: identifies the networks; part of every cache built on them.
        members: how many there are; 0 = a new one for every number.
        dim: features of an image.
        transform: from RGB 0-1 to what they see; what a receiver applies.
        moves: whether they change while the canvas moves, so that nothing can be cached.
        seconds_saved: what making that which was read from a cache once took.
        seconds_apart: seconds of opening them that are not the result's.
    """

    key = ""
    members = 0
    moves = False
    dim: int
    transform: Transform
    seconds_saved = 0.0
    seconds_apart = 0.0

    def at(self, number: int) -> FeatureExtractor:
        """Return the network of a view or step, its weights in place until the next call."""
        raise NotImplementedError

    def middle(self) -> FeatureExtractor:
        """Return the network by which lengths are measured: the first, half trained."""
        return self.at(0)

    def trained_at(self, number: int) -> FeatureExtractor:
        """Return the trained network behind :meth:`at`, beside which it may be used."""
        raise NotImplementedError

    def finished(self) -> Iterator[FeatureExtractor]:
        """Yield the networks at the end of their training, each in place until the next."""
        raise NotImplementedError

    def accuracy(self, number: int) -> float:
        """Return how many training images, as a share, a view's network got right of late.

        0 where networks do not learn, or nobody counts.
        """
        return 0.0

    @torch.no_grad()
    def judged(self, images: Tensor, counts: Sequence[int], prior: str) -> Tensor:
        """Return what finished networks say of RGB images, log-probabilities (n, K), their mean.

        ``prior`` is what was done about the classes' ``counts`` in their training; what is left of
        the prior is taken out.
        """
        left, says = REMEDIES[prior].left, []
        for one in self.finished():
            logits = torch.cat([one.logits(part) for part in images.split(CPU_CHUNK)])
            says.append(adjust(logits, counts, left).log_softmax(1))
        return torch.stack(says).mean(0)

    def facts(self) -> dict[str, Any]:
        """JSON-like facts for the provenance."""
        return {}

    def after(self, step: int, canvas: Canvas, targets: Tensor, dsa: DSA | None = None) -> None:
        """Be told that ``step`` is done; networks that move train on the canvas now."""

    def state(self) -> dict[str, Tensor]:
        """Return what changes from step to step."""
        return {}

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Put back what :meth:`state` returned."""


class RandomNetworks(Networks):
    """A randomly initialised network for every number; ``new`` makes one from a generator."""

    def __init__(
        self, new: Callable[[torch.Generator], Network], name: str, transform: Transform, run: Run
    ) -> None:
        self.key, self.transform, self.run, self._new = name, transform, run, new
        self._extractor = FeatureExtractor(new(run.generator("network", 0)), transform, run)
        self.dim, self._loaded = self._extractor.dim, 0

    def at(self, number: int) -> FeatureExtractor:
        """Return the network of a number."""
        if number != self._loaded:
            self._extractor.load(self._new(self.run.generator("network", number)).state_dict())
            self._loaded = number
        return self._extractor


class PoolNetworks(Networks):
    """Networks of a pool: blends of the initial and the trained weights of one member each.

    ``blend`` "random": a share of the initial weights drawn for every number (DANCE, NCFM);
    "initial" and "trained": the ends.
    """

    def __init__(
        self, pool: Pool, blend: str, like: Network, transform: Transform, run: Run
    ) -> None:
        self.pool, self.blend, self.run, self.transform = pool.to(run.device), blend, run, transform
        self.key = pool.key if blend == "random" else f"{pool.key}-{blend}"
        self.members, self.seconds_saved = len(pool), pool.seconds_saved
        self._extractor = FeatureExtractor(like, transform, run)
        self.dim = self._extractor.dim
        self._trained: FeatureExtractor | None = None
        self._loaded: dict[bool, tuple[int, float]] = {}
        self._drawn: tuple[int, tuple[int, float]] = (-1, (0, 0.0))  # of the last number

    def _draw(self, number: int) -> tuple[int, float]:
        """Member and share of the initial weights of a number."""
        if number != self._drawn[0]:
            self._drawn = number, self._member(number)
        return self._drawn[1]

    def _member(self, number: int) -> tuple[int, float]:
        member = member_of(number, self.members, self.run)
        if self.blend == "random":
            return member, float(torch.rand((), generator=self.run.generator("blend", number)))
        return member, float(self.blend == "initial")

    def _load(self, extractor: FeatureExtractor, member: int, share: float) -> FeatureExtractor:
        apart = extractor is self._trained
        if self._loaded.get(apart) != (member, share):
            extractor.load(self.pool.blend(member, share))
            self._loaded[apart] = member, share
        return extractor

    def at(self, number: int) -> FeatureExtractor:
        """Return the blend of a number."""
        return self._load(self._extractor, *self._draw(number))

    def middle(self) -> FeatureExtractor:
        """Return the first member, half way."""
        return self._load(self._extractor, 0, 0.5)

    def trained_at(self, number: int) -> FeatureExtractor:
        """Return the trained member behind a number, in an extractor of its own."""
        return self._end(self._draw(number)[0])

    def finished(self) -> Iterator[FeatureExtractor]:
        """Yield the trained members."""
        return map(self._end, range(self.members))

    def _end(self, member: int) -> FeatureExtractor:
        if self._trained is None:
            like = deepcopy(self._extractor.net)
            self._trained = FeatureExtractor(like, self.transform, self.run)
        return self._load(self._trained, member, 0.0)
