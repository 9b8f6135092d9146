"""Class means of what a frozen network says of all real images, in one pass."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from potstill.data import ImageSet
from potstill.match.spectral import SegmentMean
from potstill.run import Run
from potstill.run.machine import CPU_CHUNK
from potstill.run.memory import cuts

__all__ = ["class_moments"]


@torch.no_grad()
def class_moments(look: Callable[[Tensor], list[Tensor]], real: ImageSet, run: Run) -> list[Tensor]:
    """Return the class means (C, q) of each of the values (n, q) that ``look`` says of images.

    Args:
        look: RGB images (n, c, h, w) on the run's device; called class by class, in file order.
    """
    order = torch.argsort(real.labels, stable=True)
    labels = real.labels[order].to(run.device)
    means: list[SegmentMean] = []
    for part in cuts(len(order), 16 * CPU_CHUNK if run.on_gpu else CPU_CHUNK):
        said = look(real.batch(order[part], run.device))
        means = means or [SegmentMean(real.num_classes) for _ in said]
        for mean, values in zip(means, said, strict=True):
            mean.add(values, labels[part])
    return [mean.mean() for mean in means]
