"""A canvas that is worked through in shards: a number of images at a time, each from its step 0.

Decoupled methods ask nothing of two images that are not in one batch, so only one batch needs its
optimiser, its gradients and the graph of a step; the others lie in memory as pixels, and finished
ones in the run's folder, too. A killed run goes on within the shard that it was in.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from pathlib import Path
from typing import Annotated

import torch
from torch import Tensor

from potstill.canvas.pixels import Canvas
from potstill.run.checkpoint import load_state, save_state
from potstill.run.fields import Batch, OneOf, Steps, check_value

__all__ = ["Order", "ShardedCanvas"]

Order = Annotated[str, OneOf("spread", "classes")]


class ShardedCanvas(Canvas):
    """Images of which one shard after the other descends.

    Args:
        whole: the canvas before step 0, on the CPU. steps: that each shard takes.
        size: images of a shard, at most.
        order: "spread" takes an image of each class, then the second of each (SRe2L); "classes"
            all of a class, then the next.
        folder: where finished shards are kept for a run that goes on; None keeps none.

    Attributes:
        images: the leaf, the images of the shard at work. members: their rows among all.

    Raises:
        InputError: a number out of range.
    """

    def __init__(
        self,
        whole: Canvas,
        steps: int,
        size: int,
        order: str = "spread",
        folder: Path | None = None,
    ) -> None:
        check_value("steps", steps, Steps)
        check_value("shard_images", size, Batch)
        check_value("order", order, Order)
        self._all, self.labels, self.spec = whole.images.detach().clone(), whole.labels, whole.spec
        self.bounded, self.behind, self.starts = whole.bounded, whole.behind, whole.starts
        rows = torch.arange(len(whole.labels))
        if order == "spread":
            rank = rows - torch.tensor(whole.starts)[whole.labels]
            rows = torch.argsort(rank, stable=True)
        self.shards = [part.sort().values for part in rows.split(size)]
        self.steps, self.folder, self.rounds = steps, folder, len(self.shards)
        self.device, self._asked = torch.device("cpu"), False
        self._open(0)

    def _open(self, shard: int) -> None:
        self.shard, self.members = shard, self.shards[shard]
        self.images = self._all[self.members].to(self.device).requires_grad_(True)

    def to(self, device: str) -> ShardedCanvas:
        """Return the same canvas with the shard at work on another device; the others stay."""
        moved = copy(self)
        moved.device = torch.device(device)
        moved.images = self.images.detach().to(device).requires_grad_(True)
        return moved

    @property
    def leaf_labels(self) -> Tensor:
        """Class of each image of the shard at work, ascending."""
        return self.labels[self.members].to(self.device)

    @torch.no_grad()
    def pictures(self, leaves: Mapping[str, Tensor] | None = None) -> Tensor:
        """Return all images, RGB (n, c, h, w), on the CPU: finished, at work and waiting ones."""
        found = self._all.clone()
        found[self.members] = (leaves or self.parameters())[self.leaf].detach().cpu()
        return found

    @torch.no_grad()
    def grow_(self, step: int) -> bool:
        """Put the finished shard away and take the one whose turn ``step`` is; whether it is new.

        A fresh canvas takes shards that an earlier process finished from the folder.

        Raises:
            ArtifactError: one of them is damaged.
        """
        wanted = min(max(0, step) // max(1, self.steps), self.rounds - 1)
        goes_on, self._asked = not self._asked, True  # the first to ask may be a run that goes on
        if wanted <= self.shard:
            return False
        if goes_on:
            for shard in range(wanted):
                self._all[self.shards[shard]] = self._read(shard)
        else:
            self._all[self.members] = self.images.detach().cpu()
            if self.folder is not None:
                save_state(self._path(self.shard), {"images": self._all[self.members]}, {})
        self._open(wanted)
        return True

    def _path(self, shard: int) -> Path:
        assert self.folder is not None
        return self.folder / "shards" / f"shard-{shard:05d}.safetensors"

    def _read(self, shard: int) -> Tensor:
        tensors, _ = load_state(self._path(shard), fix="distil again with --force")
        return tensors["images"]
