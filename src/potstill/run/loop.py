"""The one loop in which every matching method descends.

It owns what no method should: the optimiser, the learning-rate schedule, gradients freed term by
term, chunks halved on out-of-memory, the stop on NaN, checkpoints, metrics and progress. A run
killed at any moment and started again ends with the same bytes as one never killed, because draws
depend on (seed, purpose, step) alone and a checkpoint holds the canvas, the optimiser and the
method's own state.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from potstill.run.checkpoint import load_state, save_state
from potstill.run.context import Run
from potstill.run.errors import DivergedError, InputError
from potstill.run.log import Metrics, logger, progress

__all__ = ["Descent", "Problem", "Surface", "Term", "descend"]

SCHEDULES = ("constant", "cosine", "plateau")
OPTIMIZERS = ("adam", "sgd")


@dataclass
class Term:
    """One part of the loss, for the classes ``first .. first + k - 1``.

    ``values`` (k,) is each class's contribution; their sum is back-propagated and freed at once.
    ``facts`` are per-class diagnostics (k,), logged and never differentiated.
    """

    name: str
    values: Tensor
    first: int = 0
    facts: dict[str, Tensor] = field(default_factory=dict)


class Surface(Protocol):
    """What is optimised: a canvas, perhaps with labels and a student step size."""

    labels: Tensor

    def parameters(self) -> dict[str, Tensor]:
        """Return the leaves by name."""

    def project_(self) -> None:
        """Put the leaves back into their domain after a step."""


class Problem(Protocol):
    """What a method gives to the loop."""

    def terms(self, step: int, surface: Any, chunk: int) -> Iterator[Term]:
        """Yield the loss of one step, at most ``chunk`` classes a term."""

    def state(self) -> dict[str, Tensor]:
        """Return whatever changes from step to step besides the surface."""

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Put back what :meth:`state` returned."""


@dataclass(frozen=True, kw_only=True)
class Descent:
    """How to descend. ``lr`` is per step of all classes together."""

    steps: int
    lr: float
    optimizer: str = "adam"
    momentum: float = 0.5  # SGD only; Adam keeps (0.9, 0.999)
    schedule: str = "constant"
    patience: int = 500  # plateau: steps without improvement before the rate is halved

    def __post_init__(self) -> None:
        if self.steps < 0:
            raise InputError(f"steps is {self.steps}; use 0 or more")
        if not 0 < self.lr < math.inf:
            raise InputError(f"lr_images is {self.lr}; use a positive number")
        if not 0 <= self.momentum < 1:
            raise InputError(f"momentum is {self.momentum}; use a number from 0 to below 1")
        for name, options in (("optimizer", OPTIMIZERS), ("schedule", SCHEDULES)):
            if getattr(self, name) not in options:
                raise InputError(
                    f"{name} is {getattr(self, name)!r}; use one of {', '.join(options)}"
                )

    def build(self, leaves: list[Tensor]) -> torch.optim.Optimizer:
        """Return the optimiser; fused where the device has it."""
        if self.optimizer == "sgd":
            return torch.optim.SGD(leaves, lr=self.lr, momentum=self.momentum)
        return torch.optim.Adam(leaves, lr=self.lr)


class _Schedule:
    """Learning rate of each step; only the plateau rule has state."""

    def __init__(self, descent: Descent) -> None:
        self.descent, self.factor, self.best, self.since = descent, 1.0, math.inf, 0

    def rate(self, step: int) -> float:
        if self.descent.schedule == "cosine":
            return (
                self.descent.lr * 0.5 * (1 + math.cos(math.pi * step / max(1, self.descent.steps)))
            )
        return self.descent.lr * self.factor

    def observe(self, step: int, loss: float) -> None:
        """Halve the rate after ``patience`` steps without a relative improvement of 1e-4."""
        if loss < self.best * (1 - 1e-4):
            self.best, self.since = loss, step
        elif step - self.since > self.descent.patience and self.descent.schedule == "plateau":
            self.factor, self.since = self.factor * 0.5, step

    def state(self) -> dict[str, Any]:
        return {"factor": self.factor, "best": min(self.best, 1e300), "since": self.since}


