"""Students: fresh networks trained on a small set and tested once.

Student k draws its weights and everything else from generators that know k, so its score does not
depend on how many students are trained beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from potstill.data import ImageSet
from potstill.data.transform import Transform
from potstill.evaluation.metrics import calibration_error, class_accuracy, overall, verdict
from potstill.evaluation.protocol import Protocol
from potstill.experts.recipes import train_recipe
from potstill.losses import (
    REMEDIES,
    Loss,
    Scheduled,
    divergence,
    logit_error,
    scaled_error,
    squared_error,
)
from potstill.nets import Examples, Network, Training, create, predict, train_many
from potstill.nets.layers import Centred
from potstill.nets.post_hoc import correct_
from potstill.nets.sampling import epoch_length, groups_of
from potstill.run import InputError, Run
from potstill.run.memory import Portion

__all__ = [
    "Outcome",
    "machine_options",
    "train_students",
    "updates_of",
]


@dataclass(frozen=True, eq=False)
class Outcome:
    """Test accuracies of R students, percent per class."""

    chosen: Tensor  # (R, C), at the epoch that the protocol's selection chooses
    last: Tensor  # (R, C), after the last epoch; the same tensor under selection "last"
    epochs: tuple[int, ...]  # the chosen epoch of each student, counted from 1
    calibration: tuple[float, ...]  # error of each student at that epoch, percent
    norms: Tensor  # (R, C), length of each class's row in their classifiers, at the end


def loss_of(protocol: Protocol, examples: Examples, classes: int) -> Loss | Scheduled:
    """Return by what students learn ``examples``; see :class:`Protocol` for "auto".

    Raises:
        InputError: what is done about a prior cannot be done to labels of views.
    """
    row, loss = REMEDIES[protocol.prior], protocol.loss
    if loss == "logits" and examples.told:
        return logit_error(protocol.hard_weight)
    if examples.weights is not None and loss in ("kl", "squared_error"):
        raise InputError(f"loss is {loss!r} for images with weights; use loss=cross_entropy")
    if examples.regression or loss == "squared_error":  # a prior has no meaning for it
        return squared_error if protocol.label_scale == 1 else scaled_error(protocol.label_scale)
    soft = examples.told or examples.targets.ndim == 2
    if soft and (loss == "kl" or protocol.temperature != 1 or (examples.told and loss == "auto")):
        mixes = examples.views is not None and row.mixing != "none"
        if row.loss != "plain" or row.stages or mixes:
            raise InputError(
                f"prior is {protocol.prior!r}, which has no meaning for a teacher's labels; use "
                "prior=plain, and debias the teacher"
            )
        return divergence(protocol.temperature)
    return row.loss_for(examples.labels.bincount(minlength=classes))


def machine_options(run: Run) -> dict[str, Any]:
    """Return how students are trained on the device of ``run``; bf16 needs a GPU."""
    return {
        "precision": run.precision if run.on_gpu else "fp32",
        "channels_last": run.on_gpu,
    }


def train_students(
    examples: Examples,
    training: Training,
    protocol: Protocol,
    *,
    network: str,
    test: ImageSet,
    runs: int,
    run: Run,
    watch: ImageSet | None = None,
    label: str = "students",
) -> Outcome:
    """Train ``runs`` students and test each once, after its last epoch.

    Args:
        examples: what they learn from. training: how.
        protocol: says which epoch counts. Under "val" the epochs are compared on ``watch``, under
            "test_max" on ``test`` itself.
        network: their architecture. test: what they are tested on.
        run: seed, device; student k draws from ``run.generator("student", k)`` and its kin.
        watch: held-out real images, for selection "val" only.
        label: what the progress bar says.
    """
    c, *size = test.shape
    students = [
        create(
            network,
            channels=c,
            size=(size[0], size[1]),
            classes=test.num_classes,
            generator=run.generator("student", k),
        )
        for k in range(runs)
    ]
    if protocol.centred:
        students = [Centred(student) for student in students]
    row = REMEDIES[protocol.prior]
    loss = loss_of(protocol, examples, test.num_classes)
    if examples.views is not None:  # they take the place of whatever is drawn otherwise
        training = replace(training, augment=None, resized=None, cutmix=0.0, mixing="none")
    examples = replace(examples, logits=protocol.loss == "logits" and examples.told)
    fits = Portion("images", "a pass of the students")
    watched = {"val": watch, "test_max": test}.get(protocol.selection)
    looks = None
    if watched is not None:
        every, epochs = protocol.test_every, training.epochs
        looks = _Looks(watched, examples, row.post_hoc, every, epochs, run, fits)
        looks.first = protocol.looks_from * epochs
    staged = row.stages and not examples.regression  # whose targets are no classes
    train = partial(train_recipe, row.stages) if staged else train_many
    train(
        students,
        examples,
        training.under(protocol.prior),
        loss=loss,
        generators=lambda purpose, k, index: run.generator(f"student/{purpose}", k, index),
        device=run.device,
        on_epoch=looks,
        quiet=run.quiet,
        label=label,
        **machine_options(run),
    )
    if looks is not None and watched is test:
        rows = looks.rows("best"), looks.rows("last")
        return Outcome(*rows, looks.epochs, looks.calibration, _norms(students))
    for student in students:
        correct_(student, row.post_hoc, examples)
    last, errors = _tests(students, test, examples.transform, run, fits)
    if looks is None:
        return Outcome(last, last, (training.epochs,) * runs, errors, _norms(students))
    for student, best in zip(students, looks.states, strict=True):
        student.load_state_dict(best)
    chosen, errors = _tests(students, test, examples.transform, run, fits)
    return Outcome(chosen, last, looks.epochs, errors, _norms(students))


def _norms(students: Sequence[Network]) -> Tensor:
    """Length of each class's classifier row (R, C), of which LAD's figure 2 tells the bias."""
    return torch.stack([s.classifier.weight.detach().float().norm(dim=1).cpu() for s in students])


def updates_of(examples: Examples, training: Training) -> int:
    """Return how many steps a student's optimiser takes (in the first stage, if there are more).

    The same protocol takes more on more images: a tiled set trains longer than a plain one.
    """
    groups = groups_of(examples.labels)
    length = epoch_length(training.sampling, groups, training.epoch_images)
    return training.epochs * training.steps(length)


def _tests(
    students: Sequence[Network], images: ImageSet, transform: Transform, run: Run, fits: Portion
) -> tuple[Tensor, tuple[float, ...]]:
    """Percent correct per student and class (R, C), and each one's calibration error."""
    found = [_test(student, images, transform, run, fits) for student in students]
    return torch.stack([row for row, _ in found]), tuple(error for _, error in found)


