"""Values beyond 8 bits: read by the range of the whole train split, or as `value_range` says."""

from __future__ import annotations

import io
import json
import logging

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset

from potstill.app.cli import main
from potstill.app.opening import open_data
from potstill.data import load, load_pair
from potstill.run import InputError, Run
from potstill.run.folder import read_record

LABELS = np.arange(6) % 2


def grey(n=6, size=7, seed=0, top=255):
    """Grey pictures (n, size, size) that reach ``top``."""
    rng = np.random.Generator(np.random.PCG64(seed))
    pictures = rng.integers(0, top + 1, (n, size, size))
    pictures[-1, -1, -1] = top
    return pictures


def encoded(pixels, kind="PNG"):
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind)
    return stream.getvalue()


def folder(root, pictures, kind="png", dtype=np.uint16):
    for row, picture in enumerate(pictures):
        path = root / "ab"[LABELS[row]] / f"{row}.{kind}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture.astype(dtype)).save(path)
    return root


def in_order(pictures):
    """Rows as a folder of classes lists them."""
    return np.concatenate([pictures[0::2], pictures[1::2]])


class Items(Dataset):
    def __init__(self, pictures):
        self.pictures = pictures

    def __len__(self):
        return len(self.pictures)

    def __getitem__(self, row):
        return self.pictures[row], int(LABELS[row])


