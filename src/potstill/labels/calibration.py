"""How much of a long tail's prior to take out of a teacher, by what it says of a distilled set.

ADSA (adaptive soft-label alignment, NeurIPS 2025, arXiv 2511.17914): soft labels of a long-tailed
pipeline are more sure of some classes than of others, because of the teacher and because of the
images. One number τ evens that out: z - τ log π with the τ under which the mean confidence in the
own class differs least between classes.

Deviations: the paper gives no search. Large τ also make all classes equally unsure, so this is the
first local minimum from 0 up, at most 2. Confidences are those of the images as they are stored,
not of augmented views.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from potstill.losses import adjust
from potstill.run import InputError

__all__ = ["adsa_tau"]

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
    z = logits.detach().cpu().double()
    z = z if z.ndim == 3 else z[None]
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
