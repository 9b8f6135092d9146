"""The steps of descent that all back-ends share: what one step does, and when an epoch is over.

Where memory does not suffice for a step, its gradients are taken in parts: fewer networks at a
time, then fewer images of a batch at a time, whose gradients add up.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from potstill.losses import Loss, Scheduled, cross_entropy, loss_at
from potstill.nets.averaging import Average
from potstill.nets.feed import Feed
from potstill.nets.layers import Network
from potstill.nets.places import Kept, MembersKeeper, Place, State
from potstill.nets.post_hoc import MaxNorm
from potstill.nets.sharpness import Ascent
from potstill.run import DivergedError, InputError, logger
from potstill.run.descent import pack, unpack
from potstill.run.memory import MEMORY_ERRORS, cuts, out_of_memory

__all__ = ["Job", "Lockstep", "Turns", "head_only"]

_ALL = 2**62


def head_only(network: Network) -> bool:
    """Whether nothing but the classifier is trained."""
    body = list(network.body.parameters())
    return bool(body) and not any(parameter.requires_grad for parameter in body)


class Turns:
    """At most ``limit`` steps at a time, of members in threads; half of it when memory is short."""

    def __init__(self, limit: int = 1) -> None:
        self.limit, self._busy, self._change = limit, 0, threading.Condition()

    def __enter__(self) -> None:
        with self._change:
            self._change.wait_for(lambda: self._busy < self.limit)
            self._busy += 1

    def __exit__(self, *error: object) -> None:
        with self._change:
            self._busy -= 1
            self._change.notify_all()

    def fewer(self, than: int) -> bool:
        """Allow fewer at a time than the ``than`` that were too many; false if that was one."""
        with self._change:
            if self.limit >= than:
                self.limit = -(-than // 2)
            return than > 1


@dataclass(eq=False)
class Lockstep:
    """Some members that take their steps together.

    ``forward`` takes images (k, b, c, h, w) of the members in a slice to logits (k, b, K), or what
    ``see`` takes them to once per step; ``after`` hears of every finished epoch. ``tensors`` are
    parameters and buffers by name, with an axis of members in front if they are ``stacked``.
    """

    members: Sequence[int]
    parameters: Sequence[Tensor]
    tensors: Mapping[str, Tensor]
    forward: Callable[[Tensor, slice], Tensor]
    after: Callable[[int], None]
    see: Callable[[Tensor, slice], Tensor] | None = None
    stacked: bool = False
    whole: bool = False  # batches cannot be cut: batch norm
    networks: int = _ALL  # at a time, and images of each: what memory suffices for
    images: int = _ALL
    loss: Loss = cross_entropy  # of the epoch at hand

    def states(self, optimizer: torch.optim.Optimizer) -> list[State]:
        """Return what each member is between two steps."""
        own = {f"network.{name}": value for name, value in self.tensors.items()} | pack(optimizer)
        if not self.stacked:
            return [own]
        return [
            {n: value[k] if value.ndim else value.clone() for n, value in own.items()}
            for k in range(len(self.members))
        ]

    def resume(self, optimizer: torch.optim.Optimizer, places: Sequence[Place | None]) -> None:
        """Go on from ``places``: with what the optimiser remembered, and in the same pieces."""
        there = [place for place in places if place is not None]
        if len(there) < len(self.members):
            return
        self.networks, self.images = map(min, zip(*(place.pieces for place in there), strict=True))
        state = there[0].optimizer
        if self.stacked:
            state = {
                name: torch.stack([place.optimizer[name] for place in there]) if t.ndim else t
                for name, t in state.items()
            }
        unpack(optimizer, state)


@dataclass(frozen=True, eq=False)
class Job:
    """One call of :func:`potstill.nets.many.train_many`."""

    feed: Feed
    loss: Loss | Scheduled
    device: torch.device
    precision: str
    channels_last: bool
    spans: Sequence[range]  # steps of each member
    places: Sequence[Place | None] = ()  # where each goes on, if it was left within its training
    kept: Kept | None = None
    turns: Turns = field(default_factory=Turns)
    lock: threading.Lock = field(default_factory=threading.Lock)  # of callbacks and of `kept`
    told: set[str] = field(default_factory=set)  # warnings

    def descend(self, group: Lockstep) -> Generator[None, None, None]:
        """Train some members, which have one span, yielding after each step.

        Closed at a yield, it writes down where it stands.
        """
        how, members, span = self.feed.training, group.members, self.spans[group.members[0]]
        steps = self.feed.steps
        passed = how.milestones_before(max(0, span.start - 1) // steps)
        optimizer = how.optimizer_for(group.parameters)
        group.resume(optimizer, [self.places[member] for member in members if self.places])
        sharp = how.sharpness if how.sharpness and how.sharpness.rho > 0 else None
        ascent = Ascent(sharp, group.parameters, len(members)) if sharp else None
        keeper = self.kept(members) if self.kept else None
        bound = MaxNorm(group.tensors["classifier.weight"], how.max_norm)
        average = Average(optimizer, how.ema)
        for step in span:
            epoch, place = divmod(step, steps)
            if not place or step == span.start:
                if how.reset_momentum and how.milestones_before(epoch) > passed:
                    passed = how.milestones_before(epoch)
                    optimizer = how.optimizer_for(group.parameters)
                    average.move(optimizer)
                for options in optimizer.param_groups:
                    options["lr"] = how.lr_at(epoch)
                group.loss = loss_at(self.loss, epoch / how.epochs)
                orders = torch.stack([self.feed.order(member, epoch) for member in members])
                batches = orders.split(how.batch, dim=1)
                seen = torch.zeros(len(members), device=self.device)
            drawn = map(self.feed.batch, members, [step] * len(members), batches[place])
            x, targets = (torch.stack(parts) for parts in zip(*drawn, strict=True))
            seen += self.gradients(group, x, targets, ascent)
            optimizer.step()
            bound.project_()
            average.follow_()
            if place == steps - 1:
                self.check(members, seen, epoch)
                with average.shown(stay=epoch == how.epochs - 1):
                    group.after(epoch)
            if keeper and keeper.due:
                self.check(members, seen, epoch)
                self.keep(group, keeper, optimizer, step + 1, leaving=False)
            try:
                yield
            except GeneratorExit:
                if keeper and seen.isfinite().all():
                    self.keep(group, keeper, optimizer, step + 1, leaving=True)
                raise

    def keep(
        self, group: Lockstep, keeper: MembersKeeper, optimizer: torch.optim.Optimizer, step: int,
        leaving: bool,
    ) -> None:  # fmt: skip
        """Write down that ``step`` steps are done, unless those were all."""
        if step == self.spans[group.members[0]].stop:
            return
        states, pieces = group.states(optimizer), (group.networks, group.images)
        with self.lock:
            keeper.put(states, step, self.feed.steps, pieces, leaving)

    def gradients(
        self, group: Lockstep, x: Tensor, targets: Tensor, ascent: Ascent | None
    ) -> Tensor:
        """Leave a step's gradients in the parameters; return each member's loss (k,).

        Raises:
            InputError: not even the smallest part fits into memory.
        """
        while True:
            allowed = self.turns.limit
            try:
                with self.turns:
                    return self._gradients(group, x, targets, ascent)
            except MEMORY_ERRORS as error:
                if not out_of_memory(error):
                    raise
                self._less(group, x.shape[1], allowed, error)
            if ascent is not None:
                ascent.back()

    def _gradients(
        self, group: Lockstep, x: Tensor, targets: Tensor, ascent: Ascent | None
    ) -> Tensor:
        for parameter in group.parameters:
            parameter.grad = None
        if group.see is not None:
            with self.autocast():
                x = _joined([
                    _joined([group.see(x[own, part], own) for part in _parts(group, x)], 1)
                    for own in cuts(len(x), group.networks)
                ], 0)  # fmt: skip
        losses = self.slope(group, x, targets)
        if ascent is not None:
            ascent.up()
            self.slope(group, x, targets)
            ascent.down()
        return losses

    def slope(self, group: Lockstep, x: Tensor, targets: Tensor) -> Tensor:
        """Add gradients to those of the parameters; return each member's loss (k,)."""
        losses = []
        for own in cuts(len(x), group.networks):
            parts = []
            for part in _parts(group, x):
                with torch.enable_grad():
                    with self.autocast():
                        logits = group.forward(x[own, part], own)
                    aims = targets[own, part].flatten(0, 1)
                    values = group.loss(logits.flatten(0, 1).to(self.feed.dtype), aims)
                    means = values.view(len(logits), -1).mean(1)
                    if logits.shape[1] < x.shape[1]:
                        means = means * (logits.shape[1] / x.shape[1])
                    means.sum().backward()
                parts.append(means.detach())
            losses.append(sum(parts[1:], parts[0]))
        return _joined(losses, 0)

    def _less(self, group: Lockstep, batch: int, allowed: int, error: BaseException) -> None:
        """Have less in memory from now on: networks at a time, then images of each.

        Raises:
            InputError: there is nothing left to cut.
        """
        networks, images = min(group.networks, len(group.members)), min(group.images, batch)
        if self.turns.fewer(allowed):
            self._tell(self.turns.limit, "network")
        elif networks > 1:
            group.networks = -(-networks // 2)
            self._tell(group.networks, "network")
        elif group.whole or images == 1:
            why = "batch norm, which needs whole batches" if group.whole else "one image at a time"
            raise InputError(
                f"memory does not suffice for training one network on {images} of its {batch} "
                f"images per step ({why}); use "
                + ("instance norm ('-in'), smaller batches, " if group.whole else "")
                + "a narrower network, smaller images or a device with more memory"
            ) from error
        else:
            group.images = -(-images // 2)
            self._tell(group.images, "image")

    def _tell(self, count: int, what: str) -> None:
        """Warn once of each."""
        with self.lock:
            how = f"{count} {what} at a time" if count == 1 else f"{count} {what}s at a time"
            if how not in self.told:
                logger.warning("out of memory; going on with %s", how)
            self.told.add(how)

    def autocast(self) -> torch.autocast:
        """The context of a network's pass."""
        return torch.autocast("cuda", torch.bfloat16, enabled=self.precision == "bf16")

    def check(self, members: Sequence[int], seen: Tensor, epoch: int) -> None:
        """Stop at a loss that is not finite; seldom, for a look waits for the GPU."""
        for member, finite in zip(members, seen.isfinite().tolist(), strict=True):
            if not finite:
                raise DivergedError(
                    f"the loss of network {member} became NaN or infinite in epoch {epoch + 1} of "
                    f"{self.feed.training.epochs}; use a smaller lr than {self.feed.training.lr}"
                )


def _parts(group: Lockstep, x: Tensor) -> list[slice]:
    return cuts(x.shape[1], group.images)


def _joined(parts: Sequence[Tensor], dim: int) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat([*parts], dim)
