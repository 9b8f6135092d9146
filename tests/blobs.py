"""Small images that any network can tell apart, for the tests and for what they start."""

from __future__ import annotations

import torch

from potstill.data import ImageSet


def blobs(counts: tuple[int, ...], channels: int = 1, size: int = 8, seed: int = 0) -> ImageSet:
    """Make classes that differ in where they are bright; any network can tell them apart."""
    draw = torch.Generator().manual_seed(seed)
    stacks = []
    for label, count in enumerate(counts):
        base = torch.zeros(channels, size, size)
        row, column = divmod(label, 2)
        base[
            :,
            row * size // 2 : (row + 1) * size // 2,
            column * size // 2 : (column + 1) * size // 2,
        ] = 1
        noise = torch.rand(count, channels, size, size, generator=draw)
        stacks.append(((0.35 + 0.3 * base + 0.35 * noise) * 255).to(torch.uint8))
    images = torch.cat(stacks)
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    return ImageSet(
        images,
        labels,
        tuple(f"class {c}" for c in range(len(counts))),
        "blobs",
        torch.arange(len(labels)),
        "blobs",
    )
