"""Colours at half the resolution: the layout, the colours, and what can hold them."""

from __future__ import annotations

import base64
import io
import re

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import interpolate

from potstill.canvas import canvas_spec, decode_images, for_people, mosaic, views_per_image
from potstill.canvas.subsampled import brightness_and_colour, laid_out, rgb, subsampled_tiles
from potstill.data import Normalize
from potstill.methods import find
from potstill.run import InputError
from potstill.synthetic import SyntheticSet
from potstill.synthetic.eight_bit import to_uint8


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_colours_are_those_of_jpeg():
    x = torch.randint(256, (1, 3, 8, 8), generator=torch.Generator().manual_seed(0))
    picture = Image.fromarray(x[0].permute(1, 2, 0).to(torch.uint8).numpy())
    theirs = torch.from_numpy(np.array(picture.convert("YCbCr"))).double()
    ours = brightness_and_colour(x / 255.0)[0].permute(1, 2, 0) * 255
    assert float((ours - theirs - torch.tensor([0, -0.5, -0.5])).abs().max()) <= 1.01
    assert torch.allclose(rgb(brightness_and_colour(x / 255.0)), x / 255.0, atol=1e-6)


@pytest.mark.parametrize("factor", [1, 2, 3])
def test_every_number_lies_where_the_layout_says(factor):
    parts = drawn(2, 2 * factor**2, 3, 8, 4)
    stored = laid_out(parts, factor)
    assert stored.shape == (2, 3, 8 * factor, 4 * factor)
    assert float(stored.min()) >= 0 and float(stored.max()) <= 1
    decoded = subsampled_tiles(stored, factor).unflatten(0, (2, -1))
    for image in range(2):
        for tile in range(2 * factor**2):
            plane, place = divmod(tile, factor**2)
            i, j = divmod(place, factor)
            values = brightness_and_colour(parts[image, tile][None])[0]
            y = stored[image, plane, 8 * i : 8 * (i + 1), 4 * j : 4 * (j + 1)]
            assert torch.allclose(y, values[0])
            colours = []
            for which in (0, 1):
                k, m = divmod(2 * tile + which, 2 * factor)
                block = stored[image, 2, 4 * k : 4 * (k + 1), 2 * m : 2 * (m + 1)]
                assert torch.allclose(block, values[1 + which].reshape(4, 2, 2, 2).mean((1, 3)))
                enlarged = interpolate(
                    block[None, None], size=(8, 4), mode="bilinear", align_corners=False
                )
                colours.append(enlarged[0, 0])
            shown = rgb(torch.stack([y, *colours])[None])[0].clamp(0, 1)
            assert torch.allclose(decoded[image, tile], shown)


@pytest.mark.parametrize("factor", [1, 2])
def test_smooth_images_come_back(factor):
    spec = canvas_spec(factor, "subsampled")
    parts = drawn(3, views_per_image(spec), 3, 1, 1).expand(-1, -1, -1, 8, 8).contiguous()
    stored = mosaic(parts, factor, "subsampled")
    seen, labels = decode_images(stored, torch.arange(3), spec)
    assert torch.allclose(seen, parts.flatten(0, 1))
    assert labels.tolist() == [n for n in range(3) for _ in range(2 * factor**2)]
    pictures, two = for_people(stored, torch.arange(3), spec)
    assert pictures.shape == (6, 3, *stored.shape[2:]) and two.tolist() == [0, 0, 1, 1, 2, 2]
    first = decode_images(pictures, two, canvas_spec(factor))[0]
    assert torch.allclose(first, parts.flatten(0, 1))


def test_the_gradient_is_that_of_finite_differences():
    stored = (drawn(1, 3, 4, 4, seed=1) / 4 + 0.4).requires_grad_()  # far from where it clips
    assert torch.autograd.gradcheck(lambda x: subsampled_tiles(x, 1), stored)


@pytest.mark.parametrize(
    ("channels", "size", "words"),
    [
        (1, 16, "', but images have 1 channel.s., and only RGB has colours to halve"),
        (3, 18, "', but images are 18 x 18, which 4 .twice the factor. does not divide"),
    ],
)
def test_images_that_cannot_are_refused_in_a_sentence(channels, size, words, make_blobs, run):
    real = make_blobs((6, 4), size=size, channels=channels)
    with pytest.raises(InputError, match=words):
        find("dm").budget("quick", canvas="subsampled", factor=2).check(real)
    with pytest.raises(InputError, match=words):
        find("mosaic")(colours="half")(real, 1, run)
    images = torch.zeros(1, channels, size, size)
    with pytest.raises(InputError, match=f"decode formation is .*{words}"):
        SyntheticSet(
            images=images,
            labels=torch.zeros(1, dtype=torch.int64),
            classes=("a",),
            transform=Normalize.fit(real),
            decode=canvas_spec(2, "subsampled"),
        )


def test_a_mosaic_of_half_colours_holds_twice_as_many_images(make_blobs, run):
    real = make_blobs((40, 20), size=16, channels=3)
    found = find("mosaic")(colours="half")(real, 2, run)
    plain = find("mosaic")()(real, 2, run)
    assert found.nbytes == plain.nbytes
    images, labels, *_ = found.decoded()
    assert len(images) == 2 * len(plain.decoded()[0]) and labels.tolist() == [0] * 16 + [1] * 16
    small = decode_images(found.images, found.labels, found.decode, small=True)[0]
    own = real.of_class(0)
    order = own[torch.randperm(len(own), generator=run.generator("start", 0))][:16]
    shrunk = interpolate(real.batch(order), size=(8, 8), mode="area")
    brightness = [brightness_and_colour(x)[:, 0] for x in (small[:16], shrunk)]
    assert float((brightness[0] - brightness[1]).abs().mean()) < 0.02  # but for clipped colours


def test_a_notebook_is_shown_decoded_colours(make_blobs, run):
    real = make_blobs((40, 20), size=16, channels=3)
    found = find("mosaic")(colours="half")(real, 2, run)
    shown = re.findall(r"base64,([^\"]+)", found._repr_html_())
    pictures = for_people(found.images, found.labels, found.decode)[0]
    for text, row in zip(shown, (0, 4), strict=True):  # two of each of a class's two images
        seen = np.array(Image.open(io.BytesIO(base64.b64decode(text))))
        assert np.array_equal(seen, to_uint8(pictures[row]).permute(1, 2, 0).numpy())
