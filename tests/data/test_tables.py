from __future__ import annotations

import io
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from potstill.data import load, load_pair
from potstill.data.tables import HUB
from potstill.run import InputError

datasets = pytest.importorskip("datasets")


def picture(value, kind="PNG"):
    stream = io.BytesIO()
    Image.new("RGB", (4, 4), (value, 0, 0)).save(stream, kind)
    return {"bytes": stream.getvalue(), "path": None}


def table(labels, names=("cat", "dog"), column="label", image="image", **more):
    label = datasets.ClassLabel(names=list(names)) if names else datasets.Value("int64")
    others = {
        name: datasets.ClassLabel(num_classes=max(values) + 1) for name, values in more.items()
    }
    features = datasets.Features({image: datasets.Image(), column: label, **others})
    content = {image: [picture(10 * row) for row in range(len(labels))], column: list(labels)}
    return datasets.Dataset.from_dict({**content, **more}, features=features)


@pytest.fixture
def pair():
    return datasets.DatasetDict(train=table([0, 1, 1, 0, 1]), test=table([1, 0]))


def check(train, test):
    assert train.classes == test.classes == ("cat", "dog")
    assert train.counts == (2, 3) and test.counts == (1, 1)
    assert train.labels.tolist() == [0, 1, 1, 0, 1]
    assert train.images[:, 0, 0, 0].tolist() == [0, 10, 20, 30, 40]
    assert train.shape == (3, 4, 4)


@pytest.mark.parametrize("layout", ["{}.parquet", "data/{}-00000-of-00001.parquet"])
def test_parquet_folder(tmp_path, pair, layout, monkeypatch):
    root = tmp_path / "set"
    (root / "data").mkdir(parents=True)
    for split, part in pair.items():
        part.to_parquet(root / layout.format(split))
    train, test, sentence = load_pair(root)
    check(train, test)
    assert "the 'test' split" in sentence
    assert train.source == root.name
    monkeypatch.setattr("potstill.data.tables.from_disk", None)
    again, held, _ = load_pair(root)  # from the cache
    check(again, held)
    assert again.checksum == train.checksum


