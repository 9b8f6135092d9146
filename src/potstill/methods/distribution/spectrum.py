"""What SDM, CSDM and NCFM share: the spectrum of a kernel, characteristic functions under it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor

from potstill.data import ImageSet
from potstill.match.amplitude import median_distance
from potstill.match.kernels import Kernel, kernel
from potstill.match.spectral import (
    above_noise,
    characteristic,
    spectral_distance,
    spectral_mean,
    split,
)
from potstill.methods.distribution.class_matching import Comparison
from potstill.networks import Networks
from potstill.networks.real_views import ClassMeans
from potstill.run import InputError, Run
from potstill.run.descent import Descent
from potstill.run.fields import NotNegative, OneOf, Positive, Range
from potstill.run.parts import Part

__all__ = ["SIZES", "SpectralComparison", "Spectrum", "step_size"]

Frequencies = Annotated[int, Range(1, 2**16)]
Floor = Annotated[str, OneOf("none", "stop", "shrink")]
_QUICK = {
    "steps": 500,
    "network": "convnet-w32-in",
    "members": 4,
    "pool_epochs": 6,
    "pool_lr": 0.05,
    "pool_cutmix": 0.0,
    "real_side": "fixed",
    "entries": 40,
    "batch_real": 256,
    "frequencies": 512,
    "schedule": "cosine",
}
# On two cores, by the seconds of single steps: networks an hour, entries and steps an hour and a
# half, of which students leave the rest of the night (docs/speed.md)
_OVERNIGHT = {
    "steps": 1500,
    "network": "convnet-w128-in",
    "members": 3,
    "pool_epochs": 20,
    "pool_lr": 0.05,
    "pool_cutmix": 0.0,
    "pool_prior": "logit_adjusted",
    "real_side": "fixed",
    "entries": 100,
    "batch_real": 1024,
    "frequencies": 1024,
    "schedule": "cosine",
}
SIZES: dict[str, dict[str, Any]] = {  # of all three
    "quick": _QUICK,
    "overnight": _OVERNIGHT,
    "standard": {"steps": 5000, "pool_epochs": 40, "frequencies": 1024},
}
_SETS = 8  # distinct frequency draws kept in memory; views rotate them
_ROTATIONS = 1024  # kept in memory, the newest: numbers that come only once are without end


def step_size(descent: Descent, classes: int) -> float:
    """Return the step size of all classes together; ``lr_images`` is taken once a class and term.

    One step of all classes replaces 2C steps of Adam, which move sqrt(2C) as far.
    """
    plain = descent.optimizer == "sgd"
    return descent.lr_images if plain else descent.lr_images * math.sqrt(2 * classes)


@dataclass(frozen=True, kw_only=True)
class Spectrum(Part):
    """The frequencies at which characteristic functions are compared (Bochner)."""

    kernel: str = "rbf"  # laplace, matern32, matern52, rq, cauchy, linear, "rbf+laplace", ...
    scale: Positive = 1.0  # kernel length as a multiple of the median within-class distance
    length: NotNegative = 0.0  # fixed kernel length instead; 0 = use scale
    frequencies: Frequencies = 2048  # T; whole blocks if a multiple of the feature dimension
    orthogonal: bool = True  # orthogonal frequency directions, else i.i.d.
    # sampling noise of the real side: "none" = fitted as well; "stop" = a class whose distance lies
    # within it rests; "shrink" = frequencies count by the share of theirs that stands above it
    floor: Floor = "none"

    def check(self, method: Any, real: ImageSet | None = None) -> None:
        """Refuse an unknown kernel, and a floor where no frequencies are compared."""
        kernel(self.kernel, self.length or self.scale)
        exact = getattr(method, "estimator", "") == "exact"
        if self.floor != "none" and (exact or self.kernel == "linear"):
            what = "estimator 'exact'" if exact else "kernel 'linear'"
            raise InputError(
                f"floor is {self.floor!r} with {what}, which compares no frequencies; use "
                "floor=none"
            )

    @torch.no_grad()
    def length_on(self, real: ImageSet, networks: Networks, run: Run, normalize: bool) -> float:
        """Return the kernel's length, by the median within-class distance of features if not fixed.

        In the norm of the kernel: product kernels ("-l1") measure sums of absolute differences.
        """
        if self.length:
            return self.length
        rows = torch.cat([real.of_class(label)[:32] for label in range(real.num_classes)])
        images = real.batch(rows, run.device)
        features = networks.middle().features(images, normalize=normalize)
        labels = real.labels[rows].to(run.device)
        norm = 1.0 if "-l1" in self.kernel else 2.0
        found = median_distance(features, labels, run.generator("median"), norm=norm)
        return self.scale * found


class SpectralComparison(Comparison):
    """SDD per class: E_w [alpha A + (1 - alpha) P], or its root per frequency (``power`` 1).

    Args:
        method: with the parts ``spectrum`` and ``statistics``, and ``power``.
        length: of the kernel, see :meth:`Spectrum.length_on`.
        alpha: (C,) amplitude weight of each class.
    """

    def __init__(self, method: Any, real: ImageSet, length: float, alpha: Tensor, run: Run) -> None:
        self.spectrum, self.power = method.spectrum, method.power
        self.length, self.alpha = length, alpha.to(run.device)
        self.counts = torch.tensor(real.counts).to(run.device)
        self.law: Kernel = kernel(self.spectrum.kernel, length)
        self.run = run
        self._sets: dict[int, Tensor] = {}
        self._rotations: dict[int, tuple[Tensor, Tensor]] = {}

    @property
    def facts(self) -> dict[str, Any]:
        """Kernel, length and frequencies determine the real table; weights and power do not."""
        return {
            "embed": "characteristic",
            "kernel": self.spectrum.kernel,
            "length": self.length,
            "frequencies": self.spectrum.frequencies,
            "orthogonal": self.spectrum.orthogonal,
        }

    def frequencies(self, number: int, dim: int) -> Tensor:
        """Return a view's frequencies (T, d): one of eight sets, axes permuted and reflected."""
        which = number % _SETS
        if which not in self._sets:
            drawn = self.law.frequencies(
                self.spectrum.frequencies,
                dim,
                self.run.generator("frequencies", which),
                orthogonal=self.spectrum.orthogonal,
            )
            self._sets[which] = drawn.to(self.run.device)
        if number not in self._rotations:  # kept on the device: no step should wait for a copy
            draw = self.run.generator("turn", number)
            order = torch.randperm(dim, generator=draw)
            signs = torch.randint(0, 2, (dim,), generator=draw) * 2.0 - 1
            self._rotations[number] = order.to(self.run.device), signs.to(self.run.device)
            if len(self._rotations) > _ROTATIONS:
                del self._rotations[next(iter(self._rotations))]
        order, signs = self._rotations[number]
        return self._sets[which][:, order] * signs

    def embed(self, features: Tensor, frequencies: Tensor) -> Tensor:
        """cos and sin of the projections, (n, 2T)."""
        return characteristic(features, frequencies)

    def target(self, view: ClassMeans, first: int, last: int) -> Tensor:
        """Real characteristic values (k, 2T) of the classes [first, last)."""
        return view.table[first:last]

    def class_distance(
        self, view: ClassMeans, features: Tensor, labels: Tensor, first: int, last: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the spectral distance of each class."""
        a, own = self.target(view, first, last), slice(first, last)
        b = spectral_mean(features, view.frequencies, labels, last - first)
        share = above_noise(a, b.detach(), self.counts[own], self.spectrum.floor)
        values = spectral_distance(a, b, self.alpha[own], power=self.power, share=share)
        return values, spectral_facts(a, b.detach())


def spectral_facts(a: Tensor, b: Tensor) -> dict[str, Tensor]:
    """Distance, amplitude share and |phi| per class of (k, 2T) real and synthetic values."""
    amplitude, phase = split(a, b)
    total = (amplitude + phase).mean(1)

    def modulus(z: Tensor) -> Tensor:
        cosines, sines = z.chunk(2, dim=1)
        return torch.hypot(cosines, sines).mean(1)

    return {
        "distance": total,
        "amplitude_share": amplitude.mean(1) / total.clamp_min(1e-12),
        "amplitude_real": modulus(a),
        "amplitude_syn": modulus(b),
    }
