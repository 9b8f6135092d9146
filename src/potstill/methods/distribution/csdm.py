"""CSDM: Class-aware Spectral Distribution Matching (arXiv 2603.01698).

    L = (1/C) sum_c E_w [ alpha(c) A + (1 - alpha(c)) P ]
    A = (|a| - |b|)^2,   P = 2 |a||b| (1 - cos(angle a - angle b))

a and b are the real and synthetic characteristic values of class c at frequency w. Amplitude
carries spread (diversity), phase carries location (realism). Head classes weigh amplitude more
(alpha_head), tail classes phase (1 - alpha_head): 25 images locate a class but do not show its
spread. For alpha strictly inside (0, 1) the distance is still zero only for equal distributions.

Deviations: as SDM. How alpha falls from head to tail is not published beyond its two ends: the
default is linear in the log of the class size; "two_level" is the literal reading; "reliability"
derives it from the sampling noise of a and is experimental. Recipe: recipes/csdm/.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from potstill.canvas import Canvas, CanvasSpec, Tiled
from potstill.data import ImageSet
from potstill.match.amplitude import amplitude_weights, noise_laws, reliability_weights
from potstill.match.spectral import spectral_mean, split, unbiased_amplitude
from potstill.methods.base import Matcher, MethodInfo
from potstill.methods.distribution.class_matching import (
    CANVASES,
    LABELS,
    TRAINED,
    Calibration,
    ClassMatching,
)
from potstill.methods.distribution.sdm import Power, spectral_matching
from potstill.methods.distribution.spectrum import SIZES, SpectralComparison, Spectrum
from potstill.networks import Networks, NetworkSpec, PoolNets
from potstill.networks.real_views import ClassMeans
from potstill.networks.view_draws import RealStatistics, SiameseViews
from potstill.run import InputError, Run
from potstill.run.fields import Inside, OneOf, Positive

__all__ = ["CSDM"]

AlphaSchedule = Annotated[str, OneOf("log_linear", "two_level", "reliability", "constant")]


class _ClassAware(SpectralComparison):
    """Characteristic functions; ``seen`` real images of each class are behind a view."""

    seen: Tensor  # (C,)
    debias = False

    def target(self, view: ClassMeans, first: int, last: int) -> Tensor:
        """Real values, with the amplitude's sampling inflation removed if asked for."""
        a = super().target(view, first, last)
        return unbiased_amplitude(a, self.seen[first:last]) if self.debias else a


@dataclass(frozen=True, kw_only=True)
class CSDM(Matcher):
    """Match characteristic functions; head classes weigh amplitude more, tail classes phase."""

    info = MethodInfo(
        name="csdm",
        title="Class-aware Spectral Distribution Matching",
        paper="arXiv 2603.01698",
        year=2026,
        arxiv="2603.01698",
        family="distribution matching",
        labels="hard",
        long_tail="amplitude / phase weights by class size; calibration without the class prior",
        cost="as SDM",
    )

    sizes = SIZES
    pairs = {"canvas": CANVASES, "labels": LABELS, "networks": (*TRAINED, "random")}

    canvas: CanvasSpec = Tiled()  # mosaics of real images (NCFM's "mix")
    networks: NetworkSpec = PoolNets()
    views: SiameseViews = SiameseViews()
    statistics: RealStatistics = RealStatistics()
    spectrum: Spectrum = Spectrum()
    calibrating: Calibration = Calibration()
    alpha_head: Inside = 0.8  # amplitude weight of the largest class; best at 0.7-0.9 (fig. 3)
    alpha_schedule: AlphaSchedule = "log_linear"  # or "two_level", "reliability", "constant"
    alpha_balanced: Inside = 0.5  # for all classes when the counts are equal
    debias: bool = False  # subtract the sampling inflation of the real amplitude
    power: Power = 1  # 1 = root per frequency (NCFM), 2 = squared (literal SDD)
    normalize: bool = True  # features to unit length before they are compared
    match_weight: Positive = 300.0  # NCFM's constant; matters only relative to the calibration

    def check(self, real: ImageSet | None = None) -> None:
        """Check that frequencies are compared."""
        super().check(real)
        if self.spectrum.kernel == "linear":
            raise InputError(
                "kernel is 'linear', which cannot tell amplitude from phase; use method sdm for it"
            )

    def prepare(
        self, real: ImageSet, canvas: Canvas, networks: Networks, run: Run
    ) -> ClassMatching:
        """Fix alpha(c) by the class sizes; the reliability schedule looks at the first images."""
        by_noise = self.alpha_schedule == "reliability"
        schedule = "log_linear" if by_noise else self.alpha_schedule
        alpha = amplitude_weights(real.counts, self.alpha_head, schedule, self.alpha_balanced)
        length = self.spectrum.length_on(real, networks, run, self.normalize)
        comparison = _ClassAware(self, real, length, alpha, run)
        most = self.statistics.batch_real or max(real.counts)
        comparison.seen = torch.tensor(real.counts).clamp_max(most)
        comparison.debias = self.debias
        objective: ClassMatching = spectral_matching(self, real, canvas, networks, run, comparison)
        if by_noise and real.imbalance_factor > 1:
            comparison.alpha = self._reliability(objective, comparison.seen, real.counts)
        return objective

    @torch.no_grad()
    def _reliability(self, objective: ClassMatching, seen: Tensor, counts: Sequence[int]) -> Tensor:
        view: ClassMeans = objective.side.at(0)
        images, labels = objective.canvas.decode()
        features = objective.side.features(images, labels, view)
        b = spectral_mean(features, view.frequencies, labels, objective.canvas.classes)
        amplitude, phase = split(view.table, b)
        noise = noise_laws(view.table, seen)
        return reliability_weights(
            counts,
            self.alpha_head,
            amplitude.mean(1),
            phase.mean(1),
            noise.amplitude,
            noise.phase,
        )
