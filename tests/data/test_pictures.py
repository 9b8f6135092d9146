"""One picture: what is opened, what is refused, what becomes of modes and transparency."""

from __future__ import annotations

import io
import os
import struct
import sys

import numpy as np
import pytest
from PIL import Image

from potstill.app.cli import main
from potstill.data import load
from potstill.data.decode import Rows, blocks
from potstill.data.reading import MOST_PIXELS, Reading
from potstill.run import InputError


def colours(size=(8, 6), seed=0):
    rng = np.random.Generator(np.random.PCG64(seed))
    return rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)


def encoded(image, kind="PNG", **options):
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def decode(*items, **how):
    rows = Rows(
        "toy", len(items), lambda: ((item, 0) for item in items), ("a", "b"), lambda rows: []
    )
    return np.concatenate([part for part, _ in blocks(rows, Reading(**how), quiet=True)])


def refused(item, **how):
    with pytest.raises(InputError) as caught:
        decode(item, **how)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300
    return str(caught.value)


@pytest.mark.parametrize(
    ("background", "empty"),
    [("white", (255,) * 3), ("black", (0,) * 3), ("#102030", (16, 32, 48)), ("none", None)],
)
@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_transparency_is_laid_on_a_background(background, empty, kind):
    pixels = colours()
    alpha = np.full((6, 8), 255, np.uint8)
    alpha[:3], alpha[3] = 0, 51
    image = Image.fromarray(np.dstack([pixels, alpha]))
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    seen = decode(encoded(image, kind, **options), background=background)[0].transpose(1, 2, 0)
    assert (seen[4:] == pixels[4:]).all()
    if empty is None:
        assert (seen == pixels).all()
    else:
        assert (seen[:3] == empty).all()
        between = pixels[3] * 0.2 + np.array(empty) * 0.8
        assert abs(seen[3] - between).max() <= 1


def test_shapes_that_live_in_alpha_alone_are_seen():
    alpha = colours()[..., 0]
    ink = encoded(Image.fromarray(np.dstack([np.zeros((6, 8, 3), np.uint8), alpha])))
    assert abs(decode(ink)[0].astype(int) - (255 - alpha)).max() <= 1
    grey = encoded(Image.merge("LA", (Image.new("L", (8, 6)), Image.fromarray(alpha))))
    assert abs(decode(grey)[0, 0].astype(int) - (255 - alpha)).max() <= 1
    assert decode(grey, background="#ff0000").shape == (1, 3, 6, 8)  # no grey


def test_grey_stays_grey_whatever_holds_it():
    pixels = colours()[..., 0]
    plain = Image.fromarray(pixels)
    palette = Image.frombytes("P", (8, 6), pixels.tobytes())
    palette.putpalette([value for value in range(256) for _ in range(3)])
    alpha = plain.copy()
    alpha.putalpha(255)
    for item in (palette, alpha, encoded(palette), encoded(alpha), encoded(palette, "GIF")):
        assert (decode(item) == pixels).all()
        assert decode(item).shape == (1, 1, 6, 8)
    bits = Image.fromarray(pixels > 99)
    for item in (bits, encoded(bits), encoded(bits, "TIFF")):
        assert (decode(item) == (pixels > 99) * 255).all()
    palette.putpalette([value for level in range(256) for value in (level, 255 - level, 7)])
    assert decode(encoded(palette)).shape == (1, 3, 6, 8)


