"""Networks as they were after each epoch of their training (TGDD, AAAI 2026).

Where a pool blends the initial with the trained weights of a member (DANCE, NCFM), a snapshot is a
network that training really went through. Images are matched behind the network of one epoch and,
where a method calibrates, judged by the same network some epochs later, so that they are always led
a little further than they are seen from. Released code of TGDD: 60 epochs, the judge drawn from the
next seven snapshots, itself among them, and calibration weighs 2.5 (IPC 1 and 10) or 0.5 (IPC 50).
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass

import torch

from potstill.data import ImageSet
from potstill.data.transform import Transform
from potstill.experts.trajectories import ExpertPrior, Trajectories, train_experts
from potstill.nets import Network
from potstill.networks.extractor import FeatureExtractor
from potstill.networks.feature_networks import Networks, member_of
from potstill.networks.parts import TrainedNets, fit_transform
from potstill.run import Run
from potstill.run.fields import Epoch

__all__ = ["SnapshotNets", "SnapshotNetworks"]


@dataclass(frozen=True, kw_only=True)
class SnapshotNets(TrainedNets, kind="snapshots"):
    """What networks were after each epoch of their training on the real set (TGDD, AAAI 2026)."""

    pool_prior: ExpertPrior = "plain"  # "plain", "balanced", "logit_adjusted", ...: the table
    judge_ahead: Epoch = 6  # a network that calibrates is up to so many epochs further

    def open(self, real: ImageSet, run: Run) -> SnapshotNetworks:
        """Train the networks or read them from the cache."""
        transform = fit_transform(real, self.preprocess)
        trajectories = train_experts(
            real,
            transform,
            self.network,
            self.members,
            self.training(),
            run,
            epochs=range(self.pool_epochs + 1),
            prior=self.pool_prior,
        )
        like = self.new(real, run.generator("network", 0))
        return SnapshotNetworks(
            trajectories, self.pool_epochs, self.judge_ahead, like, transform, run
        )


class SnapshotNetworks(Networks):
    """A member and an epoch for every number; epochs 0 (untrained) to ``epochs`` alike often."""

    def __init__(
        self,
        trajectories: Trajectories,
        epochs: int,
        ahead: int,
        like: Network,
        transform: Transform,
        run: Run,
    ) -> None:
        self.trajectories, self.epochs, self.ahead, self.run = trajectories, epochs, ahead, run
        self.key = f"{trajectories.key}-{epochs}"
        self.transform, self.members = transform, trajectories.members
        self.seconds_saved = trajectories.seconds_saved
        judge = deepcopy(like)
        self._eye, self._judge = (FeatureExtractor(net, transform, run) for net in (like, judge))
        self.dim = self._eye.dim
        self._loaded: dict[FeatureExtractor, tuple[int, int]] = {}

    def place(self, number: int) -> tuple[int, int]:
        """Return the member and the epoch of a number."""
        draw = self.run.generator("snapshot", number)
        epoch = int(torch.randint(self.epochs + 1, (), generator=draw))
        return member_of(number, self.members, self.run), epoch

    def judge_of(self, number: int) -> tuple[int, int]:
        """Return the member of a number and an epoch from its own to ``ahead`` further."""
        member, epoch = self.place(number)
        last, draw = min(self.epochs, epoch + self.ahead), self.run.generator("judge", number)
        return member, int(torch.randint(epoch, last + 1, (), generator=draw))

    def _load(self, extractor: FeatureExtractor, place: tuple[int, int]) -> FeatureExtractor:
        if self._loaded.get(extractor) != place:
            extractor.load(self.trajectories.at(*place, self.run.device))
            self._loaded[extractor] = place
        return extractor

    def at(self, number: int) -> FeatureExtractor:
        """Return the snapshot of a number."""
        return self._load(self._eye, self.place(number))

    def middle(self) -> FeatureExtractor:
        """Return the first member, half way."""
        return self._load(self._eye, (0, self.epochs // 2))

    def trained_at(self, number: int) -> FeatureExtractor:
        """Return the later snapshot of the same member that calibrates."""
        return self._load(self._judge, self.judge_of(number))

    def finished(self) -> Iterator[FeatureExtractor]:
        """Yield the members after their last epoch."""
        return (self._load(self._judge, (member, self.epochs)) for member in range(self.members))
