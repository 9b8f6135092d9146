from __future__ import annotations

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset

import potstill
from potstill.app.opening import Data, open_data
from potstill.data import load, load_pair
from potstill.data.subsets import SUBSETS, class_positions
from potstill.run import InputError, Run
from potstill.run.checkpoint import load_state, save_state

NAMES = ("cow", "dog", "owl", "yak")


def paint(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4), (value, 0, 0)).save(path)


@pytest.fixture
def zoo(tmp_path):
    """Four classes of 3 images in train and 1 in test; red is 10 times label, plus the row."""
    root = tmp_path / "zoo"
    for split, count in (("train", 3), ("test", 1)):
        for label, name in enumerate(NAMES):
            for row in range(count):
                paint(root / split / name / f"{row}.png", 10 * label + row)
    return root


def red(real):
    return real.images[:, 0, 0, 0].tolist()


def refused(match, source, subset):
    with pytest.raises(InputError, match=match) as caught:
        load(source, subset=subset)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


@pytest.mark.parametrize("subset", ["3,1", "yak,dog", " yak , dog "])
def test_label_is_the_position_in_the_list(zoo, subset):
    train, test, _ = load_pair(zoo, subset=subset)
    assert train.classes == test.classes == ("yak", "dog")
    assert train.labels.tolist() == [1, 1, 1, 0, 0, 0]  # rows stay in the source's order
    assert train.indices.tolist() == [3, 4, 5, 9, 10, 11]
    assert red(train) == [10, 11, 12, 30, 31, 32]
    assert (test.labels.tolist(), test.indices.tolist(), red(test)) == ([1, 0], [1, 3], [10, 30])
    assert train.history == ()


def test_images_of_other_classes_are_not_decoded(zoo):
    (zoo / "train" / "cow" / "0.png").write_bytes(b"no picture")
    Image.new("L", (9, 7)).save(zoo / "train" / "owl" / "0.png")
    with pytest.raises(InputError, match="cannot be read as an image"):
        load(zoo)
    assert red(load(zoo, subset="dog,yak")) == [10, 11, 12, 30, 31, 32]


def test_the_cache_tells_subsets_apart_and_keeps_row_numbers(zoo, tmp_path, monkeypatch):
    made = {subset: load(zoo, subset=subset) for subset in (None, "1,3", "3,1")}
    assert len({real.checksum for real in made.values()}) == 3
    sizes = [path.stat().st_size for path in (tmp_path / "cache").rglob("images.npy")]
    assert sorted(size - 128 for size in sizes) == [6 * 48, 6 * 48, 12 * 48]
    monkeypatch.setattr("potstill.data.sources.blocks", None)
    for subset, real in made.items():
        again = load(zoo, subset=subset)
        assert again.checksum == real.checksum and again.classes == real.classes
        assert torch.equal(again.images, real.images)
        assert torch.equal(again.indices, real.indices)


def test_a_cached_subset_that_lost_row_numbers_is_made_again(zoo, tmp_path, caplog):
    real = load(zoo, subset="1,3")
    (path,) = (tmp_path / "cache").rglob("facts.safetensors")
    tensors, facts = load_state(path)
    save_state(path, tensors | {"rows": tensors["rows"][1:]}, facts)
    assert load(zoo, subset="1,3").checksum == real.checksum
    assert "damaged" in caplog.text


def test_digits_and_their_hold_out():
    train, test, _ = load_pair("digits", subset="3,5")
    whole, _, _ = load_pair("digits")
    assert train.classes == ("3", "5") and test.counts == (50, 50)
    assert train.counts == (whole.counts[3], whole.counts[5])
    assert torch.equal(train.images, whole.images[train.indices])
    assert set(whole.labels[train.indices[train.labels == 1]].tolist()) == {5}
    part, held, sentence = load_pair(colours(), subset="2,0")
    assert held.counts == (1, 1) and part.counts == (5, 5) and "held out" in sentence
    assert not set(part.indices.tolist()) & set(held.indices.tolist())


def colours(n=18):
    images = np.zeros((n, 4, 4, 3), np.uint8)
    images[:, :, :, 0] = np.arange(n)[:, None, None]
    return images, np.arange(n) % 3


class Items(Dataset):
    """Labels come with the pictures; remembers which were asked for."""

    def __init__(self, n=9, classes=("a", "b", "c")):
        self.images, self.labels = colours(n)
        self.classes, self.asked = list(classes), []

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, row):
        self.asked.append(row)
        return self.images[row], int(self.labels[row])


def test_other_sources(tmp_path):
    images, labels = colours()
    np.savez(tmp_path / "set.npz", images=images, labels=labels)
    for source in ((images, labels), tmp_path / "set.npz"):
        real = load(source, subset="2,0")
        assert real.classes == ("2", "0")
        assert red(real) == [row for row in range(18) if row % 3 != 1] == real.indices.tolist()
        assert real.labels.tolist() == [1, 0] * 6
    items = Items()
    real = load(items, subset="c,a")
    assert items.asked == [*range(9), 0, 2, 3, 5, 6, 8]
    assert red(real) == [0, 2, 3, 5, 6, 8] and real.classes == ("c", "a")


