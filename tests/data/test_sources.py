from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset, TensorDataset

from potstill.data import load, load_pair
from potstill.run import InputError


def colours(n=6, size=5):
    rng = np.random.Generator(np.random.PCG64(0))
    return rng.integers(0, 256, (n, size, size, 3), dtype=np.uint8), np.arange(n) % 2


def test_digits():
    from sklearn.datasets import load_digits

    train, test, sentence = load_pair("digits")
    assert (len(train), len(test)) == (1297, 500)
    assert train.shape == (1, 8, 8)
    assert train.classes == tuple("0123456789")
    assert test.counts == (50,) * 10
    assert "the 'test' split of digits (500 images)" in sentence
    bunch = load_digits()
    threes = bunch.images[bunch.target == 3]
    both = torch.cat([part.images[part.labels == 3, 0] for part in (train, test)])
    assert both.tolist() == [[[round(v * 255 / 16) for v in row] for row in x] for x in threes]
    assert load("digits").checksum == train.checksum
    assert load("digits", split="test").checksum == test.checksum
    assert load("digits", image_size=32, channels=3).shape == (3, 32, 32)
    assert train.fingerprint != test.fingerprint


def test_layouts_of_arrays_agree():
    last, labels = colours()
    first = last.transpose(0, 3, 1, 2)
    expected = load((last, labels))
    assert expected.shape == (3, 5, 5)
    assert expected.source == "arrays"
    assert (expected.images.numpy() == first).all()
    for images in (first, torch.from_numpy(last), torch.from_numpy(first), last / 255):
        assert load([images, torch.from_numpy(labels)]).checksum == expected.checksum
    grey = last[..., 0]
    for images in (grey, grey[..., None], grey[:, None], torch.from_numpy(grey)):
        assert (load((images, labels[:, None])).images[:, 0].numpy() == grey).all()


def test_ambiguous_layout_follows_the_library():
    images, labels = np.arange(216, dtype=np.uint8).reshape(4, 3, 6, 3), [0, 1, 0, 1]
    assert load((images, labels)).shape == (3, 3, 6)
    assert load((torch.from_numpy(images), labels)).shape == (3, 6, 3)


def test_arrays_can_be_resized():
    assert load(colours(), image_size=8, channels=1).shape == (1, 8, 8)


def test_pair_of_arrays():
    train, test, sentence = load_pair(colours(12), seed=1)
    assert (train.counts, test.counts) == ((5, 5), (1, 1))
    assert "held out of arrays" in sentence
    train, test, _ = load_pair(colours(), test=colours(4))
    assert (len(train), len(test)) == (6, 4)
    splits = {"train": colours(), "val": colours(4)}
    assert len(load_pair(splits)[1]) == 4


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (np.zeros((2, 5), np.uint8), [0, 1], r"have shape \(2, 5\)"),
        (np.zeros((2, 5, 5, 4), np.uint8), [0, 1], "must be the channel"),
        (np.zeros((2, 5, 5), np.uint8), [0, 1, 1], "give 2 whole numbers"),
        (np.zeros((2, 5, 5), np.uint8), [0.0, 1.0], "labels of arrays are float64"),
        (np.zeros((2, 5, 5), np.uint8), [0, -1], r"hold -1 \(row 1\)"),
        (np.zeros((2, 5, 5), np.uint8), [0, 2], r"class '1' \(label 1\) .* has no images"),
        (np.zeros((2, 5, 5), np.uint8), [0, 0], "at least 2 classes"),
        (np.zeros((1, 5, 5), np.uint8), [0], r"1 image\(s\) in 1 class"),
        (np.zeros((0, 5, 5), np.uint8), np.zeros(0, int), "holds no images"),
        (np.full((2, 5, 5), 255.0), [0, 1], "all pictures .* are equal"),
        (np.full((2, 5, 5), 300.0), [0, 1], "values from 300 to 300"),
        (np.zeros((2, 5, 5), np.int16), [0, 1], "values from 0 to 0"),
    ],
)
def test_wrong_arrays(images, labels, message):
    with pytest.raises(InputError, match=message):
        load((images, labels))


@pytest.mark.parametrize(
    "names", [("images", "labels"), ("train_images", "train_labels"), ("x_train", "y_train")]
)
def test_npz(tmp_path, names):
    images, labels = colours()
    path = tmp_path / "set.npz"
    np.savez(path, **dict(zip(names, (images, labels), strict=True)))
    assert load(path).checksum == load((images, labels)).checksum
    np.savez(path, images=images, labels=labels, classes=np.array(["cat", "dog"]))
    assert load(path).classes == ("cat", "dog")


def test_npz_with_splits(tmp_path):
    (images, labels), (more, others) = colours(), colours(4)
    parts = {"train_images": images, "train_labels": labels, "val_images": more}
    np.savez_compressed(tmp_path / "medical.npz", **parts, val_labels=others[:, None])
    train, test, sentence = load_pair(tmp_path / "medical.npz")
    assert (len(train), len(test)) == (6, 4)
    assert "'val'" in sentence


@pytest.mark.parametrize("hidden", ["none", "below 0"])
def test_npz_with_hidden_labels(tmp_path, caplog, hidden):
    images, labels = colours(12)
    parts = {"train_images": images, "train_labels": labels, "test_images": images}
    if hidden == "below 0":
        parts["test_labels"] = np.full(12, -1)
    np.savez(tmp_path / "medical.npz", **parts)
    _, test, sentence = load_pair(tmp_path / "medical.npz")
    assert test.counts == (1, 1) and "no test split with labels" in sentence
    assert "it is passed over" in caplog.text
    with pytest.raises(InputError, match="use another split"):
        load(tmp_path / "medical.npz", split="test")


