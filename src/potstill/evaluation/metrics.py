"""Accuracies in percent: overall, balanced, per class, and by groups of classes; calibration.

Overall is the mean over test images, balanced the mean over classes; they agree on a balanced test
set. Groups come from the class counts of the *training* set: head, medium and tail are thirds of
the classes, many, medium and few shot follow the field's absolute counts (:func:`shot_groups`). A
spread is the sample standard deviation over runs (n - 1 in the denominator), and None for a single
run.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = [
    "calibration_error", "class_accuracy", "mean_std", "overall", "shot_groups", "summary",
    "verdict",
]  # fmt: skip
_BINS = 15  # Guo et al., ICML 2017


def shot_groups(counts: Sequence[int]) -> dict[str, tuple[int, ...]]:
    """Labels of classes with more than 100 training images, 20 to 100, and fewer than 20.

    The groups of Liu et al. (CVPR 2019) and of nearly every long-tail table since; an empty one is
    left out.
    """
    parts: dict[str, list[int]] = {"many": [], "medium": [], "few": []}
    for label, count in enumerate(counts):
        parts["many" if count > 100 else "medium" if count >= 20 else "few"].append(label)
    return {name: tuple(labels) for name, labels in parts.items() if labels}


def verdict(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Return the predicted class and its probability: (..., C) -> (...) int64 and (...) float64."""
    sure, predicted = logits.double().softmax(-1).max(-1)
    return predicted, sure


def calibration_error(right: Tensor, sure: Tensor, bins: int = _BINS) -> float:
    """Expected calibration error in percent (Guo et al., ICML 2017, eq. 3).

    Args:
        right: (n,) bool. sure: (n,) probability of the predicted class.
        bins: equal parts of (0, 1].
    """
    place = (sure * bins).ceil().long().clamp(1, bins) - 1
    total = torch.zeros(bins, dtype=torch.float64, device=sure.device)
    gap = total.index_add(0, place, right.double() - sure.double())
    return float(100 * gap.abs().sum() / max(1, len(sure)))


def class_accuracy(predicted: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Percent correct per class: (n,) and (n,) int64 -> (classes,) float64, NaN without images."""
    labels = labels.to(predicted.device)
    total = torch.bincount(labels, minlength=classes)
    right = torch.bincount(labels[predicted == labels], minlength=classes)
    return (100 * right.double() / total).cpu()


def overall(matrix: Tensor, counts: Sequence[int]) -> list[float]:
    """Accuracy over all images of each row of (R, C), given the images per class."""
    share = torch.tensor(counts, dtype=torch.float64)
    return (matrix.double().nan_to_num(0.0) @ (share / share.sum())).tolist()


def mean_std(values: Sequence[float]) -> dict[str, Any]:
    """Return ``{"mean", "std", "values"}`` of one number per run; std is None for one run."""
    count = len(values)
    mean = math.fsum(values) / count
    spread = math.fsum((v - mean) ** 2 for v in values)
    std = math.sqrt(spread / (count - 1)) if count > 1 else None
    return {"mean": round(mean, 10), "std": std, "values": list(values)}  # 93.36, not ...0001


def _per_class(matrix: Tensor) -> dict[str, list[float | None]]:
    """Mean and spread of each column; None for a class without test images."""
    columns = [mean_std(column) for column in matrix.T.tolist()]
    return {
        key: [None if math.isnan(column["mean"]) else column[key] for column in columns]
        for key in ("mean", "std")
    }


def summary(
    matrix: Tensor, test_counts: Sequence[int], groups: Mapping[str, Sequence[int]],
    train_counts: Sequence[int] = (), calibration: Sequence[float] = (),
) -> dict[str, Any]:  # fmt: skip
    """Condense the accuracies of R runs.

    Args:
        matrix: (R, C) percent per run and class, NaN for classes without test images.
        test_counts: test images per class. groups: class ids by name; may be empty.
        train_counts: real training images per class. calibration: error in percent of each run.

    Returns:
        ``accuracy`` and ``balanced`` (mean, std, values), ``per_class`` (mean and std, C each) and
        ``groups`` (mean and std of the class-mean within each group); with training counts that
        differ ``shots``, likewise, and with calibration errors ``calibration``.
    """
    matrix, more = matrix.double(), {}
    if len(set(train_counts)) > 1:
        more["shots"] = _grouped(matrix, shot_groups(train_counts))
    if len(calibration):
        more["calibration"] = mean_std(calibration)
    return more | {
        "accuracy": mean_std(overall(matrix, test_counts)),
        "balanced": mean_std(matrix.nanmean(dim=1).tolist()),
        "per_class": _per_class(matrix),
        "groups": _grouped(matrix, groups),
    }


def _grouped(matrix: Tensor, groups: Mapping[str, Sequence[int]]) -> dict[str, dict[str, Any]]:
    by_group = {name: matrix[:, list(ids)].nanmean(dim=1).tolist() for name, ids in groups.items()}
    return {
        name: {key: mean_std(values)[key] for key in ("mean", "std")}
        for name, values in by_group.items()
        if not any(map(math.isnan, values))
    }
