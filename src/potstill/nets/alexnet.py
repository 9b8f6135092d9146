"""The two oldest networks of the cross-architecture tables: AlexNet and LeNet, for small images."""

from __future__ import annotations

from torch import nn

from potstill.nets.convnet import stem_padding

__all__ = ["alexnet", "lenet"]


def alexnet(channels: int, size: tuple[int, int]) -> tuple[nn.Module, int]:
    """Return five convolutions 128-192-256-192-192 with three max pools, and the feature dimension.

    The variant of Dataset Condensation (Zhao et al., ICLR 2021): 5x5 then 3x3 kernels, no norm.
    """
    padding = stem_padding(channels, size, 2)
    height, width = (side + 2 * (padding - 2) for side in size)
    body = nn.Sequential(
        nn.Conv2d(channels, 128, 5, padding=padding), nn.ReLU(inplace=True), nn.MaxPool2d(2),
        nn.Conv2d(128, 192, 5, padding=2), nn.ReLU(inplace=True), nn.MaxPool2d(2),
        nn.Conv2d(192, 256, 3, padding=1), nn.ReLU(inplace=True),
        nn.Conv2d(256, 192, 3, padding=1), nn.ReLU(inplace=True),
        nn.Conv2d(192, 192, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2),
    )  # fmt: skip
    return body, 192 * (height >> 3) * (width >> 3)


def lenet(channels: int, size: tuple[int, int]) -> tuple[nn.Module, int]:
    """Return two 5x5 convolutions 6-16, two linear layers 120-84, and 84 (LeCun et al., 1998).

    Images below 16x16 would vanish between unpadded convolutions, so there both are padded by 2.
    """
    small = min(size) < 16
    paddings = (2, 2) if small else (stem_padding(channels, size, 0), 0)

    def after(side: int) -> int:
        for padding in paddings:
            side = (side + 2 * padding - 4) // 2
        return side

    pixels = after(size[0]) * after(size[1])
    body = nn.Sequential(
        nn.Conv2d(channels, 6, 5, padding=paddings[0]), nn.ReLU(inplace=True), nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5, padding=paddings[1]), nn.ReLU(inplace=True), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(16 * pixels, 120), nn.ReLU(inplace=True),
        nn.Linear(120, 84), nn.ReLU(inplace=True),
    )  # fmt: skip
    return body, 84 if pixels else 0
