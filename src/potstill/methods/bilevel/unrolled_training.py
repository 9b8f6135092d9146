"""The step that DD, RaT-BPTT and AT-BPTT share: train a student on the set, ask it of real images.

    min over S, eta of  L(T; theta_N),     theta_{i+1} = U(theta_i, grad l(S_i; theta_i), eta_i)

A new random student takes N steps on the synthetic images. Real images judge it, and their loss is
differentiated through the last steps, in the memory of one (:mod:`potstill.match.unrolled`). By
what it is judged is the only place where real images enter, and so the one where a long tail can be
met: :class:`potstill.methods.judging.Judging`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import softplus

from potstill.canvas import Canvas
from potstill.data import DSA, ImageSet
from potstill.losses import cross_entropy
from potstill.match.rollout import Params, Student, StudentStep
from potstill.match.unrolled import Inner, Unrolled
from potstill.methods.base import Objective
from potstill.methods.judging import Judging
from potstill.methods.trajectory.students import Students
from potstill.networks import Networks
from potstill.run import InputError, Run
from potstill.run.descent import Descent, Rate
from potstill.run.fields import Batch, BatchOrAll, Count, Decay, NotNegative, OneOf, Positive, Range
from potstill.run.machine import CPU_CHUNK
from potstill.run.objective import Term
from potstill.run.parts import Part

__all__ = ["Lessons", "UnrolledObjective", "UnrollsTraining"]

Window = Annotated[int, Range(0, 10**4)]


@dataclass(frozen=True, kw_only=True)
class Lessons(Part):
    """How a student is trained on the synthetic images, and how far back that is differentiated."""

    student_steps: Count = 200  # N: steps of a student, at most
    window: Window = 60  # of them that are differentiated, the last ones; 0 = all
    per_class: BatchOrAll = 0  # training images of each class in a step; 0 = all
    # which: "turns", the same in a step of every student, or "drawn" anew
    order: Annotated[str, OneOf("drawn", "turns")] = "drawn"
    student_optimizer: Annotated[str, OneOf("adam", "sgd")] = "adam"  # "adam" (0.9, 0.999), "sgd"
    student_momentum: Decay = 0.0  # of SGD
    syn_lr: Positive = 1e-3  # student step size, at the beginning where it is learned
    learn_lr: bool = False  # learn a step size for each step of the student
    lr_syn_lr: Positive = 0.01  # step size of their inverse softplus
    augment: str = "flip_rotate"  # DSA of synthetic and of real images, or "none"
    clip: NotNegative = 2.0  # longest gradient of the images, in its running means; 0 = any

    def check(self, method: Any, real: ImageSet | None = None) -> None:
        """Refuse a window that is longer than the training, and batch norm."""
        self.dsa()
        if self.window > self.student_steps:
            raise InputError(
                f"window is {self.window} with student_steps {self.student_steps}; use at most "
                "that many, or 0 for all"
            )
        if real is not None:
            network = method.networks.new(real, torch.Generator().manual_seed(0))
            if any(True for _ in network.buffers()):
                raise InputError(
                    f"network is {method.networks.network!r}, whose batch norm remembers what no "
                    "gradient goes through; use one with instance norm, such as convnet-w128-in"
                )

    def dsa(self) -> DSA | None:
        """Return the augmentation, or None."""
        return None if self.augment == "none" else DSA.parse(self.augment, align_corners=True)


class UnrollsTraining:
    """What the methods of this family have in common; to be mixed into a :class:`Matcher`."""

    pairs: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "canvas": ("pixels", "tiled", "multi-formation", "subsampled", "frequency"),
        "labels": ("hard", "soft"),
        "networks": ("random",),
    }

    lessons: Lessons
    outer: Judging
    descent: Descent
    batch_real: Batch

    def prepare(self, real: ImageSet, canvas: Canvas, networks: Networks, run: Run) -> Objective:
        """Nothing is computed before step 0."""
        return UnrolledObjective(self, real, canvas, networks, run)


class UnrolledObjective(Objective):
    """What a student that was trained on the set makes of a real batch."""

    def __init__(
        self, method: Any, real: ImageSet, canvas: Canvas, networks: Networks, run: Run
    ) -> None:
        self.method, self.how, self.real = method, method.lessons, real
        self.networks, self.run, self.transform = networks, run, networks.transform
        self.labels = method.labels.make(canvas)
        self.canvas = canvas.moved_behind(self.transform) if canvas.free else canvas
        if not canvas.free:  # the step size is one of what networks see
            self.lr = method.descent.scaled(self.transform.step_share)
        self.loss, self.dsa = method.outer.loss_for(real.counts), self.how.dsa()
        self.groups = [real.of_class(label) for label in range(real.num_classes)]
        self.students = Students(networks.at(0).net, run, self.dsa)
        self.inner = Inner(self.how.student_optimizer, self.how.student_momentum)
        raw = math.log(math.expm1(self.how.syn_lr)) if self.how.syn_lr < 30 else self.how.syn_lr
        self.raw_lr = torch.full((self.how.student_steps,), raw, device=run.device)
        self.raw_lr.requires_grad_(self.how.learn_lr)
        self.rates = {**method.labels.rates, "raw_lr": Rate("lr_syn_lr", self.how.lr_syn_lr)}
        self.length = self.seen_length = torch.zeros((), device=run.device)  # 0: no gradient yet

    def leaves(self) -> dict[str, Tensor]:
        """The labels where they are soft, and the step sizes where they are learned."""
        return self.labels.leaves() | ({"raw_lr": self.raw_lr} if self.how.learn_lr else {})

    def stretch(self, step: int, lesson: Student) -> tuple[int, int]:
        """Return how many steps of the student are constants, and how many it takes."""
        window = self.how.window or self.how.student_steps
        draw = self.run.generator("window", step)
        first = int(torch.randint(self.how.student_steps - window + 1, (), generator=draw))
        return first, first + window

    def beginning(self, number: int) -> Params:
        """Return the parameters of a new student."""
        own = self.networks.at(number).net.named_parameters()
        return {name: value.detach().clone() for name, value in own}

    def rows(self, step: int, place: int, canvas: Canvas) -> Tensor | None:
        """Return which training images (b,) a student sees at a place of its training, or None."""
        starts = [start * canvas.views for start in canvas.starts]
        per, sizes = self.how.per_class, [b - a for a, b in pairwise(starts)]
        if not per or per >= max(sizes):
            return None
        draw, chosen = self.run.generator("student/rows", step, place), []
        for start, size in zip(starts, sizes, strict=False):
            if self.how.order == "turns":
                own = (place * per + torch.arange(per)) % size
            else:
                own = torch.randperm(size, generator=draw)[:per]
            chosen.append(start + own)
        return torch.cat(chosen)

    def plan(self, step: int, x: Tensor, canvas: Canvas, count: int) -> list[StudentStep]:
        """Return what a student sees in each of its ``count`` steps."""
        steps, size = [], (x.shape[2], x.shape[3])
        for place in range(count):
            rows, drawn = self.rows(step, place, canvas), dict[str, Tensor]()
            if self.dsa is not None:
                number = len(x) if rows is None else len(rows)
                draw = self.run.generator("student/augment", step, place)
                drawn = self.dsa.draw(number, size, draw, siamese=False, device=x.device)
            steps.append(StudentStep(rows if rows is None else rows.to(x.device), drawn))
        return steps

    def judged(self, step: int, theta: Params) -> Iterator[Tensor]:
        """Yield shares of the loss of a real batch, some images at a time."""
        draw = self.run.generator("real", step)
        rows = self.method.outer.drawn(self.groups, self.method.batch_real, draw)
        drawn: dict[str, Tensor] = {}
        if self.dsa is not None:
            size, own = self.real.shape[1:], self.run.generator("real/augment", step)
            drawn = self.dsa.draw(len(rows), (size[0], size[1]), own, False, self.run.device)
        self.right = torch.zeros((), device=self.run.device)  # share of the batch, for who asks
        for part in StudentStep(None, drawn).split(len(rows), self.at_a_time()):
            where = rows if part.rows is None else rows[part.rows]
            with torch.no_grad():
                x = self.transform.forward(self.real.batch(where, self.run.device))
                x = part.augmented(x, self.dsa)
            logits, labels = self.students.forward(theta, x), self.real.labels[where].to(x.device)
            self.right += (logits.argmax(1) == labels).sum() / len(rows)
            yield self.loss(logits, labels).sum() / len(rows)

    def at_a_time(self) -> int:
        """Return of how many real images the graph is held at once."""
        return 1024 if self.run.on_gpu else CPU_CHUNK

    def clipped(self, gradient: Tensor) -> Tensor:
        """Return a gradient of the images, no longer than ``clip`` times its running mean."""
        length = gradient.norm()
        mean = torch.where(self.length > 0, 0.9 * self.length + 0.1 * length, length)
        self.seen_length = mean.detach()
        if not self.how.clip:
            return gradient
        share = self.how.clip * mean / length.clamp_min(torch.finfo(length.dtype).tiny)
        return gradient * share.clamp_max(1)

    def terms(self, step: int, canvas: Canvas, piece: int) -> Iterator[Term]:
        """The loss of one student."""
        x = canvas.seen(self.transform).clone()
        if x.requires_grad:
            x.register_hook(self.clipped)
        lesson = Student(
            x, self.labels.targets(), self.raw_lr, self.students.forward, cross_entropy,
            self.dsa, piece * canvas.most,
        )  # fmt: skip
        first, count = self.stretch(step, lesson)
        walk = self.walk(step, lesson, canvas, first, count)
        yield Term("outer", walk.loss(self.beginning(step), partial(self.judged, step)))

    def walk(self, step: int, lesson: Student, canvas: Canvas, first: int, count: int) -> Unrolled:
        """Return the steps of a student, of which ``first`` are constants."""
        steps = self.plan(step, lesson.x, canvas, count)
        rates, keep = softplus(self.raw_lr)[:count], self.run.budget.links
        return Unrolled(lesson, steps, rates, self.inner, first, keep)

    def after(self, step: int, canvas: Canvas) -> None:
        """Remember how long gradients are."""
        self.length = self.seen_length

    def state(self) -> dict[str, Tensor]:
        """The running mean of their lengths."""
        return {"length": self.length}

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Put it back."""
        self.length = tensors["length"].to(self.length)

    def outcome(self, canvas: Canvas) -> dict[str, Any]:
        """Images, labels where they are soft, and the mean step size where these were learned."""
        found = super().outcome(canvas) | self.labels.outcome()
        if self.how.learn_lr:
            found["syn_lr"] = float(softplus(self.raw_lr.detach()).mean())
        return found

    def image_bytes(self) -> int:
        """Bytes that the second-order graph of one student step keeps per image, measured."""
        x = self.canvas.seen(self.transform)[:1]
        return self.students.image_bytes(x, self.labels.targets()[:1], cross_entropy)