def _test(
    student: Network, images: ImageSet, transform: Transform, run: Run, fits: Portion
) -> tuple[Tensor, float]:
    """Percent correct per class (C,), and the calibration error."""
    logits = predict(student, images.rows(), transform, device=run.device, fits=fits)
    predicted = logits.argmax(1)
    error = calibration_error(predicted.cpu() == images.labels, verdict(logits)[1].cpu())
    return class_accuracy(predicted, images.labels, images.num_classes), error


@dataclass(frozen=True, eq=False)
class _Look:
    """What one look at the watched set saw."""

    epoch: int  # from 1
    score: float  # percent over all watched images
    row: Tensor  # (C,)
    error: float  # of calibration, percent
    state: dict[str, Tensor]


class _Looks:
    """Remembers each student's best and last look; the earlier of two equal epochs is best."""

    def __init__(
        self, watched: ImageSet, examples: Examples, post_hoc: str, every: int, epochs: int,
        run: Run, fits: Portion,
    ) -> None:  # fmt: skip
        self.watched, self.examples, self.run, self.fits = watched, examples, run, fits
        self.post_hoc, self.every, self.total, self.first = post_hoc, every, epochs, 0.0
        self.best: dict[int, _Look] = {}
        self.last: dict[int, _Look] = {}

    def __call__(self, member: int, epoch: int, student: Network) -> None:
        """Look after every ``every`` epochs beyond the ``first``, and after the last."""
        epoch += 1
        if epoch < self.total and (epoch % self.every or epoch <= self.first):
            return
        if self.post_hoc != "none":
            student = deepcopy(student)  # the student itself trains on
            correct_(student, self.post_hoc, self.examples)
        row, error = _test(student, self.watched, self.examples.transform, self.run, self.fits)
        (score,) = overall(row[None], self.watched.counts)
        state = {name: value.detach().clone() for name, value in student.state_dict().items()}
        self.last[member] = look = _Look(epoch, score, row, error, state)
        if member not in self.best or score > self.best[member].score:
            self.best[member] = look

    def rows(self, which: str) -> Tensor:
        """Accuracies (R, C) at the "best" or "last" look."""
        looks = self.best if which == "best" else self.last
        return torch.stack([looks[k].row for k in sorted(looks)])

    @property
    def epochs(self) -> tuple[int, ...]:
        """The best epoch of each student."""
        return tuple(self.best[k].epoch for k in sorted(self.best))

    @property
    def calibration(self) -> tuple[float, ...]:
        """The calibration error of each student at its best epoch."""
        return tuple(self.best[k].error for k in sorted(self.best))

    @property
    def states(self) -> list[dict[str, Tensor]]:
        """The weights of each student at its best epoch."""
        return [self.best[k].state for k in sorted(self.best)]
