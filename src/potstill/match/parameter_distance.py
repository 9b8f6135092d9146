"""How far a student lands from an expert, and how that changes with the images (MTT eq. 2).

A student starts where an expert stood, takes N steps of plain gradient descent on the synthetic
images, θ_{i+1} = θ_i - η g_i with g_i the gradient of the mean loss at step i, and should arrive
where the expert stood M epochs later:

    ‖m (θ_N - θ*)‖² / ‖m (θ_0 - θ*)‖²,        m = 1 on the matched parameters, 0 elsewhere.

EDF (CVPR 2025) also has m = 0 where θ_N and θ* differ least: those say what all images share.

Three gradients. "unroll" keeps the graph of all N steps (MTT, CVPR 2022). "exact" gives the same
numbers in the memory of one step: it walks back from a_N = ∂/∂θ_N, building one g_i at a time,

    ∂/∂x_i = -η ∂⟨a_{i+1}, g_i⟩/∂x_i,   ∂/∂η = -Σ ⟨a_{i+1}, g_i⟩,
    a_i = a_{i+1} - η ∂⟨a_{i+1}, g_i⟩/∂θ_i.

"tesla" holds every θ_i constant, so that a_i = a_N throughout (TESLA, ICML 2023, and LAD): not the
gradient of the distance unless N = 1, but close to it where η N is small.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from potstill.data.augment import DSA
from potstill.losses import Loss, cross_entropy
from potstill.match.rollout import (
    Forward,
    Link,
    Params,
    Student,
    StudentStep,
    check_steps,
    far_apart,
    known,
    squared_distance,
    start_distance,
)
from potstill.run import InputError, nearest

__all__ = ["GRADIENTS", "Forward", "StudentStep", "check_gradient", "trajectory_distance"]

GRADIENTS = ("exact", "tesla", "unroll")


def trajectory_distance(
    x: Tensor,
    targets: Tensor,
    lr: Tensor,
    *,
    forward: Forward,
    start: Mapping[str, Tensor],
    target: Mapping[str, Tensor],
    steps: Sequence[StudentStep],
    loss: Loss = cross_entropy,
    dsa: DSA | None = None,
    matched: Collection[str] | None = None,
    drop: float = 0.0,
    gradient: str = "exact",
    chunk: int | None = None,
    keep_bytes: int = 0,
) -> Tensor:
    """Return the normalised squared distance between a student's and an expert's arrival.

    A scalar, differentiable once in ``x``, ``targets`` and ``lr``. "exact" and "tesla" compute the
    gradients together with the value, so that little is left for ``backward`` to do.

    Args:
        x: synthetic images (n, c, h, w) as the network takes them.
        targets: soft labels (n, K), whatever numbers ``loss`` takes.
        lr: the student's step size η, a scalar.
        forward: parameters and images (b, c, h, w) to logits (b, K), each image by itself.
        start: θ_0 by name; all of it is trained.
        target: θ* by name, at least the matched ones.
        steps: what the student sees, step by step.
        loss: logits and targets to values (b,), see :mod:`potstill.losses`.
        dsa: applies the draws of ``steps``.
        matched: names that are compared; None = all of ``start``.
        drop: share of all matched values, those that differ least at the end, that is left out of
            both distances; from 0 to below 1.
        gradient: "exact", "tesla" or "unroll".
        chunk: images whose graph is held at a time (None: the batch); the mean stays that of the
            batch.
        keep_bytes: memory for graphs of the last steps, which then are not computed twice.

    Raises:
        InputError: an argument that cannot be used, or an expert that did not move.
    """
    check_steps(x, targets, lr, steps, dsa)
    check_gradient(gradient, chunk, keep_bytes)
    origin = {name: value.detach() for name, value in start.items()}
    goal = {name: target[name].detach() for name in _names(start, target, matched)}
    scale = start_distance(origin, goal)
    wanted = [torch.is_grad_enabled() and value.requires_grad for value in (x, targets, lr)]
    if gradient == "unroll" and any(wanted):
        student = Student(x, targets, lr, forward, loss, dsa, chunk)
        end = student.unroll({n: value.requires_grad_() for n, value in origin.items()}, steps)
        kept = far_apart(end, goal, drop) if drop else None
        scale = scale if kept is None else start_distance(start, goal, kept)
        return squared_distance(end, goal, kept) / scale
    student = Student(x.detach(), targets.detach(), lr.detach(), forward, loss, dsa, chunk)
    walk = _Walk(student, steps, wanted, gradient == "exact")
    end = walk.there(origin, keep_bytes)
    kept = far_apart(end, goal, drop) if drop else None
    scale = scale if kept is None else start_distance(start, goal, kept)
    value = squared_distance(end, goal, kept) / scale
    if not any(wanted):
        return value
    adjoint = {name: (end[name] - there) * (2 / scale) for name, there in goal.items()}
    if kept is not None:
        adjoint = {name: slope * kept[name] for name, slope in adjoint.items()}
    return known(value, walk.back(adjoint), (x, targets, lr))


@dataclass(eq=False)
class _Walk:
    """The steps of a student, and what the way back needs of them."""

    student: Student
    steps: Sequence[StudentStep]
    wanted: Sequence[bool]  # gradients in x, targets and lr
    exact: bool  # whether places depend on what was before, too
    stations: list[Params] = field(default_factory=list)  # θ_0 ... θ_{N-1}, if any is wanted
    links: dict[int, list[Link]] = field(default_factory=dict)  # graphs of the last steps

    def there(self, theta: Params, keep_bytes: int) -> Params:
        """Return the end; only the last steps, which fit into ``keep_bytes``, have graphs."""
        # what graphs will be differentiated in; empty if there is nothing to differentiate
        ask = (*self.wanted[:2], self.exact) if any(self.wanted) else ()
        self.stations = _places(theta, len(self.steps) if ask else 0)
        student = self.student
        first = student.kept_from(self.steps, theta, ask, keep_bytes)
        for i, step in enumerate(self.steps):
            if ask:
                for name, place in self.stations[i].items():
                    place.copy_(theta[name])
            if i < first:
                gradient = student.gradient(theta, step)
            else:
                links = [student.link(theta, step, p, theta, ask) for p in student.parts(step)]
                self.links[i] = links
                slopes = [{name: g.detach() for name, g in link.gradient.items()} for link in links]
                gradient = {name: torch.stack([s[name] for s in slopes]).sum(0) for name in theta}
            theta = student.moved(theta, gradient)
        return theta

    def back(self, adjoint: Params) -> list[Tensor | None]:
        """Return the gradients in x, targets and lr, given the slope ``adjoint`` at the end."""
        student, wanted = self.student, self.wanted
        x = torch.zeros_like(student.x) if wanted[0] else None
        targets = torch.zeros_like(student.targets) if wanted[1] else None
        lr = torch.zeros_like(student.lr)
        for i, step in reversed([*enumerate(self.steps)]):
            theta, links = self.stations.pop(), self.links.pop(i, [])
            ask = (wanted[0], wanted[1], self.exact and i > 0)
            change: Params = {}
            for part in student.parts(step):
                link = links.pop(0) if links else student.link(theta, step, part, adjoint, ask)
                s, dx, dtargets, dtheta = link.pull(adjoint, ask)
                del link  # before the next one is built
                lr -= s.to(lr)
                if x is not None:
                    part.put(x, -student.lr * dx)
                if targets is not None:
                    part.put(targets, -student.lr * dtargets)
                for name, slope in (dtheta or {}).items():
                    change[name] = change[name] + slope if name in change else slope
            for name, slope in change.items():
                moved = student.lr * slope
                adjoint[name] = adjoint[name] - moved if name in adjoint else -moved
        return [x, targets, lr if wanted[2] else None]


def _places(theta: Params, count: int) -> list[Params]:
    """Return room for ``count`` stations in one block, which does not cut the heap to pieces."""
    sizes = [value.numel() for value in theta.values()]
    block = next(iter(theta.values())).new_empty(count, sum(sizes))
    shapes = {name: value.shape for name, value in theta.items()}
    return [
        {name: part.view(shape) for part, (name, shape) in zip(row, shapes.items(), strict=True)}
        for row in (values.split(sizes) for values in block)
    ]


def _names(
    start: Mapping[str, Tensor], target: Mapping[str, Tensor], matched: Collection[str] | None
) -> list[str]:
    """Return the names to compare, in the order of ``start``."""
    names = [name for name in start if matched is None or name in matched]
    unknown = sorted(set(matched or ()) - set(start))
    if unknown or not names:
        raise InputError(f"matched names {unknown or 'nothing'}; choose among {', '.join(start)}")
    for name in names:
        if name not in target or target[name].shape != start[name].shape:
            raise InputError(
                f"target holds no {name!r} of shape {tuple(start[name].shape)}; give parameters of "
                "the same network as start"
            )
    return names


def check_gradient(gradient: str, chunk: int | None, keep_bytes: int) -> None:
    """Refuse ways of differentiating that do not exist.

    Raises:
        InputError: names the argument.
    """
    if gradient not in GRADIENTS:
        raise InputError(f"gradient is {gradient!r}{nearest(gradient, GRADIENTS)}")
    if chunk is not None and chunk < 1:
        raise InputError(f"chunk is {chunk}; use a positive number of images or None")
    if keep_bytes < 0:
        raise InputError(f"keep_bytes is {keep_bytes}; use 0 or a number of bytes")
