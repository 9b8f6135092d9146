from __future__ import annotations

import io
from zlib import crc32

import numpy as np
import pytest
from PIL import Image

from potstill.data import load, load_pair
from potstill.data.files import Place
from potstill.run import InputError


def paint(path, value=0, mode="RGB", size=(6, 6)):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", size, (value, value // 2, 255 - value))
    image.putpixel((1, 1), (crc32(str(path).encode()) % 256,) * 3)  # no two are equal
    image.convert(mode).save(path)


@pytest.fixture
def birds(tmp_path):
    """Three classes of unequal size in several formats, with rubbish that is to be ignored."""
    root = tmp_path / "birds"
    for row in range(5):
        paint(root / "wren" / f"{row}.png", 10 * row)
    for row in range(3):
        paint(root / "crow" / "deep" / f"{row}.bmp", 100 + row)
    for row in range(2):
        paint(root / "kite" / f"{row}.webp", 200)
    (root / "wren" / ".DS_Store").write_bytes(b"x")
    (root / "crow" / "Thumbs.db").write_bytes(b"x")
    (root / ".hidden").mkdir()
    (root / "README.txt").write_text("about")
    return root


def test_class_folders(birds):
    real = load(birds)
    assert real.classes == ("crow", "kite", "wren")
    assert real.counts == (3, 2, 5)
    assert real.shape == (3, 6, 6)
    assert real.source == birds.name
    assert real.images[-5:, 0, 0, 0].tolist() == [0, 10, 20, 30, 40]
    assert load(str(birds), image_size=4, channels=1).shape == (1, 4, 4)


def test_pair_cuts_a_balanced_hold_out(birds):
    train, test, sentence = load_pair(birds, seed=5)
    assert test.counts == (1, 1, 1)
    assert train.counts == (2, 1, 4)
    assert "1 of each class, held out" in sentence and "seed 5" in sentence
    assert train.fingerprint == test.fingerprint
    assert not set(train.indices.tolist()) & set(test.indices.tolist())


@pytest.mark.parametrize("name", ["test", "val", "Validation"])
def test_splits(birds, tmp_path, name):
    root = tmp_path / "split"
    root.mkdir()
    birds.rename(root / "train")
    for label in ("crow", "kite", "wren"):
        paint(root / name / label / "0.png")
    train, test, sentence = load_pair(root)
    assert train.counts == (3, 2, 5)
    assert test.counts == (1, 1, 1)
    assert f"the {name.lower()!r} split" in sentence
    assert load(root, split="test").checksum == test.checksum
    assert load(root, split=name.lower()).checksum == test.checksum
    (root / name / "wren" / "0.png").unlink()
    (root / name / "wren").rmdir()
    _, test, sentence = load_pair(root)
    assert test.counts == (1, 1, 0) and "No test images of 1 of 3 classes (wren)" in sentence
    paint(root / name / "emu" / "0.png")
    with pytest.raises(InputError, match=r"have other classes than .*\(emu\)"):
        load_pair(root)


def test_second_source_as_test(birds, tmp_path):
    for label in ("crow", "kite", "wren"):
        paint(tmp_path / "more" / label / "0.png", mode="L")
    train, test, sentence = load_pair(birds, test=tmp_path / "more")
    assert len(train) == 10
    assert test.shape == (3, 6, 6)  # grey test images follow coloured train images
    assert "more (3 images)" in sentence
    for label in ("crow", "kite", "wren"):
        paint(tmp_path / "large" / label / "0.png", size=(8, 8))
    with pytest.raises(InputError, match="use image_size=6"):
        load_pair(birds, test=tmp_path / "large")


@pytest.mark.parametrize(
    ("folders", "classes"),
    [
        (["000_wren", "001_crow"], ("wren", "crow")),
        (["0_wren", "1_crow"], ("wren", "crow")),
        (["000_wren", "002_crow"], ("000_wren", "002_crow")),
        (["000_wren", "crow"], ("000_wren", "crow")),
        (["000_wren", "01_crow"], ("000_wren", "01_crow")),
        (["0_wren", "1_wren"], ("0_wren", "1_wren")),
        (["00_10_x", "01_9_x"], ("10_x", "9_x")),
    ],
)
def test_index_prefix(tmp_path, folders, classes):
    for value, folder in enumerate(folders):
        paint(tmp_path / folder / "a.png", 50 * value)
    real = load(tmp_path)
    assert real.classes == classes
    assert real.images[:, 0, 0, 0].tolist() == [0, 50]


