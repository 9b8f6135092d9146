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

from potstill.canvas import Canvas, CanvasSpec, Pixels
from potstill.data import ImageSet
from potstill.experts.classifiers import train_classifiers
from potstill.labels import LabelSpec, Soft
from potstill.losses import WEIGHT_SCALES, Loss, cross_entropy, dam
from potstill.match.classifier_path import classifier_distance
from potstill.methods.base import Matcher, MethodInfo
from potstill.methods.trajectory.expert_networks import ExpertNetworks
from potstill.methods.trajectory.masks import Masks
from potstill.methods.trajectory.step_size import StepSize
from potstill.methods.trajectory.students import pick
from potstill.methods.trajectory.trajectory_matching import (
    MatchesTrajectories,
    Trajectory,
    TrajectoryObjective,
)
from potstill.nets.many import Training
from potstill.networks import Experts
from potstill.networks.parts import fit_transform
from potstill.run import InputError, Run
from potstill.run.descent import Descent
from potstill.run.fields import (
    BatchOrAll,
    Count,
    Epoch,
    Epochs,
    NotNegative,
    OneOf,
    Positive,
    Signed,
)
from potstill.run.loop import Term
from potstill.run.parts import Part

__all__ = ["LAD", "ClassifierExperts"]

Matching = Annotated[str, OneOf("joint", "sequential", "backbone", "direct", "oversample", "plain")]
Adjustment = Annotated[str, OneOf("weighted", "logit", "both", "none")]
WeightScale = Annotated[str, OneOf(*WEIGHT_SCALES)]


@dataclass(frozen=True, kw_only=True)
class ClassifierExperts(Part):
    """Experts' classifiers, trained on by themselves on balanced batches (ED)."""

    classifier_epochs: Epoch = 10  # training epochs of each classifier expert
    classifier_lr: Positive = 0.01  # their step size (SGD, constant, no weight decay)
    classifier_steps: Count = 80  # N of the classifier phase
    classifier_starts: Epochs = 1  # start epochs of the classifier phase are below this
    classifier_images: BatchOrAll = 0  # of an epoch at most; 0 = classes x largest class
    classifier_syn_lr: NotNegative = 0.0  # student step size of the phase at first; 0 = syn_lr's

    def epochs(self, span: int) -> list[int]:
        """Return the snapshots where students start and end, and the last for labels."""
        return sorted({self.classifier_epochs, *range(self.classifier_starts + span)})

    def training(self, experts: Training) -> Training:
        """Return how they are trained, after ``experts``."""
        return replace(
            experts,
            epochs=self.classifier_epochs,
            lr=self.classifier_lr,
            weight_decay=0.0,
            sampling="cyclic",
            epoch_images=self.classifier_images,
        )


@dataclass(frozen=True, kw_only=True)
class LAD(MatchesTrajectories, Matcher):
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
    sizes = MatchesTrajectories.sized(
        standard={"weight_scale": "mean1"},
        quick={
            "weight_scale": "mean1",
            "classifier_epochs": 6,
            "classifier_lr": 0.02,
            "classifier_images": 12_500,
            "classifier_steps": 40,
        },
    )
    sizes["overnight"] = sizes["quick"] | {"network": "convnet-w64-in", "experts": 6, "steps": 150}

    canvas: CanvasSpec = Pixels(start="correct", bounded=False)  # right by classifier experts
    labels: LabelSpec = Soft()  # soft labels that descend with the images
    networks: Experts = Experts(expert_epochs=100, expert_decay=5e-3, expert_rho=0.01)
    classifiers: ClassifierExperts = ClassifierExperts()
    trajectory: Trajectory = Trajectory(student_steps=80)
    masks: Masks = Masks()
    descent: Descent = Descent(  # the released loop counts from 0 to 10000
        steps=10_001, lr_images=100.0, optimizer="sgd"
    )
    # "joint", "sequential", "backbone", "direct", "oversample" or "plain" (fig. 6)
    matching: Matching = "joint"
    adjustment: Adjustment = "weighted"  # DAM: "weighted" (code), "logit", "both" (paper) or "none"
    tau: Signed = 1.0  # lambda of eq. 5, for adjustment "logit" and "both"
    weight_scale: WeightScale = "sum1"  # class weights with sum 1 (code) or mean 1 ("mean1")
    representation_weight: Positive = 0.1  # lambda_rep (CIFAR-10-LT 200, IPC 10)
    classifier_weight: Positive = 1.0  # lambda_cls

    @property
    def decoupled(self) -> bool:
        """Whether there are classifier experts."""
        return self.matching not in ("oversample", "plain")

    def check(self, real: ImageSet | None = None) -> None:
        """Check the two phases."""
        super().check(real)
        if self.decoupled and self.labels.kind == "teacher":
            raise InputError(
                f"labels is 'teacher' with matching {self.matching!r}, whose representation "
                "experts are biased; use 'soft' or 'hard'"
            )
        least = self.classifiers.classifier_starts - 1 + self.trajectory.span
        if least > self.classifiers.classifier_epochs:
            raise InputError(
                f"classifier_starts is {self.classifiers.classifier_starts} and span is "
                f"{self.trajectory.span} with classifier_epochs "
                f"{self.classifiers.classifier_epochs}; use at least {least} epochs"
            )
        self.classifiers.training(self.networks.training())

    @property
    def _epochs(self) -> set[int]:
        """Epochs of representation experts; classifier experts begin where those end."""
        own = set() if self.matching == "direct" else self.trajectory.snapshots() | self._ends
        return own | ({self.networks.expert_epochs} if self.decoupled else set())

    def open(self, real: ImageSet, run: Run) -> ExpertNetworks:
        """Train representation experts, then classifier experts on their last backbones."""
        transform = fit_transform(real, self.networks.preprocess)
        last, span = self.networks.expert_epochs, self.trajectory.span
        if not self.decoupled:
            prior = "balanced" if self.matching == "oversample" else self.networks.expert_prior
            experts = replace(self.networks, expert_prior=prior)
            found = experts.trained(real, run, self._epochs, transform)
            return ExpertNetworks(found, transform, last)
        wanted = self.classifiers.epochs(span)
        head = self.networks.new(real, torch.Generator().manual_seed(0)).classifier
        row = 4 * sum(p.numel() for p in head.parameters())  # bytes, with the check of free space
        reserve = row * self.networks.experts * len(wanted)
        found = self.networks.trained(real, run, self._epochs, transform, reserve=reserve)
        after = self.classifiers.training(self.networks.training())
        heads = train_classifiers(real, transform, found, last, after, run, epochs=wanted)
        return ExpertNetworks(found, transform, last, heads, self.classifiers.classifier_epochs)

    def student_loss(self, real: ImageSet) -> Loss:
        """Return the DAM loss by the real class sizes."""
        if self.adjustment == "none":
            return cross_entropy
        tau = 0.0 if self.adjustment == "weighted" else self.tau
        weighted, scale = self.adjustment != "logit", self.weight_scale
        return dam(real.counts, tau=tau, weighted=weighted, weight_scale=scale)

    def prepare(
        self, real: ImageSet, canvas: Canvas, networks: ExpertNetworks, run: Run
    ) -> TrajectoryObjective:
        """As the others, with both phases."""
        return _Decoupled(self, real, canvas, networks, run)


