"""DD: Dataset Distillation (Wang, Zhu, Torralba and Efros, arXiv 1811.10959).

    min over S, eta of E CE(T; theta_N),    theta_{i+1} = theta_i - eta_i grad CE(S_i; theta_i)

S is dealt out to the steps of a student, the same images in the same step of every student, and is
gone through some times; every step has a learned step size of its own. The gradient goes through
all steps, in the memory of one.

Deviations: Adam's first beta is 0.9, not 0.5; the step size follows a cosine, where the release
halves it every 40 of 400 epochs; ConvNet in the place of AlexNet, and random first weights (the
release's best figures are of one known first network); images begin as grey noise in RGB. What a
receiver gets of the step sizes is their mean. Recipes: recipes/dd/.
"""

from __future__ import annotations

from dataclasses import dataclass

from potstill.canvas import CanvasSpec, Pixels
from potstill.methods.base import Matcher, MethodInfo
from potstill.methods.bilevel.unrolled_training import Lessons, UnrollsTraining
from potstill.methods.judging import Judging
from potstill.networks import NetworkSpec, RandomNets
from potstill.run.descent import Descent
from potstill.run.fields import Batch

__all__ = ["DD"]


@dataclass(frozen=True, kw_only=True)
class DD(UnrollsTraining, Matcher):
    """Learn images and step sizes through a whole short training."""

    info = MethodInfo(
        name="dd",
        title="Dataset Distillation",
        paper="Wang et al., 2018",
        year=2018,
        arxiv="1811.10959",
        family="unrolled training",
        labels="hard, with a learned student step size",
        long_tail="nothing as published; outer_loss balanced_softmax, or balance, in the only "
        "place where real images enter",
        cost="a short training of a student per step, and its second-order pass back",
    )
    sizes = {
        "quick": {
            "start": "real",
            "steps": 200,
            "network": "convnet-w32-in",
            "batch_real": 256,
            "lr_images": 0.03,
            "syn_lr": 0.05,
            "lr_labels": 0.01,
        },
        "standard": {"steps": 2000, "syn_lr": 0.02, "lr_labels": 0.01},
        "paper": {"lr_labels": 0.01},
    }

    canvas: CanvasSpec = Pixels(start="noise", bounded=False)
    networks: NetworkSpec = RandomNets()
    lessons: Lessons = Lessons(
        student_steps=30, window=0, per_class=1, order="turns", student_optimizer="sgd",
        learn_lr=True, augment="none", clip=0.0,
    )  # fmt: skip
    outer: Judging = Judging()
    descent: Descent = Descent(steps=20_000, lr_images=0.01, schedule="cosine")
    batch_real: Batch = 1024  # real images per step
