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
from functools import partial
from typing import Any

import torch
from torch import Tensor

from potstill.run.context import Run
from potstill.run.descent import Descent, Schedule
from potstill.run.errors import DivergedError, InputError
from potstill.run.log import Metrics, logger, progress
from potstill.run.memory import MEMORY_ERRORS, out_of_memory
from potstill.run.objective import Objective, Surface, Term
from potstill.run.resume import Checkpoint
from potstill.run.signals import ENDED, uninterrupted

__all__ = ["Descent", "Objective", "Term", "descend"]


class _Everything:
    """A canvas with the leaves that an objective adds."""

    def __init__(self, canvas: Surface, objective: Objective) -> None:
        self.canvas, self.objective, self.rounds = canvas, objective, canvas.rounds
        self.pixel_parameters, self.grow_ = canvas.pixel_parameters, canvas.grow_
        self.project_ = canvas.project_

    @property
    def leaf_labels(self) -> Tensor:
        return self.canvas.leaf_labels

    def parameters(self) -> dict[str, Tensor]:
        return self.canvas.parameters() | self.objective.leaves()


class _Step:
    """One evaluation of all terms with gradients left in the leaves."""

    def __init__(self, objective: Objective, surface: _Everything, classes: int) -> None:
        self.objective, self.surface, self.classes = objective, surface, classes
        self.terms = 0  # of the step before

    def run(self, step: int, chunk: int, detailed: bool) -> None:
        """Fill ``records``, ``losses``, ``facts`` (per class) for this step."""
        leaves = self.surface.parameters().values()
        for leaf in leaves:
            leaf.grad = None
        self.records: list[tuple[str, int, Tensor]] = []
        self.facts: dict[str, Tensor] = {}
        self.pull: dict[str, Tensor] = {}
        before: list[Tensor] | None = None
        alone, terms = self.terms == 1, 0  # a single term's pull is the gradient: no copy needed
        for term in self.objective.terms(step, self.surface.canvas, chunk):
            values = term.values
            if values.requires_grad:
                values.sum().backward()
            self.records.append((term.name, term.first, values.detach()))
            for name, fact in term.facts.items():
                row = self.facts.setdefault(name, fact.new_full((self.classes,), math.nan))
                row[term.first : term.first + len(fact)] = fact.detach()
            terms += 1
            if detailed and not alone:
                before = self._measure(term.name, before)
        lengths = self._norms(self._gradient())
        if detailed and alone and terms == 1:
            self.pull = {self.records[0][0]: lengths}
        self.terms = terms
        self.records.append(("gradient", 0, lengths))

    def _gradient(self) -> list[Tensor]:
        """Gradients of the leaves that hold pixels, (n, p) each."""
        leaves = self.surface.pixel_parameters()
        grads = [torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in leaves]
        return [grad.flatten(1) for grad in grads]

    def _norms(self, gradients: list[Tensor]) -> Tensor:
        """Length of the image gradient per class, (classes,)."""
        labels = self.surface.leaf_labels.to(gradients[0].device)
        squares = sum(torch.linalg.vector_norm(part, dim=1).square() for part in gradients)
        assert isinstance(squares, Tensor)
        return squares.new_zeros(self.classes).index_add_(0, labels, squares).sqrt()

    def _measure(self, name: str, before: list[Tensor] | None) -> list[Tensor]:
        now = [part.clone() for part in self._gradient()]
        moved = now if before is None else [a - b for a, b in zip(now, before, strict=True)]
        pull = self._norms(moved)
        self.pull[name] = self.pull[name] + pull if name in self.pull else pull
        return now

    def losses(self) -> dict[str, float]:
        """Sum of each term over its classes."""
        totals: dict[str, float] = {}
        for name, _, values in self.records:
            if name != "gradient":
                totals[name] = totals.get(name, 0.0) + float(values.sum())
        return totals

    def refuse_nonfinite(self, step: int, names: tuple[str, ...]) -> None:
        """Stop at a loss or gradient that is not finite, naming the step, the term and the class.

        Raises:
            DivergedError: as said.
        """
        for name, first, values in self.records:
            bad = (~torch.isfinite(values)).flatten().nonzero().flatten().tolist()
            if not bad:
                continue
            label = first + bad[0]
            who = names[label] if label < len(names) else str(label)
            where = f" of class {label} ({who})" if values.ndim else ""
            raise DivergedError(
                f"{name}{where} is not finite at step {step}; lower lr_images or check the images "
                f"{'of that class ' if values.ndim else ''}(the last good checkpoint is kept)"
            )


