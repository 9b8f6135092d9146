from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from potstill.data.decode import MixedModes, Rows, blocks
from potstill.data.files import File, Place
from potstill.data.reading import Reading
from potstill.run import InputError


def picture(mode="RGB", size=(8, 6), seed=0):
    rng = np.random.Generator(np.random.PCG64(seed))
    pixels = rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def encoded(image, kind="PNG"):
    stream = io.BytesIO()
    image.save(stream, kind)
    return stream.getvalue()


def decode(*items, **form):
    rows = Rows(
        "toy", len(items), lambda: ((item, 0) for item in items), ("a", "b"), lambda rows: []
    )
    return np.concatenate([part for part, _ in blocks(rows, Reading(**form), quiet=True)])


def test_all_kinds_of_pictures_agree():
    image = picture()
    array = np.asarray(image)
    first = torch.from_numpy(array.transpose(2, 0, 1).copy())
    items = [image, encoded(image), array, first, array / 255, first.double() / 255, first / 255]
    decoded = decode(*items)
    assert decoded.shape == (7, 3, 6, 8)
    assert decoded.dtype == np.uint8
    assert all((part == first.numpy()).all() for part in decoded)


def test_file_formats_may_be_mixed():
    image = picture()
    decoded = decode(encoded(image, "WEBP"), encoded(image), encoded(image, "BMP"))
    assert (decoded[1] == decoded[2]).all()
    assert (decoded[1] == np.asarray(image).transpose(2, 0, 1)).all()


def test_grey_kinds_agree():
    image = picture("L")
    array = np.asarray(image)
    items = [
        encoded(image),
        array,
        array[:, :, None],
        array[None],
        torch.from_numpy(array.copy())[None],
    ]
    decoded = decode(*items)
    assert decoded.shape == (5, 1, 6, 8)
    assert (decoded == array).all()


@pytest.mark.parametrize(
    ("mode", "channels"), [("1", 1), ("L", 1), ("P", 3), ("LA", 1), ("RGBA", 3), ("CMYK", 3)]
)
def test_modes(mode, channels):
    assert decode(picture(mode)).shape == (1, channels, 6, 8)


def test_sixteen_bit_grey_is_scaled_not_clipped():
    values = np.linspace(0, 65535, 48).astype(np.uint16).reshape(6, 8)
    decoded = decode(encoded(Image.fromarray(values)))
    assert (decoded[0, 0] == values >> 8).all()


def test_palette_with_transparency_warns_nobody(recwarn):
    image = picture("P")
    image.info["transparency"] = bytes(range(256))
    assert decode(encoded(image)).shape[1] == 3
    assert not recwarn.list


def test_upright():
    image = picture(size=(8, 6))
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by a quarter turn
    stream = io.BytesIO()
    image.save(stream, "PNG", exif=exif)
    upright = np.asarray(image.transpose(Image.Transpose.ROTATE_270)).transpose(2, 0, 1)
    assert (decode(stream.getvalue())[0] == upright).all()


def test_grey_then_colour_asks_to_begin_again():
    items = [picture("L"), picture()]
    with pytest.raises(MixedModes):
        decode(*items)
    assert decode(*items, channels=3).shape[1] == 3
    assert decode(*items, channels=1).shape[1] == 1
    assert decode(*items[::-1]).shape[1] == 3


@pytest.mark.parametrize("size", [(40, 20), (17, 33), (24, 24), (16, 16), (7, 9), (31, 16)])
def test_crop_is_that_of_torchvision(size):
    transforms = pytest.importorskip("torchvision.transforms")
    image = picture(size=size)
    both = transforms.Compose([transforms.Resize(16), transforms.CenterCrop(16)])
    expected = np.asarray(both(image)).transpose(2, 0, 1)
    assert (decode(image, image_size=16)[0] == expected).all()


def test_stretch_and_pad():
    image = Image.new("RGB", (40, 20), (200, 100, 50))
    stretched = decode(image, image_size=10, resize="stretch")[0]
    assert (stretched == np.array([200, 100, 50])[:, None, None]).all()
    padded = decode(image, image_size=10, resize="pad")[0]
    assert padded.shape == (3, 10, 10)
    inside = (padded != 0).any(0)
    assert inside.sum(1).tolist() in ([0] * 2 + [10] * 5 + [0] * 3, [0] * 3 + [10] * 5 + [0] * 2)


def test_threads_and_blocks_keep_the_order(monkeypatch, tmp_path):
    monkeypatch.setattr("potstill.data.decode._BLOCK", 8)
    monkeypatch.setattr("potstill.data.decode._CHUNK", 3)
    files = []
    for value in range(30):
        path = tmp_path / f"{value}.png"
        Image.new("L", (2, 2), value).save(path)
        files.append(File(Place(tmp_path), path))
    assert decode(*files)[:, 0, 0, 0].tolist() == list(range(30))
    assert decode(*(path.read_bytes() for path in files))[:, 0, 0, 0].tolist() == list(range(30))


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (b"no image", "image 1 of toy cannot be read as an image"),
        (encoded(picture(size=(64, 64)))[:3000], "image 1 of toy cannot be read"),
        (encoded(picture(size=(64, 64)), "JPEG")[:1500], "image 1 of toy cannot be read"),
        (picture(size=(9, 6)), r"image 0 of toy is 8x6 and image 1 of toy is 9x6; use image_size="),
        (np.full((6, 8, 3), 1.5), "values from 1.5 to 1.5; give uint8"),
        (np.full((6, 8), np.nan), "values from nan"),
        (torch.full((3, 6, 8), -0.1), "values from -0.1 to -0.1"),
        (np.zeros((6, 8, 3), np.int32), "values from 0 to 0; give uint8"),
        (np.zeros((6, 8, 3), np.complex64), "dtype complex64"),
        (np.zeros((6, 8, 4), np.uint8), "must be the channel"),
        (np.zeros((2, 6, 8, 3), np.uint8), r"shape \(2, 6, 8, 3\)"),
        ("text", "is a str"),
    ],
)
def test_bad_pictures_are_named(item, message):
    with pytest.raises(InputError, match=message):
        decode(picture(), item)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"gone.png is not there; restore or remove it"):
        decode(File(Place(tmp_path), tmp_path / "gone.png"))


@pytest.mark.parametrize("announced", [1, 3])
def test_wrong_length(announced):
    rows = Rows(
        "toy", announced, lambda: ((picture(), 0) for _ in range(2)), ("a", "b"), lambda rows: []
    )
    with pytest.raises(InputError, match=f"announces {announced} images but gives 2"):
        list(blocks(rows, Reading(), quiet=True))


@pytest.mark.parametrize(
    ("form", "message"),
    [
        ({"image_size": 0}, "image_size is 0"),
        ({"resize": "crops"}, "resize is 'crops'; use one of crop, stretch, pad"),
        ({"channels": 2}, "channels is 2"),
    ],
)
def test_wrong_form(form, message):
    with pytest.raises(InputError, match=message):
        Reading(**form)
