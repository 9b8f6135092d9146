"""The synthetic set: a few images, their labels, and all that a receiver needs besides."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from potstill.canvas import decode_images, for_people
from potstill.data.shown import MOST_SHOWN, html_of, sizes
from potstill.data.transform import Transform
from potstill.labels import Projection, ViewLabels
from potstill.run import ArtifactError, InputError
from potstill.run.errors import system_refusals
from potstill.synthetic import artifact_folder
from potstill.synthetic import tensors as exact
from potstill.synthetic.eight_bit import rounded, to_uint8
from potstill.synthetic.soundness import fault as fault_of
from potstill.synthetic.started import read_start

__all__ = ["SyntheticSet"]

_PER_IMAGE = ("images", "labels", "soft_labels", "weights", "regression_targets")


@dataclass(frozen=True, eq=False)
class SyntheticSet:
    """A distilled data set in the form in which it is stored.

    Example:
        >>> synthetic = SyntheticSet.load("runs/first")
        >>> images, labels, soft_labels, weights = synthetic.decoded()
        >>> inputs = synthetic.transform(images)

    Raises:
        InputError: shapes, types or values do not fit together; the sentence says which.
    """

    images: Tensor  # float32 (n, c, h, w), RGB 0-1 (may leave it where a method does not clamp)
    labels: Tensor  # int64 (n,), positions in `classes`; in any order, methods write ascending
    classes: tuple[str, ...]  # class names; their position is the label
    transform: Transform  # what a receiver applies to decoded images before a network
    decode: dict[str, Any] = field(default_factory=lambda: {"kind": "pixels"})  # see canvas_spec
    soft_labels: Tensor | None = None  # float32 (n, K) or, a label per tile, (n, v, K); sum to 1
    weights: Tensor | None = None  # float32 (n,), not negative
    syn_lr: float | None = None  # step size learned with the images
    regression_targets: Tensor | None = None  # float32 (n, K), learned by squared error
    view_labels: ViewLabels | None = None  # of E views of every training image, to be replayed
    projection: Projection | None = None  # labels any view from the features of a backbone
    source_indices: Tensor | None = None  # int64 (N,), rows of the source that were distilled
    bits: int = 32  # of a stored value: 32 (float), or 8, where all images are n / 255
    provenance: dict[str, Any] = field(default_factory=dict)  # JSON-like: where it comes from
    start: SyntheticSet | None = field(default=None, repr=False)  # as it stood before step 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "classes", tuple(self.classes))
        for name in (*_PER_IMAGE, "source_indices"):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, value.detach())
        fault = fault_of(self)
        if self.start is not None and self.start.images.shape != self.images.shape:
            fault = fault or f"start has images of shape {tuple(self.start.images.shape)}"
        if fault:
            raise InputError(fault)

    def __len__(self) -> int:
        return len(self.images)

    def __repr__(self) -> str:
        c, h, w = self.shape
        made = self.provenance.get("method")
        name = made.get("name", "") if isinstance(made, dict) else str(made or "")
        first = f"SyntheticSet{f' by {name}' if name else ''} {self.checksum}: {len(self)} images"
        first += f", {w}x{h} {'grey' if c == 1 else 'RGB'}, labels {self.label_tier}"
        told = f"{sizes(self.counts)}; {self.nbytes / 1000:.0f} kB"
        return f"{first}\n  {self.num_classes} classes: {told}"

    def _repr_html_(self) -> str:
        there = [k for k, count in enumerate(self.counts) if count]
        firsts = torch.stack([(self.labels == k).nonzero()[0, 0] for k in there[:MOST_SHOWN]])
        stored = self.images[firsts.to(self.images.device)]
        pictures, rows = for_people(stored, torch.arange(len(stored)), self.decode)
        pictures = to_uint8(pictures[torch.searchsorted(rows, torch.arange(len(stored)))])
        return html_of(repr(self), list(pictures), [self.classes[k] for k in there])

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of a stored image (and of a decoded one)."""
        _, c, h, w = self.images.shape
        return c, h, w

    @property
    def num_classes(self) -> int:
        """Number of classes, with or without images."""
        return len(self.classes)

    @property
    def counts(self) -> tuple[int, ...]:
        """Stored images of each class."""
        return tuple(torch.bincount(self.labels, minlength=self.num_classes).tolist())

    @property
    def ipc(self) -> int:
        """Stored images per class; of the largest class where they differ."""
        return max(self.counts)

    @property
    def label_tier(self) -> str:
        """Of what labels a receiver gets the richest, see potstill.evaluation.labels.TIERS."""
        if self.view_labels is not None:
            return "stored"
        if self.projection is not None:
            return "projected"
        if self.regression_targets is not None:
            return "regression"
        return "hard" if self.soft_labels is None else "static"

    @property
    def nbytes(self) -> int:
        """Bytes a receiver needs: images, whatever labels them, weights and transform."""
        needed = exact.tensors_of(self)
        needed.pop("source_indices", None)  # provenance: which real images these came from
        return sum(tensor.nbytes for tensor in needed.values())

    @property
    def checksum(self) -> str:
        """16 hexadecimal digits over all tensors, class names, decode spec and transform kind."""
        return exact.checksum(exact.tensors_of(self), exact.facts_of(self))

    def decoded(self) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """Return what a receiver trains on, before the transform.

        Images (n * v, c, h, w), labels (n * v,), soft labels (n * v, K) or None and weights
        (n * v,) or None, where v is the number of views of a stored image (1 for plain pixels).
        Soft labels (n, K) of stored images are repeated over their views.
        """
        soft = self.soft_labels
        own = None if soft is None or soft.ndim == 2 else soft.flatten(0, 1)
        repeated = soft if own is None else None
        images, labels, repeated, weights = decode_images(
            self.images, self.labels, self.decode, repeated, self.weights
        )
        return images, labels, repeated if own is None else own, weights

    def decoded_targets(self) -> Tensor | None:
        """Return the regression targets (n * v, K) of :meth:`decoded`, or None."""
        return decode_images(self.images, self.labels, self.decode, self.regression_targets)[2]

    def in_bytes(self) -> SyntheticSet:
        """Return the set with images clipped to [0, 1] and rounded to n / 255, stored in bytes.

        A quarter of the bytes; unlike :meth:`quantized` it keeps what is stored undecoded.
        """
        return replace(self, images=rounded(self.images), bits=8)

    def quantized(self) -> SyntheticSet:
        """Return the 8-bit view: decoded images, clipped to [0, 1] and rounded to n / 255.

        These are exactly the pixels of the folder's ``images/`` and ``data/``, so the score of this
        set is the score of somebody who takes only those.
        """
        images, labels, soft_labels, weights = self.decoded()
        return replace(
            self,
            images=rounded(images),
            labels=labels,
            decode={"kind": "pixels"},
            soft_labels=soft_labels,
            weights=weights,
            regression_targets=self.decoded_targets(),
            start=None,
        )

    @system_refusals()
    def save(self, folder: str | Path) -> Path:
        """Write the self-describing folder and return its path.

        The folder appears complete or not at all. An artifact that was there before is replaced
        when the new one is complete; files beside it that are not ours (``.git``) stay.

        Raises:
            InputError: ``folder`` holds something else. StorageError: writing failed; an older
            artifact is untouched.
        """
        return artifact_folder.write(self, Path(folder))

    @staticmethod
    @system_refusals()
    def load(folder: str | Path) -> SyntheticSet:
        """Read an artifact; ``folder`` is the artifact's or that of the run that made it.

        Nothing in the folder is executed, and nothing is allocated before sizes were checked.

        Raises:
            ArtifactError: the sentence names the file and what is wrong with it.
        """
        place = artifact_folder.find(Path(folder))
        parts = exact.read(place / artifact_folder.TENSORS)
        stated = parts.pop("checksum")
        try:
            synthetic = SyntheticSet(**parts)
        except InputError as error:
            raise ArtifactError(f"{place / artifact_folder.TENSORS}: {error}") from error
        synthetic.provenance.update(artifact_folder.read_provenance(place, stated))
        return read_start(place, synthetic)
