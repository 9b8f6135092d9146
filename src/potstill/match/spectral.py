"""Distances between two sets through their characteristic functions (SDM, CSDM, NCFM).

The characteristic function of a class at frequency ω is the mean of exp(i ω·x) over its features.
It is held as real numbers, never complex ones: T cosines, then T sines, along the last axis. With
frequencies drawn from a kernel's spectral law the mean of |a - b|² is the kernel's squared maximum
mean discrepancy (SDM, arXiv 2603.01698; Bochner). Its split into an amplitude and a phase part,

    |a - b|² = (|a| - |b|)² + 2 (|a||b| - Re(a conj b)),

lets the two be weighted: by one number in NCFM (CVPR 2025, eq. 8), class by class in CSDM.
Frequencies should be float32: phases of a few radians do not fit into bf16.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from potstill.match.kernels import kernel as kernel_of
from potstill.run import InputError

__all__ = [
    "SegmentMean",
    "SpectralMean",
    "above_noise",
    "characteristic",
    "feature_distance",
    "sampling_noise",
    "segment_mean",
    "spectral_distance",
    "spectral_mean",
    "split",
    "unbiased_amplitude",
]


def _phases(features: Tensor, frequencies: Tensor) -> Tensor:
    """Projections (n, T) in the precision of the frequencies, whatever autocast says."""
    with torch.autocast(features.device.type, enabled=False):
        return features.to(frequencies.dtype) @ frequencies.T


def characteristic(features: Tensor, frequencies: Tensor) -> Tensor:
    """Return the cosines and sines (n, 2T) of features (n, d) projected on frequencies (T, d)."""
    p = _phases(features, frequencies)
    return torch.cat([p.cos(), p.sin()], dim=1)


def _per_class(labels: Tensor, classes: int, like: Tensor) -> Tensor:
    """Images per class (classes,), counted without synchronising the host."""
    return like.new_zeros(classes).index_add_(0, labels, like.new_ones(len(labels)))


def segment_mean(values: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Return the mean of values (n, q) within each class as (classes, q); absent classes get 0."""
    sums = values.new_zeros(classes, values.shape[1]).index_add(0, labels, values)
    return sums / _per_class(labels, classes, values).clamp_min(1)[:, None]


class SegmentMean:
    """Class means over a stream of chunks, summed in float64.

    Example:
        >>> mean = SegmentMean(classes=2)
        >>> mean.add(torch.tensor([[1.0], [3.0], [5.0]]), torch.tensor([0, 0, 1]))
        >>> mean.mean()
        tensor([[2.],
                [5.]])
    """

    def __init__(self, classes: int) -> None:
        self.classes = classes
        self.sums: Tensor | None = None
        self.counts: Tensor | None = None

    def add(self, values: Tensor, labels: Tensor) -> None:
        """Take in values (n, q) with labels (n,)."""
        values = values.detach()
        sums = values.new_zeros(self.classes, values.shape[1]).index_add_(0, labels, values)
        counts = _per_class(labels, self.classes, sums)
        if self.sums is None or self.counts is None:
            self.sums, self.counts = sums.double(), counts.double()
        else:
            self.sums += sums
            self.counts += counts

    def mean(self) -> Tensor:
        """Return the class means (classes, q) in float32; absent classes get 0.

        Raises:
            InputError: nothing was added.
        """
        if self.sums is None or self.counts is None:
            raise InputError("SegmentMean is empty; add at least one chunk before asking its mean")
        return (self.sums / self.counts.clamp_min(1)[:, None]).float()


