"""Lists of pictures: CSV, JSON lines and text, as people have them."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from potstill.data import load, load_pair
from potstill.run import InputError

NAMES = ("nv", "mel", "bkl")


def paint(path, value=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    draw = np.random.Generator(np.random.PCG64(len(str(path)) if value is None else value))
    Image.fromarray(draw.integers(0, 256, (4, 4), dtype=np.uint8)).save(path)


@pytest.fixture
def ham(tmp_path):
    """Pictures in two folders, a CSV that names them without their suffix."""
    tmp_path = tmp_path / "ham"
    rows = ["lesion_id,image_id,dx,age"]
    for n in range(12):
        paint(tmp_path / f"part_{n % 2}" / f"ISIC_{n:03d}.png", n)
        rows.append(f"HAM_{n // 2},ISIC_{n:03d},{NAMES[n % 3]},5{n % 2}.0")
    (tmp_path / "meta.csv").write_text("\n".join(rows) + "\n")
    return tmp_path


def refused(match, source, **options):
    with pytest.raises(InputError, match=match) as caught:
        load(source, **options)
    assert "\n" not in str(caught.value)


def test_a_csv_names_pictures_without_suffix_anywhere_below(ham, caplog):
    real = load(ham / "meta.csv")
    assert real.classes == ("bkl", "mel", "nv")
    assert real.labels.tolist() == [("bkl", "mel", "nv").index(NAMES[n % 3]) for n in range(12)]
    pixels = np.asarray(Image.open(ham / "part_1" / "ISIC_005.png"))
    assert (real.images[5, 0].numpy() == pixels).all()
    by_age = load(ham / "meta.csv", image_column="image_id", labels="lesion_id")
    assert by_age.num_classes == 6
    refused("image_column is 'picture'; .*image_id", ham / "meta.csv", image_column="picture")
    assert load(ham).classes == ("part_0", "part_1")
    assert "read as class folders; if meta.csv is a list" in caplog.text
    (ham / "part_1").rename(ham / "part_0" / "more")
    refused("1 class.*; if meta.csv names them with classes, give that instead", ham)


def test_a_root_elsewhere_and_nothing_beyond_it(ham, tmp_path_factory):
    apart = tmp_path_factory.mktemp("apart") / "meta.csv"
    (ham / "meta.csv").rename(apart)
    refused("names 12 pictures, the first is 'ISIC_000', not found .* image_root=FOLDER", apart)
    assert len(load(apart, image_root=str(ham))) == 12
    refused("names 6 pictures, the first is 'ISIC_001'", apart, image_root=str(ham / "part_0"))
    for name in (f"../{ham.name}/part_0/ISIC_000.png", str(ham / "part_0" / "ISIC_000.png"), "~/x"):
        (apart.parent / "out.csv").write_text(f"file,label\n{name},a\n{name},b\n")
        refused("may lie outside of", apart.parent / "out.csv", image_root=str(ham / "part_1"))
    (ham / "part_1" / "link.png").symlink_to(ham / "part_0" / "ISIC_000.png")
    (ham / "part_1" / "in.csv").write_text("file,label\nlink.png,a\nISIC_001.png,b\n")
    refused("outside the source", ham / "part_1" / "in.csv")
    assert len(load(ham / "part_1" / "in.csv", follow_links=True)) == 2
    refused("image_root is 'x', which is no folder", ham / "part_1" / "in.csv", image_root="x")
    refused("image_root is 'x', but source .* is no list", "digits", image_root="x")


def test_a_changed_picture_is_decoded_again(ham):
    before = load(ham / "meta.csv")
    assert load(ham / "meta.csv").fingerprint == before.fingerprint
    paint(ham / "part_0" / "ISIC_002.png", 99)
    assert load(ham / "meta.csv").fingerprint != before.fingerprint


def test_names_that_may_be_several_pictures(ham):
    paint(ham / "masks" / "ISIC_003.png", 7)
    refused(r"names 'ISIC_003', which may be .*masks.* or .*part_1", ham / "meta.csv")


def test_ids_are_numbers_as_kaggle_has_them(tmp_path):
    for n in range(1, 9):
        paint(tmp_path / "train" / f"{n}.png", n)
    rows = "".join(f"{n},{('frog', 'cat')[n % 2]}\n" for n in range(1, 9))
    (tmp_path / "trainLabels.csv").write_text("id,label\n" + rows)
    real = load(tmp_path / "trainLabels.csv", image_root=str(tmp_path / "train"))
    assert real.classes == ("cat", "frog") and real.labels.tolist() == [0, 1] * 4


@pytest.mark.parametrize("form", ["csv", "jsonl", "both", "root"])
def test_metadata_of_hugging_face(tmp_path, form):
    def write(folder, rows):
        if form == "jsonl":
            text = "".join(
                json.dumps({"file_name": f, "label": c, "bbox": []}) + "\n" for f, c in rows
            )
        else:
            text = "file_name,label\n" + "".join(f"{f},{c}\n" for f, c in rows)
        (folder / f"metadata.{'jsonl' if form == 'jsonl' else 'csv'}").write_text(text)

    everything = []
    for split, count in (("train", 8), ("test", 4)):
        rows = [(f"{n}.png", "ab"[n % 2]) for n in range(count)]
        for name, _ in rows:
            paint(tmp_path / split / name, count * 10 + int(name[:-4]))
        everything += [(f"{split}/{name}", label) for name, label in rows]
        if form != "root" and (split == "train" or form == "both"):
            write(tmp_path / split, rows)
    if form == "root":
        write(tmp_path, everything)
    train, test, note = load_pair(tmp_path)
    assert train.classes == ("a", "b")
    if form in ("both", "root"):
        assert (len(train), len(test)) == (8, 4) and "'test' split" in note
    else:
        assert (len(train), len(test)) == (6, 2)


def test_lists_of_a_long_tail_keep_their_counts(tmp_path, caplog):
    lines = {"train": [], "test": []}
    for c, keep in enumerate((6, 3, 1)):
        for n in range(8):
            paint(tmp_path / "train" / f"n0{c}" / f"a b {n}.JPEG", 10 * c + n)
            if n < keep or n > 5:
                split = "train" if n < keep else "test"
                lines[split].append(f"train/n0{c}/a b {n}.JPEG {c}")
    for split, some in lines.items():
        (tmp_path / f"Set_LT_{split}.txt").write_text("\n".join(some) + "\n")
    train, test, note = load_pair(tmp_path / "Set_LT_train.txt")
    assert train.counts == (6, 3, 1) and test.counts == (2, 2, 2)
    assert "the 'test' split of Set_LT_train.txt" in note
    given = load_pair(tmp_path / "Set_LT_train.txt", test=tmp_path / "Set_LT_test.txt")[1]
    assert given.fingerprint == test.fingerprint
    load(tmp_path / "train")
    assert not caplog.text
    assert load(tmp_path).counts == (8, 8, 8)
    assert "if Set_LT_train.txt is a list of the pictures to train on, give that" in caplog.text


def test_a_column_says_the_split(ham):
    text = (ham / "meta.csv").read_text().splitlines()
    split = ["split", *["train"] * 9, *["val"] * 3]
    lines = [f"{a},{b}" for a, b in zip(text, split, strict=True)]
    (ham / "meta.csv").write_text("\n".join(lines))
    train, test, _ = load_pair(ham / "meta.csv")
    assert (len(train), len(test)) == (9, 3)
    assert test.labels.tolist() == [2, 1, 0]


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "names no pictures"),
        (b"file,label\n", "names no pictures"),
        (b"\xff\xfe", "is not UTF-8 text"),
        (b"file,label\nx.png\n", "row 1 has 1 of 2 cells"),
        (b"file\nx.png\n", "two of different names"),
        (b"file,file\nx.png,1\n", "two of different names"),
        (b"a,b\n1,2\n", "say with image_column=NAME"),
        (b"file,label\n,a\nx.png,b\n", "a row without the name of a picture"),
        (b"file,label\n.hidden.png,a\nx.png,b\n", "a hidden file"),
        (b"file,label\nhttp://x/y.png,a\nx.png,b\n", "may lie outside"),
        (b"file,label\nx.png,a\ny.png,b\n", "names a picture, 'y.png', not found"),
        (b"file,label\nx.png,a\nx.png,\n", "are missing in 1 of 2 rows"),
        (b"file,label\nx.png,a\nx.png," + b"b" * 300 + b"\n", "a name of 300 characters"),
        (b"file,weight\nx.png,a\nx.png,b\nx.png,c\n", "no class labels"),
        (b'file,label\n"x.png,a\n', "row 1 has 1 of 2 cells"),
    ],
)
def test_lists_that_cannot_be_read(tmp_path, content, match):
    paint(tmp_path / "x.png")
    (tmp_path / "list.csv").write_bytes(content)
    refused(match, tmp_path / "list.csv")


@pytest.mark.parametrize("content", ['{"file_name": "x.png"', "[1]\n", '{"a": ' * 99])
def test_json_lines_that_cannot_be_read(tmp_path, content):
    (tmp_path / "list.jsonl").write_text(content)
    refused("is no list of pictures", tmp_path / "list.jsonl")


def test_tiny_imagenet_as_it_comes(tmp_path):
    root = tmp_path / "tiny-imagenet-200"
    for c, name in enumerate(("n02", "n01")):
        for n in range(3):
            paint(root / "train" / name / "images" / f"{name}_{n}.JPEG", 10 * c + n)
        (root / "train" / name / f"{name}_boxes.txt").write_text("x\t0\t0\t1\t1\n")
    for n in range(4):
        paint(root / "val" / "images" / f"val_{n}.JPEG", 50 + n)
    lines = [f"val_{n}.JPEG\t{('n01', 'n02')[n % 2]}\t0\t0\t3\t3\n" for n in range(4)]
    (root / "val" / "val_annotations.txt").write_text("".join(lines))
    train, test, note = load_pair(tmp_path)
    assert train.classes == ("n01", "n02") and test.labels.tolist() == [0, 1, 0, 1]
    assert "the 'val' split" in note
    (root / "val" / "val_annotations.txt").write_text("".join(reversed(lines)))
    assert load_pair(tmp_path)[1].labels.tolist() == [1, 0, 1, 0]


@pytest.mark.parametrize(
    ("files", "kind"),
    [
        (("train2017/1.png", "annotations/instances_train2017.json"), "COCO"),
        (("train/1.png", "valid/2.png", "train/_annotations.coco.json"), "COCO"),
        (("images/train/1.png", "images/val/2.png", "labels/train/1.txt", "data.yaml"), "YOLO"),
        (("train/images/1.png", "train/labels/1.txt", "valid/images/2.png"), "YOLO"),
        (("VOC2007/JPEGImages/1.png", "VOC2007/Annotations/1.xml"), "Pascal VOC"),
    ],
)
def test_sets_for_finding_objects_are_called_so(tmp_path, files, kind):
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        paint(tmp_path / name) if name.endswith("png") else (tmp_path / name).write_text("0 1")
    refused(f"is laid out as {kind} .*: boxes of objects", tmp_path)