def table(labels, damaged=()):
    datasets = pytest.importorskip("datasets")

    def picture(value):
        stream = io.BytesIO()
        Image.new("RGB", (4, 4), (value, 0, 0)).save(stream, "PNG")
        return {"bytes": stream.getvalue(), "path": None}

    names = [f"kind {label}" for label in range(4)]
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=names)}
    )
    cells = [
        {"bytes": b"no", "path": None} if row in damaged else picture(row % 256)
        for row in range(len(labels))
    ]
    return datasets.Dataset.from_dict({"image": cells, "label": list(labels)}, features=features)


def test_tables_decode_only_what_is_wanted(tmp_path):
    rows = [*range(4)] * 200  # more than one batch
    part = table(rows, damaged=[row for row in range(800) if row % 4 == 0])
    part.to_parquet(tmp_path / "set.parquet")  # streamed
    expected = [row for row in range(800) if row % 4 in (1, 3)]
    for source in (part, tmp_path / "set.parquet"):
        real = load(source, subset="kind 3,kind 1")
        assert real.indices.tolist() == expected
        assert red(real) == [row % 256 for row in expected]
        assert real.labels.tolist() == [1, 0] * 200
        with pytest.raises(InputError, match="cannot be read as an image"):
            load(source)
    (tmp_path / "late").mkdir()
    table([0] * 600 + [1, 2]).to_parquet(tmp_path / "late" / "train.parquet")
    assert load(tmp_path / "late", subset="1,2").indices.tolist() == [600, 601]


def test_named_lists_are_of_imagenet():
    classes = [f"n{label:08d}" for label in range(1000)]
    sizes = {name: len(set(class_positions(name, classes, "imagenet"))) for name in SUBSETS}
    assert sizes.pop("imagenet-100") == 100
    assert set(sizes.values()) == {10} and len(sizes) == 10
    assert all(0 <= label < 1000 for label in sum(SUBSETS.values(), ()))
    assert class_positions("imagenet-nette", classes, "imagenet")[:3] == (0, 217, 482)
    with pytest.raises(InputError, match=r"ImageNet's 1000 classes, but source 'x' has 4"):
        class_positions("imagenet-nette", NAMES, "x")


def test_a_list_keeps_its_order_on_a_set_of_1000_classes():
    labels = np.arange(2000) % 1000
    images = np.zeros((2000, 1, 1), np.uint8)
    images[:, 0, 0] = labels % 251
    real = load((images, labels), subset="imagenet-cats")
    assert real.counts == (2,) * 10
    assert real.classes == tuple(map(str, SUBSETS["imagenet-cats"]))
    for label, position in enumerate(SUBSETS["imagenet-cats"]):
        assert real.indices[real.labels == label].tolist() == [position, position + 1000]
        assert set(real.images[real.labels == label].flatten().tolist()) == {position % 251}


def test_names_with_commas_and_names_that_are_numbers():
    fish = ("tench, Tinca tinca", "shark", "ray, skate, fish", "skate")
    assert class_positions("shark,tench, Tinca tinca", fish, "fish") == (1, 0)
    assert class_positions("skate, ray, skate, fish", fish, "fish") == (3, 2)
    assert class_positions("1,0", ("0", "1", "10", "2"), "numbers") == (1, 0)
    assert class_positions("10,2", ("0", "1", "10", "2"), "numbers") == (2, 3)
    assert class_positions("3,1", ("0", "1", "10", "2"), "numbers") == (3, 1)  # 3 is no name


@pytest.mark.parametrize(
    ("subset", "match"),
    [
        ("imagenet-netta", "did you mean 'imagenet-nette'"),
        ("imagenet-nette", r"ImageNet's 1000 classes, but source .* has 4; name its own"),
        ("qqq", r"no class 'qqq'; join positions or names of its 4 classes by commas, or give"),
        ("cow,dgo", r"has no class 'dgo'; did you mean 'dog'\?"),
        ("cow,3", "has no class '3'"),
        ("1,4", "has 4 classes; use positions from 0 to 3"),
        ("1,-1", "use positions from 0 to 3"),
        ("1,3,1", r"has class 'dog' 2 times; name each class once"),
        ("yak,owl,yak", r"has class 'yak' 2 times"),
        ("2", "a single class; name at least 2"),
        ("owl", "a single class; name at least 2"),
        ("", "has no class ''"),
    ],
)
def test_wrong_subsets(zoo, subset, match):
    refused(match, zoo, subset)


def test_classes_without_images_are_refused_before_decoding():
    images, labels = colours(6)
    labels[labels == 2] = 0
    labels[0] = 3
    refused("class '2' of source 'arrays' has no images; leave it out", (images, labels), "1,2")


def test_a_run_opens_the_same_images_again(zoo, tmp_path):
    run = Run(device="cpu", cache=tmp_path / "cache", quiet=True)
    data = Data(data=str(zoo), subset="yak,dog", imbalance_factor=3)
    potstill.distill("random", data, ipc=1, out=tmp_path / "run", run=run)
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["job"]["data"]["subset"] == "yak,dog"
    train, test, _ = open_data(record, run)
    assert train.checksum == record["job"]["train_checksum"] == data.open(run)[0].checksum
    assert train.counts == (3, 1) and test.classes == ("yak", "dog")
    moved = zoo.rename(tmp_path / "elsewhere")
    assert open_data(record, run, str(moved))[0].checksum == train.checksum


def test_runs_without_a_subset_stay_the_same_jobs():
    assert "subset" not in Data().facts()
    assert set(Data().facts()) | {"subset"} == set(Data(subset="3,5").facts())
