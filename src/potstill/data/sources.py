"""One door for real data: ``load`` and ``load_pair`` turn any source into an :class:`ImageSet`.

A source is one of

* ``"digits"``: scikit-learn's 8x8 handwritten digits (nothing is downloaded); values 0..16 become
  round(v * 255 / 16); the last 50 images of each class in file order are the test split;
* a folder of class folders, with or without ``train/`` and ``test/`` (or ``val/``) above them; how
  names and levels are read says :mod:`potstill.data.tree`;
* a Parquet or Arrow file, a folder of them, or what ``datasets`` saved with
  ``save_to_disk``;
* a hub name, ``owner/name`` or ``owner/name:configuration``, or a short name in
  :data:`potstill.data.tables.HUB`;
* a list of pictures, CSV, JSON lines or text, see :mod:`potstill.data.lists`, or a folder with
  Hugging Face's ``metadata.csv`` or ``metadata.jsonl``;
* Tiny ImageNet as it comes, and torchvision's folders of CIFAR, SVHN, STL-10 and MNIST;
* a ``.npz`` file with ``images`` and ``labels`` (also ``x`` and ``y``, ``data``; optionally
  ``classes``), or one pair per split, as in ``train_images`` or ``x_train`` and ``y_train``;
* a pair ``(images, labels)`` of arrays or tensors;
* a torch ``Dataset`` of (picture, label), or an open ``datasets`` data set.

Arrays are shaped (n, h, w), (n, h, w, c) or (n, c, h, w): the axis of length 1 or 3 is the channel;
where both ends could be, NumPy arrays are read as channels-last and torch tensors as
channels-first. Labels are whole numbers, words or one-hot rows. What numbers other than uint8 mean
says :mod:`potstill.data.values`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from potstill.data import store
from potstill.data.classes import check_classes, plain_names
from potstill.data.decode import MixedModes, OtherRange, blocks
from potstill.data.images import ImageSet, parse_fold
from potstill.data.reading import Reading
from potstill.data.recognise import Source, recognise
from potstill.data.splits import NoSplitError, UnlabelledError, find_split, splits_to_test
from potstill.data.subsets import keep_classes
from potstill.data.testing import aligned, few_note, lacking_note, tell_shared
from potstill.data.values import Values, tell_range
from potstill.data.variety import check_variety
from potstill.run import InputError, cache_folder, logger
from potstill.run.cache import Cached
from potstill.run.errors import system_refusals

__all__ = ["load", "load_pair"]

_KIND = "decoded-4"  # raise it when decoding changes


@dataclass(frozen=True)
class _Reader:
    """Reads splits: how, with what memory, into which cache."""

    how: Reading
    memory_gb: float
    cache: Path | None
    quiet: bool
    train: ImageSet | None = None  # whose scale of values beyond 8 bits a test split is read on

    def __post_init__(self) -> None:
        if not self.memory_gb > 0:
            raise InputError(f"memory_gb is {self.memory_gb}; use a positive number of gigabytes")

    def read(self, source: Source, split: str) -> tuple[ImageSet, tuple[str, ...]]:
        """One split, from the cache if it is there, and the names of all splits."""
        root, entry, bank = Path(self.cache or cache_folder()), None, None
        if source.stamp:
            facts = {"kind": _KIND, "source": source.stamp, "split": split}
            facts |= {"reading": self.how.reading_facts(), "tops": self._tops()}
            entry = Cached(root, "decoded", facts, f"the {split} split of {source.title}")
            bank = store.read_entry(entry, self.memory_gb)
        bank = bank or self._decode(source, split, root / "decoded", entry)
        labels, names = bank.labels, bank.facts.classes
        if self.train is not None:
            labels, names = aligned(self.train, labels, names, source.title)
        names = names or plain_names(labels, source.title)
        rows, found = bank.facts.rows, bank.facts.found
        images = ImageSet(
            images=bank.images,
            labels=labels,
            classes=names,
            partial=self.train is not None,
            source=source.title,
            indices=torch.arange(len(bank.labels)) if rows is None else torch.tensor(rows),
            fingerprint=bank.fingerprint,
            mapped=bank.mapped,
            history=({"op": "values", **found["tops"]},) if found.get("tops") else (),
        )
        title = f"the {split} split of {source.title}"
        check_variety(found, title)
        if not self._tops():  # those were told with the train split
            tell_range(found.get("tops", {}), title)
        return images, bank.facts.splits

    def _tops(self) -> dict[str, float]:
        """Scale of the train split, by kind of value; empty: 8 bits, or this is the train split."""
        facts = [] if self.train is None else [f for f in self.train.history if f["op"] == "values"]
        return {kind: top for kind, top in facts[0].items() if kind != "op"} if facts else {}

    def _decode(self, source: Source, split: str, root: Path, entry: Cached | None) -> store.Bank:
        splits = source.splits()
        rows = splits[find_split(split, splits, source.name)]()
        numbers = None
        if self.how.subset is not None:
            rows, numbers = keep_classes(rows, self.how.subset, partial=self.train is not None)
        if (
            rows.labels is not None and self.train is None
        ):  # before hours of decoding rather than after
            labels = torch.from_numpy(rows.labels)
            names = rows.classes or plain_names(labels, rows.name)
            check_classes(labels, names, rows.name)
        how, tops = self.how, self._tops()
        train = self.train.source if self.train is not None and tops else None
        while True:
            values = Values(rows.name, how.value_range, tops, train)
            facts = store.Facts(rows.classes, tuple(splits), numbers)
            made = blocks(
                rows,
                how,
                quiet=self.quiet,
                memory_gb=self.memory_gb,
                values=values,
                found=facts.found,
            )
            try:
                return store.collect(
                    made, rows.count, facts, root=root, entry=entry, memory_gb=self.memory_gb
                )
            except MixedModes:
                how = replace(how, channels=3)
            except OtherRange as other:
                tops = other.tops


@system_refusals()
def load(
    source: Any,
    *,
    split: str = "train",
    memory_gb: float = 4.0,
    cache: Path | None = None,
    quiet: bool = False,
    **options: Any,
) -> ImageSet:
    """Load one split of a source as uint8 images of one shape; file sources are decoded once.

    >>> load("digits").shape
    (1, 8, 8)
    >>> load("data/birds", image_size=64).shape
    (3, 64, 64)

    ``split`` may also be the source's own name for one ("validation"). Images above ``memory_gb``
    (1e9 bytes) stay memory-mapped. ``cache`` replaces ``$POTSTILL_CACHE``. ``options`` are the
    fields of :class:`potstill.data.Reading`. ``image_size`` gives square images: ``resize="crop"``
    brings the short side to size and cuts out the centre, "stretch" and "pad" keep everything.
    Without ``channels`` a source that is grey throughout stays grey. ``subset`` keeps some
    classes, labelled in its order: a list of :mod:`potstill.data.subsets` ("imagenet-nette"), or
    positions ("3,5,7") or names joined by commas. Images of other classes are neither decoded nor
    stored; ``indices`` stay row numbers in the source's split, and the fingerprint is that of what
    is kept.

    Raises:
        InputError: anything about the source that does not fit, in one sentence.
        StorageError: images above ``memory_gb`` cannot be written to the cache.
    """
    reader = _Reader(Reading(**options), memory_gb, cache, quiet)
    return reader.read(recognise(source, reader.how), split)[0]


@system_refusals()
def load_pair(
    source: Any,
    *,
    test: Any = None,
    memory_gb: float = 4.0,
    seed: int = 0,
    fold: str | tuple[int, int] | None = None,
    cache: Path | None = None,
    quiet: bool = False,
    **options: Any,
) -> tuple[ImageSet, ImageSet, str]:
    """Load train and test images, and a sentence that says where the test images come from.

    Test images are those of ``test`` (a second source), else the source's own test or validation
    split, else a balanced hold-out that is cut from train before anything else happens: a tenth of
    the smallest class, from every class. Splits whose labels are hidden or missing are passed over
    with a warning. Test images may lack classes that train has, and scores are over the others; a
    class of a single image is not held out. Test images that are in train, too, pixel for pixel,
    are counted in a warning. ``options`` are the fields of :class:`potstill.data.Reading`, for
    train and test
    alike.

    ``fold="K/N"`` is for cross-validation: test images are the K-th of N parts of the training
    split, drawn with ``seed``, in each of which every class has its share (:meth:`ImageSet.fold`);
    a test split that the source has plays no part. Where a class has fewer than 10 test images, the
    sentence says so.

    Raises:
        InputError: as :func:`load`, and when train and test differ in class names or image shape,
            or ``fold`` cannot be cut.
    """
    reader = _Reader(Reading(**options), memory_gb, cache, quiet)
    train, held, sentence = _pair(source, test, seed, fold, reader)
    tell_shared(train, held)
    notes = sentence, lacking_note(held), few_note(held)
    return train, held, " ".join(filter(None, notes))


def _pair(
    source: Any, test: Any, seed: int, fold: str | tuple[int, int] | None, reader: _Reader
) -> tuple[ImageSet, ImageSet, str]:
    """Train, test and where the test images come from."""
    number, folds = (0, 0) if fold is None else parse_fold(fold)
    if folds and test is not None:
        raise InputError(
            f"test is {test!r} beside fold {fold!r}, which cuts its test images from the training "
            "images; give one of them"
        )
    opened = recognise(source, reader.how)
    train, splits = reader.read(opened, "train")
    if folds:
        train, held = train.fold(number, folds, seed)
        own = " Its own test split plays no part." if splits_to_test(splits) else ""
        sentence = (
            f"Test images: fold {number} of {folds} of the training images of {opened.title} "
            f"({len(held)} images, seed {seed}); each image is in one fold."
        )
        return train, held, sentence + own
    if test is not None:
        other = recognise(test, reader.how)
        try:
            held = _read_like(train, reader, other, "test")
        except NoSplitError:
            held = _read_like(train, reader, other, "train")
        return train, held, f"Test images: {other.title} ({len(held)} images)."
    for name in splits_to_test(splits):
        try:
            held = _read_like(train, reader, opened, name)
        except UnlabelledError as error:
            logger.warning("%s; it is passed over", str(error).rpartition(";")[0])
            continue
        sentence = f"Test images: the {name!r} split of {opened.title} ({len(held)} images)."
        return train, held, sentence
    train, held = train.hold_out(seed=seed)
    sentence = (
        f"Test images: {max(held.counts)} of each class, held out of {opened.title} before "
        f"anything else (seed {seed}), because it has no test split with labels."
    )
    return train, held, sentence


def _read_like(train: ImageSet, reader: _Reader, source: Source, split: str) -> ImageSet:
    """Test images with the channels of ``train``; image shapes have to agree."""
    reader = replace(reader, train=train)
    test, _ = reader.read(source, split)
    if test.shape[0] != train.shape[0]:
        how = replace(reader.how, channels=train.shape[0])
        test, _ = replace(reader, how=how).read(source, split)
    if train.shape != test.shape:
        raise InputError(
            f"the test images of {test.source!r} have shape {test.shape}, but the training images "
            f"of {train.source!r} have {train.shape}; use image_size={min(train.shape[1:])}"
        )
    return test
