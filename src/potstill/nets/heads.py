"""Linear heads on frozen features, many at once, and linear maps between feature spaces.

All heads are one stacked tensor: Adam is elementwise, so each is trained exactly as if it were
alone, with its own order and its own choice of views.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from potstill.losses import Loss, cross_entropy
from potstill.nets.training import balanced_order
from potstill.run import InputError

__all__ = ["HeadTraining", "Projector", "adam_projector", "ridge_projector", "train_heads"]

Generators = Callable[[str, int, int], torch.Generator]  # (purpose, head, epoch)
Table = Tensor | Callable[[int], Tensor]


@dataclass(frozen=True, kw_only=True)
class HeadTraining:
    """How linear heads are trained: Adam, cosine to zero, no weight decay (LGM's evaluation).

    Raises:
        InputError: a field is out of range.
    """

    epochs: int
    batch: int = 100  # images per step, or all if there are fewer
    lr: float = 1e-3  # for 256 images a step; scales with the batch
    init_std: float = 0.01  # of the weights; biases start at 0
    sampling: str = "shuffled"  # or "balanced": every class equally often

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch < 1 or not 0 < self.lr < math.inf:
            raise InputError(
                f"epochs is {self.epochs}, batch is {self.batch} and lr is {self.lr}; use at least "
                "1, at least 1 and a positive number"
            )
        if self.sampling not in ("shuffled", "balanced"):
            raise InputError(f"sampling is {self.sampling!r}; use 'shuffled' or 'balanced'")

    @property
    def facts(self) -> dict[str, Any]:
        """Every field, for keys and hashes."""
        return asdict(self)


def train_heads(
    table: Table,
    targets: Tensor,
    classes: int,
    training: HeadTraining,
    *,
    heads: int,
    generators: Generators,
    loss: Loss = cross_entropy,
    weights: Tensor | None = None,
    teacher: Tensor | None = None,
    distil: tuple[float, float] = (0.5, 4.0),
) -> tuple[Tensor, Tensor]:
    """Train ``heads`` linear classifiers; return weights (R, C, d) and biases (R, C).

    Args:
        table: features (V, n, d) of V stored views, of which each head draws one per image and
            epoch; or a function of the epoch to (R, n, d), fresh views for every head.
        targets: (n,) int64, or (n, C) probabilities.
        loss: logits and targets to values per image.
        weights: (n,) of the images, relative.
        teacher: logits (V, n, C) of a teacher on the same stored views; the loss is then
            α T² KL(teacher || head) + (1 - α) ``loss``, with ``distil`` = (α, T).
        generators: purposes are "weights", "order" and "views".

    Raises:
        InputError: shapes that do not fit.
    """
    fresh = callable(table)
    first = table(0) if callable(table) else table
    views, n, dim = first.shape
    if len(targets) != n or (teacher is not None and teacher.shape[:2] != (views, n)):
        raise InputError(f"targets has {len(targets)} rows for {n} images; give one for each")
    device = first.device
    start = [
        torch.randn(classes, dim, generator=generators("weights", k, 0)) * training.init_std
        for k in range(heads)
    ]
    weight = torch.stack(start).to(device).requires_grad_(True)
    bias = torch.zeros(heads, classes, device=device, requires_grad=True)
    size = min(training.batch, n)
    steps, rate = -(-n // size), training.lr * size / 256
    adam = torch.optim.Adam([weight, bias], lr=rate)
    targets = targets.to(device)
    labels = (targets.argmax(1) if targets.ndim == 2 else targets).cpu()
    groups = [(labels == label).nonzero().flatten() for label in labels.unique()]
    share = None if weights is None else (weights / weights.mean()).to(device)
    total = steps * training.epochs
    which = torch.arange(heads, device=device)[:, None]
    for epoch in range(training.epochs):
        rows = torch.stack(
            [_order(n, groups, training, generators("order", k, epoch)) for k in range(heads)]
        ).to(device)
        seen = first if epoch == 0 or not callable(table) else table(epoch)
        if fresh:
            view = which.expand(heads, n)
        else:
            drawn = [
                torch.randint(views, (n,), generator=generators("views", k, epoch))
                for k in range(heads)
            ]
            view = torch.stack(drawn).to(device)
        for step in range(steps):
            part = rows[:, step * size : (step + 1) * size]
            own = view.gather(1, part)
            x = seen[own, part].float()
            logits = torch.baddbmm(bias[:, None], x, weight.transpose(1, 2))
            values = loss(logits.flatten(0, 1), targets[part].flatten(0, 1)).view(part.shape)
            if teacher is not None:
                values = _mixed(logits, teacher[own, part].float(), values, *distil)
            if share is not None:
                values = values * share[part]
            adam.param_groups[0]["lr"] = (
                rate * 0.5 * (1 + math.cos(math.pi * (epoch * steps + step) / total))
            )
            adam.zero_grad(set_to_none=True)
            values.mean(1).sum().backward()
            adam.step()
    return weight.detach(), bias.detach()


def _order(
    n: int, groups: list[Tensor], training: HeadTraining, generator: torch.Generator
) -> Tensor:
    if training.sampling == "balanced":
        return balanced_order(groups, n, generator)
    return torch.randperm(n, generator=generator)


def _mixed(logits: Tensor, teacher: Tensor, hard: Tensor, alpha: float, heat: float) -> Tensor:
    """α T² KL(softmax(teacher / T) || softmax(logits / T)) + (1 - α) hard, per image."""
    goal = (teacher / heat).log_softmax(-1)
    own = (logits / heat).log_softmax(-1)
    gap = (goal.exp() * (goal - own)).sum(-1)
    return alpha * heat**2 * gap + (1 - alpha) * hard


@dataclass(frozen=True, eq=False)
class Projector:
    """A linear map with bias from one feature space to another: z -> T z + t."""

    weight: Tensor  # (d_to, d_from)
    bias: Tensor  # (d_to,)
    about: dict[str, Any]  # how it was fitted

    def __call__(self, z: Tensor) -> Tensor:
        """Map (n, d_from) to (n, d_to)."""
        return z @ self.weight.T.to(z) + self.bias.to(z)

    @property
    def nbytes(self) -> int:
        """Bytes, if it has to be sent."""
        return self.weight.nbytes + self.bias.nbytes


_RIDGES = tuple(10.0**power for power in range(-5, 3))  # times the mean eigenvalue


def ridge_projector(source: Tensor, goal: Tensor, folds: int = 5) -> Projector:
    """Closed-form least squares with a ridge, both sides centred, in float64.

        T = Z_d^T Z_e (Z_e^T Z_e + λ I)^-1

    λ is chosen by cross-validation over images (all views of an image in one fold): the smallest
    error on images that the map has not seen. Neither labels nor a test set have a say.

    Args:
        source: (V, n, d_e) features of V views of n images. goal: (V, n, d_d), of the same views.
    """
    n = source.shape[1]
    z, y = source.double(), goal.double()
    if n < 2:
        best = _RIDGES[2]
    else:
        place = torch.arange(n, device=z.device) * min(folds, n) // n
        errors = torch.zeros(len(_RIDGES), dtype=torch.float64, device=z.device)
        for fold in range(min(folds, n)):
            held = place == fold
            maps = _ridges(z[:, ~held].flatten(0, 1), y[:, ~held].flatten(0, 1), _RIDGES)
            left, right = z[:, held].flatten(0, 1), y[:, held].flatten(0, 1)
            errors += torch.stack([(left @ m.T + t - right).square().sum() for m, t in maps])
        best = _RIDGES[int(errors.argmin())]
    ((weight, bias),) = _ridges(z.flatten(0, 1), y.flatten(0, 1), (best,))
    return Projector(weight.float(), bias.float(), {"kind": "ridge", "lambda": best})


def _ridges(z: Tensor, y: Tensor, ridges: tuple[float, ...]) -> list[tuple[Tensor, Tensor]]:
    """One map per ridge, from one eigendecomposition."""
    middle, aim = z.mean(0), y.mean(0)
    z, y = z - middle, y - aim
    values, vectors = torch.linalg.eigh(z.T @ z)
    values = values.clamp_min(0)
    scale = values.mean().clamp_min(torch.finfo(z.dtype).tiny)
    cross = vectors.T @ (z.T @ y)
    maps = []
    for ridge in ridges:
        weight = (vectors @ (cross / (values + ridge * scale)[:, None])).T
        maps.append((weight, aim - weight @ middle))
    return maps


def adam_projector(
    source: Tensor, goal: Tensor, generators: Generators, *, epochs: int = 1000, lr: float = 0.01
) -> Projector:
    """Mean squared error by Adam, as published (SFM's released code): cosine, batch 100.

    Args:
        source, goal: as for :func:`ridge_projector`. lr: for 256 images a step.
    """
    views, n, dim = source.shape
    wide, size = goal.shape[2], min(100, n)
    draw = generators("weights", 0, 0)
    bound = dim**-0.5
    weight = torch.empty(wide, dim).uniform_(-bound, bound, generator=draw)
    bias = torch.empty(wide).uniform_(-bound, bound, generator=draw)
    weight, bias = (t.to(source.device).requires_grad_(True) for t in (weight, bias))
    steps, rate = -(-n // size), lr * size / 256
    adam = torch.optim.Adam([weight, bias], lr=rate)
    for epoch in range(epochs):
        order = torch.randperm(n, generator=generators("order", 0, epoch)).to(source.device)
        view = torch.randint(views, (n,), generator=generators("views", 0, epoch))
        view = view.to(source.device)
        for step in range(steps):
            rows = order[step * size : (step + 1) * size]
            done = (epoch * steps + step) / (epochs * steps)
            adam.param_groups[0]["lr"] = rate * 0.5 * (1 + math.cos(math.pi * done))
            found = source[view[rows], rows].float() @ weight.T + bias
            adam.zero_grad(set_to_none=True)
            (found - goal[view[rows], rows].float()).square().mean().backward()
            adam.step()
    return Projector(weight.detach(), bias.detach(), {"kind": "adam", "epochs": epochs, "lr": lr})
