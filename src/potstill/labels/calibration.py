"""What to add to a teacher's logits, class by class, by what it says of a distilled set.

**Even** (ours): a teacher remembers the few training images of a tail class and hesitates over many
of the head, so that on images made of these the tail gets more of the labels than its share (51 of
400 against 26 on CIFAR-10-LT at factor 200, IPC 10), and students learn that as a prior. One number
per class takes it out: the labels of all images together then give each class its images' worth.

ADSA (adaptive soft-label alignment, NeurIPS 2025, arXiv 2511.17914): soft labels of a long-tailed
pipeline are more sure of some classes than of others, because of the teacher and because of the
images. One number τ evens that out: z - τ log π with the τ under which the mean confidence in the
own class differs least between classes.

Deviations from ADSA: the paper gives no search. Large τ also make all classes equally unsure, so
this is the first local minimum from 0 up, at most 2. Confidences are those of the images as they
are stored, not of augmented views.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from potstill.losses import adjust
from potstill.run import InputError

__all__ = ["adsa_tau", "even_shift"]

_MOST, _STEP = 2.0, 0.02
_ZOOMS, _POINTS = 3, 21  # each narrows the bracket to a tenth: to 2e-5 at last


def adsa_tau(logits: Tensor, labels: Tensor, counts: Sequence[int]) -> float:
    """Return τ* = argmin_τ std_c(mean of softmax(z - τ log π)_c over the images of class c).

    Args:
        logits: z (n, K), or (T, n, K) of T teachers whose probabilities are averaged.
        labels: classes of the images (n,); classes without images play no part.
        counts: real training images per class (K,), all positive; π are their shares.

    Returns:
        τ* in [0, 2], computed in float64.

    Raises:
        InputError: counts are not K positive numbers.
    """
    z = _teachers(logits)
    if len(counts) != z.shape[2]:
        raise InputError(
            f"counts has {len(counts)} numbers for {z.shape[2]} classes; give one of each"
        )
    labels = labels.cpu()
    own = one_hot(labels, z.shape[2]).double()
    own = own[:, own.sum(0) > 0]
    mean = (own / own.sum(0)).T  # (classes with images, n)
    rows = labels.expand(len(z), -1)[..., None]

    def spread(tau: float) -> float:
        sure = adjust(z, counts, tau).softmax(2).gather(2, rows).mean(0)[:, 0]
        return float((mean @ sure).std(correction=0))

    taus = torch.linspace(0, _MOST, round(_MOST / _STEP) + 1, dtype=torch.float64).tolist()
    best, here = 0, spread(taus[0])
    while best + 1 < len(taus) and (after := spread(taus[best + 1])) < here:
        best, here = best + 1, after
    low, high = max(0.0, taus[best] - _STEP), min(_MOST, taus[best] + _STEP)
    for _ in range(_ZOOMS):
        taus = torch.linspace(low, high, _POINTS, dtype=torch.float64).tolist()
        values = [spread(tau) for tau in taus]
        best = values.index(min(values))
        low, high = taus[max(0, best - 1)], taus[min(_POINTS - 1, best + 1)]
    return taus[best]


def even_shift(logits: Tensor, labels: Tensor, temperature: float = 1.0) -> Tensor:
    """Return b (K,), float64, of sum 0: the mean of softmax((z + b) / T) is each class's share.

    The minimum of the convex mean of T logsumexp((z + b) / T) less the shares times b, whose
    gradient is the difference of the two, by L-BFGS.

    Args:
        logits: z (n, K), or (t, n, K) of t teachers whose probabilities are averaged.
        labels: classes of the images (n,), of which each has at least one.
        temperature: T of the labels.

    Raises:
        InputError: a class has no image, so that no finite number gives it nothing.
    """
    z = _teachers(logits)
    shares = torch.bincount(labels.cpu(), minlength=z.shape[2]).double() / len(labels)
    if not bool((shares > 0).all()):
        raise InputError(
            f"calibration is 'even', but class {int(shares.argmin())} has no image in the set; use "
            "'adsa' or none"
        )
    shift = torch.zeros(z.shape[2], dtype=torch.float64, requires_grad=True)
    tight: dict[str, Any] = {"tolerance_grad": 1e-10, "tolerance_change": 1e-14}
    tight["line_search_fn"] = "strong_wolfe"
    solver = torch.optim.LBFGS([shift], max_iter=500, history_size=50, **tight)

    def loss() -> Tensor:
        solver.zero_grad()
        value = temperature * ((z + shift) / temperature).logsumexp(2).mean() - shares @ shift
        value.backward()
        return value

    with torch.enable_grad():
        solver.step(loss)
    found = shift.detach()
    return found - found.mean()


def _teachers(logits: Tensor) -> Tensor:
    z = logits.detach().cpu().double()
    return z if z.ndim == 3 else z[None]
