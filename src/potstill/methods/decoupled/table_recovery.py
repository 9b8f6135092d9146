"""Recovery towards statistics of the real set itself, in front of convolutions, too.

What G-VBSM, EDC and RLDD have in common beyond SRe2L: channels and patches in front of every
convolution beside the channels in front of every batch norm, aims that are measured in one pass of
the real set through each network, class by class, and a running mean over the steps on the side of
the images. Which mixture of the classes is the aim is what the three differ in.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from potstill.canvas import Canvas
from potstill.data import ImageSet
from potstill.match.batch_statistics import running_mean, statistics
from potstill.methods.decoupled.recovery import FIRST, Moments, Recovery
from potstill.nets import Network
from potstill.nets.taps import conv_moments, image_moments
from potstill.networks import SqueezedNetworks
from potstill.networks.class_moments import class_moments
from potstill.run import Run
from potstill.run.fields import Decay, Range
from potstill.run.parts import Part

__all__ = ["MatchedLayers", "TableRecovery"]

Patch = Annotated[int, Range(1, 1024)]
_MEAN = "mean-"  # of a network's statistics over the steps, in the state


@dataclass(frozen=True, kw_only=True)
class MatchedLayers(Part):
    """In front of what, and how steadily, statistics are compared."""

    patch: Patch = 4  # side of the squares of a map, in pixels (16 for images of 224)
    mean_decay: Decay = 0.8  # of the running mean of a shard's statistics; 0 = this step's alone
    layer_drop: Decay = 0.4  # probability that a step passes over a convolution


class TableRecovery(Recovery):
    """A method with the part ``layers`` says how far a shard is from the classes' statistics."""

    def __init__(
        self, how: Any, real: ImageSet, canvas: Canvas, networks: SqueezedNetworks, run: Run
    ) -> None:
        super().__init__(how, real, canvas, networks, run)
        self.tables = [self._table(number) for number in range(networks.members)]
        self.means: dict[int, Tensor] = {}  # of each network, since a shard's step 0
        self._newest: tuple[int, Tensor] | None = None

    def _table(self, number: int) -> dict[str, Tensor]:
        """Moments (C, 2q) of every class in front of each layer of a network."""
        observer, names = self.networks.at(number), list[str]()

        def look(images: Tensor) -> list[Tensor]:
            with self.moments(observer.net) as found:
                observer.seen(self.networks.transform.forward(images))
            names[:] = list(found)
            return list(found.values())

        tables = class_moments(look, self.real, self.run)
        return dict(zip(names, tables, strict=True))

    @contextmanager
    def moments(self, net: Network) -> Iterator[Moments]:
        """Look in front of batch norms, where there are any, then of convolutions."""
        norms = any(isinstance(layer, nn.BatchNorm2d) for layer in net.modules())
        with ExitStack() as looks:
            at_norms = looks.enter_context(image_moments(net)) if norms else {}
            at_convs = looks.enter_context(conv_moments(net, self.how.layers.patch))
            yield ChainMap(at_convs, at_norms)  # which goes through the last first

    def distance(self, own: Tensor, table: Tensor, labels: Tensor) -> Tensor:
        """Return how far statistics (2q,) of a shard are from an aim.

        Args:
            table: moments of the real classes (C, 2q) in front of that layer. labels: of the shard.
        """
        raise NotImplementedError

    def apart(self, moments: Moments, labels: Tensor, step: int) -> Tensor:
        """Return the sum over layers; the first of a kind counts ten times."""
        which = step % self.networks.members
        own = {name: statistics(values) for name, values in moments.items()}
        flat = running_mean(
            torch.cat(list(own.values())), self.means.get(which), self.how.layers.mean_decay
        )
        self._newest = which, flat.detach()
        parts = flat.split([len(values) for values in own.values()])
        kinds, total = set[str](), []
        left_out = self._left_out(step)
        for (name, _), part in zip(own.items(), parts, strict=True):
            kind = _kind(name, self.networks.at(step).net)
            weight = 1.0 if kind in kinds else FIRST
            kinds.add(kind)
            if kind == "norm" or name.removesuffix("/patches") not in left_out:
                total.append(weight * self.distance(part, self.tables[which][name], labels))
        return torch.stack(total).sum() if total else flat.new_zeros(())

    def _left_out(self, step: int) -> set[str]:
        """Names of the convolutions that this step passes over."""
        names = [n for n in self.tables[step % self.networks.members] if n.endswith("/patches")]
        if not self.how.layers.layer_drop:
            return set()
        shard = self.canvas.shard * self.how.descent.steps
        drawn = torch.rand(len(names), generator=self.run.generator("layers", shard + step))
        gone = (drawn < self.how.layers.layer_drop).tolist()
        return {n.removesuffix("/patches") for n, out in zip(names, gone, strict=True) if out}

    def after(self, step: int, canvas: Any) -> None:
        """Keep the running mean; a shard begins without one."""
        if self._newest is not None:
            self.means[self._newest[0]] = self._newest[1]
        if (step + 1) % self.how.descent.steps == 0:
            self.means = {}

    def state(self) -> dict[str, Tensor]:
        """Return the running means."""
        return {f"{_MEAN}{number}": mean for number, mean in self.means.items()}

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Put them back."""
        kept = {n: t for n, t in tensors.items() if n.startswith(_MEAN)}
        self.means = {int(n.removeprefix(_MEAN)): t.to(self.run.device) for n, t in kept.items()}


def _kind(name: str, net: Network) -> str:
    """What stands behind a name: "norm", "conv" or its "patches"."""
    if name.endswith("/patches"):
        return "patches"
    return "norm" if isinstance(net.get_submodule(name), nn.BatchNorm2d) else "conv"
