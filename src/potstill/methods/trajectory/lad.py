"""LAD: Distilling Long-tailed Datasets (Zhao et al., CVPR 2025, arXiv 2408.14506).

Experts trained on a long-tailed set are biased twice: their gradients towards head classes, their
classifiers in weight norm. LAD answers both.

Distribution-agnostic matching (DAM, eqs. 4-5): a student trained on balanced synthetic images can
follow an expert trained on s_j real ones only if its loss has the same bias,

    L = -(1/B) sum_i sum_j w_j t_ij log softmax(z_i - tau log s)_j

Expert decoupling (ED, eq. 6): representation experts (weight decay, GSAM) supply the backbone,
classifier experts (their last backbone frozen, class-balanced sampling) the classifier and the soft
labels. One step matches both and adds the gradients:

    representation_weight * || backbone(theta_N) - backbone* ||^2 / D       student loss DAM
    classifier_weight * || classifier(theta_N) - classifier* ||^2 / D       student loss CE

In the second phase the backbone is frozen, so it is one forward of all augmented batches and
softmax regression on their features (potstill.match.classifier_path).

Deviations: the defaults are what the released code runs (weights w_j that sum to 1, tau = 0, which
eqs. 4-5 have as lambda; ``--adjustment both`` is the paper's form) except for the gradient, which
is exact, the seeded draws, one transform for train and test, and the last iterate as the result.
Recipe: recipes/lad/.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor

from potstill.canvas import Canvas, LearnedCanvas
from potstill.data import ImageSet
from potstill.experts.classifiers import ClassifierTrajectories, train_classifiers
from potstill.losses import WEIGHT_SCALES, Loss, cross_entropy, dam
from potstill.match.classifier_path import classifier_distance
from potstill.methods.base import MethodInfo
from potstill.methods.trajectory.initialization import Judge
from potstill.methods.trajectory.students import pick
from potstill.methods.trajectory.trajectory_matching import TrajectoryMatcher
from potstill.nets.many import Training
from potstill.run import InputError, Run
from potstill.run.fields import Count, Epoch, Epochs, OneOf, Positive, Signed
from potstill.run.loop import Term

__all__ = ["LAD"]

Matching = Annotated[str, OneOf("joint", "sequential", "direct", "oversample", "plain")]
Adjustment = Annotated[str, OneOf("weighted", "logit", "both", "none")]
WeightScale = Annotated[str, OneOf(*WEIGHT_SCALES)]


@dataclass(kw_only=True)
class LAD(TrajectoryMatcher):
    """Match decoupled experts of a long-tailed set with a student whose loss has their bias."""

    info: ClassVar[MethodInfo] = MethodInfo(
        name="lad",
        title="Distribution-agnostic matching and expert decoupling",
        paper="Zhao et al., CVPR 2025",
        year=2025,
        arxiv="2408.14506",
        family="trajectory matching",
        labels="soft (learned), with a learned student step size",
        long_tail="student loss with the experts' bias; backbone and classifier experts apart",
        cost="as DATM; the classifier phase adds about a fifth",
    )
    sizes: ClassVar[dict[str, dict[str, Any]]] = {
        "standard": {"weight_scale": "mean1"},
        "quick": {
            "weight_scale": "mean1",
            "start_grow": 0,
            "classifier_epochs": 3,
            "classifier_lr": 0.02,
            "classifier_steps": 10,
        },
    }

    steps: int = 10_001  # optimisation steps (the released loop counts from 0 to 10000)
    expert_epochs: int = 100  # training epochs of each representation expert
    expert_decay: float = 5e-3  # their weight decay
    expert_rho: float = 0.01  # radius of adaptive GSAM, both kinds of experts
    student_steps: int = 80  # N: steps of the student, representation phase
    start: str = "correct"  # first images: those that classifier experts classify rightly
    label_kind: str = "learned"  # soft labels that descend with the images
    matching: Matching = "joint"  # or "sequential", "direct", "oversample", "plain" (fig. 6)
    adjustment: Adjustment = "weighted"  # DAM: "weighted" (code), "logit", "both" (paper) or "none"
    tau: Signed = 1.0  # lambda of eq. 5, for adjustment "logit" and "both"
    weight_scale: WeightScale = "sum1"  # class weights with sum 1 (code) or mean 1 ("mean1")
    representation_weight: Positive = 0.1  # lambda_rep (CIFAR-10-LT 200, IPC 10)
    classifier_weight: Positive = 1.0  # lambda_cls
    classifier_epochs: Epoch = 10  # training epochs of each classifier expert
    classifier_lr: Positive = 0.01  # their step size (SGD, constant, no weight decay)
    classifier_steps: Count = 80  # N of the classifier phase
    classifier_starts: Epochs = 1  # start epochs of the classifier phase are below this

    def check(self, real: ImageSet | None = None) -> None:
        """Check the two phases."""
        super().check(real)
        if self.decoupled and self.label_kind == "teacher":
            raise InputError(
                f"label_kind is 'teacher' with matching {self.matching!r}, whose representation "
                "experts are biased; use 'learned' or 'hard'"
            )
        if self.classifier_starts - 1 + self.span > self.classifier_epochs:
            raise InputError(
                f"classifier_starts is {self.classifier_starts} and span is {self.span} with "
                f"classifier_epochs {self.classifier_epochs}; use at least "
                f"{self.classifier_starts - 1 + self.span} epochs"
            )
        self._classifier_training()

    @property
    def decoupled(self) -> bool:
        """Whether there are classifier experts."""
        return self.matching in ("joint", "sequential", "direct")

    def _expert_training(self) -> Training:
        training = super()._expert_training()
        return replace(training, sampling="cyclic") if self.matching == "oversample" else training

    def _classifier_training(self) -> Training:
        return replace(
            super()._expert_training(),
            epochs=self.classifier_epochs,
            lr=self.classifier_lr,
            weight_decay=0.0,
            sampling="cyclic",
        )

    def snapshots(self) -> set[int]:
        """Classifier experts begin where representation experts end."""
        own = {self.expert_epochs} if self.decoupled else set()
        return own | (set() if self.matching == "direct" else super().snapshots())

    def _classifier_epochs(self) -> list[int]:
        """Classifier snapshots: where students start and end, and the last for labels."""
        return sorted({self.classifier_epochs, *range(self.classifier_starts + self.span)})

    def reserve(self, real: ImageSet) -> int:
        """Bytes of the classifier experts."""
        if not self.decoupled:
            return 0
        row = 4 * sum(p.numel() for p in self._skeleton(real).classifier.parameters())
        return row * self.experts * len(self._classifier_epochs())

    def train(self, real: ImageSet, run: Run) -> None:
        """Representation experts, then classifier experts on their last backbones."""
        super().train(real, run)
        self.classifiers_: ClassifierTrajectories | None = None
        if self.decoupled:
            self.classifiers_ = train_classifiers(
                real,
                self.transform(real),
                self.experts_,
                self.expert_epochs,
                self._classifier_training(),
                run,
                epochs=self._classifier_epochs(),
            )

    def _whole(self, member: int, epoch: int) -> dict[str, Tensor]:
        """Backbone and classifier of a classifier expert."""
        assert self.classifiers_ is not None
        return {**self.classifiers_.backbone(member), **self.classifiers_.at(member, epoch)}

    def judges(self) -> list[Judge]:
        """Fully trained classifier experts; without decoupling the experts themselves."""
        if not self.decoupled:
            return super().judges()
        last = self.classifier_epochs
        return [partial(self._whole, member, last) for member in range(self.experts)]

    def setup(self, real: ImageSet, canvas: Canvas, run: Run) -> None:
        """Fix the DAM loss by the real class sizes."""
        super().setup(real, canvas, run)
        self.dam_: Loss = cross_entropy
        if self.adjustment != "none":
            self.dam_ = dam(
                real.counts,
                tau=0.0 if self.adjustment == "weighted" else self.tau,
                weighted=self.adjustment != "logit",
                weight_scale=self.weight_scale,
            )

    def student_loss(self) -> Loss:
        """DAM: cross-entropy with the experts' bias."""
        return self.dam_

    def terms(self, step: int, canvas: Canvas, chunk: int) -> Iterator[Term]:
        """Both phases (eq. 6), or one of them."""
        if not self.decoupled:
            yield from super().terms(step, canvas, chunk)
            return
        assert isinstance(canvas, LearnedCanvas)
        first_half = step < self.steps // 2
        if self.matching == "joint" or (self.matching == "sequential" and first_half):
            yield self._representation(step, canvas, chunk)
        if self.matching != "sequential" or not first_half:
            yield self._classifier(step, canvas, chunk)

    def _representation(self, step: int, canvas: LearnedCanvas, chunk: int) -> Term:
        """The whole student moves, its backbone is compared."""
        value = self.journey(step, canvas, chunk, self.students_.backbone)
        return Term("representation", self.representation_weight * self.gated(value))

    def _classifier(self, step: int, canvas: LearnedCanvas, chunk: int) -> Term:
        """The backbone is frozen, the classifier moves and is compared."""
        assert self.classifiers_ is not None
        member = pick(self.run_, "classifier", step, self.experts)
        draw = self.run_.generator("classifier/start", step)
        epoch = int(torch.randint(self.classifier_starts, (), generator=draw))
        experts, read = self.classifiers_, self.students_.snapshot
        backbone = read("backbone", member, 0, lambda k, _, device: experts.backbone(k, device))
        body = {name.removeprefix("body."): value for name, value in backbone.items()}
        x = canvas.seen()
        value = classifier_distance(
            x,
            canvas.targets(),
            canvas.syn_lr(),
            features=partial(self.students_.features, body),
            start=read("classifier", member, epoch, experts.at),
            target=read("classifier", member, epoch + self.span, experts.at),
            steps=self.students_.draw("classifier", step, x, self.classifier_steps),
            dsa=self.dsa_,
            gradient="tesla" if self.gradient == "tesla" else "exact",
            chunk=None if chunk >= canvas.classes else chunk * self.most_,
            keep_bytes=self.keep_bytes_,
        )
        return Term("classifier", self.classifier_weight * self.gated(value))

    def seconds_saved(self) -> float:
        """Training of both kinds of experts that an earlier run had left behind."""
        more = self.classifiers_.seconds_saved if self.classifiers_ else 0.0
        return super().seconds_saved() + more

    def facts(self) -> dict[str, Any]:
        """Which experts were matched, and how uneven their classifiers are (fig. 2)."""
        facts = super().facts()
        whole = (
            {"representation": self._norms(self.experts_.at, self.expert_epochs)}
            if (self.expert_epochs in self.snapshots())
            else {}
        )
        if self.classifiers_ is not None:
            whole["classifier"] = self._norms(self.classifiers_.at, self.classifier_epochs)
        facts["experts"]["classifier_norms"] = whole
        return facts

    def _norms(self, at: Any, epoch: int) -> list[float]:
        """Length of each class's classifier row, mean over the experts, [C]."""
        rows = [
            at(member, epoch)["classifier.weight"].norm(dim=1) for member in range(self.experts)
        ]
        return [round(value, 5) for value in torch.stack(rows).mean(0).tolist()]
