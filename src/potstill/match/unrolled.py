"""What real images say of a student, as a function of the images that trained it.

A student begins at θ_0 and takes N steps on the synthetic images S,

    (θ, o)_{i+1} = U((θ, o)_i, g_i, η_i),      g_i = ∂/∂θ of its mean loss on S at θ_i,

with U an optimiser and o what it remembers (:class:`Inner`). Real images judge θ_N by a loss L.
Its gradient in S, in targets and in the step sizes η is computed by walking back: the adjoint of
(θ, o) goes through U, which is elementwise, and then through one g_i at a time, whose graph is
built for it. The graph of one step is there whatever N is, beside θ, o and g of each step.

Steps before ``first`` are constants, as they are in truncated back-propagation through time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated

import torch
from torch import Tensor

from potstill.match.rollout import Link, Params, Student, StudentStep, known
from potstill.run import InputError
from potstill.run.fields import Checked, Decay, OneOf

__all__ = ["Inner", "Judge", "Unrolled"]

Judge = Callable[[Params], Iterator[Tensor]]  # parameters -> shares of a loss, each with its graph
_BETAS, _EPSILON = (0.9, 0.999), 1e-8  # of Adam


@dataclass(frozen=True)
class Inner(Checked):
    """The optimiser of a student: "sgd" with momentum, or "adam" (0.9, 0.999).

    Adam divides by √(v + ε²) and not by √v + ε, whose slope at v = 0 is infinite.
    """

    kind: Annotated[str, OneOf("sgd", "adam")] = "sgd"
    momentum: Decay = 0.0  # of sgd

    def begin(self, theta: Tensor) -> Tensor:
        """Return the state before the first step, (1 + k, P): parameters and k memories of 0."""
        memories = 2 if self.kind == "adam" else int(self.momentum > 0)
        return torch.cat([theta[None], theta.new_zeros(memories, len(theta))])

    def step(self, state: Tensor, gradient: Tensor, lr: Tensor, number: int) -> Tensor:
        """Return the state after step ``number``, counted from 1; differentiable in all tensors."""
        if self.kind == "adam":
            theta, mean, square = state
            first, second = _BETAS
            mean = first * mean + (1 - first) * gradient
            square = second * square + (1 - second) * gradient.square()
            root = (square / (1 - second**number) + _EPSILON**2).sqrt()
            moved = theta - lr * (mean / (1 - first**number)) / root
            return torch.stack([moved, mean, square])
        if not self.momentum:
            return state - lr * gradient
        memory = self.momentum * state[1] + gradient
        return torch.stack([state[0] - lr * memory, memory])


@dataclass(eq=False)
class Unrolled:
    """A student's N steps and the way back through the last of them.

    Args:
        student: images, targets and network; its own step size is not used.
        steps: what it sees in each. rates: η (N,). inner: its optimiser.
        first: number of steps that are constants.
        keep_bytes: memory for graphs of the last steps, which then are not built twice.

    Raises:
        InputError: there is no step, or not one step size for each, or none that moves anything.
    """

    student: Student
    steps: Sequence[StudentStep]
    rates: Tensor
    inner: Inner = field(default_factory=Inner)
    first: int = 0
    keep_bytes: int = 0

    def __post_init__(self) -> None:
        count = len(self.steps)
        if self.rates.shape != (count,) or not 0 <= self.first < count:
            raise InputError(
                f"rates have shape {tuple(self.rates.shape)} and first is {self.first} for {count} "
                "steps; give one step size for each, and fewer constant steps than there are"
            )

    def norms(self, theta: Mapping[str, Tensor]) -> Tensor:
        """Return the length of each step's gradient (N,) of a student that begins at ``theta``."""
        walk = self._detached()._walk(dict(theta), (), {}, len(self.steps))
        return torch.stack([gradient.norm() for _, gradient in walk])

    def loss(self, theta: Mapping[str, Tensor], judge: Judge) -> Tensor:
        """Return what ``judge`` says of a student that begins at ``theta``, a scalar.

        Differentiable once in the student's images and targets and in the step sizes: gradients
        are computed with the value.

        Args:
            theta: θ_0 by name. judge: shares of L, each differentiated before the next is asked.
        """
        inputs = (self.student.x, self.student.targets, self.rates)
        wanted = [torch.is_grad_enabled() and value.requires_grad for value in inputs]
        origin = {name: value.detach() for name, value in theta.items()}
        walk, within, ask = self._detached(), len(self.steps), (*wanted[:2], True)
        kept = within
        if any(wanted):
            within = self.first
            kept = walk.student.kept_from(self.steps, origin, ask, self.keep_bytes)
        stations: list[tuple[Tensor, Tensor]] = []
        links: dict[int, list[Link]] = {}
        for i, (state, gradient) in enumerate(walk._walk(origin, ask, links, max(within, kept))):
            if i >= within:
                stations.append((state, gradient))
        end = self.inner.step(state, gradient, walk.rates[-1], len(self.steps))
        value, slope = _judged(_named(end[0], origin), judge, any(wanted))
        if not any(wanted):
            return value
        adjoint = torch.zeros_like(end)
        adjoint[0] = slope
        return known(value, walk._back(origin, adjoint, stations, links, wanted), inputs)

    def _detached(self) -> Unrolled:
        """The same without what it is differentiated in."""
        one = self.student
        student = Student(
            one.x.detach(), one.targets.detach(), one.lr, one.forward, one.loss, one.dsa, one.chunk
        )
        return Unrolled(student, self.steps, self.rates.detach(), self.inner, self.first)

    def _walk(
        self,
        theta: Params,
        ask: Sequence[bool],
        links: dict[int, list[Link]],
        kept: int,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield state and gradient of each step; graphs from ``kept`` on stay in ``links``."""
        student, state = self.student, self.inner.begin(_flat(theta))
        for i, step in enumerate(self.steps):
            place = _named(state[0], theta)
            if i < kept:
                gradient = _flat(student.gradient(place, step))
            else:
                links[i] = [student.link(place, step, p, place, ask) for p in student.parts(step)]
                parts = [_flat(link.gradient).detach() for link in links[i]]
                gradient = torch.stack(parts).sum(0)
            yield state, gradient
            state = self.inner.step(state, gradient, self.rates[i], i + 1)

    def _back(
        self,
        theta: Params,
        adjoint: Tensor,
        stations: list[tuple[Tensor, Tensor]],
        links: dict[int, list[Link]],
        wanted: Sequence[bool],
    ) -> list[Tensor | None]:
        """Return the gradients in images, targets and step sizes, given that at the end."""
        student, rates = self.student, torch.zeros_like(self.rates)
        x, targets = torch.zeros_like(student.x), torch.zeros_like(student.targets)
        for i in reversed(range(self.first, len(self.steps))):
            state, gradient = (value.requires_grad_() for value in stations.pop())
            lr = self.rates[i].clone().requires_grad_()
            with torch.enable_grad():
                moved = self.inner.step(state, gradient, lr, i + 1)
            adjoint, pull, rates[i] = torch.autograd.grad(moved, (state, gradient, lr), adjoint)
            place, there = _named(state[0].detach(), theta), links.pop(i, [])
            ask = (wanted[0], wanted[1], i > self.first)
            for part in student.parts(self.steps[i]):
                link = (
                    there.pop(0) if there
                    else student.link(place, self.steps[i], part, place, ask)
                )  # fmt: skip
                _, dx, dtargets, dtheta = link.pull(_named(pull, theta), ask)
                del link  # before the next one is built
                if dx is not None:
                    part.put(x, dx)
                if dtargets is not None:
                    part.put(targets, dtargets)
                if dtheta is not None:
                    adjoint[0] += _flat(dtheta)
        found = (x, targets, rates)
        return [one if want else None for one, want in zip(found, wanted, strict=True)]


def _judged(theta: Params, judge: Judge, wanted: bool) -> tuple[Tensor, Tensor]:
    """A loss of some shares, and its slope in the parameters (P,), one share after the other."""
    leaves = {name: value.detach().requires_grad_(wanted) for name, value in theta.items()}
    total, slope = torch.zeros(()), torch.zeros(())
    with torch.set_grad_enabled(wanted):
        for share in judge(leaves):
            if wanted:
                own = torch.autograd.grad(share, list(leaves.values()), materialize_grads=True)
                slope = slope.to(own[0]) + _flat(dict(zip(leaves, own, strict=True)))
            total = total.to(share) + share.detach()
    return total, slope


def _flat(theta: Mapping[str, Tensor]) -> Tensor:
    """One row of all parameters, (P,)."""
    return torch.cat([value.flatten() for value in theta.values()])


def _named(row: Tensor, like: Mapping[str, Tensor]) -> Params:
    """The parameters in a row (P,), as views of it."""
    parts = row.split([value.numel() for value in like.values()])
    return {n: part.view(like[n].shape) for n, part in zip(like, parts, strict=True)}
