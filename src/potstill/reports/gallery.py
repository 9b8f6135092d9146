"""Pictures that a run leaves behind for its page: real examples, and the canvas on its way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from potstill.canvas import for_people
from potstill.data import ImageSet
from potstill.synthetic.eight_bit import grid

__all__ = ["Gallery", "picture_real"]

_PICTURES = 8  # besides the first and the last
_COLUMNS = 10  # images per class at most


def picture_real(folder: Path, train: ImageSet, ipc: int) -> None:
    """Draw a row of real images per class, first in file order, to ``pictures/real.png``."""
    count = min(ipc, _COLUMNS)
    rows = torch.cat([train.of_class(label)[:count] for label in range(train.num_classes)])
    path = folder / "pictures" / "real.png"
    grid(train.batch(rows), train.labels[rows], train.classes, path, columns=count)


class Gallery:
    """A watcher that keeps a picture of the canvas at a few steps and hands everything on.

    Args:
        folder: of the run. classes: names by label. steps: of the descent.
        inner: the user's own watcher.
    """

    def __init__(
        self, folder: Path, classes: Sequence[str], steps: int, inner: Callable[..., Any] | None
    ) -> None:
        self.folder, self.classes, self.inner = folder / "pictures", classes, inner
        self.every = max(1, steps // _PICTURES)
        self.last = steps - 1
        self.due = 0

    def __call__(self, step: int, record: dict[str, Any], canvas: Any) -> None:
        """Draw the canvas when a picture is due; call the inner watcher always.

        A canvas whose leaves are no RGB images has ``pictures()``, (n, c, h, w).
        """
        rounds = getattr(canvas, "rounds", 1)  # each of so many steps
        if step >= self.due or step == rounds * (self.last + 1) - 1:
            images = canvas.pictures() if hasattr(canvas, "pictures") else canvas.images.detach()
            spec = getattr(canvas, "spec", {})
            images, labels = for_people(images.float().cpu(), canvas.labels.cpu(), spec)
            columns = min(int(torch.bincount(labels).max()), _COLUMNS)
            path = self.folder / f"step-{step + 1:06d}.png"
            grid(images, labels, self.classes, path, columns=columns)
            self.due = step + self.every * rounds
        if self.inner is not None:
            self.inner(step, record, canvas)
