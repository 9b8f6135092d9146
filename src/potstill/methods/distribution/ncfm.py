"""NCFM: Neural Characteristic Function Matching (Wang et al., CVPR 2025, arXiv 2502.20653).

    min_S max_psi (1/C) sum_c E_{w ~ p_psi} sqrt( alpha A + beta P )    (eq. 8; A, P as in CSDM)

Released form (``sampling_network=False``, all shipped configurations): 4096 i.i.d. Gaussian
frequencies, that is SDM with an RBF kernel of length 1, the root per frequency and alpha = beta =
0.5. Paper's form (``sampling_network=True``): psi maps noise to the per-axis scales of T/16 normal
laws, 16 frequencies are drawn from each, psi climbs the same loss that the images descend.

Deviations: the real side uses all images of a class (the released sampler always returns the first
1024), one step of all classes replaces 2C per-class AdamW steps, no weight decay on pixels; psi as
the paper intends (the released call yields four distinct frequencies); its mean scale is kept
within (1/4, 4) of 1 so that it cannot run to frequencies where both sides are noise.
Recipe: recipes/ncfm/.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from potstill.canvas import Canvas, CanvasSpec, Tiled
from potstill.data import ImageSet
from potstill.match.spectral import characteristic, segment_mean, spectral_distance
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
from potstill.run.checkpoint import under
from potstill.run.descent import Descent, pack, unpack
from potstill.run.fields import Inside, Positive
from potstill.run.objective import Term

__all__ = ["NCFM"]

_DRAWS = 16  # frequencies per mixture component (paper sec. 4.1)
_NOISE = 64  # dimension of the noise that psi maps


@dataclass(frozen=True, kw_only=True)
class NCFM(Matcher):
    """Match characteristic functions with one amplitude weight, optionally against an adversary."""

    info = MethodInfo(
        name="ncfm",
        title="Neural Characteristic Function Matching",
        paper="Wang et al., CVPR 2025",
        year=2025,
        arxiv="2502.20653",
        family="distribution matching",
        labels="hard",
        long_tail="per-class distributions; calibration as published ignores the prior",
        cost="as SDM; with the sampling network real features stay in memory",
    )
    sizes = {
        **SIZES,
        "standard": {"steps": 5000, "pool_epochs": 40, "frequencies": 2048},
    }
    pairs = {"canvas": CANVASES, "labels": LABELS, "networks": (*TRAINED, "random")}

    canvas: CanvasSpec = Tiled()  # mosaics of real images ("mix")
    networks: NetworkSpec = PoolNets()
    views: SiameseViews = SiameseViews()
    statistics: RealStatistics = RealStatistics()
    spectrum: Spectrum = Spectrum(  # N(0, I), i.i.d., as the released configurations
        length=1.0, frequencies=4096, orthogonal=False
    )
    calibrating: Calibration = Calibration(calibration_prior="none")  # as published
    descent: Descent = Descent(schedule="plateau")  # halved after 500 steps without improvement
    alpha: Inside = 0.5  # amplitude weight of every class; phase weighs 1 - alpha
    power: Power = 1  # 1 = root per frequency, 2 = squared
    sampling_network: bool = False  # the min-max form; needs real_side = "features"
    lr_sampler: Positive = 1e-3  # Adam step size of psi
    normalize: bool = True  # features to unit length before they are compared
    match_weight: Positive = 300.0  # NCFM's constant; matters only relative to the calibration

    def check(self, real: ImageSet | None = None) -> None:
        """Check that frequencies are compared, and as the sampling network needs it."""
        super().check(real)
        if self.spectrum.kernel == "linear":
            raise InputError(
                "kernel is 'linear', but NCFM compares frequencies; use kernel=rbf, or method sdm"
            )
        if self.sampling_network and self.statistics.real_side != "features":
            raise InputError(
                f"real_side is {self.statistics.real_side!r} with a sampling network, whose "
                "frequencies change at every step; use real_side=features"
            )
        if self.sampling_network and self.statistics.views_per_step > 1:
            raise InputError(
                f"views_per_step is {self.statistics.views_per_step} with a sampling network, "
                "which climbs on one; use views_per_step=1"
            )

    def prepare(
        self, real: ImageSet, canvas: Canvas, networks: Networks, run: Run
    ) -> ClassMatching:
        """Make psi where asked for."""
        alpha = torch.full((real.num_classes,), self.alpha)
        length = self.spectrum.length_on(real, networks, run, self.normalize)
        if not self.sampling_network:
            comparison = SpectralComparison(self, real, length, alpha, run)
            return spectral_matching(self, real, canvas, networks, run, comparison)
        adversary = _Adversary(self, real, length, alpha, run)
        adversary.meet(networks.dim, self.lr_sampler)
        found = spectral_matching(self, real, canvas, networks, run, adversary, _MinMax)
        found.adversary, found.rows = adversary, found.side.draws.rows
        return found


class _Adversary(SpectralComparison):
    """Frequencies that psi proposes at every step."""

    def meet(self, dim: int, lr: float) -> None:
        """Make psi for features of ``dim`` numbers."""
        self.dim = dim
        self.psi = _Sampler(dim, self.run.generator("psi")).to(self.run.device)
        self.climb = torch.optim.Adam(self.psi.parameters(), lr=lr, maximize=True)
        self.seen: list[tuple[Tensor, Tensor]] = []

    def frequencies(self, number: int, dim: int) -> Tensor:
        """Return what psi proposes at this step."""
        with torch.no_grad():
            return self.propose(number)

    def propose(self, step: int) -> Tensor:
        """Return frequencies (T, d), differentiable in psi."""
        components = max(1, self.spectrum.frequencies // _DRAWS)
        draw, device = self.run.generator("psi/noise", step), self.run.device
        noise = torch.randn(components, _NOISE, generator=draw).to(device)
        normals = torch.randn(components, _DRAWS, self.dim, generator=draw).to(device)
        return (self.psi(noise)[:, None] * normals).flatten(0, 1) / self.length

    def class_distance(
        self, view: ClassMeans, features: Tensor, labels: Tensor, first: int, last: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """As without psi, which will need the features."""
        self.seen.append((features.detach(), labels + first))
        return super().class_distance(view, features, labels, first, last)


class _MinMax(ClassMatching):
    """Matching, then one step up for psi on the features just seen."""

    adversary: _Adversary
    rows: list[int]  # of each class in the bank of real features

    def terms(self, step: int, canvas: Canvas, piece: int) -> Iterator[Term]:
        """As SDM; then psi climbs."""
        self.adversary.seen.clear()  # a step that ran out of memory is run again
        yield from super().terms(step, canvas, piece)
        self._climb(step)

    def _climb(self, step: int) -> None:
        one, bank = self.adversary, self.side.bank(step)
        frequencies = one.propose(step)
        features, labels = (torch.cat(part) for part in zip(*one.seen, strict=True))
        rows = self._real_rows(step).to(bank.features.device)
        real = characteristic(bank.features[rows].float(), frequencies)
        a = segment_mean(real, bank.labels[rows], self.canvas.classes)
        b = segment_mean(characteristic(features, frequencies), labels, self.canvas.classes)
        gain = spectral_distance(a, b, one.alpha, power=one.power).mean()
        one.climb.zero_grad(set_to_none=True)
        gain.backward()
        nn.utils.clip_grad_norm_(one.psi.parameters(), 1.0)
        one.climb.step()

    def _real_rows(self, step: int) -> Tensor:
        """Rows of the class-sorted bank that psi sees: up to 128 of each class, a small one whole.

        Equal shares of the bank would leave two images of a tail class, whose sampling noise psi
        would then climb.
        """
        draw = self.adversary.run.generator("psi/real", step)
        rows, start = [], 0
        for count in self.rows:
            rows.append(start + torch.randperm(count, generator=draw)[:128])
            start += count
        return torch.cat(rows)

    def state(self) -> dict[str, Tensor]:
        """Weights of psi and of its optimiser."""
        packed = {f"psi/{name}": value for name, value in self.adversary.psi.state_dict().items()}
        return super().state() | packed | pack(self.adversary.climb)

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Put psi and its optimiser back."""
        super().load_state(tensors)
        self.adversary.psi.load_state_dict(under("psi/", tensors))
        unpack(self.adversary.climb, tensors)


class _Sampler(nn.Module):
    """psi: noise (m, 64) -> positive scales (m, d) with mean within (1/4, 4), first all about 1."""

    def __init__(self, dim: int, generator: torch.Generator) -> None:
        super().__init__()
        shapes = [(256, _NOISE), (256, 256), (dim, 256)]
        self.weights = nn.ParameterList(
            torch.randn(shape, generator=generator) * (1 / shape[1]) ** 0.5 for shape in shapes
        )
        self.weights[-1].data.mul_(0.01)
        self.biases = nn.ParameterList(torch.zeros(shape[0]) for shape in shapes)

    def forward(self, noise: Tensor) -> Tensor:
        """Return scales (m, d)."""
        hidden = noise
        for weight, bias in zip(self.weights[:-1], self.biases[:-1], strict=True):
            hidden = nn.functional.leaky_relu(hidden @ weight.T + bias, 0.2)
        raw = nn.functional.softplus(hidden @ self.weights[-1].T + self.biases[-1] + 0.5413)
        mean = raw.mean()
        return raw * (mean.clamp(0.25, 4.0) / mean)