def test_cached_tables_do_not_import_datasets(tmp_path, pair):
    root = tmp_path / "set"
    root.mkdir()
    pair["train"].to_parquet(root / "train.parquet")
    checksum = load(root).checksum
    code = (
        "import sys; from potstill.data import load; "
        f"print(load({str(root)!r}).checksum, 'datasets' in sys.modules, 'PIL' in sys.modules)"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert answer.stdout.split() == [checksum, "False", "False"]


def test_saved_to_disk(tmp_path, pair):
    pair.save_to_disk(tmp_path / "both")
    check(*load_pair(tmp_path / "both")[:2])
    pair["train"].save_to_disk(tmp_path / "one")
    assert load(tmp_path / "one").counts == (2, 3)
    with pytest.raises(InputError, match=r"split is 'test'.*only has 'train'"):
        load(tmp_path / "one", split="test")


def test_single_file_and_objects(tmp_path, pair):
    pair["train"].to_parquet(tmp_path / "mine.parquet")
    first = load(tmp_path / "mine.parquet")
    assert first.counts == (2, 3)
    assert load(pair["train"]).fingerprint == first.fingerprint
    check(*load_pair(pair)[:2])
    check(*load_pair(tmp_path / "mine.parquet", test=pair["test"])[:2])


def test_jpeg_and_colour_arrive_as_stored(pair):
    grey = Image.fromarray(np.arange(16, dtype=np.uint8).reshape(4, 4))
    part = datasets.Dataset.from_dict(
        {"img": [grey.rotate(90), grey], "label": [0, 1]},
        features=datasets.Features({"img": datasets.Image(), "label": datasets.Value("int64")}),
    )
    real = load(part)
    assert real.classes == ("0", "1")
    assert (real.images[1, 0].numpy() == np.asarray(grey)).all()


def test_label_columns():
    two = table([0, 1, 1], column="fine", coarse=[1, 0, 1])
    with pytest.raises(InputError, match=r"several label columns \(fine, coarse\)"):
        load(two)
    assert load(two, labels="fine").labels.tolist() == [0, 1, 1]
    assert load(two, labels="coarse").labels.tolist() == [1, 0, 1]
    with pytest.raises(InputError, match="labels is 'corse'; did you mean 'coarse'"):
        load(two, labels="corse")
    for usual in ("label", "fine_label"):
        assert load(table([0, 1], column=usual, coarse=[1, 0])).labels.tolist() == [0, 1]
    bare = table([0, 1]).remove_columns("label")
    with pytest.raises(InputError, match="no class labels"):
        load(bare)
    with pytest.raises(InputError, match="none of which holds images"):
        load(table([0, 1]).remove_columns("image"))


def test_text_labels_are_sorted():
    part = table([0, 1, 1]).remove_columns("label").add_column("kind", ["owl", "cow", "owl"])
    real = load(part, labels="kind")
    assert real.classes == ("cow", "owl")
    assert real.labels.tolist() == [1, 0, 1]


@pytest.mark.parametrize(
    ("labels", "message"), [([0, 2], "class '1' .* has no images"), ([0, -2, 1], "hold -2")]
)
def test_wrong_labels(labels, message):
    part = table([0] * len(labels)).remove_columns("label").add_column("label", labels)
    with pytest.raises(InputError, match=message):
        load(part)


def test_missing_and_hidden_labels():
    with pytest.raises(InputError, match=r"hold -1 \(row 1\)"):
        load(table([0, None, 1]))
    with pytest.raises(InputError, match="are hidden"):
        load(table([-1, -1]))


def test_hidden_test_labels_are_passed_over(caplog):
    train, hidden, valid = table([0, 1, 1, 0]), table([-1, -1]), table([1, 0])
    _, test, sentence = load_pair({"train": train, "test": hidden, "validation": valid})
    assert test.labels.tolist() == [1, 0]
    assert "'validation'" in sentence
    assert "are hidden; it is passed over" in caplog.text
    _, test, sentence = load_pair({"train": train, "test": hidden})
    assert test.counts == (1, 1)
    assert "held out" in sentence


def test_damaged_parquet(tmp_path):
    (tmp_path / "train.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(InputError, match="cannot be read as a data set") as caught:
        load(tmp_path)
    assert "\n" not in str(caught.value)


class Hub:
    """Stands in for ``datasets.load_dataset``."""

    def __init__(self, answer):
        self.answer, self.asked = answer, []

    def __call__(self, name, configuration=None):
        self.asked.append((name, configuration))
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def test_hub_names(monkeypatch, pair):
    hub = Hub(pair)
    monkeypatch.setattr("datasets.load_dataset", hub)
    check(*load_pair("some/animals")[:2])
    load("some/animals:large")
    load("svhn")
    owner, configuration = HUB["svhn"].split(":")
    assert hub.asked == [("some/animals", None), ("some/animals", "large"), (owner, configuration)]
    first = load("some/animals")
    monkeypatch.setattr("potstill.data.sources.blocks", None)
    assert load("some/animals").checksum == first.checksum  # decoded images come from the cache


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (ConnectionError("out"), "the hub is out of reach"),
        (datasets.exceptions.DatasetNotFoundError("x"), "did you mean 'uoft-cs/cifar10'"),
        (ValueError("Config name is missing.\nPick one."), "Config name is missing.*configuration"),
    ],
)
def test_hub_says_no(monkeypatch, answer, message):
    monkeypatch.setattr("datasets.load_dataset", Hub(answer))
    with pytest.raises(InputError, match=message) as caught:
        load("uoft/cifar10")
    assert "\n" not in str(caught.value)


def test_offline(monkeypatch):
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="HF_HUB_OFFLINE is set"):
        load("some/animals")


def test_names_without_an_owner_are_not_looked_up(monkeypatch):
    monkeypatch.setattr("potstill.data.tables.from_hub", None)
    with pytest.raises(InputError, match="did you mean 'digits'"):
        load("digitz")
    with pytest.raises(InputError, match="give 'digits', a folder, a file"):
        load("qqq")
    with pytest.raises(InputError, match="nothing of that name"):
        load("./a/b.npz")
