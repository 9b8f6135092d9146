"""Experts as what a run of trajectory matching sees through."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from potstill.data import ImageSet
from potstill.data.transform import Transform
from potstill.experts.classifiers import ClassifierTrajectories
from potstill.experts.trajectories import Params, Trajectories
from potstill.methods.trajectory.initialization import Initialization, Teacher
from potstill.networks import Networks
from potstill.run import Run

__all__ = ["ExpertNetworks"]


class ExpertNetworks(Networks):
    """Trajectories of experts and, with LAD, of classifiers trained on after them.

    Attributes:
        teachers: readers of the fully trained networks, which choose images and labels.
    """

    def __init__(
        self,
        trajectories: Trajectories,
        transform: Transform,
        last: int,
        classifiers: ClassifierTrajectories | None = None,
        last_classifier: int = 0,
    ) -> None:
        self.trajectories, self.classifiers = trajectories, classifiers
        self.transform, self.key, self.members = transform, trajectories.key, trajectories.members
        self.seconds_saved = trajectories.seconds_saved
        finished: Callable[[int, int], Params] = trajectories.at
        if classifiers is not None:
            self.seconds_saved += classifiers.seconds_saved
            finished, last = classifiers.whole, last_classifier
        self.teachers: Sequence[Teacher] = [
            partial(finished, member, last) for member in range(self.members)
        ]

    def judging(self, real: ImageSet, run: Run) -> Initialization:
        """Return what chooses first images and labels of ``real``."""
        network = self.trajectories.network
        return Initialization(real, self.transform, network, self.teachers, run)

    def facts(self) -> dict[str, Any]:
        """Which experts were matched."""
        return {"experts": {"key": self.key, "members": self.members}}

    def classifier_norms(self, at: Any, epoch: int) -> list[float]:
        """Length of each class's classifier row, mean over the experts, [C] (LAD fig. 2)."""
        rows = [at(k, epoch)["classifier.weight"].norm(dim=1) for k in range(self.members)]
        return [round(value, 5) for value in torch.stack(rows).mean(0).tolist()]