def _with_memory(one: _Step, step: int, chunk: int, detailed: bool) -> int:
    """Run one step, with smaller chunks if memory does not suffice; return the chunk that did.

    Raises:
        InputError: one class alone is too much.
    """
    while True:
        try:
            one.run(step, chunk, detailed)
            return chunk
        except MEMORY_ERRORS as error:
            if not out_of_memory(error):
                raise
            if chunk == 1:
                raise InputError(
                    f"not even one piece of the images fits into memory at step {step}; use a "
                    "smaller ipc, a narrower network or a device with more memory"
                ) from error
            chunk = math.ceil(chunk / 2)
            logger.warning(
                "out of memory at step %d; going on with pieces of %d (classes or views)",
                step,
                chunk,
            )


def descend(
    objective: Objective,
    canvas: Surface,
    run: Run,
    descent: Descent,
    *,
    classes: tuple[str, ...],
    chunk: int,
    key: str,
    label: str = "distil",
) -> dict[str, Any]:
    """Run ``descent.steps`` steps on ``canvas``, in place; resume where a killed run stopped.

    A canvas of several rounds is given so many steps in each, with a schedule that begins anew.

    Args:
        classes: class names, for messages. chunk: units per term to begin with.
        key: identifies the job; a checkpoint of another job is refused.

    Returns:
        {"steps", "seconds", "last": last metrics record}; seconds include earlier, killed parts.

    Raises:
        DivergedError: a loss or gradient is NaN or infinite. InputError: foreign checkpoint.
    """
    total, schedule = descent.steps * canvas.rounds, Schedule(descent)
    surface = _Everything(canvas, objective)
    kept = Checkpoint(run.folder, key, objective, surface, schedule)
    build = partial(descent.build, rates=objective.rates, lr=objective.lr)
    optimizer = kept.load(build)
    start = reached = kept.step
    kept.chunk = kept.chunk or chunk
    if 0 < start < total:
        logger.info("resuming at step %d of %d", start, total)
    metrics = Metrics(run.folder / "metrics.jsonl" if run.folder else None, resume_at=start)
    every = max(1, total // 200)
    check_every = every if run.on_gpu else 1  # a check reads values back: free on a CPU only
    one = _Step(objective, surface, len(classes))
    state, grown = _copied(objective.state()), False
    try:
        for step in progress(
            range(start, total), label=label, quiet=run.quiet, total=total, done=start
        ):
            logs = step % every == 0 or step == total - 1
            grown = surface.grow_(step)
            if grown:
                optimizer = build(surface.parameters())
            kept.chunk = _with_memory(one, step, kept.chunk, detailed=logs)
            checked = step % check_every == 0 or logs
            if checked:
                one.refuse_nonfinite(step, classes)
            with uninterrupted():  # from here on the leaves belong to no step until the end
                for group in optimizer.param_groups:
                    group["lr"] = group["base"] * schedule.share(step % descent.steps)
                optimizer.step()
                surface.project_()
                objective.after(step, canvas)
                if checked:
                    schedule.observe(step, sum(one.losses().values()))
                if logs:
                    kept.last = _record(step, kept.seconds, optimizer, one)
                    metrics.write(**kept.last)
                    if run.watch is not None:
                        run.watch(step, kept.last, canvas)
                reached, grown, state = step + 1, False, _copied(objective.state())
                if checked and time.monotonic() - kept.saved >= run.checkpoint_seconds:
                    kept.save(reached, state, optimizer)
    except ENDED:
        if reached > start and not grown:
            with uninterrupted():
                kept.save(reached, state, optimizer)
        raise
    if start < total:
        kept.save(total, state, optimizer)
    return {"steps": total, "seconds": kept.seconds, "last": kept.last}


def _copied(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The objective's state between two steps: terms may move it, as NCFM's psi does."""
    return {name: value.detach().clone() for name, value in state.items()}


def _record(
    step: int, seconds: float, optimizer: torch.optim.Optimizer, one: _Step
) -> dict[str, Any]:
    """One line of metrics.jsonl."""
    return {
        "step": step,
        "seconds": round(seconds, 3),
        "lr": optimizer.param_groups[0]["lr"],
        "loss": one.losses(),
        "imbalance": _imbalance(one.pull),
        "classes": {n: _rounded(t) for n, t in one.facts.items()}
        | {f"pull_{n}": _rounded(t) for n, t in one.pull.items()},
    }


def _imbalance(pull: dict[str, Tensor]) -> dict[str, float]:
    """By term, the longest gradient of a class's images over the shortest; none where one is 0."""
    ends = {name: (float(of.max()), float(of.min())) for name, of in pull.items()}
    return {name: float(f"{most / least:.6g}") for name, (most, least) in ends.items() if least > 0}


def _rounded(values: Tensor) -> list[float]:
    """Six significant digits: enough for a curve."""
    return [float(f"{v:.6g}") for v in values.tolist()]
