"""ResNet-18 for small images (He et al., CVPR 2016, with the CIFAR stem)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import relu

from potstill.nets.layers import GlobalAverage, norm

__all__ = ["resnet18"]


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


def resnet18(channels: int, size: tuple[int, int], norm_kind: str) -> tuple[nn.Module, int]:
    """Return the body (3x3 stem, four stages of two blocks, global average) and 512.

    Images of any size: a stage halves its map only while more than two pixels remain, because
    instance norm of a single pixel is a constant. From 16x16 on this is the published network.
    """
    layers = [
        nn.Conv2d(channels, 64, 3, padding=1, bias=False),
        norm(norm_kind, 64),
        nn.ReLU(inplace=True),
    ]
    channels, side = 64, min(size)
    for stage, width in enumerate((64, 128, 256, 512)):
        stride = 2 if stage > 0 and side > 2 else 1
        side = -(-side // stride)
        layers += [_Block(channels, width, stride, norm_kind), _Block(width, width, 1, norm_kind)]
        channels = width
    return nn.Sequential(*layers, GlobalAverage()), 512