def kinds(pictures, dtype):
    """The same pictures in every kind of source that is in memory."""
    datasets = pytest.importorskip("datasets")
    deep = pictures.astype(dtype)
    yield deep, LABELS
    yield torch.from_numpy(deep.copy()), LABELS
    yield Items(list(deep))
    yield Items([torch.from_numpy(picture.copy()) for picture in deep])
    if dtype in (np.uint16, np.int32, np.float32):
        kind = "PNG" if dtype == np.uint16 else "TIFF"
        yield Items([Image.fromarray(picture) for picture in deep])
        cells = [{"bytes": encoded(picture, kind), "path": None} for picture in deep]
        features = {"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])}
        yield datasets.Dataset.from_dict(
            {"image": cells, "label": LABELS}, features=datasets.Features(features)
        )


@pytest.mark.parametrize(
    ("dtype", "top", "shift"),
    [
        *((np.uint16, top, shift) for top, shift in ((4095, 4), (1023, 2), (255, 0), (65535, 8))),
        *((np.int32, 255, 0), (np.int64, 255, 0), (np.int64, 4000, 4), (np.uint16, 3000, 4)),
        (np.float32, 255, 0),
        (np.float64, 255, 0),
    ],
)
def test_the_range_that_a_split_shows(tmp_path, dtype, top, shift):
    pictures = grey(top=top)
    wanted = (pictures >> shift).astype(np.uint8)
    for source in kinds(pictures, dtype):
        real = load(source)
        assert real.shape == (1, 7, 7)
        assert (real.images[:, 0].numpy() == wanted).all()
    if dtype in (np.uint16, np.int32, np.float32):
        kind = "png" if dtype == np.uint16 else "tif"
        real = load(folder(tmp_path / "set", pictures, kind, dtype))
        assert (real.images[:, 0].numpy() == in_order(wanted)).all()
    np.savez(tmp_path / "set.npz", images=pictures.astype(dtype), labels=LABELS)
    assert (load(tmp_path / "set.npz").images[:, 0].numpy() == wanted).all()


@pytest.mark.parametrize("brightest", [0, 3, 5])
def test_the_range_is_that_of_the_split_not_of_a_picture(tmp_path, brightest, monkeypatch):
    """Wherever the brightest picture stands, and if it changes what was guessed first."""
    monkeypatch.setattr("potstill.data.decode._BLOCK", 2)
    pictures = grey(top=200)
    pictures[brightest, 0, 0] = 4000
    for source in kinds(pictures, np.uint16):
        assert (load(source).images[:, 0].numpy() == pictures >> 4).all()
    real = load(folder(tmp_path / "set", pictures))
    assert (real.images[:, 0].numpy() == in_order(pictures >> 4)).all()
    shares = grey(top=200) / 1000
    shares[brightest, 0, 0] = 200
    expected = np.rint(shares).astype(np.uint8)
    assert (load((shares, LABELS)).images[:, 0].numpy() == expected).all()


@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize("top", [4095, 65535])
def test_sixteen_bits_of_colour(channels, top):
    """Pillow gives only the high bytes of colours, which are near black at 12 bits."""
    rng = np.random.Generator(np.random.PCG64(1))
    colours = rng.integers(0, top + 1, (6, 5, 4, channels), dtype=np.uint16)
    colours[..., 3:] = 65535
    items = Items([png16(picture) for picture in colours])
    real = load(items)
    wanted = colours[..., :3] >> (4 if top == 4095 else 8)
    assert (real.images.numpy() == wanted.transpose(0, 3, 1, 2)).all()


def test_sixteen_bits_of_grey_with_alpha_stay_grey():
    values = np.stack([grey(top=4095), np.full((6, 7, 7), 65535)], 3).astype(np.uint16)
    values[:, 0, 0, 1] = 0  # transparent
    real = load(Items([png16(picture) for picture in values]))
    assert real.shape == (1, 7, 7)
    assert (real.images[:, 0, 1:].numpy() == values[:, 1:, :, 0] >> 4).all()
    assert (real.images[:, 0, 0, 0] == 255).all()


def png16(values):
    """A 16-bit PNG of (h, w, c), which Pillow does not write."""
    import struct
    import zlib

    height, width, channels = values.shape
    colour = {2: 4, 3: 2, 4: 6}[channels]
    lines = b"".join(b"\0" + line.astype(">u2").tobytes() for line in values)

    def part(name, content):
        check = struct.pack(">I", zlib.crc32(name + content))
        return struct.pack(">I", len(content)) + name + content + check

    head = struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0)
    parts = part(b"IHDR", head) + part(b"IDAT", zlib.compress(lines)) + part(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (grey().astype(np.float32) - 128.5, "has values from -1"),
        (grey(top=100).astype(np.int32), " to 100;"),
        (grey(top=70000), " to 70000;"),
        (grey(top=16).astype(float), " to 16;"),
        (grey(top=9000).astype(float), " to 9000;"),
        (grey().astype(np.int16) - 1, "values from -1 to"),
    ],
)
def test_no_usual_range_is_refused_until_it_is_said(values, words, tmp_path):
    np.savez(tmp_path / "set.npz", images=values, labels=LABELS)
    for source in ((values, LABELS), Items(list(values)), tmp_path / "set.npz"):
        with pytest.raises(InputError, match=f"{words}.*without normalisation.*value_range") as e:
            load(source)
        assert "\n" not in str(e.value)
    low, high = float(values.min()), float(values.max())
    wanted = np.rint((values - low) * (255 / (high - low)))
    real = load((values, LABELS), value_range=(low, high))
    assert abs(real.images[:, 0].numpy() - wanted).max() <= 1
    assert real.images.max() == 255 and real.images.min() == 0


def test_a_range_that_is_said_holds_for_8_bits_and_cuts_off():
    pictures = grey(top=20)
    levels = (pictures.clip(4, 16) - 4) * (255 / 12)
    for dtype in (np.uint8, np.int64, np.float32):
        real = load((pictures.astype(dtype), LABELS), value_range=[4, 16])
        assert (real.images[:, 0].numpy() == np.rint(levels)).all()
    colour = np.stack([pictures] * 3, 3).astype(np.uint8)
    assert load((colour, LABELS), value_range=(4, 16)).shape == (3, 7, 7)
    truth = load((pictures > 9, LABELS))
    assert (truth.images[:, 0].numpy() == (pictures > 9) * 255).all()


@pytest.mark.parametrize(
    "wrong", [(3, 3), (5, 1), (0, float("nan")), (0, float("inf")), (0, 1e30), 7, "ab"]
)
def test_wrong_ranges(wrong):
    with pytest.raises(InputError, match="value_range is"):
        load("digits", value_range=wrong)


def test_half_floats_are_read():
    pictures = grey().astype(np.float32) / 255
    tensor = torch.from_numpy(pictures).bfloat16()
    assert abs(load((tensor, LABELS)).images[:, 0].int() - torch.from_numpy(grey())).max() <= 1
    assert load(Items(list(tensor))).shape == (1, 7, 7)


