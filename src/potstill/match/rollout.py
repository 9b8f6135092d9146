"""Students that descend on synthetic images, and graphs of single steps of theirs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from potstill.data.augment import DSA
from potstill.losses import Loss
from potstill.match.curvature import Curvature
from potstill.run import InputError
from potstill.run.memory import saved_bytes

__all__ = [
    "Forward",
    "Link",
    "Params",
    "Student",
    "StudentStep",
    "check_steps",
    "far_apart",
    "known",
    "squared_distance",
    "start_distance",
]

Params = dict[str, Tensor]
Forward = Callable[[Mapping[str, Tensor], Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class StudentStep:
    """What a student sees in one step."""

    rows: Tensor | None  # positions (b,) of the synthetic images; None = all, in order
    augment: dict[str, Tensor]  # a draw of :class:`potstill.data.DSA` for them; {} = none

    def count(self, n: int) -> int:
        """Return how many of ``n`` synthetic images it sees, repetitions included."""
        return n if self.rows is None else len(self.rows)

    def split(self, n: int, chunk: int | None) -> list[StudentStep]:
        """Return the same step in parts of at most ``chunk`` images (None: one part)."""
        count = self.count(n)
        if chunk is None or count <= chunk:
            return [self]
        rows = torch.arange(n) if self.rows is None else self.rows
        parts = []
        for first in range(0, count, chunk):
            here = slice(first, first + chunk)
            cut = {op: v if len(v) == 1 else v[here] for op, v in self.augment.items()}
            parts.append(StudentStep(rows[here], cut))
        return parts

    def take(self, values: Tensor) -> Tensor:
        """Return the rows of ``values`` (n, ...) that it sees."""
        return values if self.rows is None else values[self.rows.to(values.device)]

    def put(self, total: Tensor, part: Tensor) -> None:
        """Add ``part`` to the rows of ``total`` (n, ...) that it sees, each as often as seen."""
        if self.rows is None:
            total += part
        else:
            total.index_add_(0, self.rows.to(total.device), part)

    def augmented(self, x: Tensor, dsa: DSA | None) -> Tensor:
        """Return the images ``x`` it has taken as the network sees them."""
        return x if dsa is None or not self.augment else dsa.apply(x, self.augment)


@dataclass
class Link:
    """The graph from images, targets and parameters to the gradient of a part of a step."""

    x: Tensor
    targets: Tensor
    theta: Params
    gradient: Params

    def pull(self, adjoint: Params, wanted: Sequence[bool]) -> tuple[Tensor, Any, Any, Any]:
        """Return s = ⟨adjoint, gradient⟩, ∂s/∂x, ∂s/∂targets and ∂s/∂θ, None where not wanted."""
        s = torch.stack([(a * self.gradient[name]).sum() for name, a in adjoint.items()]).sum()
        groups = ([self.x], [self.targets], list(self.theta.values()))
        leaves = [
            leaf for group, want in zip(groups, wanted, strict=True) if want for leaf in group
        ]
        slopes = iter(torch.autograd.grad(s, leaves, materialize_grads=True) if leaves else ())
        x, targets = (next(slopes) if want else None for want in wanted[:2])
        theta = dict(zip(self.theta, slopes, strict=True)) if wanted[2] else None
        return s.detach(), x, targets, theta


@dataclass(frozen=True, eq=False)
class Student:
    """Plain gradient descent of step size ``lr`` on images ``x`` (n, ...), targets (n, K)."""

    x: Tensor
    targets: Tensor
    lr: Tensor
    forward: Forward
    loss: Loss
    dsa: DSA | None
    chunk: int | None

    def parts(self, step: StudentStep) -> list[StudentStep]:
        """Return what is computed at a time."""
        return step.split(len(self.x), self.chunk)

    def gradient(self, theta: Params, step: StudentStep, graph: bool = False) -> Params:
        """Return the gradient of the mean loss, with its graph or without."""
        leaves = theta if graph else _leaves(theta)
        total: Sequence[Tensor] = ()
        for part in self.parts(step):
            x, targets = part.take(self.x), part.take(self.targets)
            value = self._share(leaves, part, x, targets, step)
            slopes = _slopes(value, leaves.values(), graph)
            total = [a + b for a, b in zip(total, slopes, strict=True)] if total else slopes
        return dict(zip(theta, total, strict=True))

    def link(
        self,
        theta: Params,
        step: StudentStep,
        part: StudentStep,
        names: Iterable[str],
        wanted: Sequence[bool],
    ) -> Link:
        """Build the graph of a part's share of the step's gradient with respect to ``names``.

        ``wanted``: whether it will be differentiated in images, targets and parameters.
        """
        x = part.take(self.x).detach().requires_grad_(wanted[0])
        targets = part.take(self.targets).detach().requires_grad_(wanted[1])
        leaves, names = _leaves(theta), list(names)
        fast = partial(Curvature, parameters=wanted[2]) if any(wanted) else None
        value = self._share(leaves, part, x, targets, step, fast)
        slopes = _slopes(value, [leaves[name] for name in names], any(wanted))
        return Link(x, targets, leaves, dict(zip(names, slopes, strict=True)))

    def _share(
        self,
        theta: Params,
        part: StudentStep,
        x: Tensor,
        targets: Tensor,
        step: StudentStep,
        within: Callable[[Tensor], AbstractContextManager[Any]] | None = None,
    ) -> Tensor:
        """What a part adds to the mean loss of the step."""
        with torch.enable_grad():
            seen = part.augmented(x, self.dsa)
            with within(seen) if within else nullcontext():
                logits = self.forward(theta, seen)
            return self.loss(logits, targets).sum() / step.count(len(self.x))

    def kept_from(
        self, steps: Sequence[StudentStep], theta: Params, wanted: Sequence[bool], keep_bytes: int
    ) -> int:
        """Return the step from which on all graphs fit into ``keep_bytes``, by one measured."""
        first, n = len(steps), len(self.x)
        if not keep_bytes or not any(wanted):
            return first
        part = self.parts(steps[0])[0]
        _, held = saved_bytes(lambda: self.link(theta, steps[0], part, theta, wanted))
        room = keep_bytes * part.count(n) / held  # in images
        while first and room >= steps[first - 1].count(n):
            first -= 1
            room -= steps[first].count(n)
        return first

    def moved(self, theta: Params, gradient: Params) -> Params:
        """Return where a step leads."""
        return {name: value - self.lr * gradient[name] for name, value in theta.items()}

    def unroll(self, theta: Params, steps: Sequence[StudentStep]) -> Params:
        """Return where the steps lead, with the graph of the whole way."""
        for step in steps:
            theta = self.moved(theta, self.gradient(theta, step, graph=True))
        return theta


def _leaves(theta: Mapping[str, Tensor]) -> Params:
    return {name: value.detach().requires_grad_() for name, value in theta.items()}


def _slopes(value: Tensor, leaves: Iterable[Tensor], graph: bool) -> Sequence[Tensor]:
    """First derivatives; zero for parameters that the loss does not see."""
    return torch.autograd.grad(value, list(leaves), create_graph=graph, materialize_grads=True)


def far_apart(a: Mapping[str, Tensor], b: Mapping[str, Tensor], drop: float) -> Params | None:
    """Return masks by the names of ``b``: 0 for the share ``drop`` of all values that differ least.

    1 for the others; of equal differences the earlier is dropped first. None if nothing is (EDF,
    CVPR 2025, sec. 3.3: common pattern dropout, over all matched parameters together).
    """
    gaps = [(a[name].detach() - there).square().flatten() for name, there in b.items()]
    order = torch.cat(gaps).argsort(stable=True)
    dropped = int(drop * len(order))
    if not dropped:
        return None
    kept = torch.ones(len(order), dtype=gaps[0].dtype, device=order.device)
    kept[order[:dropped]] = 0
    parts = zip(b.items(), kept.split([len(gap) for gap in gaps]), strict=True)
    return {name: part.view_as(there) for (name, there), part in parts}


def squared_distance(
    a: Mapping[str, Tensor], b: Mapping[str, Tensor], kept: Mapping[str, Tensor] | None = None
) -> Tensor:
    """Return Σ (a - b)² over the names of ``b``, where ``kept`` is 1."""
    gaps = {name: a[name] - there for name, there in b.items()}
    if kept is not None:
        gaps = {name: gap * kept[name] for name, gap in gaps.items()}
    return torch.stack([gap.square().sum() for gap in gaps.values()]).sum()


def start_distance(
    start: Mapping[str, Tensor],
    goal: Mapping[str, Tensor],
    kept: Mapping[str, Tensor] | None = None,
) -> Tensor:
    """Return the squared distance that the expert went, by which the student's is divided.

    Raises:
        InputError: the expert did not move.
    """
    scale = squared_distance(start, goal, kept)
    if not bool(scale != 0):
        raise InputError(
            "target equals start in all matched parameters; use snapshots of an expert between "
            "which it was trained"
        )
    return scale


def check_steps(
    x: Tensor, targets: Tensor, lr: Tensor, steps: Sequence[StudentStep], dsa: DSA | None
) -> None:
    """Refuse what no student can be trained with.

    Raises:
        InputError: names the argument.
    """
    if len(x) != len(targets):
        raise InputError(f"targets have {len(targets)} rows; give one for each of {len(x)} images")
    if lr.ndim:
        raise InputError(f"lr has shape {tuple(lr.shape)}; give a scalar tensor")
    if not steps or not all(step.count(len(x)) for step in steps):
        raise InputError("steps are empty or see no image; give at least one step and one image")
    if dsa is None and any(step.augment for step in steps):
        raise InputError(
            "steps hold augmentation draws but dsa is None; give the DSA that drew them"
        )


class _Known(torch.autograd.Function):
    """A value whose gradients are known already."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, gradients: Sequence[Tensor | None], *_: Tensor) -> Tensor:
        ctx.save_for_backward(*gradients)
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        gradients = (None if g is None else g * slope.to(g) for g in ctx.saved_tensors)
        return None, None, *gradients


class _HandedOut(torch.autograd.Function):
    """The same, once: the gradients become those of the inputs without a copy."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, gradients: list[Tensor], *_: Tensor) -> Tensor:
        ctx.gradients = gradients
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        own = [ctx.gradients.pop(0).mul_(slope) for _ in range(len(ctx.gradients))]
        if len(own) + 2 != len(ctx.needs_input_grad):
            raise RuntimeError("these gradients have been handed out already")
        return None, None, *own


def known(
    value: Tensor,
    gradients: Sequence[Tensor | None],
    inputs: Sequence[Tensor],
    *,
    hand_out: bool = False,
) -> Tensor:
    """Return ``value`` as a function of ``inputs`` that has these ``gradients``.

    ``hand_out``: take the list over and empty it in the one backward pass there may be, so that
    no gradient is there twice.
    """
    if hand_out:
        return _HandedOut.apply(value, gradients, *inputs)
    return _Known.apply(value, gradients, *inputs)
