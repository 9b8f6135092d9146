"""The step that MTT, FTD, TESLA, DATM and LAD share.

A student starts from an expert's parameters at epoch s, takes N steps of gradient descent on the
synthetic set and should arrive where the expert was at epoch s + M. Images, soft labels and the
student's step size move along the gradient of the normalised distance. Experts are trained once
and cached (potstill.experts); the gradient through the student's steps is exact in the memory of
one step unless a method asks for TESLA's (potstill.match.parameter_distance).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor

from potstill.canvas import Canvas, CanvasSpec
from potstill.data import ImageSet
from potstill.labels import LabelSpec
from potstill.losses import Loss, cross_entropy
from potstill.match.parameter_distance import GRADIENTS, trajectory_distance
from potstill.methods.base import Objective
from potstill.methods.trajectory.expert_networks import ExpertNetworks
from potstill.methods.trajectory.masks import Areas, Masks
from potstill.methods.trajectory.step_size import StepSize
from potstill.methods.trajectory.students import Students, pick
from potstill.networks import Experts
from potstill.networks.parts import fit_transform
from potstill.run import InputError, Run
from potstill.run.descent import Descent, Rate
from potstill.run.fields import (
    BatchOrAll,
    Count,
    Decay,
    Epoch,
    Epochs,
    NotNegative,
    OneOf,
    Positive,
    Steps,
)
from potstill.run.loop import Term
from potstill.run.parts import Part
from potstill.synthetic.iterates import save_iterate

__all__ = [
    "MatchesTrajectories",
    "Trajectory",
    "TrajectoryObjective",
]

Gradient = Annotated[str, OneOf(*GRADIENTS)]
Space = Annotated[str, OneOf("network", "rgb")]
# Lengths fit: an expert's epoch of CIFAR-10-LT is 88 steps of 0.05, of which 40 student steps of
# 0.02 cover what images can follow (benchmarks/trajectory_gain.py distances). Its first two epochs
# are as long as the 20 that are matched at 0.01 and batch 256.
_QUICK = {
    "canvas": "tiled",
    "start": "tiled",
    "steps": 60,
    "network": "convnet-w32-in",
    "experts": 2,
    "expert_epochs": 20,
    "expert_lr": 0.05,
    "expert_batch": 128,
    "span": 1,
    "student_steps": 40,
    "student_batch": 25,
    "start_max": 2,
    "start_now": 1,
    "threshold": 0.0,
    "syn_lr": 0.02,
}
_STANDARD = {"steps": 2_000, "experts": 20, "threshold": 0.0}


@dataclass(frozen=True, kw_only=True)
class Trajectory(Part):
    """Which stretch of an expert's way a student has to cover, and how."""

    space: Space = "network"  # images move behind the transform ("network") or in front ("rgb")
    span: Epochs = 2  # M: expert epochs that the student has to cover
    student_steps: Count = 30  # N: steps of the student
    student_batch: BatchOrAll = 0  # synthetic images per student step; 0 = all
    start_min: Epoch = 0  # first expert epoch from which a student starts
    start_max: Epoch = 20  # T+: start epochs are below this ...
    start_now: Epoch = 0  # T: ... or below this at first, if start_grow is above 0
    start_grow: Steps = 0  # steps in which the bound grows from start_now to start_max; 0 = off
    gradient: Gradient = "exact"  # through the student's steps: "exact", "tesla" or "unroll"
    syn_lr: Positive = 0.01  # student step size at the beginning
    lr_syn_lr: Positive = 1e-5  # step size of the student step size, which stays positive
    gpus: Count = 1  # of the released loop: students take syn_lr/gpus, receivers the whole syn_lr
    threshold: NotNegative = 0.0  # skip the update if the distance is above this; 0 = never
    ema: Decay = 0.0  # decay of the average of images that becomes the result; 0 = off
    iterate_every: Steps = 0  # keep the set every so many steps, for lad-published; 0 = off

    def check(self, method: Any, real: ImageSet | None = None) -> None:
        """Refuse what would otherwise show only after the experts have been trained."""
        if getattr(method.canvas, "bounded", False) and self.space == "network":
            raise InputError(
                "bounded is True with space 'network', where 0-1 means nothing; use space=rgb"
            )
        epochs = getattr(method.networks, "expert_epochs", 0)
        if not self.start_min < self.start_max <= epochs - self.span + 1:  # starts lie below it
            raise InputError(
                f"start_min is {self.start_min}, start_max is {self.start_max} and span is "
                f"{self.span} with expert_epochs {epochs}; use start_min < start_max "
                f"and start_max - 1 + span <= expert_epochs"
            )

    def snapshots(self) -> set[int]:
        """Return the expert epochs where students start and end."""
        return set(range(self.start_min, self.start_max + self.span))

    def bound(self, step: int) -> int:
        """Start epochs lie below this at ``step`` (DATM sec. 4.2: sequential generation)."""
        if not self.start_grow:
            return self.start_max
        now = max(self.start_now, self.start_min + 1)  # published code crashes on an empty range
        grown = now + (self.start_max - now) * step // self.start_grow
        return max(self.start_min + 1, min(self.start_max, grown))


