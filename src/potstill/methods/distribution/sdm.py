"""SDM: Spectral Distribution Matching (arXiv 2603.01698, without its class-aware weights).

    SDD(P, Q) = E_{w ~ Lambda} |phi_P(w) - phi_Q(w)|^2 = MMD^2_k(P, Q),   k <-> Lambda by Bochner

phi is the characteristic function of a class's features: the class mean of exp(i w.f(x)). A
universal kernel k (RBF, Laplace, Matern, ...) makes SDD zero only for equal distributions; the
linear kernel leaves nothing but the class mean. Each step looks through a blend of the initial and
trained weights of a pool network (NCFM), compares the C x T characteristic values with the cached
real ones, and calibrates with a trained classifier.

Deviations: the paper's body was not available; kernel length, number of frequencies and power
follow NCFM's released loop. ``power=1`` takes the root per frequency as NCFM does, ``power=2`` is
the literal SDD. Frequencies are orthogonal (lower variance, same mean); views share eight sets,
each rotated by its own signed permutation of the feature axes. Step size: one step of all classes
replaces 2C per-class AdamW steps, which move sqrt(2C) as far. Recipe: recipes/sdm/.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

import torch
from torch import Tensor

from potstill.canvas import Canvas, CanvasSpec, Tiled
from potstill.data import ImageSet
from potstill.match.kernels import Kernel, kernel
from potstill.match.mmd import class_mmd2
from potstill.methods.base import Matcher, MethodInfo
from potstill.methods.distribution.class_matching import (
    CANVASES,
    LABELS,
    TRAINED,
    Calibration,
    ClassMatching,
    Comparison,
)
from potstill.methods.distribution.dm import MeanDistance
from potstill.methods.distribution.spectrum import (
    SIZES,
    SpectralComparison,
    Spectrum,
    step_size,
)
from potstill.networks import Networks, NetworkSpec, PoolNets
from potstill.networks.real_views import ClassFeatures, ClassMeans
from potstill.networks.view_draws import RealStatistics, SiameseViews
from potstill.run import InputError, Run
from potstill.run.fields import OneOf, Positive

__all__ = ["SDM", "Estimator", "Power", "spectral_matching"]

Matching = TypeVar("Matching", bound=ClassMatching)
Power = Annotated[int, OneOf(1, 2)]
Estimator = Annotated[str, OneOf("frequencies", "exact")]


class _HalfMean(MeanDistance):
    """What the linear kernel leaves: half the squared distance of class means."""

    def class_distance(
        self, view: ClassMeans, features: Tensor, labels: Tensor, first: int, last: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return half of the distance of each class."""
        distance, facts = super().class_distance(view, features, labels, first, last)
        return 0.5 * distance, facts


class _Exact(Comparison):
    """Half the closed-form MMD^2, the oracle of the frequencies (power 2)."""

    keeps_features = True

    def __init__(self, law: Kernel) -> None:
        self.law = law
        self._constants: dict[int, Tensor] = {}

    @property
    def facts(self) -> dict[str, Any]:
        """Features do not depend on the kernel."""
        return {"embed": "exact"}

    @torch.no_grad()
    def _constant(self, view: ClassFeatures) -> Tensor:
        """Mean real-real kernel value per class (C,); logged, moves nothing."""
        means = []
        for stack, mask in zip(view.features, view.mask, strict=True):
            x = stack[mask]
            total = sum(self.law.gram(part, x).sum() for part in x.split(512))
            means.append(total / len(x) ** 2)
        return torch.stack([torch.as_tensor(mean) for mean in means])

    def class_distance(
        self, view: ClassFeatures, features: Tensor, labels: Tensor, first: int, last: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return half of MMD^2 of each class, without its constant part."""
        real, mask = view.features[first:last], view.mask[first:last]
        distance = class_mmd2(real, mask, features, labels, self.law)
        if view.number not in self._constants:
            self._constants[view.number] = self._constant(view)
        facts = {"distance": distance.detach() + self._constants[view.number][first:last]}
        return 0.5 * distance, facts


def spectral_matching(
    method: Any,
    real: ImageSet,
    canvas: Canvas,
    networks: Networks,
    run: Run,
    comparison: Comparison,
    form: type[Matching] = ClassMatching,  # type: ignore[assignment]
) -> Matching:
    """Return the objective of SDM, CSDM and NCFM: a comparison, and the calibration beside it."""
    objective = form.of(
        method,
        real,
        canvas,
        networks,
        run,
        comparison,
        normalize=method.normalize,
        weight=method.match_weight / real.num_classes,
        further=method.calibrating.prepared(
            real, networks, method.views.dsa(), run, method.networks.prior
        ),
    )
    objective.lr = step_size(method.descent, real.num_classes)
    return objective


@dataclass(frozen=True, kw_only=True)
class SDM(Matcher):
    """Match characteristic functions of class features under the spectrum of a kernel."""

    info = MethodInfo(
        name="sdm",
        title="Spectral Distribution Matching",
        paper="arXiv 2603.01698",
        year=2026,
        arxiv="2603.01698",
        family="distribution matching",
        labels="hard",
        long_tail="per-class distributions; calibration without the class prior",
        cost="trains a pool of networks once; real side cached as one vector per class",
    )
    sizes = SIZES
    pairs = {"canvas": CANVASES, "labels": LABELS, "networks": (*TRAINED, "random")}

    canvas: CanvasSpec = Tiled()  # mosaics of real images (NCFM's "mix")
    networks: NetworkSpec = PoolNets()
    views: SiameseViews = SiameseViews()
    statistics: RealStatistics = RealStatistics()
    spectrum: Spectrum = Spectrum()
    calibrating: Calibration = Calibration()
    power: Power = 1  # 1 = root per frequency (NCFM), 2 = squared (literal SDD)
    estimator: Estimator = "frequencies"  # "exact" = closed-form MMD^2, the oracle (power 2)
    normalize: bool = True  # features to unit length before they are compared
    match_weight: Positive = 300.0  # NCFM's constant; matters only relative to the calibration

    def check(self, real: ImageSet | None = None) -> None:
        """Check kernel and estimator."""
        super().check(real)
        if self.estimator == "exact" and self.power != 2:
            raise InputError(
                f"power is {self.power} with estimator 'exact', which is the squared distance; "
                "use power=2"
            )
        if self.estimator == "exact":  # refuses kernels without a closed form in the distance
            law = kernel(self.spectrum.kernel, self.spectrum.length or self.spectrum.scale)
            law.value(torch.zeros(1))

    def prepare(
        self, real: ImageSet, canvas: Canvas, networks: Networks, run: Run
    ) -> ClassMatching:
        """Measure the kernel's length and open the real side."""
        length = self.spectrum.length_on(real, networks, run, self.normalize)
        if self.estimator == "exact":
            comparison: Comparison = _Exact(kernel(self.spectrum.kernel, length))
        elif self.spectrum.kernel == "linear":
            comparison = _HalfMean()
        else:  # amplitude and phase weigh alike
            alpha = torch.full((real.num_classes,), 0.5)
            comparison = SpectralComparison(self, real, length, alpha, run)
        return spectral_matching(self, real, canvas, networks, run, comparison)
