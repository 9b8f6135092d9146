"""VGG-11 for small images (Simonyan & Zisserman, ICLR 2015, with one linear layer)."""

from __future__ import annotations

from torch import nn

from potstill.nets.convnet import stem_padding
from potstill.nets.layers import GlobalAverage, norm

__all__ = ["vgg11"]

_STAGES = ((64,), (128,), (256, 256), (512, 512), (512, 512))


def vgg11(channels: int, size: tuple[int, int], norm_kind: str) -> tuple[nn.Module, int]:
    """Return the body (eight convolutions, five max pools, global average) and 512.

    Images of any size: an inner pool is left out where fewer than two pixels would remain, because
    instance norm of a single pixel is a constant; the average is the identity at 32x32.
    """
    padding = stem_padding(channels, size, 1)
    side = min(size) + 2 * (padding - 1)
    layers: list[nn.Module] = []
    for stage, widths in enumerate(_STAGES, start=1):
        for width in widths:
            layers += [
                nn.Conv2d(channels, width, 3, padding=padding),
                norm(norm_kind, width),
                nn.ReLU(inplace=True),
            ]
            channels, padding = width, 1
        if side >= (2 if stage == len(_STAGES) else 4):
            layers.append(nn.MaxPool2d(2))
            side //= 2
    return nn.Sequential(*layers, GlobalAverage()), 512
