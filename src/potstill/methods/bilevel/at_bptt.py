"""AT-BPTT: Automatic Truncated Backpropagation Through Time (Li et al., NeurIPS 2025, 2510.04838).

RaT-BPTT with a window whose place and size W follow from the lengths g_0 ... g_{T-1} of a student's
gradients, looked at once per pass of the real images:

    early     begins at k ~ softmax(g),  W = W0 - d + 2 d r / T,  r the rank of |g_k - g_{k-1}|
    middle    begins anywhere,           W = W0 + d
    late      begins at T - k - W,  k ~ softmax(g),               W = W0 - d

Early ends when the accuracy of students on real images has not risen by 1.5 points per pass for
0.15 T passes in a row, and middle when it has not risen by 1 point for 0.125 T.

Deviations: those of RaT-BPTT, but for the draw, which is that of the release; the paper's low-rank
approximation of Hessians is not in the code that was read, and the gradient here is exact. Recipes:
recipes/at-bptt/.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from potstill.canvas import Canvas, CanvasSpec, Pixels
from potstill.data import ImageSet
from potstill.match.rollout import Student
from potstill.methods.base import Matcher, MethodInfo, Objective
from potstill.methods.bilevel.rat_bptt import QUICK, STANDARD
from potstill.methods.bilevel.unrolled_training import Lessons, UnrolledObjective, UnrollsTraining
from potstill.methods.judging import Judging
from potstill.networks import Networks, NetworkSpec, RandomNets
from potstill.run import InputError, Run
from potstill.run.descent import Descent
from potstill.run.fields import Batch, Range, Steps

__all__ = ["ATBPTT"]

_GAINS = {0: (0.015, 0.15), 1: (0.01, 0.125)}  # of a stage: least gain, and for how many T passes


@dataclass(frozen=True, kw_only=True)
class ATBPTT(UnrollsTraining, Matcher):
    """Learn images through a window where a student's gradients say so."""

    info = MethodInfo(
        name="at-bptt",
        title="Automatic Truncated Backpropagation Through Time",
        paper="Li et al., NeurIPS 2025",
        year=2025,
        arxiv="2510.04838",
        family="unrolled training",
        labels="hard, or soft (learned)",
        long_tail="nothing as published; outer_loss balanced_softmax, or balance, in the only "
        "place where real images enter",
        cost="as RaT-BPTT, and one more training of a student per pass of the real images",
    )
    sizes = {
        "quick": QUICK | {"radius": 3, "look_every": 4},
        "standard": STANDARD,
        "paper": {"lr_labels": 1e-3},
    }

    canvas: CanvasSpec = Pixels(start="noise", bounded=False)
    networks: NetworkSpec = RandomNets(preprocess="zca")
    lessons: Lessons = Lessons(window=40)
    outer: Judging = Judging()
    descent: Descent = Descent(steps=600_000, lr_images=1e-3)  # 60,000 passes of ten batches
    batch_real: Batch = 5000  # real images per step
    radius: Annotated[int, Range(0, 10**4)] = 10  # d: steps by which the window grows or shrinks
    look_every: Steps = 0  # steps from one look to the next; 0 = one pass of the real set

    def check(self, real: ImageSet | None = None) -> None:
        """Refuse windows that do not fit into a training."""
        super().check(real)
        steps, window = self.lessons.student_steps, self.lessons.window or 0
        if not self.radius < window <= steps - self.radius:
            raise InputError(
                f"radius is {self.radius} with window {window} and student_steps {steps}; use "
                "radius < window and window + radius <= student_steps"
            )

    def prepare(self, real: ImageSet, canvas: Canvas, networks: Networks, run: Run) -> Objective:
        """Nothing is computed before step 0."""
        return _Automatic(self, real, canvas, networks, run)


class _Automatic(UnrolledObjective):
    """With a place of the window that is chosen by what gradients look like."""

    method: ATBPTT

    def __init__(
        self, how: ATBPTT, real: ImageSet, canvas: Canvas, networks: Networks, run: Run
    ) -> None:
        super().__init__(how, real, canvas, networks, run)
        self.every = how.look_every or -(-len(real) // min(how.batch_real, len(real)))
        self.stage, self.idle, self.first, self.size = 0, 0, 0, how.lessons.window
        self.sum, self.before = 0.0, 0.0  # of accuracies: of this pass so far, mean of the last

    def stretch(self, step: int, lesson: Student) -> tuple[int, int]:
        """Return how many steps of the student are constants, and how many it takes."""
        if step % self.every == 0:
            self.first, self.size = self.looked(step, lesson)
        return self.first, self.first + self.size

    def looked(self, step: int, lesson: Student) -> tuple[int, int]:
        """Return where the window begins and how long it is until the next look."""
        total, radius, window = self.how.student_steps, self.method.radius, self.how.window
        draw = self.run.generator("window", step)
        if self.stage == 1:
            size = window + radius
            return int(torch.randint(total - size + 1, (), generator=draw)), size
        walk = self.walk(step, lesson, self.canvas, 0, total)
        norms = walk.norms(self.beginning(step)).cpu().nan_to_num(0, 0)  # of one that diverged
        place = int(torch.multinomial(norms.double().softmax(0), 1, generator=draw))
        if self.stage == 2:
            size = window - radius
            first = total - place - size
        else:
            change = norms.diff(prepend=norms[:1]).abs()
            rank = int((change < change[place]).sum())
            size = int(window - radius + 2 * radius * rank / total)
            first = place
        return max(0, min(first, total - size)), size

    def after(self, step: int, canvas: Canvas) -> None:
        """Count the pass, and go on to the next stage where accuracy stands still."""
        super().after(step, canvas)
        self.sum += float(self.right)
        if (step + 1) % self.every:
            return
        mean, self.sum = self.sum / self.every, 0.0
        if self.stage in _GAINS:
            least, share = _GAINS[self.stage]
            self.idle = self.idle + 1 if mean - self.before < least else 0
            if self.idle >= share * self.how.student_steps:
                self.stage, self.idle = self.stage + 1, 0
        self.before = mean

    def state(self) -> dict[str, Tensor]:
        """What the family remembers, the stage, and where the window is."""
        places = torch.tensor([self.stage, self.idle, self.first, self.size])
        sums = torch.tensor([self.sum, self.before], dtype=torch.float64)
        return super().state() | {"places": places, "sums": sums}

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Put it back."""
        super().load_state(tensors)
        self.stage, self.idle, self.first, self.size = map(int, tensors["places"].tolist())
        self.sum, self.before = tensors["sums"].tolist()