class MatchesTrajectories:
    """What the methods of this family do before step 0; to be mixed into a :class:`Matcher`."""

    sizes: ClassVar[dict[str, dict[str, Any]]] = {"standard": _STANDARD, "quick": _QUICK}
    pairs: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "canvas": ("pixels", "tiled", "multi-formation", "subsampled", "frequency"),
        "labels": ("hard", "soft", "teacher"),
        "networks": ("experts",),
    }

    canvas: CanvasSpec
    labels: LabelSpec
    networks: Experts
    trajectory: Trajectory
    masks: Masks
    descent: Descent

    @classmethod
    def sized(cls, **more: dict[str, Any]) -> dict[str, dict[str, Any]]:
        """Return the sizes of the family with ``more`` fields in some."""
        return {name: fields | more.get(name, {}) for name, fields in cls.sizes.items()}

    @property
    def _ends(self) -> set[int]:
        """The last epoch, where finished experts choose images or labels, or say where to look."""
        judged = self.canvas.judged or self.labels.judged or self.masks.area_every
        return {self.networks.expert_epochs} if judged else set()

    def open(self, real: ImageSet, run: Run) -> ExpertNetworks:
        """Train the experts or read them from the cache."""
        transform = fit_transform(real, self.networks.preprocess)
        epochs = self.trajectory.snapshots() | self._ends
        found = self.networks.trained(real, run, epochs, transform)
        return ExpertNetworks(found, transform, self.networks.expert_epochs)

    def start(self, real: ImageSet, ipc: int, networks: ExpertNetworks, run: Run) -> Canvas:
        """Return the first images; experts may choose them."""
        judging = networks.judging(real, run)
        counts = self.canvas.counts(real, ipc)
        candidates = judging.candidates(counts) if self.canvas.judged else None
        return self.canvas.make(real, ipc, run, candidates=candidates)

    def student_loss(self, real: ImageSet) -> Loss:
        """Return what students descend on."""
        return cross_entropy

    def prepare(
        self, real: ImageSet, canvas: Canvas, networks: ExpertNetworks, run: Run
    ) -> TrajectoryObjective:
        """Let the experts label the images and build the network that all students share."""
        return TrajectoryObjective(self, real, canvas, networks, run)


