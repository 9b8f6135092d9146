"""The crops of real images of which trained networks are surest (RDED; RLDD's rounds).

RDED (Sun et al., CVPR 2024) keeps the best crop of each image and of these the best; RLDD (AAAI
2026, stage 3) goes on from there. Every image of a class offers its best crop that was not yet
taken, round after round, until there are enough: a class with few images gives several crops of
each, never one twice, and a class with many gives none of its images a second crop before all have
given one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from potstill.data import ImageSet
from potstill.data.views import Views, part_of
from potstill.run.machine import CPU_CHUNK
from potstill.run.memory import cuts

__all__ = ["Judge", "by_rounds", "confident_crops"]

Judge = Callable[[Tensor], Tensor]  # RGB images (n, c, h, w) to log-probabilities (n, K)
_VALUES = 1 << 24  # pixel values that a judge is shown at a time


def by_rounds(scores: Tensor, needed: int) -> Tensor:
    """Return which crops are taken, (needed, 2): image and crop, in the order of taking.

    Args:
        scores: (n, m), the higher the better, of m crops of n images. needed: at most n times m.
    """
    order = scores.argsort(dim=1, descending=True, stable=True)
    taken: list[tuple[int, int]] = []
    for crop in order.T:  # the best of each image, then the second best
        offers = scores.gather(1, crop[:, None])[:, 0].argsort(descending=True, stable=True)
        best = offers[: needed - len(taken)]
        taken += zip(best.tolist(), crop[best].tolist(), strict=True)
    return torch.tensor(taken)


@torch.no_grad()
def confident_crops(
    real: ImageSet,
    needed: Sequence[int],
    judge: Judge,
    generator: Callable[..., torch.Generator],
    device: str = "cpu",
    *,
    crops: int = 5,
    crop_min: float = 0.25,
    looked_at: int = 1024,
) -> list[Tensor]:
    """Return ``needed[label]`` crops of each class, (needed, c, h, w) on the CPU, best first.

    Args:
        judge: whose log-probability of the own class is the score of a crop.
        generator: ``run.generator``; draws per class from ``generator("crops", label)``.
        crops: of each image, as released; more where a class would not have enough.
        crop_min: smallest crop as a share of the area; by default what a tile of factor 2 shows
            without being enlarged.
        looked_at: images of a class at most, in drawn order; more where more are needed.
    """
    at_a_time = max(CPU_CHUNK, _VALUES // math.prod(real.shape))
    views, size = Views(crop_min=crop_min, aspect=1.0, flip=0.0, noise=0.0), real.shape[1:]
    found = []
    for label, count in enumerate(needed):
        draw, own = generator("crops", label), real.of_class(label)
        own = own[torch.randperm(len(own), generator=draw)[: max(looked_at, count)]]
        each = max(crops, -(-count // len(own)))
        rows, boxes = own.repeat_interleave(each), views.draw(len(own) * each, draw)

        def cut(
            which: Tensor | slice, rows: Tensor = rows, boxes: dict[str, Tensor] = boxes
        ) -> Tensor:
            images = real.batch(rows[which], device)
            return views.apply(images, part_of(boxes, which), (size[0], size[1]))

        scores = [judge(cut(part))[:, label].cpu() for part in cuts(len(rows), at_a_time)]
        taken = by_rounds(torch.cat(scores).view(len(own), each), count)
        found.append(cut(taken[:, 0] * each + taken[:, 1]).clamp(0, 1).cpu())
    return found
