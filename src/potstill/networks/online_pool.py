"""A pool of networks at different ages, each trained on the canvas when its turn comes (FRePo).

FRePo (Zhou, Nezhadarya and Ba, NeurIPS 2022, arXiv 2206.00719) looks through networks that learn
from the synthetic images, because those are what a receiver will have. One network alone would
make the images fit its age; from a pool, each step draws one, uses it, and gives it one update.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor

from potstill.canvas import Canvas
from potstill.data import DSA, ImageSet
from potstill.data.transform import Transform
from potstill.losses import squared_error
from potstill.nets.online import OnlineNetwork
from potstill.nets.training import Examples, Training
from potstill.networks.extractor import FeatureExtractor
from potstill.networks.feature_networks import Networks
from potstill.networks.parts import OwnNets, fit_transform
from potstill.run import Run
from potstill.run.checkpoint import under
from potstill.run.fields import Batch, Count, Every, Positive

__all__ = ["OnlinePool", "OnlinePoolNets"]


class OnlinePool(Networks):
    """Networks in turns with the canvas and each other; all of them are part of the checkpoint."""

    moves = True

    def __init__(self, how: OnlinePoolNets, real: ImageSet, transform: Transform, run: Run) -> None:
        self.how, self.transform, self.run = how, transform, run
        self.key, self.members = how.network, how.members
        self.pool = [
            OnlineNetwork(
                how.network,
                shape=real.shape,
                classes=real.num_classes,
                generator=run.generator("network", member, 0),
                optimizer="adamw",
                device=run.device,
            )
            for member in range(how.members)
        ]
        like = deepcopy(self.pool[0].network)
        self._extractor = FeatureExtractor(like, transform, run)
        self.dim, self._loaded = like.feature_dim, (-1, 0, 0)

    def member(self, step: int) -> int:
        """Return whose turn a step is."""
        draw = self.run.generator("member", step)
        return int(torch.randint(self.members, (), generator=draw))

    def age(self, member: int) -> int:
        """Return a network's updates, plus those that its first life lacks: ages are staggered."""
        one = self.pool[member]
        ahead = 0 if one.births else member * self.how.renew_every // self.members
        return ahead + one.steps

    def at(self, number: int) -> FeatureExtractor:
        """Return a copy of the network of a step, as it is now."""
        member = self.member(number)
        own = self.pool[member]
        now = (member, own.births, own.steps)
        if now != self._loaded:
            self._extractor.load(own.network.state_dict())
            self._loaded = now
        return self._extractor

    def after(self, step: int, canvas: Canvas, targets: Tensor, dsa: DSA | None = None) -> None:
        """Update the network of the step on the canvas, or begin it anew when it is old."""
        member, how = self.member(step), self.how
        one = self.pool[member]
        if self.age(member) >= how.renew_every:
            one.restart(self.run.generator("network", member, one.births + 1))
            return
        training = Training(
            epochs=1,
            batch=how.inner_batch,
            optimizer="adamw",
            lr=how.inner_lr,
            weight_decay=0.0,
            augment=dsa,
        )
        with torch.no_grad():
            images = canvas.decode()[0].detach()
        examples = Examples(images, targets.detach(), self.transform, regression=True)

        def draws(purpose: str, birth: int, index: int) -> torch.Generator:
            return self.run.generator(f"online/{purpose}", member, birth, index)

        one.train(examples, training, generators=draws, loss=squared_error, steps=1)

    def state(self) -> dict[str, Tensor]:
        """Every network, its optimiser and its age."""
        return {
            f"online/{member}/{name}": value
            for member, one in enumerate(self.pool)
            for name, value in one.state().items()
        }

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Put the networks back."""
        for member, one in enumerate(self.pool):
            one.load_state(under(f"online/{member}/", tensors))
        self._loaded = (-1, 0, 0)


@dataclass(frozen=True, kw_only=True)
class OnlinePoolNets(OwnNets, kind="online"):
    """A pool of networks at different ages, trained on the canvas by squared error (FRePo)."""

    members: Count = 10  # networks of the pool
    renew_every: Every = 100  # updates of a network until a new random one takes its place
    inner_lr: Positive = 3e-4  # step size of an update (Adam)
    inner_batch: Batch = 1000  # images of an update; all where there are no more

    def open(self, real: ImageSet, run: Run) -> OnlinePool:
        """Return new random networks."""
        return OnlinePool(self, real, fit_transform(real, self.preprocess), run)
