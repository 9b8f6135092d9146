"""Students of trajectory matching: one functional network, and what each step draws for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.func import functional_call

from potstill.data import DSA
from potstill.losses import Loss
from potstill.match.rollout import StudentStep
from potstill.match.student_steps import draw_steps
from potstill.nets import Network
from potstill.run import Run
from potstill.run.memory import bytes_per_image

__all__ = ["Students", "pick"]

Params = Mapping[str, Tensor]


def pick(run: Run, purpose: str, step: int, members: int) -> int:
    """Return the expert of a step: each of ``members`` once per round, in an order drawn anew."""
    turn, place = divmod(step, members)
    return int(torch.randperm(members, generator=run.generator(purpose, turn))[place])


@dataclass(frozen=True, eq=False)
class Students:
    """The network whose own parameters are never used, with the augmentation of every student.

    Args:
        network: on the run's device. batch: synthetic images per student step, 0 = all.
    """

    network: Network
    run: Run
    dsa: DSA | None
    batch: int = 0
    _kept: dict[tuple[str, int, int], Params] = field(default_factory=dict)

    def forward(self, parameters: Params, x: Tensor) -> Tensor:
        """Logits (b, K) of the network with these parameters."""
        return functional_call(self.network, dict(parameters), (x,))

    def features(self, body: Params, x: Tensor) -> Tensor:
        """Features (b, d) of the network's body; names in ``body`` lack their prefix "body."."""
        return functional_call(self.network.body, dict(body), (x,)).flatten(1)

    @property
    def backbone(self) -> list[str]:
        """Names of all parameters but the classifier's."""
        names = (name for name, _ in self.network.named_parameters())
        return [name for name in names if not name.startswith("classifier.")]

    def snapshot(self, kind: str, member: int, epoch: int, read: Callable[..., Params]) -> Params:
        """Return ``read(member, epoch, device)``; a GPU keeps what half the memory budget holds."""
        if not self.run.on_gpu:
            return read(member, epoch, self.run.device)
        key = (kind, member, epoch)
        if key not in self._kept:
            found = read(member, epoch, self.run.device)
            held = [*found.values(), *(t for kept in self._kept.values() for t in kept.values())]
            if sum(tensor.nbytes for tensor in held) > self.run.budget.kept:
                self._kept.clear()
            self._kept[key] = found
        return self._kept[key]

    def draw(self, purpose: str, step: int, images: Tensor, count: int) -> list[StudentStep]:
        """Draw batches and augmentation of ``count`` student steps on ``images`` (n, c, h, w)."""

        def generator(kind: str, index: int) -> torch.Generator:
            return self.run.generator(f"{purpose}/{kind}", step, index)

        return draw_steps(generator, images, count, self.batch, self.dsa)

    def image_bytes(self, x: Tensor, targets: Tensor, loss: Loss) -> int:
        """Measure what the second-order graph of one student step keeps for one image.

        ``x`` (1, c, h, w) in network space with ``targets`` (1, K).
        """
        leaves = {n: p.detach().requires_grad_() for n, p in self.network.named_parameters()}

        def build(n: int) -> tuple[Tensor, ...]:
            images = x.detach().repeat(n, 1, 1, 1).requires_grad_()
            value = loss(self.forward(leaves, images), targets.detach().repeat(n, 1)).sum()
            return torch.autograd.grad(value, list(leaves.values()), create_graph=True)

        return bytes_per_image(build)
