"""What a synthetic set has to be: shapes, types and values that fit together."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from potstill.canvas import check_spec, subsampled_fault, views_per_image
from potstill.run import InputError
from potstill.synthetic.eight_bit import rounded

if TYPE_CHECKING:
    from potstill.synthetic.artifact import SyntheticSet

__all__ = ["fault", "shape_fault"]

NAME_LIMIT = 200  # characters of a class name
SIDE_LIMIT = 16384  # pixels


def fault(s: SyntheticSet) -> str | None:
    """Return what is wrong with a set, as a sentence, or None."""
    return (
        _names_fault(s.classes)
        or _images_fault(s)
        or _decode_fault(s)
        or _labels_fault(s)
        or _targets_fault(s)
        or _views_fault(s)
    )


def _names_fault(classes: tuple[Any, ...]) -> str | None:
    if not classes:
        return "classes is empty; give one name per class"
    for label, name in enumerate(classes):
        if not isinstance(name, str) or not 0 < len(name) <= NAME_LIMIT:
            return (
                f"the name of class {label} is {str(name)[:40]!r}; "
                f"use a text of 1 to {NAME_LIMIT} characters"
            )
        if any("\ud800" <= letter <= "\udfff" for letter in name):
            return f"the name of class {label} is not valid Unicode; use plain text"
    return None


def _images_fault(s: SyntheticSet) -> str | None:
    images = s.images
    if images.dtype != torch.float32 or images.ndim != 4:
        return (
            f"images has type {images.dtype} and shape {tuple(images.shape)}; "
            "float32 (n, c, h, w) is expected"
        )
    wrong = shape_fault(tuple(images.shape))
    if wrong:
        return wrong
    if not bool(torch.isfinite(images).all()):
        return "images has NaN or infinite pixels"
    if s.bits not in (8, 32):
        return f"bits is {s.bits}; 8 or 32 is expected"
    if s.bits == 8 and not torch.equal(images, rounded(images)):
        return "bits is 8, but images has values that are not n / 255; use in_bytes()"
    return None


def _labels_fault(s: SyntheticSet) -> str | None:
    n, k = len(s.images), len(s.classes)
    if s.labels.dtype != torch.int64 or s.labels.shape != (n,):
        return (
            f"labels has type {s.labels.dtype} and shape {tuple(s.labels.shape)}; "
            f"int64 ({n},) is expected"
        )
    if int(s.labels.min()) < 0 or int(s.labels.max()) >= k:
        return f"labels run from {int(s.labels.min())} to {int(s.labels.max())} with {k} classes"
    w = s.weights
    if w is not None:
        if w.dtype != torch.float32 or w.shape != (n,):
            return (
                f"weights has type {w.dtype} and shape {tuple(w.shape)}; float32 ({n},) is expected"
            )
        if not bool(((w >= 0) & torch.isfinite(w)).all()):
            return "weights has negative, NaN or infinite values"
    rows = s.source_indices
    if rows is not None and (
        rows.dtype != torch.int64 or rows.ndim != 1 or (len(rows) and int(rows.min()) < 0)
    ):
        return (
            f"source_indices has type {rows.dtype} and shape {tuple(rows.shape)}; "
            "int64 (N,), not negative, is expected"
        )
    if s.syn_lr is not None and not 0 < s.syn_lr < float("inf"):
        return f"syn_lr is {s.syn_lr}; a positive number is expected"
    return None


def _targets_fault(s: SyntheticSet) -> str | None:
    """Numbers per class; needs a decode spec that is in order."""
    n, k, v = len(s.images), len(s.classes), views_per_image(s.decode)
    soft = s.soft_labels
    if soft is not None:
        if soft.dtype != torch.float32 or soft.shape not in ((n, k), (n, v, k)):
            return (
                f"soft_labels has type {soft.dtype} and shape {tuple(soft.shape)}; "
                f"float32 ({n}, {k}) or, one per training image, ({n}, {v}, {k}) is expected"
            )
        if not bool((soft >= 0).all()) or not bool(((soft.sum(-1) - 1).abs() < 1e-3).all()):
            return "soft_labels has rows that are not probabilities (not negative, sum 1)"
    goals = s.regression_targets
    if goals is not None:
        if goals.dtype != torch.float32 or goals.shape != (n, k):
            return (
                f"regression_targets has type {goals.dtype} and shape {tuple(goals.shape)}; "
                f"float32 ({n}, {k}) is expected"
            )
        if not bool(torch.isfinite(goals).all()):
            return "regression_targets has NaN or infinite values"
        if soft is not None or s.weights is not None:
            return "regression_targets stands beside soft labels or weights; store one of them"
    return None


def _views_fault(s: SyntheticSet) -> str | None:
    """What labels views; needs a decode spec that is in order."""
    if s.projection is not None and (wrong := s.projection.fault(s.num_classes)):
        return wrong
    if s.view_labels is None:
        return None
    if s.weights is not None or s.regression_targets is not None:
        return "view_labels stands beside weights or regression targets; store one of them"
    return s.view_labels.fault(len(s) * views_per_image(s.decode), s.num_classes)


def _decode_fault(s: SyntheticSet) -> str | None:
    try:
        check_spec(s.decode)
    except InputError as error:
        return str(error)
    factor = s.decode["factor"] if s.decode["kind"] == "tiled" else 1
    if factor > min(s.images.shape[2:]):
        return f"decode factor is {factor} for images of {tuple(s.images.shape[2:])} pixels"
    if s.decode.get("formation") == "subsampled" and (wrong := subsampled_fault(s.shape, factor)):
        return f"decode formation is 'subsampled', but {wrong}"
    return None


def shape_fault(shape: tuple[int, ...]) -> str | None:
    """Return what is wrong with the shape (n, c, h, w) of stored images, or None."""
    n, c, h, w = shape
    if n >= 1 and c in (1, 3) and 1 <= h <= SIDE_LIMIT and 1 <= w <= SIDE_LIMIT:
        return None
    return (
        f"images has shape {shape}; at least one image with 1 or 3 channels and sides from 1 to "
        f"{SIDE_LIMIT} pixels is expected"
    )
