"""The trajectory distance of a student whose backbone is frozen (LAD's second phase).

While only the classifier moves, the features of the synthetic images do not depend on the student's
steps. All N augmented batches therefore go through the backbone in few large passes, the student's
way is softmax regression on their features, and one backward pass takes the gradient from the
features to the images: no second derivative of the network. Value and gradients are those of
:func:`potstill.match.trajectory_distance` for a student whose backbone stands still.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from potstill.data.augment import DSA
from potstill.losses import Loss, cross_entropy
from potstill.match.curvature import Curvature
from potstill.match.parameter_distance import check_gradient
from potstill.match.rollout import (
    Params,
    StudentStep,
    check_steps,
    far_apart,
    known,
    squared_distance,
    start_distance,
)
from potstill.run import InputError
from potstill.run.machine import CPU_CHUNK
from potstill.run.memory import saved_bytes

__all__ = ["classifier_distance"]

WEIGHT, BIAS = "classifier.weight", "classifier.bias"


def classifier_distance(
    x: Tensor,
    targets: Tensor,
    lr: Tensor,
    *,
    features: Callable[[Tensor], Tensor],
    start: Mapping[str, Tensor],
    target: Mapping[str, Tensor],
    steps: Sequence[StudentStep],
    loss: Loss = cross_entropy,
    dsa: DSA | None = None,
    drop: float = 0.0,
    gradient: str = "exact",
    chunk: int | None = None,
    keep_bytes: int = 0,
) -> Tensor:
    """Return the normalised squared distance of two classifiers on one frozen backbone.

    A scalar, differentiable once in ``x``, ``targets`` and ``lr``; the gradients are computed
    together with it.

    Args:
        x: synthetic images (n, c, h, w) as the network takes them.
        targets: soft labels (n, K), whatever numbers ``loss`` takes.
        lr: the student's step size, a scalar.
        features: the backbone, images (b, c, h, w) to features (b, d), each image by itself.
        start: "classifier.weight" (K, d) and "classifier.bias" (K,) that the student starts from.
        target: the same of the expert where it should arrive.
        steps: what the student sees; steps without augmentation share one look at the images.
        loss: logits and targets to values (b,), see :mod:`potstill.losses`.
        dsa: applies the draws of ``steps``.
        drop: share of the values, those that differ least at the end, that is left out.
        gradient: "exact" ("unroll" is the same here) or "tesla".
        chunk: images in a pass through the backbone, of one step or several (None: 64 on a CPU,
            1024 on a GPU, and at least a step's).
        keep_bytes: memory for graphs of the first passes, which then are not computed twice.

    Raises:
        InputError: an argument that cannot be used, or an expert that did not move.
    """
    check_steps(x, targets, lr, steps, dsa)
    check_gradient(gradient, chunk, keep_bytes)
    origin, goal = _classifier("start", start), _classifier("target", target)
    scale = start_distance(origin, goal)
    inputs = (x, targets, lr)
    wanted = [torch.is_grad_enabled() and value.requires_grad for value in inputs]
    backbone = _Backbone(x.detach(), features, dsa, *_sights(steps, len(x)))
    if chunk is None:
        least = CPU_CHUNK if x.device.type == "cpu" else 1024
        chunk = max(least, *(step.count(len(x)) for step in steps))
    passes = backbone.forward(chunk, keep_bytes if wanted[0] else 0)
    flat = torch.cat([one.features.detach() for one in passes])
    leaves = [
        value.detach().requires_grad_(want)
        for value, want in zip((flat, targets, lr), wanted, strict=True)
    ]
    with torch.enable_grad():
        seen = backbone.of_steps(leaves[0], steps)
        end = _descend(origin, seen, leaves[1], leaves[2], steps, loss, gradient == "tesla")
        kept = far_apart(end, goal, drop) if drop else None
        scale = scale if kept is None else start_distance(start, goal, kept)
        value = squared_distance(end, goal, kept) / scale
    if not any(wanted):
        return value.detach()
    asked = [leaf for leaf in leaves if leaf.requires_grad]
    slopes = iter(torch.autograd.grad(value, asked, materialize_grads=True))
    gradients = [next(slopes) if want else None for want in wanted]
    if gradients[0] is not None:
        gradients[0] = backbone.backward(passes, gradients[0])
    return known(value.detach(), gradients, inputs)


def _classifier(argument: str, parameters: Mapping[str, Tensor]) -> Params:
    for name in (WEIGHT, BIAS):
        if name not in parameters:
            raise InputError(f"{argument} holds no {name!r}; give weight and bias of a classifier")
    return {name: parameters[name].detach() for name in (WEIGHT, BIAS)}


def _sights(steps: Sequence[StudentStep], n: int) -> tuple[list[StudentStep], bool]:
    """Return what the backbone sees, and whether all steps without augmentation share the first.

    They do unless they see fewer than all ``n`` images in sum.
    """
    plain = [step for step in steps if not step.augment]
    if sum(step.count(n) for step in plain) < n:
        return list(steps), False
    return [StudentStep(None, {}), *(step for step in steps if step.augment)], True


@dataclass
class _Pass:
    """Parts of sights that go through the backbone together."""

    parts: list[StudentStep]
    features: Tensor
    images: Tensor  # the leaf of the graph of the features, where they have one


@dataclass(frozen=True, eq=False)
class _Backbone:
    """The frozen part of a network before synthetic images ``x`` (n, c, h, w)."""

    x: Tensor
    network: Callable[[Tensor], Tensor]
    dsa: DSA | None
    sights: list[StudentStep]
    shared: bool  # whether the first sight stands for all steps without augmentation

    def forward(self, chunk: int, keep_bytes: int) -> list[_Pass]:
        """Compute the features of all sights, the first with a graph as long as it fits."""
        passes, n, held = [], len(self.x), 0.0  # bytes per image
        for parts in self._groups(chunk):
            count = sum(part.count(n) for part in parts)
            keep = keep_bytes > count * held
            one, size = saved_bytes(partial(self._pass, parts, keep))
            held = max(held, size / count)
            if size > keep_bytes:  # known only after the first
                one = _Pass(parts, one.features.detach(), one.images)
            elif keep:
                keep_bytes -= size
            passes.append(one)
        return passes

    def backward(self, passes: list[_Pass], slope: Tensor) -> Tensor:
        """Return the gradient in x from that in all features; uses ``passes`` up."""
        total = torch.zeros_like(self.x)
        for part_slope in slope.split([len(one.features) for one in passes]):
            one = passes.pop(0)
            if not one.features.requires_grad:
                one = self._pass(one.parts, graph=True)
            total += torch.autograd.grad(one.features, one.images, part_slope)[0]
        return total

    def of_steps(self, flat: Tensor, steps: Sequence[StudentStep]) -> Iterator[Tensor]:
        """Yield the features (b, d) of each step from those of all sights (m, d)."""
        n = len(self.x)
        parts = iter(flat.split([sight.count(n) for sight in self.sights]))
        all_images = next(parts) if self.shared else None
        for step in steps:
            if all_images is None or step.augment:
                yield next(parts)
            else:
                yield step.take(all_images)

    def _pass(self, parts: list[StudentStep], graph: bool) -> _Pass:
        images = self.x.detach().requires_grad_(graph)
        with torch.set_grad_enabled(graph):
            seen = torch.cat([part.augmented(part.take(images), self.dsa) for part in parts])
            with Curvature(seen, parameters=False):
                return _Pass(parts, self.network(seen), images)

    def _groups(self, chunk: int) -> Iterator[list[StudentStep]]:
        """Yield parts of consecutive sights, together at most ``chunk`` images."""
        group: list[StudentStep] = []
        room, n = chunk, len(self.x)
        for sight in self.sights:
            for part in sight.split(n, chunk):
                if part.count(n) > room:
                    yield group
                    group, room = [], chunk
                group.append(part)
                room -= part.count(n)
        yield group


def _descend(
    theta: Params,
    seen: Iterator[Tensor],
    targets: Tensor,
    lr: Tensor,
    steps: Sequence[StudentStep],
    loss: Loss,
    tesla: bool,
) -> Params:
    """Return where the classifier arrives; TESLA takes each slope at a constant place."""
    graph = targets.requires_grad or lr.requires_grad
    theta = {name: value.requires_grad_() for name, value in theta.items()}
    for step, features in zip(steps, seen, strict=True):
        here = {n: v.detach().requires_grad_() for n, v in theta.items()} if tesla else theta
        logits = F.linear(features, here[WEIGHT], here[BIAS])
        value = loss(logits, step.take(targets)).mean()
        graph = graph or features.requires_grad
        slopes = torch.autograd.grad(value, [here[WEIGHT], here[BIAS]], create_graph=graph)
        theta = {n: v - lr * g for (n, v), g in zip(theta.items(), slopes, strict=True)}
    return theta