class SpectralMean(torch.autograd.Function):
    """Class means of the characteristic function with the backward in closed form.

    With p = F Ωᵀ and the gradient (g_r, g_i) of the mean over a class of m images, the gradient of
    a row of F is (-g_r sin p + g_i cos p) Ω / m: one product, with only p kept from the forward.
    """

    @staticmethod
    def forward(
        ctx: Any, features: Tensor, frequencies: Tensor, labels: Tensor, classes: int
    ) -> Tensor:  # type: ignore[override]
        """Map features (n, d), frequencies (T, d) and labels (n,) to means (classes, 2T)."""
        p = _phases(features, frequencies)
        share = 1 / _per_class(labels, classes, p).clamp_min(1)
        # Features are needed only where frequencies are learned (NCFM's sampling network).
        learned = features if ctx.needs_input_grad[1] else None
        ctx.save_for_backward(p, frequencies, labels, share, learned)
        ctx.dtype = features.dtype
        sums = p.new_zeros(2, classes, p.shape[1])  # both halves contiguous: fast row sums
        sums[0].index_add_(0, labels, p.cos())
        sums[1].index_add_(0, labels, p.sin())
        return torch.cat([sums[0], sums[1]], dim=1).mul_(share[:, None])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:  # type: ignore[override]
        """Return the gradients of features and, where asked for, of frequencies."""
        p, frequencies, labels, share, features = ctx.saved_tensors
        grad = grad.reshape(len(share), 2, -1).transpose(0, 1) * share[:, None]
        real, imaginary = (half.contiguous() for half in grad)
        slope = p.cos().mul_(imaginary.index_select(0, labels))
        slope.addcmul_(p.sin(), real.index_select(0, labels), value=-1)
        with torch.autocast(p.device.type, enabled=False):
            to_features = (slope @ frequencies).to(ctx.dtype) if ctx.needs_input_grad[0] else None
            to_frequencies = None if features is None else slope.T @ features.to(slope.dtype)
        return to_features, to_frequencies, None, None


