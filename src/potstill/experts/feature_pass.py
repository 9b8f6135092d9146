"""The pass of a real set through a backbone: sums so far, how to stop and how to go on."""

from __future__ import annotations

import errno
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash
from torch import Tensor

from potstill.data import ImageSet
from potstill.data.views import Views, clean_view, part_of
from potstill.experts.feature_stats import (
    ABOUT,
    BANK,
    BLOCK,
    STATS,
    FeatureStats,
    bank_is_whole,
    open_bank,
)
from potstill.nets.backbone import Backbone
from potstill.run import InputError, Run, StorageError, logger, progress
from potstill.run.cache import Cached
from potstill.run.checkpoint import digest, save_state
from potstill.run.memory import Portion
from potstill.run.recall import recall

__all__ = ["FeaturePass"]


class FeaturePass:
    """The pass itself, with the sums so far; knows how to stop and go on."""

    def __init__(
        self, real: ImageSet, backbone: Backbone, run: Run, views: Views | None, bank: bool,
        entry: Cached,
    ) -> None:  # fmt: skip
        self.real, self.backbone, self.run, self.views = real, backbone, run, views
        self.entry, self.folder, self.key = entry, entry.folder, digest([entry.facts, bank])
        count, moment = entry.facts["count"], entry.facts["moment"]
        classes, dim, device = real.num_classes, backbone.dim, run.device
        shapes = {"sums": (classes, dim)} | ({} if moment == "none" else {"moment": (dim, dim)})
        self.totals = {
            name: torch.zeros(shape, dtype=torch.float64, device=device)
            for name, shape in shapes.items()
        }
        counts = torch.tensor(real.counts, dtype=torch.float64)
        weights = {
            "balanced": 1 / (counts * len(counts) * count),
            "natural": torch.full_like(counts, 1 / (len(real) * count)),
        }
        self.weights = weights.get(moment, counts).to(device)  # of an image in the moment
        self.fits = Portion("images", f"a pass of backbone {backbone.label!r}")
        self.bank = self.folder / BANK if bank else None
        self.count, self.shape = count, (count, len(real), dim)
        self.checks = np.zeros(self.blocks * count, np.uint64)  # of the bank's blocks
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
        found: dict[str, Any] = {name: total.cpu() for name, total in self.totals.items()}
        stats = FeatureStats(
            counts=torch.tensor(self.real.counts),
            views=self.count,
            facts=self.entry.facts,
            key=self.entry.key,
            **found,
        )
        seconds = self.spent + time.monotonic() - self.began
        self.entry.save(ABOUT, self._checks(), {}, seconds)
        self.entry.save(STATS, *stats.state(), 0.0)
        partial.unlink(missing_ok=True)
        return stats

    @torch.no_grad()
    def _steps(self) -> Iterator[int]:
        n, drawn, draw = len(self.real), -1, dict[str, Tensor]()
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
                    seen = self.views.apply(images, part_of(draw, rows), self.backbone.size)
                z = self.fits.over(self.backbone.features, seen)
                half = z.half()
                self._refuse_nonfinite(z if file is None else half, rows)
                self._add(z.double(), self.real.labels[rows].to(z.device))
                if file is not None:
                    file.seek(2 * (view * n + rows.start) * self.backbone.dim)
                    content = half.cpu().numpy().tobytes()
                    self.checks[step] = xxhash.xxh3_64_intdigest(content)
                    file.write(content)
                    file.flush()  # before the sums say so
                self.next = step + 1
                yield step

    def _add(self, z: Tensor, labels: Tensor) -> None:
        self.totals["sums"].index_add_(0, labels, z)
        if "moment" in self.totals:
            self.totals["moment"].addmm_((z * self.weights[labels][:, None]).T, z)

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
        def read(tensors: dict[str, Tensor], facts: dict[str, Any]) -> tuple[Any, ...]:
            checks = self.checks
            if self.bank is not None:
                checks = tensors["bank"].numpy().view(np.uint64)
                open_bank(self.bank, self.shape, checks, blocks=facts["next"])
            sums = [tensors[name].view(total.shape) for name, total in self.totals.items()]
            return checks, sums, facts["next"], facts["seconds"]

        found = recall(partial, "passing the images from the first on", read, key=self.key)
        if found is None:
            return
        self.checks, sums, self.next, self.spent = found
        for total, value in zip(self.totals.values(), sums, strict=True):
            total.copy_(value)
        logger.info("resuming the features at block %d of %d", self.next, self.blocks * self.count)

    def _checks(self) -> dict[str, Tensor]:
        return {} if self.bank is None else {"bank": torch.from_numpy(self.checks.view(np.int64))}

    def _save(self, partial: Path) -> None:
        seconds = self.spent + time.monotonic() - self.began
        tensors = self.totals | self._checks()
        save_state(partial, tensors, {"key": self.key, "next": self.next, "seconds": seconds})

    def _reserve(self) -> None:
        """Give the bank its full size before the first image is passed."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.entry.hold()
        for name in (STATS, ABOUT):  # they must not vouch for a bank in the making
            (self.folder / name).unlink(missing_ok=True)
        if self.bank is None or bank_is_whole(self.bank, self.shape):
            return
        size = 2 * int(np.prod(self.shape))
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
