"""Residual networks for small images: ResNets with the CIFAR stem, thin ones, and wide ResNets.

He et al., CVPR 2016; Zagoruyko & Komodakis, BMVC 2016. Thin ones are teachers that two CPU cores
can train: WRN-16-2 on 32x32 has a fifth of the multiplications of ResNet-18.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import relu

from potstill.nets.layers import GlobalAverage, norm

__all__ = ["resnet", "wide_resnet"]


class _Block(nn.Module):
    """Two 3x3 convolutions and a shortcut, projected where the shape changes."""

    def __init__(self, channels: int, width: int, stride: int, kind: str) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            nn.Conv2d(channels, width, 3, stride, padding=1, bias=False),
            norm(kind, width),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            norm(kind, width),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels != width:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels, width, 1, stride, bias=False), norm(kind, width)
            )

    def forward(self, x: Tensor) -> Tensor:
        return relu(self.residual(x) + self.shortcut(x))


def resnet(
    channels: int, size: tuple[int, int], norm_kind: str, width: int, blocks: int
) -> tuple[nn.Module, int]:
    """Return the body (3x3 stem, four stages of ``blocks`` blocks, global average) and 8 ``width``.

    ``width`` channels in the stem and the first stage, twice as many in each further one; 64 and
    two blocks are ResNet-18, one block is ResNet-10.
    Images of any size: a stage halves its map only while more than two pixels remain, because
    instance norm of a single pixel is a constant. From 16x16 on this is the published network.
    """
    layers = [
        nn.Conv2d(channels, width, 3, padding=1, bias=False),
        norm(norm_kind, width),
        nn.ReLU(inplace=True),
    ]
    channels, side = width, min(size)
    for stage, wide in enumerate((width, 2 * width, 4 * width, 8 * width)):
        stride = 2 if stage > 0 and side > 2 else 1
        side = -(-side // stride)
        layers += [_Block(channels, wide, stride, norm_kind)]
        layers += [_Block(wide, wide, 1, norm_kind) for _ in range(blocks - 1)]
        channels = wide
    return nn.Sequential(*layers, GlobalAverage()), channels


class _Early(nn.Module):
    """A block with norm and ReLU before each convolution ("pre-activation").

    Where the shape changes, the shortcut is a 1x1 convolution of the activated input.
    """

    def __init__(self, channels: int, width: int, stride: int, kind: str) -> None:
        super().__init__()
        self.first = norm(kind, channels)
        self.residual = nn.Sequential(
            nn.Conv2d(channels, width, 3, stride, padding=1, bias=False),
            norm(kind, width),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
        )
        self.shortcut: nn.Module | None = None
        if stride != 1 or channels != width:
            self.shortcut = nn.Conv2d(channels, width, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        active = relu(self.first(x))
        return self.residual(active) + (x if self.shortcut is None else self.shortcut(active))


def wide_resnet(
    channels: int, size: tuple[int, int], norm_kind: str, width: int, blocks: int
) -> tuple[nn.Module, int]:
    """Return the body (3x3 stem of 16, three stages of ``blocks`` blocks, average) and 4 ``width``.

    ``width`` channels in the first stage, twice as many in each further one, so WRN-16-k is two
    blocks of 16 k. Each stage but the first halves its map; the feature dimension is 0 where
    that leaves less than two pixels per side, of which a norm can make nothing.
    """
    layers: list[nn.Module] = [nn.Conv2d(channels, 16, 3, padding=1, bias=False)]
    channels, side = 16, min(size)
    for stage, wide in enumerate((width, 2 * width, 4 * width)):
        stride = 2 if stage > 0 else 1
        side = -(-side // stride)
        layers += [_Early(channels, wide, stride, norm_kind)]
        layers += [_Early(wide, wide, 1, norm_kind) for _ in range(blocks - 1)]
        channels = wide
    layers += [norm(norm_kind, channels), nn.ReLU(inplace=True), GlobalAverage()]
    return nn.Sequential(*layers), channels if side > 1 else 0
