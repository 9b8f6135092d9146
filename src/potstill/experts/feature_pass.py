"""The pass of a real set through a backbone: sums so far, how to stop and how to go on."""

from __future__ import annotations

import errno
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from potstill.data import ImageSet
from potstill.data.views import Views, clean_view, part_of
from potstill.nets.backbone import Backbone
from potstill.run import ArtifactError, InputError, Run, StorageError, logger, progress
from potstill.run.checkpoint import digest, load_state, save_state
from potstill.run.memory import Portion

__all__ = [
    "ABOUT",
    "BANK",
    "BLOCK",
    "MOMENTS",
    "FeaturePass",
    "FeatureStats",
    "bank_is_whole",
]

MOMENTS = ("none", "natural", "balanced")  # second moments: off, over images, over classes
BANK, ABOUT = "bank.f16", "about.safetensors"  # files beside the statistics
BLOCK = 64  # images per pass; part of what "features-2" stands for, because sums round by it


@dataclass(frozen=True, eq=False)
class FeatureStats:
    """What a backbone sees in a real set. ``facts`` say of what, and are compared before use."""

    counts: Tensor  # int64 (C,): real images
    sums: Tensor  # float64 (C, d), over images and views
    squares: Tensor  # float64 (C, d)
    views: int  # per image
    facts: dict[str, Any]
    key: str
    moment: Tensor | None = None  # float64 (d, d), mean of z z^T (see MOMENTS)
    bank: Tensor | None = None  # float16 (views, n, d), perhaps mapped from disk
    labels: Tensor | None = None  # int64 (n,), of the bank's rows
    seconds_saved: float = 0.0  # what the pass read from the cache once took

    @property
    def centres(self) -> Tensor:
        """Mean feature of each class, float32 (C, d)."""
        return (self.sums / (self.counts * self.views)[:, None]).float()

    @property
    def variances(self) -> Tensor:
        """Variance of each feature within each class (biased), float32 (C, d)."""
        n = (self.counts * self.views)[:, None]
        return (self.squares / n - (self.sums / n).square()).clamp_min(0).float()

    def check(self, real: ImageSet, backbone: Backbone) -> None:
        """Raise InputError unless these are statistics of ``real`` seen by ``backbone``."""
        for name, own, wanted in (
            ("backbone", self.facts.get("backbone"), backbone.key),
            ("data", self.facts.get("data"), real.checksum),
        ):
            if own != wanted:
                raise InputError(
                    f"statistics were taken with {name} {own}, not {wanted}; collect them again "
                    f"with this {name}"
                )

    def save(self, path: Path) -> None:
        """Write everything but the bank."""
        tensors = {"counts": self.counts, "sums": self.sums, "squares": self.squares}
        tensors |= {} if self.moment is None else {"moment": self.moment}
        facts = {"views": self.views, "facts": self.facts, "key": self.key}
        save_state(path, tensors, {"kind": "feature-stats", **facts})

    @staticmethod
    def load(path: Path) -> FeatureStats:
        """Read what :meth:`save` wrote.

        Raises:
            ArtifactError: damaged, or something else.
        """
        tensors, facts = load_state(path)
        try:
            if facts["kind"] != "feature-stats":
                raise KeyError(facts["kind"])
            classes, dim = tensors["sums"].shape
            if tensors["counts"].shape != (classes,) or tensors["squares"].shape != (classes, dim):
                raise KeyError("shapes")
            return FeatureStats(
                counts=tensors["counts"],
                sums=tensors["sums"],
                squares=tensors["squares"],
                views=int(facts["views"]),
                facts=dict(facts["facts"]),
                key=str(facts["key"]),
                moment=tensors.get("moment"),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ArtifactError(
                f"{path} holds no feature statistics ({error}); delete it"
            ) from None


def bank_is_whole(path: Path, shape: tuple[int, int, int]) -> bool:
    """Whether a bank of this shape lies at ``path``, by its size."""
    return path.is_file() and path.stat().st_size == 2 * int(np.prod(shape))


class FeaturePass:
    """The pass itself, with the sums so far; knows how to stop and go on."""

    def __init__(
        self,
        real: ImageSet,
        backbone: Backbone,
        run: Run,
        views: Views | None,
        count: int,
        moment: str,
        bank: bool,
        folder: Path,
        facts: dict[str, Any],
    ) -> None:
        self.real, self.backbone, self.run = real, backbone, run
        self.views, self.count = views, count
        self.folder, self.facts, self.key = folder, facts, digest([facts, bank])
        classes, dim, device = real.num_classes, backbone.dim, run.device
        self.sums = torch.zeros(classes, dim, dtype=torch.float64, device=device)
        self.squares = torch.zeros_like(self.sums)
        self.moment = None
        if moment != "none":
            self.moment = torch.zeros(dim, dim, dtype=torch.float64, device=device)
        counts = torch.tensor(real.counts, dtype=torch.float64)
        weights = {
            "balanced": 1 / (counts * len(counts) * count),
            "natural": torch.full_like(counts, 1 / (len(real) * count)),
        }
        self.weights = weights.get(moment, counts).to(device)  # of an image in the moment
        self.fits = Portion("images", f"a pass of backbone {backbone.label!r}")
        self.bank = folder / BANK if bank else None
        self.next, self.spent, self.began = 0, 0.0, time.monotonic()

    @property
    def blocks(self) -> int:
        """Blocks of one view."""
        return -(-len(self.real) // BLOCK)

    def finish(self) -> FeatureStats:
        """Go on from what is there to the end."""
        partial = self.folder / "partial.safetensors"
        self._resume(partial)
        self._reserve()
        saved = time.monotonic()
        label, total = f"features of {self.real.source}", self.blocks * self.count
        steps = progress(
            self._steps(), label=label, quiet=self.run.quiet, total=total, done=self.next
        )
        for _ in steps:
            if time.monotonic() - saved >= max(1.0, self.run.checkpoint_seconds):
                self._save(partial)
                saved = time.monotonic()
        stats = FeatureStats(
            counts=torch.tensor(self.real.counts),
            sums=self.sums.cpu(),
            squares=self.squares.cpu(),
            views=self.count,
            facts=self.facts,
            key=digest(self.facts),
            moment=None if self.moment is None else self.moment.cpu(),
        )
        seconds = self.spent + time.monotonic() - self.began
        about = {"seconds": seconds, "bank": self.bank is not None}
        save_state(self.folder / ABOUT, {}, about)
        stats.save(self.folder / "stats.safetensors")
        partial.unlink(missing_ok=True)
        return stats

    @torch.no_grad()
    def _steps(self) -> Iterator[int]:
        n, drawn, draw = len(self.real), -1, None
        with self._open_bank() as file:
            for step in range(self.next, self.blocks * self.count):
                view, block = divmod(step, self.blocks)
                if self.views is not None and view != drawn:
                    generator = self.run.generator("features/views", view)
                    drawn, draw = view, self.views.draw(n, generator)
                rows = slice(block * BLOCK, min(n, (block + 1) * BLOCK))
                images = self.real.batch(torch.arange(rows.start, rows.stop), self.run.device)
                if self.views is None:
                    seen = clean_view(images, self.backbone.size)
                else:
                    assert draw is not None
                    seen = self.views.apply(images, part_of(draw, rows), self.backbone.size)
                z = self.fits.over(self.backbone.features, seen)
                half = z.half()
                self._refuse_nonfinite(z if file is None else half, rows)
                self._add(z.double(), self.real.labels[rows].to(z.device))
                if file is not None:
                    file.seek(2 * (view * n + rows.start) * self.backbone.dim)
                    file.write(half.cpu().numpy().tobytes())
                    file.flush()  # before the sums say so
                self.next = step + 1
                yield step

    def _add(self, z: Tensor, labels: Tensor) -> None:
        self.sums.index_add_(0, labels, z)
        self.squares.index_add_(0, labels, z.square())
        if self.moment is not None:
            self.moment.addmm_((z * self.weights[labels][:, None]).T, z)

    def _refuse_nonfinite(self, z: Tensor, rows: slice) -> None:
        bad = (~torch.isfinite(z)).any(1).nonzero().flatten().tolist()
        if bad:
            row = rows.start + bad[0]
            name = self.real.classes[int(self.real.labels[row])]
            raise InputError(
                f"backbone {self.backbone.label!r} gives features that are not finite for image "
                f"{int(self.real.indices[row])} of class {name!r}; check the image or use another "
                "backbone"
            )

    def _resume(self, partial: Path) -> None:
        if not partial.is_file():
            return
        try:
            tensors, facts = load_state(partial)
        except ArtifactError as error:
            logger.warning("%s; passing the images from the first on", error)
            return
        whole = self.bank is None or bank_is_whole(
            self.bank, (self.count, len(self.real), self.backbone.dim)
        )
        if facts.get("key") != self.key or not whole:
            return
        self.sums.copy_(tensors["sums"])
        self.squares.copy_(tensors["squares"])
        if self.moment is not None:
            self.moment.copy_(tensors["moment"])
        self.next, self.spent = facts["next"], facts["seconds"]
        logger.info("resuming the features at block %d of %d", self.next, self.blocks * self.count)

    def _save(self, partial: Path) -> None:
        tensors = {"sums": self.sums, "squares": self.squares}
        tensors |= {} if self.moment is None else {"moment": self.moment}
        seconds = self.spent + time.monotonic() - self.began
        save_state(partial, tensors, {"key": self.key, "next": self.next, "seconds": seconds})

    def _reserve(self) -> None:
        """Give the bank its full size before the first image is passed."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for name in ("stats.safetensors", ABOUT):  # they must not vouch for a bank in the making
            (self.folder / name).unlink(missing_ok=True)
        shape = (self.count, len(self.real), self.backbone.dim)
        if self.bank is None or bank_is_whole(self.bank, shape):
            return
        size = 2 * int(np.prod(shape))
        try:
            with self.bank.open("wb") as file:
                if hasattr(os, "posix_fallocate"):
                    os.posix_fallocate(file.fileno(), 0, size)
                elif shutil.disk_usage(self.folder).free < size:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                else:
                    file.truncate(size)
        except OSError as error:
            with suppress(OSError):
                self.bank.unlink()
            raise StorageError(
                f"cannot write a feature bank of {size / 1e9:.2f} GB to {self.folder} "
                f"({error.strerror}); free space, use fewer views, or set POTSTILL_CACHE to a "
                "larger disk"
            ) from error

    def _open_bank(self) -> Any:
        return nullcontext() if self.bank is None else self.bank.open("rb+")
