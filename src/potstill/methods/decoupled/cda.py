"""CDA: Curriculum Data Augmentation (Yin & Shen, TMLR 2024, arXiv 2311.18838).

    smallest crop(t) = a + (1 - a) (1 + cos(pi t / (m T))) / 2   until t = m T, then a

SRe2L whose crops are whole images at first and become as small as a, 0.08 of the area, over the
share m of a shard's T steps: what is global comes before details. The largest crop is always the
whole image. Everything else, deviations included, is SRe2L's. Recipe: recipes/cda/.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from potstill.canvas import CanvasSpec, Pixels
from potstill.methods.base import Matcher, MethodInfo
from potstill.methods.decoupled.recovery import Recovers, RecoveryDescent, RecoveryViews
from potstill.methods.decoupled.sre2l import SRe2L
from potstill.networks import NetworkSpec, SqueezedNets
from potstill.run.descent import cosine
from potstill.run.fields import NotNegative, OneOf, PositiveShare

__all__ = ["CDA", "CurriculumViews"]

Curriculum = Annotated[str, OneOf("cosine", "linear", "step")]


@dataclass(frozen=True, kw_only=True)
class CurriculumViews(RecoveryViews):
    """Crops that begin as whole images."""

    curriculum: Curriculum = "cosine"  # how the smallest crop shrinks; or "linear", or one "step"
    milestone: PositiveShare = 1.0  # share of a shard's steps after which it has shrunk

    def smallest(self, done: float) -> float:
        """Return the smallest crop when a share ``done`` of a shard's steps are over."""
        over = min(1.0, done / self.milestone)
        left = {"cosine": cosine(over, 1), "linear": 1 - over, "step": float(over < 1)}
        return self.crop_min + (1 - self.crop_min) * left[self.curriculum]


@dataclass(frozen=True, kw_only=True)
class CDA(Recovers, Matcher):
    """SRe2L with crops from whole images to small ones."""

    info = MethodInfo(
        name="cda",
        title="Curriculum Data Augmentation",
        paper="Yin & Shen, TMLR 2024",
        year=2024,
        arxiv="2311.18838",
        family="decoupled",
        labels=SRe2L.info.labels,
        long_tail=SRe2L.info.long_tail,
        cost=SRe2L.info.cost,
    )
    sizes = SRe2L.sizes

    canvas: CanvasSpec = Pixels(start="noise", bounded=True)
    networks: NetworkSpec = SqueezedNets()
    views: RecoveryViews = CurriculumViews()
    descent: RecoveryDescent = RecoveryDescent(lr_images=0.4, schedule="cosine")
    norm_weight: NotNegative = 0.05  # of the batch-norm statistics; 0 = off