class TrajectoryObjective(Objective):
    """L = || theta_N - theta*_{s+M} ||^2 / || theta*_s - theta*_{s+M} ||^2 (MTT eq. 2)."""

    def __init__(
        self,
        method: MatchesTrajectories,
        real: ImageSet,
        canvas: Canvas,
        networks: ExpertNetworks,
        run: Run,
    ) -> None:
        self.how, self.networks, self.run = method.trajectory, networks, run
        self.loss = method.student_loss(real)
        self.labels = method.labels.make(canvas, networks.judging(real, run).logits)
        self.taught = method.labels.kind == "teacher"
        behind = self.how.space == "network" and canvas.plain
        self.canvas = canvas.moved_behind(networks.transform) if behind else canvas
        if self.how.space == "network" and not behind:  # the published step size acts back there
            self.lr = method.descent.scaled(networks.transform.step_share)
        self.step_size = StepSize(self.how.syn_lr, run.device)
        momentum = method.descent.momentum
        own = {"raw_lr": Rate("lr_syn_lr", self.how.lr_syn_lr, momentum)}
        self.rates = own | dict(method.labels.rates)
        self.dsa = method.networks.dsa()
        skeleton = method.networks.new(real, torch.Generator().manual_seed(0))
        self.students = Students(skeleton.to(run.device), run, self.dsa, self.how.student_batch)
        self.drop = method.masks.drop_share
        self.areas = Areas(method.masks, self.canvas, networks, self.students.network)
        self.keep_bytes = run.budget.links
        averaged = self.canvas.parameters() if self.how.ema else {}
        self.average = {name: leaf.detach().clone() for name, leaf in averaged.items()}

    def leaves(self) -> dict[str, Tensor]:
        """The student's step size and the labels, where they are soft."""
        return {"raw_lr": self.step_size.leaf} | self.labels.leaves()

    def expert(self, member: int, epoch: int) -> Mapping[str, Tensor]:
        """Parameters of an expert after ``epoch`` epochs, on the device."""
        return self.students.snapshot("expert", member, epoch, self.networks.trajectories.at)

    def draw_expert(self, step: int) -> tuple[int, int]:
        """Return (member, start epoch) of a step."""
        draw = self.run.generator("expert/start", step)
        epoch = torch.randint(self.how.start_min, self.how.bound(step), (), generator=draw)
        return pick(self.run, "expert", step, self.networks.members), int(epoch)

    def terms(self, step: int, canvas: Canvas, piece: int) -> Iterator[Term]:
        """The normalised distance of the arrival points."""
        yield Term("trajectory", self.thresholded(self.trajectory_loss(step, canvas, piece)))

    def trajectory_loss(
        self, step: int, canvas: Canvas, piece: int, matched: Collection[str] | None = None
    ) -> Tensor:
        """Distance of a student from the expert of this step, in the ``matched`` parameters."""
        member, epoch = self.draw_expert(step)
        target = self.expert(member, epoch + self.how.span)
        x = self.areas.seen(step, canvas)
        if self.taught:  # the current target labels the current images (TESLA sec. 3.3)
            with torch.no_grad():
                self.labels.set_(self.students.forward(target, x.detach()))
        return trajectory_distance(
            x,
            self.labels.targets(),
            self.step_size() / self.how.gpus,
            forward=self.students.forward,
            start=self.expert(member, epoch),
            target=target,
            steps=self.students.draw("student", step, x, self.how.student_steps),
            loss=self.loss,
            dsa=self.dsa,
            matched=matched,
            drop=self.drop,
            gradient=self.how.gradient,
            chunk=piece * canvas.most,
            keep_bytes=self.keep_bytes,
        )

    def thresholded(self, value: Tensor) -> Tensor:
        """Take the graph off a distance above the threshold, so that it moves nothing."""
        far = self.how.threshold and float(value.detach()) > self.how.threshold
        return value.detach() if far else value

    @torch.no_grad()
    def after(self, step: int, canvas: Canvas) -> None:
        """Average the images (FTD) and keep an iterate where one is due."""
        for name, mean in self.average.items():
            mean.lerp_(canvas.parameters()[name], 1 - self.how.ema)
        due = self.how.iterate_every and (step + 1) % self.how.iterate_every == 0
        if due and self.run.folder is not None:
            parts = self.outcome(canvas)
            images, soft, syn_lr = parts["images"], parts.get("soft_labels"), parts["syn_lr"]
            save_iterate(self.run.folder, step + 1, images, soft, syn_lr)

    def state(self) -> dict[str, Tensor]:
        """The average of the images, and the weights of their gradient."""
        return {f"ema/{n}": mean for n, mean in self.average.items()} | self.areas.state()

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Put both back."""
        self.areas.load_state(tensors)
        for name, mean in self.average.items():
            mean.copy_(tensors[f"ema/{name}"])

    def outcome(self, canvas: Canvas) -> dict[str, Any]:
        """Images (their average, if asked for), soft labels and the learned step size.

        The step size is a receiver's. On n GPUs the released loop splits every batch among n
        replicas, whose students then move by eta / n; the released evaluation trains with eta.
        """
        images = canvas.pictures(self.average or None).float().cpu()
        syn_lr = float(self.step_size().detach())
        return {"images": images, "syn_lr": syn_lr} | self.labels.outcome()

    def image_bytes(self) -> int:
        """Bytes that the second-order graph of one student step keeps per image, measured."""
        x = self.canvas.seen(self.networks.transform)[:1]
        return self.students.image_bytes(x, self.labels.targets()[:1], self.loss)