def spectral_mean(features: Tensor, frequencies: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Return the class means (classes, 2T) of the characteristic function, differentiable once.

    Equal to ``segment_mean(characteristic(features, frequencies), labels, classes)`` in less
    memory. ``features`` (n, d), ``frequencies`` (T, d), ``labels`` (n,).
    """
    return SpectralMean.apply(features, frequencies, labels, classes)


def _modulus(real: Tensor, imaginary: Tensor, eps: float) -> Tensor:
    return (real.square() + imaginary.square() + eps * eps).sqrt()


def split(a: Tensor, b: Tensor, eps: float = 1e-6) -> tuple[Tensor, Tensor]:
    """Return the amplitude and the phase part (k, T) of |a - b|² for a and b (k, 2T).

    Both parts are products of small differences, so they keep their relative accuracy in float32
    as a and b meet, and value and gradient are finite where either is 0.
    """
    (a_r, a_i), (b_r, b_i) = a.chunk(2, dim=-1), b.chunk(2, dim=-1)
    size_a, size_b = _modulus(a_r, a_i, eps), _modulus(b_r, b_i, eps)
    d_r, d_i = a_r - b_r, a_i - b_i
    # |a| - |b| = Re((a - b) conj(a + b)) / (|a| + |b|)
    amplitude = ((d_r * (a_r + b_r) + d_i * (a_i + b_i)) / (size_a + size_b)).square()
    # |a||b| - Re(a conj b) = Im(a conj b)² / (|a||b| + Re(a conj b)), for acute angles
    product, real = size_a * size_b, a_r * b_r + a_i * b_i
    acute = real > 0
    ratio = (d_i * b_r - d_r * b_i).square() / torch.where(acute, product + real, 1.0)
    return amplitude, 2 * torch.where(acute, ratio, product - real)


def spectral_distance(
    a: Tensor,
    b: Tensor,
    amplitude_weight: Tensor | float = 0.5,
    phase_weight: Tensor | float | None = None,
    power: int = 1,
    eps: float = 1e-6,
    share: Tensor | None = None,
) -> Tensor:
    """Return the weighted spectral distance (k,) of characteristic functions a and b (k, 2T).

    With weights α and β per class the integrand is α (|a| - |b|)² + β 2(|a||b| - Re(a conj b)):
    CSDM's class-aware distance (arXiv 2603.01698) with β = 1 - α, which is the default; SDM with
    α = β. ``power`` 2 averages it over the T frequencies, so that α = β = 1 is an unbiased estimate
    of the squared maximum mean discrepancy; ``power`` 1 averages its square root (NCFM, eq. 8).
    ``share`` (k, T) or (k, 1) multiplies what is averaged, see :func:`above_noise`.

    Raises:
        InputError: ``power`` is neither 1 nor 2.
    """
    if power not in (1, 2):
        raise InputError(f"power is {power}; use 2 for the squared distance or 1 for its root")
    alpha = torch.as_tensor(amplitude_weight, dtype=a.dtype, device=a.device)
    beta = 1 - alpha if phase_weight is None else torch.as_tensor(phase_weight).to(alpha)
    alpha, beta = alpha.reshape(-1, 1), beta.reshape(-1, 1)
    amplitude, phase = split(a, b, eps)
    whole = (a - b).square()
    whole = whole[..., : a.shape[-1] // 2] + whole[..., a.shape[-1] // 2 :]
    # As min(α, β) |a - b|² + the rest of the larger one: no unit vector b/|b| remains where α = β,
    # every term is positive, and the gradient at b = 0 is -2βa instead of NaN.
    integrand = torch.minimum(alpha, beta) * whole
    integrand = integrand + (alpha - beta).clamp_min(0) * amplitude
    integrand = integrand + (beta - alpha).clamp_min(0) * phase
    if power == 1:
        integrand = (integrand + 1e-12).sqrt()
    return (integrand if share is None else integrand * share).mean(dim=-1)


def feature_distance(
    first: Tensor,
    second: Tensor,
    amplitude_weight: float = 0.5,
    *,
    kernel: str = "rbf",
    length: float | None = None,
    count: int = 2048,
    power: int = 2,
    seed: int = 0,
) -> float:
    """Return the spectral distance of two sets of features (n, d) and (m, d) as one number.

    Frequencies are drawn from the spectral law of ``kernel`` (:mod:`potstill.match.kernels`), whose
    ``length`` is by default the median distance of the features of both. At ``power`` 2 twice the
    number for an ``amplitude_weight`` of 0.5 estimates the squared maximum mean discrepancy.

    >>> feature_distance(torch.randn(100, 8), torch.randn(100, 8) + 1) > 0.1
    True

    Raises:
        InputError: features that are no (n, d) of one d, or not finite.
    """
    a, b = (features.detach().float() for features in (first, second))
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or not len(a) or not len(b):
        raise InputError(
            f"features have shapes {tuple(a.shape)} and {tuple(b.shape)}; give (n, d) and (m, d)"
        )
    if not (a.isfinite().all() and b.isfinite().all()):
        raise InputError("features hold NaN or infinity; look at the network that made them")
    if length is None:
        both = torch.cat([a[:1000], b[:1000]])
        length = float(torch.pdist(both).median()) or 1.0
    generator = torch.Generator(a.device).manual_seed(seed)
    frequencies = kernel_of(kernel, length).frequencies(count, a.shape[1], generator)
    means = [characteristic(features, frequencies).mean(0, keepdim=True) for features in (a, b)]
    return float(spectral_distance(means[0], means[1], amplitude_weight, power=power))


def sampling_noise(a: Tensor, counts: Tensor) -> Tensor:
    """Return (1 - |a|²) / n (k, T), the expected squared error of a (k, 2T) from n images.

    ``counts`` (k,) holds n. An ``a`` that is itself the mean of n images gives (n - 1) / n of it on
    average, and nothing for one image.
    """
    real, imaginary = a.chunk(2, dim=-1)
    return (1 - real.square() - imaginary.square()).clamp_min(0) / counts.to(a)[:, None]


def above_noise(a: Tensor, b: Tensor, counts: Tensor, rule: str) -> Tensor | None:
    """Return how much of the distance of a and b (k, 2T) is no sampling noise of a.

    A class that is nearer to its ``counts`` (k,) real images than these are to their law is fitted
    to the sample. With d² = |a - b|² and the noise s² of a frequency (:func:`sampling_noise`):
    "stop" returns 1 where the mean of d² is above that of s² and else 0, (k, 1); "shrink" the
    positive part of 1 - s²/d² (k, T), the factor of James and Stein; "none" nothing.
    """
    if rule == "none":
        return None
    noise = sampling_noise(a, counts)
    squared = (a - b).square()
    squared = squared[:, : noise.shape[1]] + squared[:, noise.shape[1] :]
    if rule == "stop":
        return (squared.mean(1) > noise.mean(1)).to(a)[:, None]
    return (1 - noise / squared.clamp_min(torch.finfo(a.dtype).tiny)).clamp_min(0)


def unbiased_amplitude(a: Tensor, counts: Tensor) -> Tensor:
    """Shrink a (k, 2T) estimated from ``counts`` images so that its squared modulus is unbiased.

    E|â|² = |a|² + (1 - |a|²) / n, hence |a|² is replaced by (n|â|² - 1) / (n - 1), at least 0; the
    phase stays. Classes of one image stay as they are.
    """
    n = counts.to(a)[:, None]
    real, imaginary = a.chunk(2, dim=-1)
    squared = real.square() + imaginary.square()
    wanted = ((n * squared - 1) / (n - 1).clamp_min(1)).clamp_min(0)
    factor = (wanted / squared.clamp_min(torch.finfo(a.dtype).tiny)).sqrt()
    return a * torch.where(n > 1, factor, 1.0).repeat(1, 2)
