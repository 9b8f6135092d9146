"""An evolving network whose turns end when it has settled (CAFE, CVPR 2022, dynamic bi-level).

How well it does is measured on real images ("queries"). Its training after a step on the canvas
ends when its last ten accuracies hardly differ, and it is given up for a new random network when
those after the last ten steps hardly do; both at the latest after a fixed number.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from potstill.canvas import Canvas
from potstill.data import DSA, ImageSet
from potstill.data.transform import Transform
from potstill.nets.layers import predict
from potstill.networks.evolving import EvolvingNets, EvolvingNetworks, Loop
from potstill.networks.parts import fit_transform
from potstill.run import Run
from potstill.run.fields import Batch, Share

__all__ = ["SettlingNets", "SettlingNetworks"]

_WINDOW = 10  # accuracies that are compared


@dataclass(frozen=True, kw_only=True)
class SettlingNets(EvolvingNets, kind="settling"):
    """A network trained in turns with the canvas until it has settled (CAFE)."""

    renew_every: Loop = 50  # steps until a new random network at the latest; 0 = as DC
    inner_epochs: Loop = 10  # epochs on the canvas after each step at the most; 0 = as DC
    settled: Share = 0.04  # a new network where accuracies after ten steps differ by less
    settled_inner: Share = 0.03  # no more epochs where accuracies after ten of them differ by less
    queries: Batch = 128  # real images of each class on which accuracy is measured

    def open(self, real: ImageSet, run: Run) -> SettlingNetworks:
        """Return a new random network."""
        return SettlingNetworks(self, real, fit_transform(real, self.preprocess), run)


class SettlingNetworks(EvolvingNetworks):
    """One network in turns with the canvas, and how well it did; all of it is state."""

    how: SettlingNets

    def __init__(self, how: SettlingNets, real: ImageSet, transform: Transform, run: Run) -> None:
        super().__init__(how, real, transform, run)
        self.age = 0  # steps on the canvas under this network
        self.after_steps: list[float] = []  # its newest accuracies
        self.after_epochs: list[float] = []
        self._asked: tuple[int, list[Tensor]] = (-1, [])  # births, positions of each class

    def after(self, step: int, canvas: Canvas, targets: Tensor, dsa: DSA | None = None) -> None:
        """Give the network up if it has settled, or train it until its training has."""
        self.settle(canvas.most // canvas.views)
        self.age += 1
        self.after_steps.append(self.measured())
        if self.age >= self.renew_every or _settled(self.after_steps, self.how.settled):
            self.online.restart(self.run.generator("network", self.online.births + 1))
            self.age, self.after_steps, self.after_epochs = 0, [], []
            return
        for _ in range(self.epochs):
            self.learn(canvas, targets, dsa, epochs=1)
            self.after_epochs.append(self.measured())
            if _settled(self.after_epochs, self.how.settled_inner):
                break

    def measured(self) -> float:
        """Return the mean over classes of the accuracy on this network's queries."""
        rows = self.asked()
        images = self.real.rows(torch.cat(rows))
        said = predict(self.online.network, images, self.transform, device=self.run.device)
        answers = said.argmax(1).cpu().split([len(part) for part in rows])
        shares = [float((a == label).double().mean()) for label, a in enumerate(answers)]
        return sum(shares) / len(shares)

    def asked(self) -> list[Tensor]:
        """Return the positions of the real images of each class that this network is asked for."""
        if self._asked[0] != self.online.births:
            draw = self.run.generator("queries", self.online.births)
            own = [self.real.of_class(label) for label in range(self.real.num_classes)]
            rows = [o[torch.randperm(len(o), generator=draw)[: self.how.queries]] for o in own]
            self._asked = self.online.births, rows
        return self._asked[1]

    def state(self) -> dict[str, Tensor]:
        """The network, and what is known of its turn."""
        turn = {"steps": self.after_steps[-_WINDOW:], "epochs": self.after_epochs[-_WINDOW:]}
        kept = {f"turn/{n}": torch.tensor(v, dtype=torch.float64) for n, v in turn.items()}
        return super().state() | kept | {"turn/age": torch.tensor(self.age)}

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Put the network and its turn back."""
        super().load_state(tensors)
        self.age = int(tensors["turn/age"])
        self.after_steps = tensors["turn/steps"].tolist()
        self.after_epochs = tensors["turn/epochs"].tolist()


def _settled(accuracies: list[float], within: float) -> bool:
    """Whether there are ten, and the last ten differ by less."""
    last = accuracies[-_WINDOW:]
    return len(last) == _WINDOW and max(last) - min(last) < within
