"""How much amplitude and how much phase each class gets (CSDM, arXiv 2603.01698).

The amplitude of a characteristic function carries the spread of a class (diversity), its phase the
location (realism). CSDM gives head classes the weight α_head on amplitude and tail classes
1 - α_head; the published figure has its optimum near 0.7 to 0.9 for strong imbalance. The weights
between head and tail, and the reliability rule, are this library's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from potstill.match.mmd import by_class
from potstill.match.spectral import sampling_noise
from potstill.run import InputError, nearest

__all__ = [
    "SCHEDULES",
    "Noise",
    "amplitude_weights",
    "median_distance",
    "noise_laws",
    "reliability_weights",
]

SCHEDULES = ("log_linear", "two_level", "constant")


def amplitude_weights(
    counts: Sequence[int] | Tensor,
    alpha_head: float = 0.8,
    schedule: str = "log_linear",
    alpha_balanced: float = 0.5,
) -> Tensor:
    """Return the amplitude weight α (C,) of each class from its image count; the phase gets 1 - α.

    ``"log_linear"``: from 1 - α_head at the smallest to α_head at the largest class, linear in the
    logarithm of the count. ``"two_level"`` (as published): α_head for the larger half of the
    classes, 1 - α_head for the others; classes tied at the middle are head if they reach the
    geometric mean of the extreme counts. ``"constant"``, or equal counts: ``alpha_balanced``.

    Raises:
        InputError: a weight outside (0, 1), a count below 1, or an unknown schedule.
    """
    for name, value in (("alpha_head", alpha_head), ("alpha_balanced", alpha_balanced)):
        if not 0 < value < 1:
            raise InputError(f"{name} is {value}; use a number between 0 and 1, both excluded")
    n = torch.as_tensor(counts, dtype=torch.float64).cpu()
    if len(n) == 0 or n.min() < 1:
        raise InputError(f"counts are {n.tolist()}; give at least one image for each class")
    if schedule not in SCHEDULES:
        raise InputError(f"schedule is {schedule!r}{nearest(schedule, SCHEDULES)}")
    if schedule == "constant" or n.min() == n.max():
        return torch.full((len(n),), alpha_balanced)
    if schedule == "two_level":
        position = _head(n).double()
    else:
        position = (n / n.min()).log() / (n.max() / n.min()).log()
    return (1 - alpha_head + (2 * alpha_head - 1) * position).float()


def _head(n: Tensor) -> Tensor:
    """Mask (C,) of the larger half of the classes."""
    ordered = n.sort().values
    below, above = ordered[(len(n) - 1) // 2], ordered[len(n) // 2]
    tied = (n == below) & (below == above) & (n.square() >= n.min() * n.max())
    return (n > below) | tied


class Noise(NamedTuple):
    """Squared errors (k,) of an empirical characteristic function, averaged over frequencies."""

    total: Tensor  # (1 - |a|²) / n, exact
    amplitude: Tensor  # (1 - |a|²)² / 2n: the radial part
    phase: Tensor  # (1 - |a|⁴) / 2n: the tangential part


def noise_laws(a: Tensor, counts: Tensor) -> Noise:
    """Return the sampling noise of a (k, 2T) estimated from ``counts`` (k,) images per class.

    The total is exact; its split into parts along and across the radius holds where projections are
    close to normal: then Var cos = (1 - |a|²)² / 2 and Var sin = (1 - |a|⁴) / 2 about the mean.
    """
    real, imaginary = a.chunk(2, dim=-1)
    squared = real.square() + imaginary.square()
    n = counts.to(a)
    return Noise(
        total=sampling_noise(a, counts).mean(-1),
        amplitude=(1 - squared).square().mean(-1) / (2 * n),
        phase=(1 - squared.square()).mean(-1) / (2 * n),
    )


def reliability_weights(
    counts: Sequence[int] | Tensor,
    alpha_head: float,
    amplitude: Tensor,
    phase: Tensor,
    noise_amplitude: Tensor,
    noise_phase: Tensor,
) -> Tensor:
    """Return amplitude weights (C,) from how far each part stands above its noise (experimental).

    ``amplitude`` and ``phase`` (C,) are the parts of the initial distance, averaged here over the
    larger half of the classes; the noises (C,) come from :func:`noise_laws`. A class with little
    noise gets α_head; another moves to phase only as far as its amplitude is less reliable.
    """
    head = _head(torch.as_tensor(counts, dtype=torch.float64)).to(amplitude.device)
    head = head if head.any() else torch.ones_like(head)
    level_a, level_p = amplitude[head].mean(), phase[head].mean()
    trust_a = alpha_head * level_a / (level_a + noise_amplitude)
    trust_p = (1 - alpha_head) * level_p / (level_p + noise_phase)
    return trust_a / (trust_a + trust_p)


def median_distance(
    features: Tensor,
    labels: Tensor,
    generator: torch.Generator,
    per_class: int = 32,
    norm: float = 2.0,
) -> float:
    """Return the median distance of two images of one class: a natural unit of kernel length.

    Draws at most ``per_class`` rows of features (n, d) from each class, so that large classes do
    not outweigh small ones.

    Raises:
        InputError: no class has two images.
    """
    order = torch.randperm(len(labels), generator=generator, device=generator.device)
    order = order.to(labels.device)
    classes = int(labels.max()) + 1
    places, mask = by_class(order[:, None], labels[order], classes)
    places, mask = places[:, :per_class, 0], mask[:, :per_class]
    drawn = features.detach()[places].float()
    distances = torch.cdist(drawn, drawn, p=norm)
    pairs = torch.ones_like(distances, dtype=torch.bool).triu(1)
    chosen = distances[pairs & mask[:, :, None] & mask[:, None, :]]
    if len(chosen) == 0:
        raise InputError("labels name no class with two images; give more images for a median")
    return float(chosen.median())