@pytest.mark.parametrize("cached", [False, True])
def test_test_images_are_read_on_the_scale_of_train(tmp_path, caplog, cached):
    train, test = grey(top=4000), grey(seed=1, top=900)
    root = tmp_path / "set"
    folder(root / "train", train)
    folder(root / "test", test)
    alone = load(root, split="test")
    if cached:
        load_pair(root)
    caplog.clear()
    real, held, _ = load_pair(root)
    assert (held.images[:, 0].numpy() == in_order(test) >> 4).all()
    assert (alone.images[:, 0].numpy() == in_order(test) >> 2).all()  # its own range
    assert real.history == held.history == ({"op": "values", "integers": 4095},)
    assert [record.message for record in caplog.records] == [
        "values of the train split of set are read by the range that they show: integers as 0 to "
        "4095; value_range (--value-range LOW HIGH) says otherwise"
    ]
    np.savez(tmp_path / "set.npz", images=train, labels=LABELS, classes=["a", "b"])
    _, held, _ = load_pair(tmp_path / "set.npz", test=root)
    assert (held.images[:, 0].numpy() == in_order(test) >> 4).all()


def test_test_images_above_the_scale_of_train(tmp_path):
    pair = {"train": (grey(top=4000), LABELS), "test": (grey(top=60000), LABELS)}
    with pytest.raises(InputError, match=r"values to \d+, above .*value_range=\(0, 65535\)"):
        load_pair(pair)
    assert load_pair(pair, value_range=(0, 65535))[1].images.max() > 200
    pair["test"] = grey(top=255).astype(np.uint8), LABELS  # 8 bits mean what they say
    assert (load_pair(pair)[1].images[:, 0].numpy() == grey(top=255)).all()


def test_usual_ranges_need_no_word(caplog):
    with caplog.at_level(logging.WARNING):
        load((grey().astype(np.uint8), LABELS))
        load((grey() / 255, LABELS))
        load((grey(top=65535).astype(np.uint16), LABELS))
    assert not caplog.records


def test_eight_bits_are_decoded_once(monkeypatch):
    opened = []
    import potstill.data.decode as decode

    real = decode.open_picture
    monkeypatch.setattr(
        decode, "open_picture", lambda item, *rest: opened.append(item) or real(item, *rest)
    )
    load(Items([encoded(picture.astype(np.uint8)) for picture in grey()]))
    assert len(opened) == 7  # the first one twice, for its shape
    load(Items([encoded(picture.astype(np.uint16)) for picture in grey(top=4000)]))
    assert len(opened) == 14


def test_command_line_keeps_the_scale(tmp_path, capsys):
    root = folder(tmp_path / "set", grey(top=4000))
    out = tmp_path / "run"
    words = ["distill", "random", "--data", str(root), "--ipc", "1", "--quiet"]
    assert main([*words, "--out", str(out)]) == 0
    made = json.loads((out / "synthetic" / "provenance.json").read_text())
    assert made["data"]["history"][0] == {"op": "values", "integers": 4095}
    said = tmp_path / "said"
    assert main([*words, "--out", str(said), "--value-range", "0", "8000"]) == 0
    made = json.loads((said / "synthetic" / "provenance.json").read_text())
    assert made["data_options"]["value_range"] == [0, 8000]
    run = Run(device="cpu", quiet=True)
    for made_in in (out, said):  # as evaluation opens the data again
        train, _, _ = open_data(read_record(made_in), run)
        assert (
            train.checksum
            == json.loads((made_in / "run.json").read_text())["job"]["train_checksum"]
        )
    capsys.readouterr()
    assert main([*words, "--out", str(tmp_path / "no"), "--value-range", "8", "1"]) == 2
    assert capsys.readouterr().err.startswith("potstill: --value-range is (8.0, 1.0); use two")
    assert main([*words, "--out", str(tmp_path / "no"), "--background", "blau"]) == 2
    assert capsys.readouterr().err.startswith("potstill: --background is 'blau'; use a colour")