def test_transparent_colours_of_palettes_and_of_plain_pictures():
    palette = Image.fromarray(colours()).quantize(16)
    opaque = decode(encoded(palette))[0]
    clear = np.asarray(palette) == 3
    assert clear.any()
    seen = decode(encoded(palette, transparency=3))[0]
    assert (seen[:, clear] == 255).all() and (seen[:, ~clear] == opaque[:, ~clear]).all()
    pixels = colours()[..., 0].copy()
    pixels[0] = 77
    key = decode(encoded(Image.fromarray(pixels), transparency=77))
    assert (key[0, 0, 0] == 255).all() and (key[0, 0, 1:][pixels[1:] != 77] != 77).all()


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_four_inks(kind):
    pixels = np.repeat(np.repeat(colours((2, 2)), 8, 0), 8, 1)
    inks = Image.merge("CMYK", (*Image.fromarray(255 - pixels).split(), Image.new("L", (16, 16))))
    options = {"quality": 100, "subsampling": 0} if kind == "JPEG" else {}
    assert (
        abs(decode(encoded(inks, kind, **options))[0] - pixels.transpose(2, 0, 1) * 1.0).max() < 5
    )


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "WEBP", "PNG"])
def test_the_first_of_several_pictures_said_once(kind, caplog):
    frames = [Image.fromarray(colours(seed=seed)).quantize(64).convert("RGB") for seed in range(3)]
    options = {"lossless": True} if kind == "WEBP" else {}
    item = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert (decode(item, item) == np.asarray(frames[0]).transpose(2, 0, 1)).all()
    assert [record.message for record in caplog.records] == [
        "2 files of toy hold several pictures; the first of each is used"
    ]


def test_pictures_of_phones():
    """A JPEG with a preview behind it counts as MPO and as one picture."""
    image = Image.fromarray(np.repeat(np.repeat(colours((2, 2)), 8, 0), 8, 1))
    phone = encoded(image, "MPO", save_all=True, append_images=[image.resize((8, 8))])
    plain = encoded(image, "JPEG")
    for items in ((phone, plain), (plain, phone), (phone, phone)):
        both = decode(*items)
        assert (both[0] == both[1]).all() and (both[0] == decode(plain)).all()


def foreign():
    """Contents of other programs' files, some of which Pillow knows."""
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n"
    heic = struct.pack(">I", 24) + b"ftypheic" + b"\0" * 4 + b"mif1heic" + b"\0" * 40
    small = Image.new("RGB", (8, 8))
    return {
        "eps": (eps, "it is no PNG"),
        "pdf": (b"%PDF-1.4\n1 0 obj\n", "it is no PNG"),
        "svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "it is no PNG"),
        "xbm": (b"#define a_width 8\n#define a_height 8\nstatic char a[]={0,0};", "it is no PNG"),
        "tga": (encoded(small, "TGA"), "it is no PNG"),
        "ico": (encoded(Image.new("RGB", (16, 16)), "ICO"), "it is no PNG"),
        "heic": (heic, "it is a HEIC picture"),
        "empty": (b"", "it is empty"),
        "text": (b"404 not found", "it is no PNG"),
    }


@pytest.mark.parametrize("kind", sorted(foreign()))
def test_content_of_other_formats_is_one_sentence(kind, tmp_path, monkeypatch):
    monkeypatch.setattr("subprocess.Popen", None)  # as Ghostscript would be started
    content, words = foreign()[kind]
    path = tmp_path / "picture.png"
    path.write_bytes(content)
    for item in (path, content):
        said = refused(item)
        assert words in said and "cannot be read as an image" in said
    assert "picture.png" in refused(path)


def test_the_suffix_does_not_decide(tmp_path):
    image = Image.fromarray(colours())
    for label in "ab":
        (tmp_path / label).mkdir()
        for row, kind in enumerate(("PNG", "BMP", "GIF", "TIFF")):
            (tmp_path / label / f"{row}.png").write_bytes(encoded(image.quantize(9), kind))
        image.rotate(90 * (label == "a"), expand=False).save(tmp_path / label / "4.jpg", "PNG")
    assert len(load(tmp_path)) == 10


def bomb(width, height):
    """A PNG of a few bytes that says it is large."""
    small = bytearray(encoded(Image.new("L", (1, 1))))
    import zlib

    small[16:24] = struct.pack(">II", width, height)
    small[29:33] = struct.pack(">I", zlib.crc32(small[12:29]))
    return bytes(small)


@pytest.mark.parametrize("size", [(10_000, 9_000), (20_000, 10_000), (2**31 - 1, 2**31 - 1)])
def test_large_pictures_are_refused_before_they_are_decoded(size, recwarn):
    assert f"more than {MOST_PIXELS}" in refused(bomb(*size), image_size=8)
    assert not recwarn.list


