"""Long-tailed subsets: how many images each class keeps (profile), and which ones (draw).

Profiles, with n the size of the largest class, C classes, f the imbalance factor and c the label:

``exponential``  n_c = int(n (1/f)^(c / (C-1))), from Cui et al., "Class-Balanced Loss", CVPR 2019;
                 CIFAR-10-LT keeps 20431, 13996, 12406, 11203 images at f = 10, 50, 100, 200.
``step``         the first half of the classes keeps n, the others int(n / f) (Buda et al., "A
                 systematic study of the class imbalance problem", 2018); with an odd number of
                 classes the half with n is the larger.
``pareto``       sizes fall like the quantiles of a Pareto law of power 6, as in ImageNet-LT (Liu et
                 al., "OLTR", CVPR 2019): n_c = int(m + (n - m) x_c / x_0), m = n / f,
                 x_c = (C / (c+1))^(1/6) - 1. OLTR drew at random and published the list alone; for
                 its n = 1280, C = 1000, f = 256 this formula keeps 121449 images (OLTR: 115.8 K).

Draws:

``published``    class by class, images in file order, the first n_c entries of
                 ``numpy.random.RandomState(42).permutation(size of the class)``: the subset of the
                 public CIFAR-LT index lists, nested across factors.
``seeded``       the same with ``torch.randperm`` and one generator per class, made from ``seed``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from potstill.run import InputError, Run, nearest
from potstill.run.fields import Inside, Range, admits, check_value

__all__ = ["DRAWS", "PROFILES", "Draw", "Profile", "draw_positions", "profile_counts"]

Factor = Annotated[float, Range(1, 1e9)]
Profile = Literal["exponential", "step", "pareto"]
Draw = Literal["published", "seeded"]
PROFILES: tuple[str, ...] = get_args(Profile)
DRAWS: tuple[str, ...] = get_args(Draw)

_PARETO_POWER = 6
# Twelve digits below the smallest count: enough to lift 49 * (1 / 49) = 0.999... to 1, and far too
# little to change any count that was not meant to be whole.
_ROUNDING = 1e-9


def check_factor(imbalance_factor: float) -> None:
    """Refuse what is no ratio of the largest class to the smallest."""
    if admits(Inside, imbalance_factor):
        raise InputError(
            f"imbalance_factor is {imbalance_factor:g}, but it is largest class over smallest; "
            f"use {1 / imbalance_factor:g}"
        )
    check_value("imbalance_factor", imbalance_factor, Factor)


def profile_counts(
    largest: int, classes: int, imbalance_factor: float, profile: str = "exponential"
) -> list[int]:
    """Images each class is to keep, by label; formulas and sources in the module's docstring.

    Raises:
        InputError: unknown profile, factor below 1 or not finite, or a class would become empty.
    """
    if profile not in PROFILES:
        raise InputError(f"profile is {profile!r}{nearest(str(profile), PROFILES)}")
    check_factor(imbalance_factor)
    rate, last = 1 / imbalance_factor, max(1, classes - 1)
    if profile == "exponential":
        sizes = [largest * rate ** (label / last) for label in range(classes)]
    elif profile == "step":
        head = classes - classes // 2
        sizes = [largest if label < head else largest * rate for label in range(classes)]
    else:
        fall = [(classes / (label + 1)) ** (1 / _PARETO_POWER) - 1 for label in range(classes)]
        least = largest * rate
        sizes = [least + (largest - least) * x / fall[0] for x in fall]
    counts = [int(size + _ROUNDING) for size in sizes]
    if min(counts) < 1:
        raise InputError(
            f"imbalance_factor is {imbalance_factor:g}, which leaves a class without images; "
            f"use at most {largest}, the size of the largest class"
        )
    return counts


def draw_positions(
    labels: Tensor, counts: Sequence[int], draw: str = "published", seed: int = 0
) -> Tensor:
    """Positions of ``counts[c]`` images of each class c among ``labels`` (n,), class by class.

    Raises:
        InputError: unknown draw.
    """
    if draw not in DRAWS:
        raise InputError(f"draw is {draw!r}{nearest(str(draw), DRAWS)}")
    run = Run(seed=seed, device="cpu")
    chosen = []
    for label, count in enumerate(counts):
        rows = torch.nonzero(labels == label).flatten()
        if draw == "published":
            order = torch.from_numpy(np.random.RandomState(42).permutation(len(rows)))
        else:
            order = torch.randperm(len(rows), generator=run.generator("long-tail", label))
        chosen.append(rows[order[:count]])
    return torch.cat(chosen)
