"""Real images as they look once they are tiles."""

import pytest
import torch
from torch.nn.functional import interpolate

from potstill.canvas.tiled import mosaic, small_views, tiles
from potstill.data import Normalize
from potstill.experts.looks import blurring, shrunk
from potstill.experts.pool import fingerprint


@pytest.mark.parametrize(("size", "factor"), [(8, 2), (9, 2), (12, 3), (10, 4)])
def test_what_is_shrunk_is_what_a_mosaic_stores(size, factor, make_blobs):
    real = make_blobs((factor**2, 3), channels=3, size=size)
    parts = real.batch(torch.arange(factor**2))
    stored = small_views(mosaic(parts[None], factor), factor, "single")[0]
    small = shrunk(real, factor).batch(torch.arange(factor**2))
    whole = [i for i in range(factor**2) if (i // factor + 1) * small.shape[-1] <= size]
    whole = [i for i in whole if (i % factor + 1) * small.shape[-1] <= size]  # not cut off
    assert len(whole) >= (factor - 1) ** 2 and stored.shape == small.shape
    assert (stored - small)[whole].abs().max() <= 0.5 / 255 + 1e-6  # eight bits


def test_a_shrunken_set_is_another_one(make_blobs):
    real = make_blobs((5, 3), channels=3, size=8)
    small = shrunk(real, 2)
    assert small.checksum != real.checksum and small.shape == (3, 4, 4)
    assert torch.equal(small.labels, real.labels) and shrunk(real, 1) is real
    assert small.history[-1] == {"op": "shrunk", "factor": 2}


def test_behind_a_blur_whole_images_look_as_tiles_do(make_blobs):
    real = make_blobs((4, 3), channels=3, size=8)
    plain, images = Normalize.fit(real), real.batch(torch.arange(4))
    spec = {"kind": "tiled", "factor": 2, "formation": "single"}
    seen = blurring(plain, spec).forward(images)
    assert torch.allclose(seen, plain.forward(tiles(mosaic(images[None], 2), 2)), atol=1e-6)
    assert not torch.allclose(seen, plain.forward(images), atol=1e-2)
    assert fingerprint(blurring(plain, spec)) != fingerprint(plain)
    whole = {**spec, "formation": "multi"}  # whole images are among what is decoded
    assert blurring(plain, whole) is plain and blurring(plain, {"kind": "pixels"}) is plain


def test_small_views_of_several_cuts_have_one_size():
    images = torch.rand(2, 3, 12, 12)
    found = small_views(images, 3, "multi")
    assert found.shape == (2, 1 + 4 + 9, 3, 4, 4)
    assert torch.allclose(found[:, 0], interpolate(images, size=(4, 4), mode="area"))
    assert torch.equal(found[:, 5], images[:, :, :4, :4])
