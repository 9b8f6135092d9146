"""What a student sees at each of its steps: which synthetic images, and how augmented."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from potstill.data import DSA
from potstill.match.rollout import StudentStep

__all__ = ["draw_steps"]


def draw_steps(
    generator: Callable[[str, int], torch.Generator],
    images: Tensor,
    count: int,
    batch: int = 0,
    dsa: DSA | None = None,
) -> list[StudentStep]:
    """Draw ``count`` student steps on ``images`` (n, c, h, w).

    Args:
        generator: ``(kind, index)`` to a fresh generator; kinds are "augment" (index = step) and
            "rows" (index = first step of a permutation).
        batch: images per step, in chunks of random permutations; 0 or at least n = all of them.
        dsa: one operation family per step, parameters per image (LAD, MTT: not Siamese).
    """
    n, size = len(images), (images.shape[2], images.shape[3])
    rows: list[Tensor | None] = [None] * count
    if 0 < batch < n:
        rows = []
        while len(rows) < count:
            rows += torch.randperm(n, generator=generator("rows", len(rows))).split(batch)
    steps = []
    for index, own in enumerate(rows[:count]):
        number, params = n if own is None else len(own), {}
        if dsa is not None:
            draw = generator("augment", index)
            params = dsa.draw(number, size, draw, siamese=False, device=images.device)
        steps.append(StudentStep(own if own is None else own.to(images.device), params))
    return steps
