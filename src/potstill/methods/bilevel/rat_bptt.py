"""RaT-BPTT: Random Truncated Backpropagation Through Time (Feng et al., ICLR 2024, 2311.07025).

    min over S of CE(T; theta_N),   theta_{i+1} = Adam(theta_i, grad CE(S; theta_i)),   N ~ U[W, T]

A new student takes N steps on the synthetic images; the loss of real images is differentiated
through the last W of them, those before are constants. Since N is drawn anew, every part of a
training is looked at, and no gradient goes through more than W steps. A gradient longer than twice
its running mean is cut to that.

Deviations: N is drawn in every step, in the release once per pass of the real images; Adam divides
by the root of v + eps^2; images begin as grey noise in RGB, and unit noise on a sphere in the
release; DSA's flip and rotation stand for the release's own. Recipes: recipes/rat-bptt/.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from potstill.canvas import CanvasSpec, Pixels
from potstill.methods.base import Matcher, MethodInfo
from potstill.methods.bilevel.unrolled_training import Lessons, UnrollsTraining
from potstill.methods.judging import Judging
from potstill.networks import NetworkSpec, RandomNets
from potstill.run.descent import Descent
from potstill.run.fields import Batch

__all__ = ["QUICK", "STANDARD", "RaTBPTT"]

QUICK: dict[str, Any] = {
    "start": "real",
    "steps": 80,
    "network": "convnet-w32-in",
    "batch_real": 256,
    "student_steps": 30,
    "window": 10,
    "syn_lr": 3e-3,
    "lr_images": 0.02,
    "lr_labels": 0.03,
}
STANDARD: dict[str, Any] = {"steps": 5000, "batch_real": 1024, "lr_labels": 1e-3}


@dataclass(frozen=True, kw_only=True)
class RaTBPTT(UnrollsTraining, Matcher):
    """Learn images through a window at a random place of a student's training."""

    info = MethodInfo(
        name="rat-bptt",
        title="Random Truncated Backpropagation Through Time",
        paper="Feng et al., ICLR 2024",
        year=2024,
        arxiv="2311.07025",
        family="unrolled training",
        labels="hard, or soft (learned)",
        long_tail="nothing as published; outer_loss balanced_softmax, or balance, in the only "
        "place where real images enter",
        cost="a training of a student per step, and the second-order pass back through its end",
    )
    sizes = {"quick": QUICK, "standard": STANDARD, "paper": {"lr_labels": 1e-3}}

    canvas: CanvasSpec = Pixels(start="noise", bounded=False)
    networks: NetworkSpec = RandomNets(preprocess="zca")
    lessons: Lessons = Lessons()
    outer: Judging = Judging()
    descent: Descent = Descent(steps=600_000, lr_images=1e-3)  # 60,000 passes of ten batches
    batch_real: Batch = 5000  # real images per step
