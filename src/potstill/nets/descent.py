"""The steps of descent that all back-ends share: what one step does, and when an epoch is over."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from potstill.losses import Loss
from potstill.nets.layers import Network
from potstill.nets.sharpness import Ascent
from potstill.nets.training import Feed
from potstill.run import DivergedError

__all__ = ["Job", "Lockstep", "head_only"]


def head_only(network: Network) -> bool:
    """Whether nothing but the classifier is trained."""
    body = list(network.body.parameters())
    return bool(body) and not any(parameter.requires_grad for parameter in body)


@dataclass(frozen=True, eq=False)
class Lockstep:
    """Some members that take their steps together.

    ``see`` takes images (k, b, c, h, w) once per step to what ``forward`` takes to logits
    (k, b, K); ``after`` hears of every finished epoch.
    """

    members: Sequence[int]
    parameters: Sequence[Tensor]
    see: Callable[[Tensor], Tensor]
    forward: Callable[[Tensor], Tensor]
    after: Callable[[int], None]


@dataclass(frozen=True, eq=False)
class Job:
    """One call of :func:`potstill.nets.many.train_many`."""

    feed: Feed
    loss: Loss
    device: torch.device
    precision: str
    channels_last: bool
    spans: Sequence[range]  # epochs of each member

    def steps(self, member: int) -> int:
        """Steps of one member."""
        return len(self.spans[member]) * self.feed.steps

    @property
    def total(self) -> int:
        """Steps of all members."""
        return sum(map(self.steps, range(len(self.spans))))

    def descend(self, group: Lockstep) -> Iterator[None]:
        """Train some members, which have one span, yielding after each step."""
        how, members, span = self.feed.training, group.members, self.spans[group.members[0]]
        step, passed = span.start * self.feed.steps, how.milestones_before(span.start)
        optimizer = how.optimizer_for(group.parameters)
        sharp = how.sharpness if how.sharpness and how.sharpness.rho > 0 else None
        ascent = Ascent(sharp, group.parameters, len(members)) if sharp else None
        for epoch in span:
            if how.reset_momentum and how.milestones_before(epoch) > passed:
                passed, optimizer = (
                    how.milestones_before(epoch),
                    how.optimizer_for(group.parameters),
                )
            for options in optimizer.param_groups:
                options["lr"] = how.lr_at(epoch)
            orders = torch.stack([self.feed.order(member, epoch) for member in members])
            seen = torch.zeros(len(members), device=self.device)
            batches = orders.split(how.batch, dim=1)
            for left, positions in zip(range(len(batches) - 1, -1, -1), batches, strict=True):
                drawn = map(self.feed.batch, members, [step] * len(members), positions)
                x, targets = (torch.stack(parts) for parts in zip(*drawn, strict=True))
                with self.autocast():
                    x = group.see(x)
                optimizer.zero_grad()
                losses = self.slope(group, x, targets)
                if ascent is not None:
                    ascent.up()
                    self.slope(group, x, targets)
                    ascent.down()
                optimizer.step()
                seen += losses
                step += 1
                if not left:
                    self.check(members, seen, epoch)
                    group.after(epoch)
                yield

    def slope(self, group: Lockstep, x: Tensor, targets: Tensor) -> Tensor:
        """Leave gradients in the parameters; return each member's loss (k,)."""
        with torch.enable_grad():
            with self.autocast():
                logits = group.forward(x)
            values = self.loss(logits.flatten(0, 1).to(self.feed.dtype), targets.flatten(0, 1))
            losses = values.view(len(group.members), -1).mean(1)
            losses.sum().backward()
        return losses.detach()

    def autocast(self) -> torch.autocast:
        """The context of a network's pass."""
        return torch.autocast("cuda", torch.bfloat16, enabled=self.precision == "bf16")

    def check(self, members: Sequence[int], seen: Tensor, epoch: int) -> None:
        """Stop at a loss that is not finite; once per epoch, for a look waits for the GPU."""
        for member, finite in zip(members, seen.isfinite().tolist(), strict=True):
            if not finite:
                raise DivergedError(
                    f"the loss of network {member} became NaN or infinite in epoch {epoch + 1} of "
                    f"{self.feed.training.epochs}; use a smaller lr than {self.feed.training.lr}"
                )