def _pack(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    packed = {}
    for index, slots in optimizer.state_dict()["state"].items():
        for name, value in slots.items():
            if isinstance(value, Tensor):
                packed[f"optimizer.{index}.{name}"] = value
    return packed


def _unpack(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    slots: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith("optimizer."):
            _, index, name = key.split(".", 2)
            slots.setdefault(int(index), {})[name] = value
    if slots:
        optimizer.load_state_dict({**optimizer.state_dict(), "state": slots})


def _out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "allocate memory" in str(error)


def _refuse_nonfinite(
    step: int, records: list[tuple[str, int, Tensor]], names: tuple[str, ...]
) -> None:
    for name, first, values in records:
        bad = (~torch.isfinite(values)).nonzero().flatten().tolist()
        if bad:
            label = first + bad[0]
            who = names[label] if label < len(names) else str(label)
            raise DivergedError(
                f"{name} of class {label} ({who}) is not finite at step {step}; lower lr_images or "
                "check the images of that class (the last good checkpoint is kept)"
            )


class _Step:
    """One evaluation of all terms with gradients left in the leaves."""

    def __init__(self, problem: Problem, surface: Surface, classes: int) -> None:
        self.problem, self.surface, self.classes = problem, surface, classes

    def run(self, step: int, chunk: int, detailed: bool) -> None:
        """Fill ``records``, ``losses``, ``facts`` (per class) for this step."""
        leaves = self.surface.parameters().values()
        for leaf in leaves:
            leaf.grad = None
        self.records: list[tuple[str, int, Tensor]] = []
        self.facts: dict[str, Tensor] = {}
        self.pull: dict[str, Tensor] = {}
        before = torch.zeros(())
        for term in self.problem.terms(step, self.surface, chunk):
            values = term.values
            if values.requires_grad:
                values.sum().backward()
            self.records.append((term.name, term.first, values.detach()))
            for name, fact in term.facts.items():
                row = self.facts.setdefault(name, fact.new_full((self.classes,), math.nan))
                row[term.first : term.first + len(fact)] = fact.detach()
            if detailed:
                before = self._measure(term.name, before)
        self.records.append(("gradient", 0, self._norms(self._gradient())))

    def _gradient(self) -> Tensor:
        leaf = self.surface.parameters()["images"]
        return torch.zeros_like(leaf) if leaf.grad is None else leaf.grad

    def _norms(self, gradient: Tensor) -> Tensor:
        """Length of the image gradient per class, (classes,)."""
        labels = self.surface.labels.to(gradient.device)
        squares = gradient.flatten(1).square().sum(1)
        return squares.new_zeros(self.classes).index_add_(0, labels, squares).sqrt()

    def _measure(self, name: str, before: Tensor) -> Tensor:
        now = self._gradient().clone()
        pull = self._norms(now - before)
        self.pull[name] = self.pull[name] + pull if name in self.pull else pull
        return now

    def losses(self) -> dict[str, float]:
        """Sum of each term over its classes."""
        totals: dict[str, float] = {}
        for name, _, values in self.records:
            if name != "gradient":
                totals[name] = totals.get(name, 0.0) + float(values.sum())
        return totals


def descend(
    problem: Problem,
    surface: Surface,
    run: Run,
    descent: Descent,
    *,
    classes: tuple[str, ...],
    chunk: int,
    key: str,
    label: str = "distil",
) -> dict[str, Any]:
    """Run ``descent.steps`` steps on ``surface``, in place; resume where a killed run stopped.

    Args:
        classes: class names, for messages. chunk: classes per term to begin with.
        key: identifies the job; a checkpoint of another job is refused.

    Returns:
        {"steps", "seconds", "last": last metrics record}; seconds include earlier, killed parts.

    Raises:
        DivergedError: a loss or gradient is NaN or infinite. InputError: foreign checkpoint.
    """
    leaves = surface.parameters()
    optimizer = descent.build(list(leaves.values()))
    schedule = _Schedule(descent)
    path = run.folder / "checkpoint.safetensors" if run.folder else None
    start, spent, last = 0, 0.0, {}

    if path is not None and path.exists():
        tensors, facts = load_state(path)
        if facts["key"] != key:
            raise InputError(
                f"{path.parent} holds a checkpoint of another job; choose another --out or --force"
            )
        with torch.no_grad():
            for name, leaf in leaves.items():
                leaf.copy_(tensors[f"surface.{name}"])
        _unpack(optimizer, tensors)
        problem.load_state({n[8:]: t for n, t in tensors.items() if n.startswith("problem.")})
        schedule.__dict__.update(facts["schedule"])
        start, spent, last = facts["step"], facts["seconds"], facts["last"]
        if start < descent.steps:
            logger.info("resuming at step %d of %d", start, descent.steps)

    metrics = Metrics(run.folder / "metrics.jsonl" if run.folder else None, resume_at=start)
    began = saved = time.monotonic()
    every = max(1, descent.steps // 200)
    check_every = every if run.on_gpu else 1  # a check reads values back: free on a CPU only
    one = _Step(problem, surface, len(classes))

    def save(step: int) -> None:
        if path is not None:
            tensors = {f"surface.{n}": leaf for n, leaf in leaves.items()} | _pack(optimizer)
            tensors |= {f"problem.{n}": t for n, t in problem.state().items()}
            facts = {
                "key": key,
                "step": step,
                "seconds": spent + time.monotonic() - began,
                "schedule": schedule.state(),
                "last": last,
            }
            save_state(path, tensors, facts)

    steps = range(start, descent.steps)
    for step in progress(steps, label=label, quiet=run.quiet, total=descent.steps, done=start):
        logs = step % every == 0 or step == descent.steps - 1
        while True:
            try:
                one.run(step, chunk, detailed=logs)
                break
            except RuntimeError as error:
                if not _out_of_memory(error):
                    raise
                if chunk == 1:
                    raise InputError(
                        f"the images of one class do not fit into memory at step {step}; use a "
                        "smaller ipc, a narrower network or a device with more memory"
                    ) from error
                chunk = math.ceil(chunk / 2)
                logger.warning(
                    "out of memory at step %d; going on with %d classes a chunk", step, chunk
                )
        checked = step % check_every == 0 or logs
        if checked:
            _refuse_nonfinite(step, one.records, classes)
        for group in optimizer.param_groups:
            group["lr"] = schedule.rate(step)
        optimizer.step()
        surface.project_()
        if checked:
            losses = one.losses()
            schedule.observe(step, sum(losses.values()))
        if logs:
            last = {
                "step": step,
                "seconds": round(spent + time.monotonic() - began, 3),
                "lr": optimizer.param_groups[0]["lr"],
                "loss": losses,
                "classes": {n: _rounded(t) for n, t in one.facts.items()}
                | {f"pull_{n}": _rounded(t) for n, t in one.pull.items()},
            }
            metrics.write(**last)
            if run.watch is not None:
                run.watch(step, last, surface)
        if checked and time.monotonic() - saved >= run.checkpoint_seconds:
            save(step + 1)
            saved = time.monotonic()
    if start < descent.steps:
        save(descent.steps)
    return {"steps": descent.steps, "seconds": spent + time.monotonic() - began, "last": last}


def _rounded(values: Tensor) -> list[float]:
    """Six significant digits: enough for a curve."""
    return [float(f"{v:.6g}") for v in values.tolist()]