def test_ten_and_more_indexed_classes_keep_their_order(tmp_path):
    for label in range(11):
        paint(tmp_path / f"{label:03d}_n{10 - label}" / "a.png", label)
    assert load(tmp_path).images[:, 0, 0, 0].tolist() == list(range(11))


def test_grey_stays_grey_and_mixed_becomes_rgb(tmp_path):
    root = tmp_path / "grey"
    for label in "ab":
        paint(root / label / "0.png", 80, mode="L")
    assert load(root).shape[0] == 1
    paint(root / "b" / "1.png", 80, mode="P")
    assert load(root).shape[0] == 3
    assert load(root, channels=1).shape[0] == 1


def test_second_load_does_not_decode(birds, monkeypatch):
    first = load(birds)
    with monkeypatch.context() as patch:
        patch.setattr("potstill.data.sources.blocks", None)
        again = load(birds)
        assert again.checksum == first.checksum
        assert (again.images == first.images).all()
        for options in ({"image_size": 4}, {"channels": 1}):
            with pytest.raises(TypeError):
                load(birds, **options)
    paint(birds / "wren" / "9.png", 90)
    changed = load(birds)
    assert changed.counts == (3, 2, 6)
    assert changed.fingerprint != first.fingerprint


def test_cache_argument_and_memory_map(birds, tmp_path):
    mapped = load(birds, memory_gb=1e-9, cache=tmp_path / "there")
    assert mapped.mapped.root == tmp_path / "there" / "decoded"
    real = load(birds)
    assert real.mapped is None
    assert mapped.checksum == real.checksum
    assert (mapped.images == real.images).all()


def test_touching_a_file_changes_the_stamp(birds):
    before = Place(birds).stamp()
    assert [name for name, *_ in before] == sorted(name for name, *_ in before)
    content = (birds / "wren" / "0.png").read_bytes()
    (birds / "wren" / "0.png").write_bytes(content + b"x")
    assert Place(birds).stamp() != before


def jpeg(size=64):
    stream = io.BytesIO()
    pixels = np.arange(size * size * 3, dtype=np.uint32) * 2654435761 >> 13
    Image.fromarray(pixels.astype(np.uint8).reshape(size, size, 3)).save(stream, "JPEG")
    return stream.getvalue()


def test_bad_folders(birds, tmp_path):
    def refused(match, path=birds):
        with pytest.raises(InputError, match=match) as caught:
            load(path)
        assert "\n" not in str(caught.value)

    (birds / "wren" / "IMG_1.HEIC").write_text("a wren")
    refused("IMG_1.HEIC is a HEIC picture, .* convert such pictures to JPEG, as with: magick")
    (birds / "wren" / "IMG_1.HEIC").rename(birds / "wren" / "notes.png")
    refused("notes.png cannot be read as an image")
    (birds / "wren" / "notes.png").unlink()
    (birds / "wren" / "half.jpg").write_bytes(jpeg()[:900])
    refused("half.jpg cannot be read as an image .*truncated")
    (birds / "wren" / "half.jpg").unlink()
    paint(birds / "wren" / "wide.png", size=(9, 6))
    refused(r"0.bmp is 6x6 and .*wide.png is 9x6; use image_size=6")
    (birds / "wren" / "wide.png").unlink()
    (birds / "empty").mkdir()
    refused("empty holds no images; add images, or remove it")
    refused("nothing of that name", tmp_path / "missing")
    refused("did you mean '.*birds'", tmp_path / "brids")
    refused("has no class folders", birds / "kite")
    paint(tmp_path / "one" / "only" / "0.png")
    refused(r"holds 1 image\(s\) in 1 class", tmp_path / "one")
    refused("README.txt is no list of pictures", birds / "README.txt")
    (birds / "README.txt").rename(birds / "README.md")
    refused("unknown kind", birds / "README.md")
