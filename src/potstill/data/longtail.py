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
``even``         as many of every class as ``exponential`` keeps of one on average: a balanced set
                 of its size, 1120 a class at f = 200 (LAD, CVPR 2025, fig. 7a).

Draws:

``published``    class by class, images in file order, the first n_c entries of
                 ``numpy.random.RandomState(42).permutation(size of the class)``: the subset of the
                 public CIFAR-LT index lists, nested across factors.
``seeded``       the same with ``torch.randperm`` and one generator per class, made from ``seed``.

A cut set rarely has the very factor that was asked for: sizes are whole numbers, and a class that
has fewer images than its share keeps what it has. :class:`Imbalance` tells both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from potstill.run import InputError, Run, nearest
from potstill.run.fields import Inside, Range, admits, check_value

__all__ = [
    "DRAWS",
    "PROFILES",
    "Draw",
    "Imbalance",
    "Profile",
    "draw_positions",
    "long_tail_indices",
    "profile_counts",
    "size_groups",
]

Factor = Annotated[float, Range(1, 1e9)]
Profile = Literal["exponential", "step", "pareto", "even"]
Draw = Literal["published", "seeded"]
PROFILES: tuple[str, ...] = get_args(Profile)
DRAWS: tuple[str, ...] = get_args(Draw)

_PARETO_POWER = 6
_GROUPED_FROM = 2.0  # imbalance factor below which "head" and "tail" would only be names
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
    elif profile == "even":
        sizes = [sum(profile_counts(largest, classes, imbalance_factor)) // classes] * classes
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


def long_tail_indices(
    labels: Any,
    imbalance_factor: float,
    *,
    profile: Profile = "exponential",
    draw: Draw = "published",
    seed: int = 0,
) -> Tensor:
    """Return the positions, int64 (m,), that a long tail keeps of ``labels`` (n,), class by class.

    With the defaults those of CIFAR-10-LT and CIFAR-100-LT, for labels in the order of the files:

    >>> targets = torch.arange(10).repeat_interleave(500)  # such as those of a torchvision set
    >>> keep = long_tail_indices(targets, 100)
    >>> torch.bincount(targets[keep]).tolist()
    [500, 299, 179, 107, 64, 38, 23, 13, 8, 5]

    Raises:
        InputError: as :func:`profile_counts` and :func:`draw_positions`; labels that are no whole
            numbers from 0.
    """
    numbers = torch.as_tensor(labels)
    if numbers.ndim != 1 or numbers.is_floating_point() or not len(numbers) or numbers.min() < 0:
        raise InputError(
            f"labels are {numbers.dtype} of shape {tuple(numbers.shape)}; give whole numbers from 0"
        )
    sizes = torch.bincount(numbers.long()).tolist()
    wanted = profile_counts(max(sizes), len(sizes), imbalance_factor, profile)
    counts = [min(pair) for pair in zip(wanted, sizes, strict=True)]
    return draw_positions(numbers, counts, draw, seed)


def size_groups(counts: Sequence[int]) -> dict[str, tuple[int, ...]]:
    """Labels of the head, medium and tail classes: the classes by falling size, in thirds.

    Head and tail have round(C / 3) classes each (10 classes: 3/4/3); equal sizes keep label order.
    Empty where the largest class has less than twice the images of the smallest: whatever made the
    set so, its classes are of about one size. An empty group (2 classes) is left out.
    """
    if not counts or max(counts) < _GROUPED_FROM * max(1, min(counts)):
        return {}
    order = sorted(range(len(counts)), key=lambda label: (-counts[label], label))
    third = max(1, round(len(counts) / 3))
    last = len(counts) - third
    parts = {"head": order[:third], "medium": order[third:last], "tail": order[last:]}
    return {name: tuple(sorted(labels)) for name, labels in parts.items() if labels}


@dataclass(frozen=True)
class Imbalance:
    """How uneven a set is, and what it was cut to if we cut it.

    >>> Imbalance.of(train.counts, train.history).sentence
    'cut to imbalance factor 50 (exponential profile) and has factor 64: 2 to 128 images per class'
    """

    smallest: int  # images of the smallest class
    largest: int
    asked: float | None = None  # the factor of the last cut; None where there was none
    profile: str = ""  # of that cut

    @staticmethod
    def of(counts: Sequence[int], history: Any = ()) -> Imbalance:
        """Return the facts of a set with these class sizes and this history.

        The history may come from a file that anybody wrote: what is no record of a cut is ignored.
        """
        records = history if isinstance(history, (list, tuple)) else ()
        cuts = [r for r in records if isinstance(r, Mapping) and r.get("op") == "long_tailed"]
        asked = cuts[-1].get("imbalance_factor") if cuts else None
        if isinstance(asked, bool) or not isinstance(asked, (int, float)) or not asked > 1:
            return Imbalance(min(counts), max(counts))
        profile = str(cuts[-1].get("profile", ""))
        return Imbalance(min(counts), max(counts), float(asked), profile)

    @property
    def factor(self) -> float:
        """What the set has: its largest class over its smallest."""
        return self.largest / max(1, self.smallest)

    @property
    def exact(self) -> bool:
        """Whether the set has the factor that was asked for, to the digits that are shown."""
        return self.asked is not None and _factor(self.asked) == _factor(self.factor)

    @property
    def short(self) -> str:
        """The factor for a table: "64 (asked for 50)", or one number where both are equal."""
        asked = self.asked is not None and not self.exact
        return _factor(self.factor) + (f" (asked for {_factor(self.asked or 0)})" if asked else "")

    @property
    def sentence(self) -> str:
        """What the set is cut to and what it has, or that it is as it came; no full stop."""
        alike = self.smallest == self.largest
        sizes = f"{self.smallest:,}" if alike else f"{self.smallest:,} to {self.largest:,}"
        sizes = f"{sizes} image{'s' if self.largest > 1 else ''}"
        if self.asked is None:
            return f"as it is: {sizes} per class" + (
                "" if alike else f", imbalance factor {_factor(self.factor)}"
            )
        cut = f"cut to imbalance factor {_factor(self.asked)} ({self.profile or 'unknown'} profile)"
        own = "" if self.exact else f" and has factor {_factor(self.factor)}"
        return f"{cut}{own}: {sizes} per class"


def _factor(value: float) -> str:
    """Four digits: enough to tell 50 from 49.9, and no more than whole counts carry."""
    return f"{value:,.4g}" if value < 10_000 else f"{value:,.0f}"
