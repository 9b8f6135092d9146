"""Linear heads on frozen features, many at once, and linear maps between feature spaces.

All heads are one stacked tensor: Adam is elementwise, so each is trained exactly as if it were
alone, with its own order and its own choice of views.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from operator import sub
from typing import Any, NamedTuple

import torch
from torch import Tensor

from potstill.losses import Loss, Scheduled, cross_entropy, loss_at
from potstill.nets.sampling import Sampling, epoch_order
from potstill.run import InputError
from potstill.run.descent import cosine
from potstill.run.fields import Batch, Checked, Epochs, NotNegative, Positive

__all__ = ["HeadTraining", "Projector", "adam_projector", "ridge_projector", "train_heads"]

Generators = Callable[[str, int, int], torch.Generator]  # (purpose, head, epoch)
Table = Tensor | Callable[[int], Tensor]


@dataclass(frozen=True, kw_only=True)
class HeadTraining(Checked):
    """How linear heads are trained: Adam, cosine to zero, no weight decay (LGM's evaluation).

    Raises:
        InputError: a field is out of range.
    """

    epochs: Epochs
    batch: Batch = 100  # images per step, or all if there are fewer
    lr: Positive = 1e-3  # for 256 images a step; scales with the batch
    init_std: NotNegative = 0.01  # of the weights; biases start at 0
    sampling: Sampling = "shuffled"  # see potstill.nets.sampling; epochs keep their length

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
    loss: Loss | Scheduled = cross_entropy,
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
        over = epoch / training.epochs
        orders = [
            epoch_order(training.sampling, groups, n, over, generators("order", k, epoch))
            for k in range(heads)
        ]
        rows, value = torch.stack(orders).to(device), loss_at(loss, over)
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
            values = value(logits.flatten(0, 1), targets[part].flatten(0, 1)).view(part.shape)
            if teacher is not None:
                values = _mixed(logits, teacher[own, part].float(), values, *distil)
            if share is not None:
                values = values * share[part]
            adam.param_groups[0]["lr"] = rate * cosine(epoch * steps + step, total)
            adam.zero_grad(set_to_none=True)
            values.mean(1).sum().backward()
            adam.step()
    return weight.detach(), bias.detach()


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
    rows, dim = source.shape[0] * source.shape[1], source.shape[2]
    if rows >= dim:
        return _ridge(source, goal, folds, dim)
    # the map lies in the span of the rows, which has fewer dimensions
    span = torch.linalg.svd(source.flatten(0, 1).double(), full_matrices=False)[2]
    found = _ridge(source.double() @ span.T, goal, folds, dim)
    return replace(found, weight=(found.weight.double() @ span).float())


def _ridge(source: Tensor, goal: Tensor, folds: int, dim: int) -> Projector:
    """The closed form; ridges are shares of the mean over ``dim`` eigenvalues."""
    n = source.shape[1]
    folds = min(folds, n)
    place = torch.arange(n, device=source.device) * folds // n
    sums = [_Sums.of(source[:, place == fold], goal[:, place == fold]) for fold in range(folds)]
    whole, best = _total(sums), _RIDGES[2]
    if folds > 1:
        errors = torch.zeros(len(_RIDGES), dtype=torch.float64, device=source.device)
        for held in sums:
            maps = _Sums(*map(sub, whole, held)).maps(_RIDGES, dim)
            errors += torch.stack([held.error(weight, bias) for weight, bias in maps])
        best = _RIDGES[int(errors.argmin())]
    ((weight, bias),) = whole.maps((best,), dim)
    return Projector(weight.float(), bias.float(), {"kind": "ridge", "lambda": best})


class _Sums(NamedTuple):
    """What least squares need of pairs (z, y): their number, sums and products, float64."""

    n: int
    z: Tensor  # (d_e,)
    y: Tensor  # (d_d,)
    zz: Tensor  # (d_e, d_e)
    zy: Tensor  # (d_e, d_d)
    yy: Tensor  # scalar, sum of squares

    @staticmethod
    def of(source: Tensor, goal: Tensor) -> _Sums:
        """Add up (V, n, d) features, a view at a time."""
        parts = []
        for z, y in zip(source, goal, strict=True):
            z, y = z.double(), y.double()
            parts.append(_Sums(len(z), z.sum(0), y.sum(0), z.T @ z, z.T @ y, y.square().sum()))
        return _total(parts)

    def maps(self, ridges: tuple[float, ...], dim: int) -> list[tuple[Tensor, Tensor]]:
        """One map per ridge (a share of trace / ``dim``), from one eigendecomposition."""
        middle, aim = self.z / self.n, self.y / self.n
        values, vectors = torch.linalg.eigh(self.zz - self.n * middle.outer(middle))
        values = values.clamp_min(0)
        scale = (values.sum() / dim).clamp_min(torch.finfo(values.dtype).tiny)
        cross = vectors.T @ (self.zy - self.n * middle.outer(aim))
        maps = []
        for ridge in ridges:
            weight = (vectors @ (cross / (values + ridge * scale)[:, None])).T
            maps.append((weight, aim - weight @ middle))
        return maps

    def error(self, weight: Tensor, bias: Tensor) -> Tensor:
        """Sum of squares of T z + t - y over these pairs."""
        quadratic = ((weight @ self.zz) * weight).sum() - 2 * (weight.T * self.zy).sum()
        shift = 2 * bias @ (weight @ self.z - self.y) + self.n * bias @ bias
        return quadratic + shift + self.yy


def _total(sums: Sequence[_Sums]) -> _Sums:
    totals: Any = map(sum, zip(*sums, strict=True))
    return _Sums(*totals)


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
            adam.param_groups[0]["lr"] = rate * cosine(done, 1)
            found = source[view[rows], rows].float() @ weight.T + bias
            adam.zero_grad(set_to_none=True)
            (found - goal[view[rows], rows].float()).square().mean().backward()
            adam.step()
    return Projector(weight.detach(), bias.detach(), {"kind": "adam", "epochs": epochs, "lr": lr})
