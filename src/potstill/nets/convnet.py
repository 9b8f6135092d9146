"""The ConvNet of nearly every published distillation result (Gidaris & Komodakis, CVPR 2018)."""

from __future__ import annotations

from torch import nn

from potstill.nets.layers import ACTIVATIONS, norm, pool

__all__ = ["convnet", "stem_padding"]


def stem_padding(channels: int, size: tuple[int, int], padding: int) -> int:
    """Return the first convolution's padding: two more for 28x28 grey images, which become 32x32.

    So do the networks of Dataset Condensation (Zhao et al., ICLR 2021) for MNIST.
    """
    return padding + 2 if channels == 1 and tuple(size) == (28, 28) else padding


def convnet(
    channels: int, size: tuple[int, int], depth: int, width: int, norm_kind: str, pool_kind: str,
    activation: str = "relu",
) -> tuple[nn.Module, int]:  # fmt: skip
    """Stack ``depth`` blocks [conv 3x3, norm, ReLU, pool 2x2]; return body and feature dimension.

    Depth 3, width 128, ``"in"``, ``"avg"`` on 32x32 is the ConvNet-D3: 2048 features. Other
    activations and poolings are those that DC's architecture search varies.
    """
    padding = stem_padding(channels, size, 1)
    height, breadth = size[0] + 2 * (padding - 1), size[1] + 2 * (padding - 1)
    layers: list[nn.Module] = []
    for _ in range(depth):
        layers += [
            nn.Conv2d(channels, width, 3, padding=padding),
            norm(norm_kind, width),
            ACTIVATIONS[activation](),
            pool(pool_kind),
        ]
        channels, padding = width, 1
    halved = 0 if pool_kind == "nopool" else depth
    return nn.Sequential(*layers), width * (height >> halved) * (breadth >> halved)
