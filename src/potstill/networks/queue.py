"""A queue of networks that are trained on the real set while the canvas moves (IDM, CVPR 2023).

It begins with a few random networks; every so many steps a new one joins it and, once it is full,
the oldest leaves. A step looks through one of those that are there, and a few of them, drawn anew,
are then trained some steps further. So networks of every age between random and well trained stand
side by side, without a training before the first step.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from potstill.canvas import Canvas
from potstill.data import DSA, ImageSet
from potstill.data.transform import Transform
from potstill.losses import REMEDIES, Loss
from potstill.nets.online import OnlineNetwork
from potstill.nets.training import Examples, Training
from potstill.networks.evolving import MovingPrior
from potstill.networks.extractor import FeatureExtractor
from potstill.networks.feature_networks import Networks
from potstill.networks.parts import OwnNets, fit_transform
from potstill.run import ArtifactError, InputError, Run
from potstill.run.checkpoint import under
from potstill.run.fields import Batch, Count, Decay, Every, NotNegative, Positive

__all__ = ["QueueNets", "QueueNetworks"]


@dataclass(frozen=True, kw_only=True)
class QueueNets(OwnNets, kind="queue"):
    """Networks of all ages that learn from real images in turns with the canvas (IDM)."""

    moves: ClassVar[bool] = True

    queue_start: Count = 3  # random networks before the first step
    queue_every: Every = 30  # steps until a new random network joins them
    queue_most: Count = 100  # networks at most; then the oldest leaves
    queue_trained: Count = 2  # networks that are trained after each step
    real_steps: Every = 10  # their steps on real images
    inner_lr: Positive = 0.01  # their step size (SGD)
    inner_momentum: Decay = 0.9  # their momentum
    inner_decay: NotNegative = 5e-4  # weight decay
    inner_batch: Batch = 256  # images per step
    pool_prior: MovingPrior = "plain"  # what is done about uneven classes: the long-tail table

    @property
    def prior(self) -> str:
        """What is done about uneven classes in their training."""
        return self.pool_prior

    def check(self, method: Any, real: ImageSet | None = None) -> None:
        """Refuse more networks at the beginning than there may be, too."""
        super().check(method, real)
        if self.queue_start > self.queue_most:
            raise InputError(
                f"queue_start is {self.queue_start} and queue_most is {self.queue_most}, fewer "
                f"than there are at first; use queue_most={self.queue_start} or more"
            )

    def open(self, real: ImageSet, run: Run) -> QueueNetworks:
        """Return the first random networks."""
        return QueueNetworks(self, real, fit_transform(real, self.preprocess), run)


class QueueNetworks(Networks):
    """Networks by the order in which they joined; all that they are is part of the checkpoint."""

    moves = True

    def __init__(self, how: QueueNets, real: ImageSet, transform: Transform, run: Run) -> None:
        self.how, self.real, self.transform, self.run = how, real, transform, run
        self.key, row = how.network, REMEDIES[how.pool_prior]
        self.loss: Loss = row.loss_for(real.counts)  # type: ignore[assignment]  # none by epochs
        self.queue: dict[int, OnlineNetwork] = {}
        self.right: dict[int, float] = {}  # of each, share of the images of its newest training
        for number in range(how.queue_start):
            self._join(number)
        like = deepcopy(self.queue[0].network)
        self._extractor = FeatureExtractor(like, transform, run)
        self.dim, self._loaded = self._extractor.dim, (-1, -1)
        self.training = Training(
            epochs=1,
            batch=how.inner_batch,
            lr=how.inner_lr,
            momentum=how.inner_momentum,
            weight_decay=how.inner_decay,
        ).under(how.pool_prior)

    def _join(self, number: int) -> None:
        self.right[number] = 0.0
        self.queue[number] = OnlineNetwork(
            self.how.network,
            shape=self.real.shape,
            classes=self.real.num_classes,
            generator=self.run.generator("network", number),
            device=self.run.device,
        )

    def member(self, number: int) -> int:
        """Return whose turn a view is, of those who are in the queue now."""
        draw = self.run.generator("queue/seen", number)
        return list(self.queue)[int(torch.randint(len(self.queue), (), generator=draw))]

    def at(self, number: int) -> FeatureExtractor:
        """Return a copy of a network of the queue, as it is now."""
        member = self.member(number)
        age = member, self.queue[member].steps
        if age != self._loaded:
            self._extractor.load(self.queue[member].network.state_dict())
            self._loaded = age
        return self._extractor

    def accuracy(self, number: int) -> float:
        """Return how many images of its newest training the network of a view got right."""
        return self.right[self.member(number)]

    def after(self, step: int, canvas: Canvas, targets: Tensor, dsa: DSA | None = None) -> None:
        """Train a few on real images; then one may join and one leave."""
        there = list(self.queue)
        order = torch.randperm(len(there), generator=self.run.generator("queue/trained", step))
        for place in order[: self.how.queue_trained].tolist():
            self._train(there[place])
        joined, due = divmod(step + 1, self.how.queue_every)
        if due == 0:
            number = self.how.queue_start + joined - 1
            self._join(number)
            for old in [n for n in self.queue if n <= number - self.how.queue_most]:
                del self.queue[old], self.right[old]

    def _train(self, member: int) -> None:
        examples = Examples(self.real.rows(), self.real.labels, self.transform)
        counted, draws = _Counted(self.loss), partial(self._draw, member)
        self.queue[member].train(
            examples, self.training, generators=draws, loss=counted, steps=self.how.real_steps
        )
        self.right[member] = counted.share

    def _draw(self, member: int, purpose: str, birth: int, index: int) -> torch.Generator:
        return self.run.generator(f"queue/{purpose}", member, index)

    def state(self) -> dict[str, Tensor]:
        """Every network with its optimiser, its age and what it got right."""
        found = {f"queue/{n}/right": torch.tensor(r).double() for n, r in self.right.items()}
        for number, one in self.queue.items():
            found |= {f"queue/{number}/{name}": value for name, value in one.state().items()}
        return found

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Put the queue back."""
        numbers = sorted({int(name.partition("/")[0]) for name in under("queue/", tensors)})
        if not numbers:
            raise ArtifactError("the state holds no network of a queue; begin again")
        self.queue.clear()
        self.right.clear()
        for number in numbers:
            self._join(number)
            own = under(f"queue/{number}/", tensors)
            self.right[number] = float(own.pop("right"))
            self.queue[number].load_state(own)
        self._loaded = (-1, -1)


class _Counted:
    """A loss that counts how often the likeliest class was the right one."""

    def __init__(self, loss: Loss) -> None:
        self.loss, self.seen = loss, 0
        self.hits: Tensor | int = 0

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        self.hits = self.hits + (logits.argmax(1) == targets).sum()
        self.seen += len(targets)
        return self.loss(logits, targets)

    @property
    def share(self) -> float:
        """Of the images seen."""
        return float(self.hits) / self.seen
