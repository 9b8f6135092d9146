"""The multi-layer perceptron of the cross-architecture tables."""

from __future__ import annotations

from torch import nn

__all__ = ["mlp"]


def mlp(channels: int, size: tuple[int, int], width: int) -> tuple[nn.Module, int]:
    """Return two hidden layers of ``width`` units and ``width``; with the classifier, three layers.

    "MLP 3x128" of Dataset Condensation (Zhao et al., ICLR 2021) at width 128.
    """
    body = nn.Sequential(
        nn.Flatten(),
        nn.Linear(channels * size[0] * size[1], width), nn.ReLU(inplace=True),
        nn.Linear(width, width), nn.ReLU(inplace=True),
    )  # fmt: skip
    return body, width
