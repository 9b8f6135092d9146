"""Accuracies in percent: overall, balanced, per class, and by head, medium and tail.

Overall is the mean over test images, balanced the mean over classes; they agree on a balanced test
set. Groups come from the class counts of the *training* set. A spread is the sample standard
deviation over runs (n - 1 in the denominator), and None for a single run.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["class_accuracy", "mean_std", "overall", "summary"]


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
    return {"mean": mean, "std": std, "values": list(values)}


def _per_class(matrix: Tensor) -> dict[str, list[float | None]]:
    """Mean and spread of each column; None for a class without test images."""
    columns = [mean_std(column) for column in matrix.T.tolist()]
    return {
        key: [None if math.isnan(column["mean"]) else column[key] for column in columns]
        for key in ("mean", "std")
    }


def summary(
    matrix: Tensor, test_counts: Sequence[int], groups: Mapping[str, Sequence[int]]
) -> dict[str, Any]:
    """Condense the accuracies of R runs.

    Args:
        matrix: (R, C) percent per run and class, NaN for classes without test images.
        test_counts: test images per class. groups: class ids by name; may be empty.

    Returns:
        ``accuracy`` and ``balanced`` (mean, std, values), ``per_class`` (mean and std, C each) and
        ``groups`` (mean and std of the class-mean within each group).
    """
    matrix = matrix.double()
    by_group = {name: matrix[:, list(ids)].nanmean(dim=1).tolist() for name, ids in groups.items()}
    return {
        "accuracy": mean_std(overall(matrix, test_counts)),
        "balanced": mean_std(matrix.nanmean(dim=1).tolist()),
        "per_class": _per_class(matrix),
        "groups": {
            name: {key: mean_std(values)[key] for key in ("mean", "std")}
            for name, values in by_group.items()
            if not any(map(math.isnan, values))
        },
    }
