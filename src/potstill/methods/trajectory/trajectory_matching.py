"""The step that MTT, FTD, TESLA, DATM and LAD share.

A student starts from an expert's parameters at epoch s, takes N steps of gradient descent on the
synthetic set and should arrive where the expert was at epoch s + M. Images, soft labels and the
student's step size move along the gradient of the normalised distance. Experts are trained once
and cached (potstill.experts); the gradient through the student's steps is exact in the memory of
one step unless a method asks for TESLA's (potstill.match.trajectory_distance).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor

from potstill.canvas import Canvas, LearnedCanvas, images_per_class
from potstill.canvas.learned import Space
from potstill.canvas.start import Profile
from potstill.data import DSA, ImageSet
from potstill.experts.trajectories import ExpertPrior, train_experts
from potstill.losses import Loss, cross_entropy
from potstill.match.parameter_distance import GRADIENTS, trajectory_distance
from potstill.methods.pixels import PixelMatcher
from potstill.methods.trajectory.initialization import Beginning, Judge, LabelStart
from potstill.methods.trajectory.students import Students, pick
from potstill.nets import Network, Sharpness, create_for
from potstill.nets.many import Training
from potstill.run import InputError, Run
from potstill.run.fields import (
    Batch,
    Count,
    Decay,
    Epoch,
    Epochs,
    NotNegative,
    OneOf,
    Part,
    Positive,
    Steps,
)
from potstill.run.loop import Rate, Term
from potstill.synthetic.iterates import save_iterate

__all__ = ["TrajectoryMatcher"]

Start = Annotated[str, OneOf("real", "noise", "correct")]
LabelKind = Annotated[str, OneOf("hard", "learned", "teacher")]
Gradient = Annotated[str, OneOf(*GRADIENTS)]
Whole = Annotated[int, OneOf(0, 1)]


@dataclass(kw_only=True)
class TrajectoryMatcher(PixelMatcher):
    """Match where students go on the synthetic set with where experts went on the real one."""

    sizes: ClassVar[dict[str, dict[str, Any]]] = {
        "standard": {"steps": 2_000, "experts": 20, "threshold": 0.0},
        "quick": {
            "steps": 200,
            "network": "convnet-w32-in",
            "experts": 2,
            "expert_epochs": 20,
            "expert_lr": 0.02,
            "expert_batch": 128,
            "span": 1,
            "student_steps": 10,
            "start_max": 12,
            "start_now": 4,
            "start_grow": 50,
            "threshold": 0.0,
            "syn_lr": 0.01,
        },
    }

    steps: int = 5_000  # optimisation steps
    lr_images: float = 100.0  # step size of the images, in the space that networks see
    optimizer: str = "sgd"  # "sgd" or "adam"
    momentum: float = 0.5  # of SGD, for images and student step size
    bounded: bool = False  # keep pixels in [0, 1]; with space "rgb" only
    preprocess: str = "zca"  # what networks see: "zca" whitening or "normalize" (mean, std)
    space: Space = "network"  # images move behind the transform ("network") or in front ("rgb")
    factor: Whole = 1  # trajectory methods store whole images
    start: Start = (
        "real"  # first images: "real", "noise" or "correct" (experts classify them rightly)
    )
    ipc_profile: Profile = (
        "balanced"  # stored images per class: equal, or "long_tailed" as the real set
    )
    network: str = "convnet-w128-in"  # expert and student; depth from the image size unless given
    experts: Count = 100  # trajectories to match
    expert_epochs: Epochs = 50  # training epochs of each expert
    expert_lr: Positive = 0.01  # their step size (SGD, constant)
    expert_batch: Batch = 256  # images per step
    expert_decay: NotNegative = 0.0  # weight decay
    expert_rho: NotNegative = 0.0  # radius of adaptive GSAM; 0 = plain SGD
    expert_alpha: NotNegative = 0.3  # GSAM: share of the orthogonal gradient that is taken back
    expert_prior: ExpertPrior = "plain"  # "plain" as the data come, "balanced" (oversampled), ...
    augment: str = "color_crop_cutout_flip_scale_rotate"  # DSA of experts and students, or "none"
    span: Epochs = 2  # M: expert epochs that the student has to cover
    student_steps: Count = 30  # N: steps of the student
    student_batch: Part = 0  # synthetic images per student step; 0 = all
    start_min: Epoch = 0  # first expert epoch from which a student starts
    start_max: Epoch = 20  # T+: start epochs are below this ...
    start_now: Epoch = 0  # T: ... or below this at first, if start_grow is above 0
    start_grow: Steps = 0  # steps in which the bound grows from start_now to start_max; 0 = off
    gradient: Gradient = "exact"  # through the student's steps: "exact", "tesla" or "unroll"
    syn_lr: Positive = 0.01  # student step size at the beginning
    lr_syn_lr: Positive = 1e-5  # step size of the student step size, which stays positive
    label_kind: LabelKind = "hard"  # "hard", "learned" (soft) or "teacher" (soft, by the target)
    label_start: LabelStart = "right"  # soft: mean of right experts, "one" expert's, or "hard"
    lr_labels: Positive = 2.0  # step size of the label logits
    momentum_labels: Decay = 0.9  # of SGD, for the label logits
    threshold: NotNegative = 0.0  # skip the update if the distance is above this; 0 = never
    ema: Decay = 0.0  # decay of the average of images that becomes the result; 0 = off
    iterate_every: Steps = 0  # keep the set every so many steps, for lad-published; 0 = off

    def check(self, real: ImageSet | None = None) -> None:
        """Check what would otherwise show only after the experts have been trained."""
        super().check(real)
        if self.bounded and self.space == "network":
            raise InputError(
                "bounded is True with space 'network', where 0-1 means nothing; use space=rgb"
            )
        if not self.start_min < self.start_max <= self.expert_epochs - self.span:
            raise InputError(
                f"start_min is {self.start_min}, start_max is {self.start_max} and span is "
                f"{self.span} with expert_epochs {self.expert_epochs}; use start_min < start_max "
                f"and start_max + span <= expert_epochs"
            )
        self._augmentation(), self._expert_training()
        if real is not None:
            self._skeleton(real)
            images_per_class(real, 1, self.ipc_profile)

    def _augmentation(self) -> DSA | None:
        return None if self.augment == "none" else DSA.parse(self.augment, align_corners=True)

    def _expert_training(self) -> Training:
        return Training(
            epochs=self.expert_epochs,
            batch=self.expert_batch,
            lr=self.expert_lr,
            momentum=0.0,
            weight_decay=self.expert_decay,
            augment=self._augmentation(),
            sharpness=Sharpness(self.expert_rho, self.expert_alpha) if self.expert_rho else None,
        )

    def _skeleton(self, real: ImageSet) -> Network:
        """Return a network of the right shape; its own parameters are never used."""
        return create_for(real, self.network, torch.Generator().manual_seed(0))

    def rates(self) -> dict[str, Rate]:
        """Step sizes of the student's step size and of the label logits."""
        return {
            "raw_lr": Rate("lr_syn_lr", self.lr_syn_lr, self.momentum),
            "logits": Rate("lr_labels", self.lr_labels, self.momentum_labels),
        }

    def snapshots(self) -> set[int]:
        """Expert epochs that are needed: where students start and end, and the last for labels."""
        wanted = set(range(self.start_min, self.start_max + self.span))
        needs_last = self.start == "correct" or (
            self.label_kind == "learned" and self.label_start != "hard"
        )
        return wanted | ({self.expert_epochs} if needs_last else set())

    def train(self, real: ImageSet, run: Run) -> None:
        """Train the experts or read them from the cache."""
        self.experts_ = train_experts(
            real,
            self.transform(real),
            self.network,
            self.experts,
            self._expert_training(),
            run,
            epochs=sorted(self.snapshots()),
            # the balanced stream of this family is OLTR's, as in LAD's code
            prior={"balanced": "class_aware"}.get(self.expert_prior, self.expert_prior),
            reserve=self.reserve(real),
        )

    def reserve(self, real: ImageSet) -> int:
        """Bytes on disk that are needed beside the experts; said before any is trained."""
        return 0

    def judges(self) -> list[Judge]:
        """Return readers of the fully trained networks that choose first images and soft labels."""
        last = self.expert_epochs
        return [partial(self.experts_.at, member, last) for member in range(self.experts)]

    def make_canvas(self, real: ImageSet, ipc: int, run: Run) -> LearnedCanvas:
        """Train the experts, choose first images and let the experts label them."""
        self.train(real, run)
        transform = self.transform(real)
        beginning = Beginning(real, transform, self.network, self.judges(), run)
        counts = images_per_class(real, ipc, self.ipc_profile)
        start = beginning.canvas(counts, self.start, self.shortage, self.bounded)
        first = "hard" if self.label_kind == "teacher" else self.label_start
        logits = None if self.label_kind == "hard" else beginning.logits(start, first)
        return LearnedCanvas(
            start,
            transform,
            space=self.space,
            logits=logits,
            learn_labels=self.label_kind == "learned",
            syn_lr=self.syn_lr,
        )

    def setup(self, real: ImageSet, canvas: Canvas, run: Run) -> None:
        """Build the functional network that all students share."""
        network = self._skeleton(real).to(run.device)
        self.run_, self.dsa_ = run, self._augmentation()
        self.students_ = Students(network, run, self.dsa_, self.student_batch)
        self.keep_bytes_ = int(0.25e9 * run.memory_gb)
        self.most_ = int(torch.bincount(canvas.labels).max())
        self.ema_ = canvas.images.detach().clone() if self.ema else None

    def expert(self, member: int, epoch: int) -> Mapping[str, Tensor]:
        """Parameters of an expert after ``epoch`` epochs, on the device."""
        return self.students_.snapshot("expert", member, epoch, self.experts_.at)

    def bound(self, step: int) -> int:
        """Start epochs lie below this at ``step`` (DATM sec. 4.2: sequential generation)."""
        if not self.start_grow:
            return self.start_max
        now = max(self.start_now, self.start_min + 1)  # published code crashes on an empty range
        grown = now + (self.start_max - now) * step // self.start_grow
        return max(self.start_min + 1, min(self.start_max, grown))

    def draw_expert(self, step: int) -> tuple[int, int]:
        """Return (member, start epoch) of a step."""
        draw = self.run_.generator("expert/start", step)
        epoch = torch.randint(self.start_min, self.bound(step), (), generator=draw)
        return pick(self.run_, "expert", step, self.experts), int(epoch)

    def student_loss(self) -> Loss:
        """The loss that the student descends on."""
        return cross_entropy

    def terms(self, step: int, canvas: Canvas, chunk: int) -> Iterator[Term]:
        """The normalised distance of the arrival points (MTT eq. 2)."""
        assert isinstance(canvas, LearnedCanvas)
        yield Term("trajectory", self.gated(self.journey(step, canvas, chunk)))

    def journey(
        self, step: int, canvas: LearnedCanvas, chunk: int, matched: Collection[str] | None = None
    ) -> Tensor:
        """Distance of a student from the expert of this step, in the ``matched`` parameters."""
        member, epoch = self.draw_expert(step)
        target = self.expert(member, epoch + self.span)
        if self.label_kind == "teacher":
            self._teach(canvas, target)
        x = canvas.seen()
        return trajectory_distance(
            x,
            canvas.targets(),
            canvas.syn_lr(),
            forward=self.students_.forward,
            start=self.expert(member, epoch),
            target=target,
            steps=self.students_.draw("student", step, x, self.student_steps),
            loss=self.student_loss(),
            dsa=self.dsa_,
            matched=matched,
            gradient=self.gradient,
            chunk=chunk * self.most_,
            keep_bytes=self.keep_bytes_,
        )

    def gated(self, value: Tensor) -> Tensor:
        """Take the graph off a distance above the threshold, so that it moves nothing."""
        far = self.threshold and float(value.detach()) > self.threshold
        return value.detach() if far else value

    @torch.no_grad()
    def _teach(self, canvas: LearnedCanvas, target: Mapping[str, Tensor]) -> None:
        """Let the current target label the current images (TESLA sec. 3.3)."""
        assert canvas.logits is not None
        canvas.logits.copy_(self.students_.forward(target, canvas.seen()))

    @torch.no_grad()
    def after(self, step: int, canvas: Canvas) -> None:
        """Average the images (FTD) and keep an iterate where one is due."""
        if self.ema_ is not None:
            self.ema_.lerp_(canvas.images, 1 - self.ema)
        due = self.iterate_every and (step + 1) % self.iterate_every == 0
        if due and self.run_.folder is not None:
            parts = self.outcome(canvas)
            images, soft, syn_lr = parts["images"], parts.get("soft_labels"), parts["syn_lr"]
            save_iterate(self.run_.folder, step + 1, images, soft, syn_lr)

    def state(self) -> dict[str, Tensor]:
        """The average of the images."""
        return {} if self.ema_ is None else {"ema": self.ema_}

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Put the average back."""
        if self.ema_ is not None:
            self.ema_.copy_(tensors["ema"])

    def outcome(self, canvas: Canvas) -> dict[str, Any]:
        """Images (their average, if asked for), soft labels and the learned step size."""
        assert isinstance(canvas, LearnedCanvas)
        parts: dict[str, Any] = {
            "images": canvas.pictures(self.ema_).float().cpu(),
            "syn_lr": float(canvas.syn_lr().detach()),
        }
        if canvas.logits is not None:
            parts["soft_labels"] = canvas.targets().detach().float().cpu()
        return parts

    def seconds_saved(self) -> float:
        """Training of experts that an earlier run had left behind."""
        return self.experts_.seconds_saved

    def facts(self) -> dict[str, Any]:
        """Which experts were matched."""
        return {"experts": {"key": self.experts_.key, "members": self.experts}}

    def image_bytes(self, canvas: Canvas) -> int:
        """Bytes that the second-order graph of one student step keeps per image, measured."""
        assert isinstance(canvas, LearnedCanvas)
        one, targets = canvas.seen()[:1], canvas.targets()[:1]
        return self.students_.image_bytes(one, targets, self.student_loss())
