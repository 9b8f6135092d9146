"""The student loss of distribution-agnostic matching on long-tailed data.

LAD (Zhao et al., CVPR 2025, arXiv 2408.14506, eqs. 4 and 5): a student trained on a balanced
synthetic set is to move as an expert does that was trained on the long-tailed real set.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from potstill.losses.classification import Loss, cross_entropy, logit_adjusted
from potstill.losses.classification import weighted as reweighted
from potstill.run.errors import InputError, nearest

__all__ = ["WEIGHT_SCALES", "dam"]

WEIGHT_SCALES = ("mean1", "sum1")


def dam(
    counts: Sequence[int] | Tensor,
    *,
    tau: float = 0.0,
    weighted: bool = True,
    weight_scale: str = "mean1",
) -> Loss:
    """Distribution-agnostic matching: -Σ_j w_j t_j log softmax(z - τ log s)_j, s = ``counts``.

    The weight belongs to the component j of the soft target t, not to the image, so that the slope
    at the logits is p Σ_j w_j t_j - w t. Head classes pull more, as they do on the experts; minus τ
    makes the student's raw logits lean to the head, the reverse of :func:`logit_adjusted`. The
    published runs have τ = 0, weights of sum 1.

    Args:
        counts: real training images per class (C,), all positive.
        tau: the paper's λ; 0 leaves the softmax as it is.
        weighted: whether w is s; otherwise w = 1.
        weight_scale: "mean1" scales w to mean 1, which keeps the step size of plain cross-entropy;
            "sum1" (published) to sum 1, whose gradients are about C times smaller.

    Raises:
        InputError: a class without images, or an unknown ``weight_scale``.
    """
    if weight_scale not in WEIGHT_SCALES:
        raise InputError(f"weight_scale is {weight_scale!r}{nearest(weight_scale, WEIGHT_SCALES)}")
    adjusted = logit_adjusted(counts, -tau)  # refuses counts that are not positive
    plain = adjusted if tau else cross_entropy
    if not weighted:
        return plain
    s = torch.as_tensor(counts, dtype=torch.float64)
    return reweighted(plain, s / (s.mean() if weight_scale == "mean1" else s.sum()))
