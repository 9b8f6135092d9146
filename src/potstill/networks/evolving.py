"""A network that is trained while the canvas moves, and begins anew after so many steps."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor

from potstill.canvas import Canvas
from potstill.data import DSA, ImageSet
from potstill.data.transform import Transform
from potstill.losses import REMEDIES
from potstill.nets.online import OnlineNetwork
from potstill.nets.training import Examples, Training
from potstill.networks.extractor import FeatureExtractor
from potstill.networks.feature_networks import Networks
from potstill.networks.parts import OwnNets, fit_transform
from potstill.run import Run
from potstill.run.checkpoint import under
from potstill.run.fields import Batch, Decay, NotNegative, OneOf, Positive, Range, Share

__all__ = ["EvolvingNetworks", "EvolvingNets", "MovingPrior"]

Loop = Annotated[int, Range(0, 10**6)]
TrainedOn = Annotated[str, OneOf("canvas", "real", "both")]
# rows of the long-tail table whose training has no end, mixes nothing and corrects nothing after it
MovingPrior = Annotated[
    str,
    OneOf(
        "plain", "balanced", "class_aware", "sqrt", "balanced_softmax", "logit_adjusted",
        "effective_number", "focal", "ldam",
    ),
]  # fmt: skip
# images per class: steps with one network, and epochs of it after each (DC's released table)
_PUBLISHED = {1: (1, 1), 10: (10, 50), 20: (20, 25), 30: (30, 20), 40: (40, 15), 50: (50, 10)}


class EvolvingNetworks(Networks):
    """One network in turns with the canvas; its state is part of the checkpoint."""

    moves = True

    def __init__(self, how: EvolvingNets, real: ImageSet, transform: Transform, run: Run) -> None:
        self.how, self.real, self.transform, self.run = how, real, transform, run
        self.key = how.network
        self.online = OnlineNetwork(
            how.network,
            shape=real.shape,
            classes=real.num_classes,
            generator=run.generator("network", 0),
            device=run.device,
        )
        self.dim = self.online.network.feature_dim
        self._extractor: FeatureExtractor | None = None
        self._loaded = (-1, -1)
        self.renew_every, self.epochs = how.renew_every, how.inner_epochs

    def settle(self, ipc: int) -> None:
        """Take what was published for ``ipc`` images per class where the fields say 0."""
        if self.renew_every and self.epochs:
            return
        known = max((n for n in _PUBLISHED if n <= ipc), default=1)
        self.renew_every = self.renew_every or _PUBLISHED[known][0]
        self.epochs = self.epochs or _PUBLISHED[known][1]

    def at(self, number: int) -> FeatureExtractor:
        """Return a copy of the network as it is now, whatever the number."""
        if self._extractor is None:
            like = deepcopy(self.online.network)
            self._extractor = FeatureExtractor(like, self.transform, self.run)
        age = (self.online.births, self.online.steps)
        if age != self._loaded:
            self._extractor.load(self.online.network.state_dict())
            self._loaded = age
        return self._extractor

    def after(self, step: int, canvas: Canvas, targets: Tensor, dsa: DSA | None = None) -> None:
        """Train on, or begin anew; not both, for nothing looks at a network that is given up."""
        self.settle(canvas.most // canvas.views)
        birth, age = divmod(step + 1, max(1, self.renew_every))
        if age == 0:
            self.online.restart(self.run.generator("network", birth))
            return
        self.learn(canvas, targets, dsa, self.epochs)

    def learn(self, canvas: Canvas, targets: Tensor, dsa: DSA | None, epochs: int) -> None:
        """Train some epochs on the canvas, or steps on real images, or both."""
        how = self.how
        training = Training(
            epochs=epochs,
            batch=how.inner_batch,
            lr=how.inner_lr,
            momentum=how.inner_momentum,
            weight_decay=how.inner_decay,
            augment=dsa,
        )
        if how.trained_on != "real":
            with torch.no_grad():
                images = canvas.decode()[0].detach()
            examples = Examples(images, targets.detach(), self.transform)
            self.online.train(examples, training, generators=self._draws)
        if how.trained_on != "canvas":
            self._train_on_real(replace(training, cutmix=how.real_cutmix))

    def _train_on_real(self, training: Training) -> None:
        examples = Examples(self.real.rows(), self.real.labels, self.transform)
        loss: Any = REMEDIES[self.how.real_prior].loss_for(self.real.counts)
        training = training.under(self.how.real_prior)
        self.online.train(
            examples, training, generators=self._draws, loss=loss, steps=self.how.real_steps
        )

    def _draws(self, purpose: str, birth: int, index: int) -> torch.Generator:
        return self.run.generator(f"evolving/{purpose}", birth, index)

    def state(self) -> dict[str, Tensor]:
        """The network, its optimiser and its age."""
        return {f"evolving/{name}": value for name, value in self.online.state().items()}

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Put the network back."""
        self.online.load_state(under("evolving/", tensors))
        self._loaded = (-1, -1)


@dataclass(frozen=True, kw_only=True)
class EvolvingNets(OwnNets, kind="evolving"):
    """A network trained on the canvas, on real images, or on both, in turns with the canvas."""

    moves: ClassVar[bool] = True

    renew_every: Loop = 0  # steps until a new random network; 0 = as DC for these images per class
    inner_epochs: Loop = 0  # epochs on the canvas after each step; 0 = as DC
    real_steps: Loop = 10  # steps on real images after each step, where they are trained on
    trained_on: TrainedOn = "canvas"  # "canvas" (DC, DSA), "real" (IDC) or "both"
    inner_lr: Positive = 0.01  # their step size (SGD)
    inner_momentum: Decay = 0.0  # their momentum
    inner_decay: NotNegative = 0.0  # weight decay
    inner_batch: Batch = 256  # images per step
    real_cutmix: Share = 0.0  # probability of CutMix in a step on real images
    real_prior: MovingPrior = "plain"  # their uneven classes: "plain", "balanced", ...: the table

    def open(self, real: ImageSet, run: Run) -> EvolvingNetworks:
        """Return a new random network."""
        return EvolvingNetworks(self, real, fit_transform(real, self.preprocess), run)