def test_wrong_npz(tmp_path):
    path = tmp_path / "set.npz"
    np.savez(path, pictures=np.zeros(3))
    with pytest.raises(InputError, match="holds pictures; it needs 'images' and 'labels'"):
        load(path)
    np.savez(path, images=np.array([{}, {}], dtype=object), labels=np.arange(2))
    with pytest.raises(InputError, match="cannot be read"):
        load(path)
    path.write_bytes(b"PK no zip")
    with pytest.raises(InputError, match="cannot be read"):
        load(path)


class Items(Dataset):
    """A torch data set that gives what it is given."""

    def __init__(self, items, classes=None):
        self.items = items
        if classes:
            self.classes = classes

    def __len__(self):
        return len(self.items)

    def __getitem__(self, row):
        return self.items[row]


def test_torch_data_sets():
    from PIL import Image

    images, labels = colours()
    expected = load((images, labels))
    tensors = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
    for convert in (
        Image.fromarray,
        np.asarray,
        lambda x: torch.from_numpy(x).permute(2, 0, 1) / 255,
    ):
        items = [(convert(image), int(label)) for image, label in zip(images, labels, strict=True)]
        real = load(Items(items))
        assert real.source == "Items"
        assert real.checksum == expected.checksum
        assert (real.images == expected.images).all()
    assert load(TensorDataset(tensors, torch.from_numpy(labels))).checksum == expected.checksum
    named = load(Items([(images[0], 0), (images[1], 1)], classes=["cat", "dog"]))
    assert named.classes == ("cat", "dog")


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([(np.zeros((4, 4), np.uint8), 0.5)], "item 0 of Items is no"),
        ([np.zeros((4, 4), np.uint8)], "item 0 of Items is no"),
        ([(torch.randn(3, 4, 4, generator=torch.Generator().manual_seed(0)), 0)], "without normal"),
        ([], "holds no images"),
    ],
)
def test_wrong_torch_data_sets(items, message):
    with pytest.raises(InputError, match=message):
        load(Items(items))


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        (object(), {}, "source is a object"),
        (3, {}, "source is a int"),
        ("digits", {"labels": "label"}, "has no columns"),
        (colours(), {"labels": "label"}, "has no columns"),
        ("digits", {"split": "validation"}, "only has 'train', 'test'"),
        ("digits", {"memory_gb": 0}, "memory_gb is 0"),
        ("digits", {"image_size": -1}, "image_size is -1"),
    ],
)
def test_wrong_arguments(source, options, message):
    with pytest.raises(InputError, match=message) as caught:
        load(source, **options)
    assert "\n" not in str(caught.value)


def test_cifar10_fingerprint(shared_data):
    test = load(shared_data / "cifar10", split="test", quiet=True, image_size=None)
    assert test.counts == (1000,) * 10
    assert test.shape == (3, 32, 32)
    assert test.classes[3] == "cat"


@pytest.mark.parametrize(("source", "words"), [("", "source is empty"), ("/dev/null", "a device")])
def test_odd_places_are_refused_in_one_sentence(source, words):
    with pytest.raises(InputError, match=words):
        load(source)


@pytest.mark.parametrize(
    "names",
    [("X_train", "y_train"), ("x", "y"), ("data", "labels"), ("arr_0", "arr_1"), ("images", "y")],
)
def test_npz_as_others_name_it(tmp_path, names):
    np.savez(tmp_path / "a.npz", **dict(zip(names, colours(), strict=True)))
    assert load(tmp_path / "a.npz").checksum == load(colours()).checksum


@pytest.mark.parametrize("kind", [bool, np.int64, np.float32])
def test_one_hot_labels(kind):
    images, labels = colours()
    assert load((images, np.eye(2, dtype=kind)[labels])).checksum == load((images, labels)).checksum
    with pytest.raises(InputError, match="not one-hot"):
        load((images, np.full((6, 2), 0.5)))
    with pytest.raises(InputError, match="not one-hot"):
        load((images, np.ones((6, 2), int)))


def test_words_as_labels_and_bytes_as_names(tmp_path):
    images, labels = colours()
    words = ["owl", "cow"] * 3
    for given in (words, np.array(words), np.array(words, "S")):
        real = load((images, given))
        assert real.classes == ("cow", "owl") and real.labels.tolist() == [1, 0] * 3
    np.savez(tmp_path / "a.npz", images=images, labels=labels, classes=np.array([b"cow", b"owl"]))
    assert load(tmp_path / "a.npz").classes == ("cow", "owl")
    for wrong in (
        np.array([b"caf\xe9", b"owl"]),
        np.array(["x" * 201, "owl"]),
        np.array(["", "y"]),
    ):
        np.savez(tmp_path / "a.npz", images=images, labels=labels, classes=wrong)
        with pytest.raises(InputError, match=r"not UTF-8|201 characters|no text"):
            load(tmp_path / "a.npz")


def test_data_sets_of_torch_keep_class_names_and_take_labels_of_one(tmp_path):
    class Medical(Dataset):
        classes = ["benign", "malign"]

        def __len__(self):
            return 6

        def __getitem__(self, row):
            return colours()[0][row], np.array([row % 2], np.uint8)

    data = Medical()
    assert load(data).classes == ("benign", "malign")
    first, _ = torch.utils.data.random_split(data, [4, 2], torch.Generator().manual_seed(1))
    part = torch.utils.data.Subset(torch.utils.data.Subset(data, [0, 1, 2, 3]), [0, 3])
    assert load(first).classes == load(part).classes == ("benign", "malign")
    assert load(part).labels.tolist() == [0, 1]
    pairs = TensorDataset(torch.from_numpy(colours()[0]), torch.from_numpy(colours()[1])[:, None])
    assert load(pairs).labels.tolist() == [0, 1] * 3