class _Decoupled(TrajectoryObjective):
    """Representation and classifier matched apart (eq. 6), or one of them."""

    def __init__(
        self, method: LAD, real: ImageSet, canvas: Canvas, networks: ExpertNetworks, run: Run
    ) -> None:
        super().__init__(method, real, canvas, networks, run)
        self.method, first = method, method.classifiers.classifier_syn_lr
        self.classifier_step = self.step_size  # both phases learn one eta, as published
        if method.decoupled and first:
            self.classifier_step = StepSize(first, run.device)
            self.rates = {**self.rates, "raw_classifier_lr": self.rates["raw_lr"]}

    def leaves(self) -> dict[str, Tensor]:
        """Those of the representation phase and a step size of the classifier phase's own."""
        own = self.classifier_step is not self.step_size
        more = {"raw_classifier_lr": self.classifier_step.leaf} if own else {}
        return super().leaves() | more

    def terms(self, step: int, canvas: Canvas, piece: int) -> Iterator[Term]:
        """Both phases, or one of them."""
        lad = self.method
        if not lad.decoupled:
            yield from super().terms(step, canvas, piece)
            return
        phases = {"backbone": (True, False), "direct": (False, True)}
        first_half = step < lad.descent.steps // 2
        phases["sequential"] = (first_half, not first_half)
        representation, classifier = phases.get(lad.matching, (True, True))
        if representation:
            yield self._representation(step, canvas, piece)
        if classifier:
            yield self._classifier(step, canvas, piece)

    def _representation(self, step: int, canvas: Canvas, piece: int) -> Term:
        """The whole student moves, its backbone is compared."""
        value = self.trajectory_loss(step, canvas, piece, self.students.backbone)
        weight = self.method.representation_weight
        return Term("representation", weight * self.thresholded(value))

    def _classifier(self, step: int, canvas: Canvas, piece: int) -> Term:
        """The backbone is frozen, the classifier moves and is compared."""
        how, experts = self.method.classifiers, self.networks.classifiers
        assert experts is not None
        member = pick(self.run, "classifier", step, self.networks.members)
        draw = self.run.generator("classifier/start", step)
        epoch = int(torch.randint(how.classifier_starts, (), generator=draw))
        read = self.students.snapshot
        backbone = read("backbone", member, 0, lambda k, _, device: experts.backbone(k, device))
        body = {name.removeprefix("body."): value for name, value in backbone.items()}
        x = self.areas.seen(step, canvas)
        value = classifier_distance(
            x,
            self.labels.targets(),
            self.classifier_step() / self.how.gpus,
            features=partial(self.students.features, body),
            start=read("classifier", member, epoch, experts.at),
            target=read("classifier", member, epoch + self.how.span, experts.at),
            steps=self.students.draw("classifier", step, x, how.classifier_steps),
            dsa=self.dsa,
            drop=self.drop,
            gradient="tesla" if self.how.gradient == "tesla" else "exact",
            chunk=None if piece >= canvas.classes else piece * canvas.most,
            keep_bytes=self.keep_bytes,
        )
        return Term("classifier", self.method.classifier_weight * self.thresholded(value))

    def facts(self) -> dict[str, Any]:
        """Which experts were matched, and how uneven their classifiers are (fig. 2)."""
        networks, last, norms = self.networks, self.method.networks.expert_epochs, {}
        if last in self.method._epochs:
            at = networks.trajectories.at
            norms["representation"] = networks.classifier_norms(at, last)
        if networks.classifiers is not None:
            at, end = networks.classifiers.at, self.method.classifiers.classifier_epochs
            norms["classifier"] = networks.classifier_norms(at, end)
        known = networks.facts()["experts"]
        return {"experts": known | {"classifier_norms": norms}}