@pytest.mark.parametrize("resize", ["crop", "stretch", "pad"])
@pytest.mark.parametrize("size", [(50_000, 1), (1, 50_000), (30_000, 7)])
def test_extreme_shapes(size, resize, monkeypatch):
    shapes = []
    resized = Image.Image.resize

    def watched(self, shape, *rest, **more):
        shapes.append(shape)
        return resized(self, shape, *rest, **more)

    monkeypatch.setattr(Image.Image, "resize", watched)
    line = np.zeros((size[1], size[0]), np.uint8)
    line[size[1] // 3 : size[1] * 2 // 3 + 1, size[0] // 3 : size[0] * 2 // 3 + 1] = 200
    made = decode(line, image_size=64, resize=resize)
    assert made.shape == (1, 1, 64, 64)
    assert max(width * height for width, height in shapes) <= 1 << 24
    assert made[0, 0, 32, 32] == 200 if resize != "pad" else made.max() > 50


def test_cutting_before_resizing_is_the_same_but_for_rounding(monkeypatch):
    for size in ((300, 40), (41, 200), (97, 96)):
        image = Image.fromarray(colours(size))
        monkeypatch.setattr("potstill.data.decode._MOST_RESIZED", 1 << 24)
        usual = decode(image, image_size=32).astype(int)
        monkeypatch.setattr("potstill.data.decode._MOST_RESIZED", 0)
        assert abs(decode(image, image_size=32) - usual).max() <= 1


@pytest.mark.parametrize("size", [9460, 100_000, 10**12])
def test_sizes_that_cannot_be_held(size, capsys, tmp_path):
    with pytest.raises(InputError, match=f"image_size is {size}; use .*8192"):
        Reading(image_size=size)
    words = ["distill", "random", "--data", "digits", "--out", str(tmp_path / "run")]
    assert main([*words, "--image-size", str(size)]) == 2
    assert capsys.readouterr().err.startswith(f"potstill: --image-size is {size}")


def test_blocks_of_large_pictures_are_small(monkeypatch):
    monkeypatch.setattr("potstill.data.decode._BLOCK_BYTES", 1000)
    items = [Image.fromarray(colours((15, 20), seed)) for seed in range(4)]
    rows = Rows("toy", 4, lambda: ((item, 0) for item in items), ("a", "b"), lambda rows: [])
    assert [len(labels) for _, labels in blocks(rows, Reading(), quiet=True)] == [1] * 4


@pytest.mark.parametrize("shape", [(0, 5), (5, 0, 3), (3, 0, 0)])
def test_pictures_without_pixels(shape):
    assert "no pixels" in refused(np.zeros(shape, np.uint8))
    with pytest.raises(InputError, match="shape"):
        load((np.zeros((4, *shape), np.uint8), [0, 1, 0, 1]))


def test_strips_that_are_missing():
    """Pillow makes black of what a TIFF does not hold."""
    whole = Image.fromarray(colours((8, 8)))
    content = encoded(whole, "TIFF")
    assert (decode(content) == np.asarray(whole).transpose(2, 0, 1)).all()
    height = content.index(struct.pack("<HHI", 257, 4, 1))  # entry of the tag ImageLength
    longer = content[: height + 8] + struct.pack("<I", 900) + content[height + 12 :]
    assert Image.open(io.BytesIO(longer)).size == (8, 900)
    assert "cannot be read" in refused(longer)


@pytest.mark.skipif(sys.platform == "win32", reason="no pipes in folders")
def test_pipes_are_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    assert "no regular file" in refused(tmp_path / "pipe.png")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "AVIF", "JPEG2000"])
def test_damage_is_a_sentence_or_a_picture(kind):
    """Never another exception, and never a hang, wherever a few bytes are lost or changed."""
    content = encoded(Image.fromarray(colours((20, 16))), kind)
    rng = np.random.Generator(np.random.PCG64(3))
    for _ in range(60):
        hurt = bytearray(content[: rng.integers(1, len(content) + 1)])
        for _ in range(rng.integers(0, 4)):
            hurt[rng.integers(len(hurt))] = rng.integers(256)
        try:
            assert decode(bytes(hurt), image_size=8).shape[2:] == (8, 8)
        except InputError as error:
            assert "image 0 of toy" in str(error)
