"""Somebody else's images and labels become a synthetic set like ours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from potstill.canvas import canvas_spec
from potstill.data import ZCA, ImageSet, Normalize
from potstill.data.pictures import as_numpy, channels_last
from potstill.data.transform import Transform
from potstill.run import InputError, logger
from potstill.run.errors import system_refusals
from potstill.synthetic.artifact import SyntheticSet

__all__ = ["import_set"]

_CLASSES = 100_000  # that a number alone may stand for
_OUTSIDE = 0.5  # how far values that are said to be RGB may leave 0 to 1


@system_refusals()
def import_set(
    images: Any,
    labels: Any = None,
    *,
    classes: Sequence[str] | int | None = None,
    normalisation: str | Transform = "none",
    real: ImageSet | None = None,
    lr: float | None = None,
    factor: int = 1,
    formation: str = "single",
    source: str = "arrays",
) -> SyntheticSet:
    """Return a synthetic set of images that another program distilled.

    Args:
        images: (n, c, h, w) or (n, h, w, c); uint8, or floats in the space that ``normalisation``
            names.
        labels: whole numbers (n,), or a row of numbers per class (n, K): probabilities as they
            are, anything else as logits, of which the softmax is taken. None: as many images of
            each class, in order.
        classes: names in the order of the labels, or how many. Default: those of ``real``, else
            "0", "1", ...
        normalisation: what was done to the pixels. "none": they are RGB 0-1 (or bytes). A name of
            :meth:`Normalize.published` such as "cifar10". "data": mean and deviation of ``real``.
            "zca": ZCA whitening with eps 0.1, fitted on ``real`` (MTT, LAD). Or a transform.
        real: the real images that it was distilled from.
        lr: step size for students, learned with the images.
        factor: tiles per side of a stored image (IDC, DREAM, NCFM: 2). formation: "single" or
            "multi", see :mod:`potstill.canvas.tiled`.
        source: where it comes from, for the provenance.

    Raises:
        InputError: shapes, values or names do not fit; the sentence says which.

    Example:
        >>> images, labels = torch.rand(10, 1, 8, 8), torch.arange(10)  # somebody's, RGB 0-1
        >>> syn = potstill.import_set(images, labels, normalisation="data", real=train)
        >>> syn.counts
        (1, 1, 1, 1, 1, 1, 1, 1, 1, 1)
    """
    pixels = _pixels(images)
    transform = _transform(normalisation, real, pixels)
    if normalisation == "none":
        low, high = float(pixels.min()), float(pixels.max())
        if low < -_OUTSIDE or high > 1 + _OUTSIDE:
            raise InputError(
                f"images go from {low:.3g} to {high:.3g}, which is no RGB from 0 to 1; say "
                "what was done to them with normalisation=NAME (cifar10, data, zca, ...)"
            )
    else:
        pixels = transform.inverse(pixels)
    names = _names(classes, real)
    hard, soft = _labels(labels, len(pixels), None if names is None else len(names))
    if names is None:
        width = int(hard.max()) + 1 if soft is None else soft.shape[1]
        names = tuple(map(str, range(width)))
    told = normalisation if isinstance(normalisation, str) else normalisation.kind
    found = SyntheticSet(
        images=pixels,
        labels=hard,
        classes=names,
        transform=transform,
        decode=canvas_spec(factor, formation),
        soft_labels=soft,
        syn_lr=lr,
    )
    fields = {"normalisation": told, "factor": factor}
    found.provenance.update(
        {
            "method": {"name": "imported", "family": "imported", "fields": fields},
            "imported": {"source": source},
            "ipc": found.ipc,
        }
    )
    if real is not None:
        found.provenance["data"] = real.facts()
    return found


def _pixels(images: Any) -> Tensor:
    """Images (n, c, h, w) as float32; bytes become shares."""
    values = _dense(images, "images")
    if values.ndim == 3:
        values = values[:, None]
    if values.ndim != 4 or not len(values) or values.dtype.kind not in "uif":
        raise InputError(
            f"images are {values.dtype} of shape {values.shape}; give numbers (n, c, h, w)"
        )
    first = isinstance(images, Tensor)
    last = channels_last(values, channels_first=first, title="images")
    if not np.isfinite(last).all():
        raise InputError("images hold NaN or infinity; take those out")
    pixels = torch.from_numpy(np.array(np.moveaxis(last, -1, 1)))
    return pixels.float() / 255 if pixels.dtype == torch.uint8 else pixels.float()


def _dense(values: Any, title: str) -> np.ndarray:
    if isinstance(values, Tensor) and values.layout != torch.strided:
        raise InputError(f"{title} are a tensor of layout {values.layout}; call to_dense() on it")
    return as_numpy(values)


def _transform(kind: str | Transform, real: ImageSet | None, pixels: Tensor) -> Transform:
    if not isinstance(kind, str):
        return kind
    if kind in ("data", "zca") and real is None:
        raise InputError(
            f"normalisation is {kind!r}, which is fitted on real images; give those it was "
            "distilled from as real (--data on the command line)"
        )
    found: Transform
    if kind == "zca" and real is not None:
        found = ZCA.fit(real)
    elif real is not None and kind in ("none", "data"):
        found = Normalize.fit(real)
    elif kind == "none":  # what a receiver subtracts has to come from somewhere
        found = Normalize(pixels.mean((0, 2, 3)), pixels.std((0, 2, 3)).clamp_min(1e-3))
    else:
        try:
            found = Normalize.published(kind)
        except InputError as error:
            said = str(error).replace("name is", "normalisation is", 1)
            raise InputError(f"{said}; or none, data, zca") from None
    shape = tuple(pixels.shape[1:])
    fits = found.shape == shape if isinstance(found, ZCA) else len(found.to_tensors()["mean"])
    if fits not in (True, shape[0]):
        raise InputError(f"normalisation {kind!r} does not fit images of shape {shape}")
    return found


def _names(classes: Sequence[str] | int | None, real: ImageSet | None) -> tuple[str, ...] | None:
    if isinstance(classes, int):
        if not 1 <= classes <= _CLASSES:
            raise InputError(f"classes is {classes}; give 1 to {_CLASSES}, or names")
        return tuple(map(str, range(classes)))
    if classes is None:
        return real.classes if real is not None else None
    if twice := {name for name in classes if list(classes).count(name) > 1}:
        raise InputError(f"classes has {min(twice)!r} twice; give each class a name of its own")
    return tuple(classes)


def _labels(labels: Any, images: int, classes: int | None) -> tuple[Tensor, Tensor | None]:
    """Labels (n,) int64 and, where each image has a row of numbers, soft labels (n, K)."""
    if labels is None:
        if not classes or images % classes:
            raise InputError(
                f"labels are not given, and {images} images of {classes or 'how many'} classes are "
                "not as many of each; give labels, or classes"
            )
        return torch.arange(classes).repeat_interleave(images // classes), None
    given = _dense(labels, "labels")
    if given.dtype.kind not in "biuf":
        raise InputError(f"labels are {given.dtype}; give whole numbers from 0, one for each image")
    values = torch.from_numpy(np.array(given))
    values = values.long() if values.dtype == torch.bool else values
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.shape[:1] != (images,) or values.ndim > 2:
        raise InputError(f"labels have shape {tuple(values.shape)} for {images} images")
    if values.ndim == 1:
        if not bool((values == values.round()).all()) or int(values.min()) < 0:
            raise InputError("labels are no whole numbers from 0; give one class for each image")
        if classes is not None and int(values.max()) >= classes:
            raise InputError(f"labels hold {int(values.max())}, but there are {classes} classes")
        if classes is None and int(values.max()) >= max(images, _CLASSES):
            raise InputError(
                f"labels hold {int(values.max())} for {images} images; say which classes "
                "there are with classes=NAMES"
            )
        return values.long(), None
    rows = values.float()
    if classes is not None and rows.shape[1] != classes:
        raise InputError(f"labels have {rows.shape[1]} columns for {classes} classes")
    if not bool(rows.isfinite().all()):
        raise InputError("labels hold NaN or infinity; take those images out")
    if bool((rows >= 0).all()) and bool(((rows.sum(1) - 1).abs() < 1e-3).all()):
        hard = rows.argmax(1)
        one_hot = bool((rows.max(1).values == 1).all())
        return hard, None if one_hot else rows
    logger.warning("labels of the imported set are no probabilities; they are taken as logits")
    return rows.argmax(1), rows.softmax(1)
