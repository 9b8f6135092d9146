"""A real set of two classes, and a tiled synthetic one of four images."""

from __future__ import annotations

import pytest
import torch

from potstill.canvas import canvas_spec
from potstill.data import ImageSet, Normalize
from potstill.synthetic import SyntheticSet


@pytest.fixture
def real(make_blobs) -> ImageSet:
    return make_blobs((8, 8))


@pytest.fixture
def syn(real) -> SyntheticSet:
    draw = torch.Generator().manual_seed(0)
    return SyntheticSet(
        images=torch.rand(4, 1, 8, 8, generator=draw),
        labels=torch.tensor([0, 0, 1, 1]),
        classes=real.classes,
        transform=Normalize.fit(real),
        decode=canvas_spec(2),
    )
