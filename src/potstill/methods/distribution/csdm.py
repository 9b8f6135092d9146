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

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from potstill.canvas import Canvas
from potstill.data import ImageSet
from potstill.experts.real_statistics import Entry
from potstill.match.amplitude import amplitude_weights, noise_laws, reliability_weights
from potstill.match.spectral import spectral_mean, split, unbiased_amplitude
from potstill.methods.base import MethodInfo
from potstill.methods.distribution.sdm import SDM
from potstill.run import InputError, Run
from potstill.run.fields import Inside, OneOf

__all__ = ["CSDM"]

AlphaSchedule = Annotated[str, OneOf("log_linear", "two_level", "reliability", "constant")]


@dataclass(kw_only=True)
class CSDM(SDM):
    """Match characteristic functions; head classes weigh amplitude more, tail classes phase."""

    info: ClassVar[MethodInfo] = MethodInfo(
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

    alpha_head: Inside = 0.8  # amplitude weight of the largest class; best at 0.7-0.9 (fig. 3)
    alpha_schedule: AlphaSchedule = "log_linear"  # or "two_level", "reliability", "constant"
    alpha_balanced: Inside = 0.5  # for all classes when the counts are equal
    debias: bool = False  # subtract the sampling inflation of the real amplitude

    def check(self, real: ImageSet | None = None) -> None:
        """Check that frequencies are compared."""
        super().check(real)
        if not self.spectral:
            raise InputError(
                f"kernel is {self.kernel!r} and estimator is {self.estimator!r}, which cannot tell "
                "amplitude from phase; use method sdm for them"
            )

    def amplitude_weights(self, real: ImageSet) -> Tensor:
        """alpha(c) from the class sizes (C,)."""
        schedule = "log_linear" if self.alpha_schedule == "reliability" else self.alpha_schedule
        return amplitude_weights(real.counts, self.alpha_head, schedule, self.alpha_balanced)

    def setup(self, real: ImageSet, canvas: Canvas, run: Run) -> None:
        """As SDM; the reliability schedule then looks at the initial images once."""
        super().setup(real, canvas, run)
        if self.alpha_schedule == "reliability" and real.imbalance_factor > 1:
            self.alpha_ = self._reliability(real, canvas)

    @torch.no_grad()
    def _reliability(self, real: ImageSet, canvas: Canvas) -> Tensor:
        entry = self.real_side_.at(0)
        assert entry.table is not None and entry.frequencies is not None
        images, labels = canvas.decode()
        features = self.eye_.see(images, self.real_side_.dsa, entry.augment)
        b = spectral_mean(features, entry.frequencies, labels, canvas.classes)
        amplitude, phase = split(entry.table, b)
        noise = noise_laws(entry.table, self._seen(0, real.num_classes))
        return reliability_weights(
            real.counts,
            self.alpha_head,
            amplitude.mean(1),
            phase.mean(1),
            noise.amplitude,
            noise.phase,
        )

    def target(self, entry: Entry, first: int, last: int) -> Tensor:
        """Real values, with the amplitude's sampling inflation removed if asked for."""
        a = super().target(entry, first, last)
        return unbiased_amplitude(a, self._seen(first, last)) if self.debias else a

    def _seen(self, first: int, last: int) -> Tensor:
        """Real images per class (k,) behind an entry's characteristic values."""
        most = self.batch_real or max(self.counts_)
        return torch.tensor(self.counts_[first:last]).clamp_max(most)
