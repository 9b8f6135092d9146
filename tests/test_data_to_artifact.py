"""From somebody's own data to an artifact, its scores, and other people's software."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

import potstill
from potstill.app.cli import main
from potstill.evaluation import PROTOCOLS
from potstill.run import InputError, Run

TINY = {
    "steps": 6,
    "network": "convnet-d2-w8-in",
    "members": 1,
    "pool_epochs": 2,
    "entries": 2,
    "frequencies": 16,
    "batch_real": 8,
}
NAMES = ("zebra", "ant", "Mole")  # neither sorted nor of one case


def pictures(per_class: int = 14, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """RGB pictures (n, 10, 10, 3) and labels; class c is bright in channel c."""
    draw = np.random.default_rng(seed)
    labels = np.repeat(np.arange(3), per_class)
    images = draw.integers(0, 90, (len(labels), 10, 10, 3))
    images[np.arange(len(labels)), :, :, labels] += 150
    return images.astype(np.uint8), labels


def folder_of_pictures(root: Path, per_class: int = 14, seed: int = 0) -> Path:
    images, labels = pictures(per_class, seed)
    for row, (image, label) in enumerate(zip(images, labels, strict=True)):
        path = root / NAMES[label] / f"{row:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    return root


@pytest.fixture
def method() -> potstill.methods.Method:
    return potstill.CATALOGUE["csdm"].budget("quick", **TINY)


def brightest(images: Tensor) -> list[int]:
    return images.mean((2, 3)).argmax(1).tolist()


@pytest.fixture
def distilled(tmp_path: Path, method: potstill.methods.Method, run: Run) -> Path:
    """A run on a folder without a test split."""
    source = folder_of_pictures(tmp_path / "zoo")
    out = tmp_path / "run"
    potstill.distill(method, source, ipc=2, imbalance_factor=2, out=out, run=run, label="quick")
    return out


def test_own_folder_becomes_an_artifact_others_can_read(distilled, tmp_path):
    from torchvision.datasets import ImageFolder

    syn = potstill.SyntheticSet.load(distilled)
    assert syn.classes == ("Mole", "ant", "zebra")  # as sorted() and ImageFolder sort them
    expected = [2, 2, 1, 1, 0, 0]  # brightest channel of mole, ant and zebra
    assert brightest(syn.images) == expected
    tree = ImageFolder(distilled / "synthetic" / "images")
    assert [name.split("_", 1)[1] for name in tree.classes] == list(syn.classes)
    found = [(label, int(np.asarray(image).mean((0, 1)).argmax())) for image, label in tree]
    assert found == list(zip(syn.labels.tolist(), expected, strict=True))

    # the tree is itself a source: what was distilled can be loaded like any data
    again = potstill.load(distilled / "synthetic" / "images")
    assert again.classes == syn.classes and again.counts == (2, 2, 2)


def test_hold_out_is_named_wherever_the_result_is(distilled, monkeypatch, capsys):
    quick = PROTOCOLS["quick"].with_(epochs=2, name="quick")
    monkeypatch.setitem(PROTOCOLS, "quick", quick)
    words = shlex.split("--network convnet-d2-w8-in --protocol quick --runs 2 --device cpu --quiet")
    assert main(["evaluate", str(distilled), *words]) == 0
    assert "random" in capsys.readouterr().out
    record = json.loads((distilled / "run.json").read_text())
    (score,) = json.loads((distilled / "scores.json").read_text())["scores"]
    assert "held out of" in record["job"]["test_note"]
    assert score["test"]["sentence"] == record["job"]["test_note"]
    assert score["test"]["images"] == 3  # one of each class: a tenth of fourteen
    assert score["train_counts"] == [13, 9, 6]  # hold-out first, long tail then
    assert set(score["groups"]) == {"head", "medium", "tail"}
    assert score["random"] is not None and score["quantized"] is not None
    assert score["artifact"] == potstill.SyntheticSet.load(distilled).checksum
    assert main(["report", str(distilled)]) == 0
    assert "held out of" in (distilled / "report.html").read_text()


def test_changed_data_are_not_scored(distilled, tmp_path, run):
    from potstill.app.scoring import evaluate_run

    extra = tmp_path / "zoo" / "ant" / "999.png"
    Image.new("RGB", (10, 10)).save(extra)
    with pytest.raises(InputError, match="has changed since the run was made"):
        evaluate_run(distilled, run, network=["mlp-w16"])


def test_data_at_another_place_keep_size_and_imbalance(distilled, tmp_path, run):
    from potstill.app.scoring import evaluate_run

    (tmp_path / "zoo").rename(tmp_path / "moved")
    protocol = PROTOCOLS["quick"].with_(epochs=1)
    (score,) = evaluate_run(
        distilled, run, network=["mlp-w16"], protocol=protocol, runs=1,
        data=str(tmp_path / "moved"), baseline=False, quantized=False,
    )  # fmt: skip
    assert score.train_counts == [13, 9, 6]


class Pairs(Dataset):
    """What people have: PIL pictures and whole numbers."""

    classes = NAMES

    def __init__(self) -> None:
        self.images, self.labels = pictures()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, row: int) -> tuple[Image.Image, int]:
        return Image.fromarray(self.images[row]), int(self.labels[row])


def test_npz_arrays_and_torch_datasets_give_the_same_images(tmp_path, method, run):
    images, labels = pictures()
    np.savez(tmp_path / "zoo.npz", images=images, labels=labels)
    sources = [tmp_path / "zoo.npz", (images, labels), Pairs()]
    made = [potstill.distill(method, source, ipc=1, run=run) for source in sources]
    assert brightest(made[0].images) == [0, 1, 2]
    for other in made[1:]:
        assert torch.equal(other.images, made[0].images)
    assert made[2].classes == NAMES and made[0].classes == ("0", "1", "2")
    assert list(run.cache.parent.glob("run*")) == []  # out=None keeps nothing


def test_arrays_in_memory_are_scored_with_the_same_arrays(tmp_path, method, run):
    source, out = pictures(), tmp_path / "run"
    potstill.distill(method, source, ipc=1, run=run, out=out)
    assert main(["evaluate", str(out), "--device", "cpu"]) == 2  # see the sentence below
    from potstill.app.scoring import evaluate_run

    with pytest.raises(InputError, match=r"arrays in memory; call potstill\.evaluate"):
        evaluate_run(out, run, network=["mlp-w16"])
    train, test, note = potstill.load_pair(source)
    protocol = PROTOCOLS["quick"].with_(epochs=2)
    (score,) = potstill.evaluate(
        out, train, test, network="mlp-w16", protocol=protocol, runs=1, run=run, test_note=note
    )
    assert score.test["sentence"] == note and "held out" in note


def test_an_image_set_is_a_source_and_options_beside_it_are_refused(make_blobs, method, run):
    real = make_blobs((20, 12, 8))
    syn = potstill.distill("random", real, ipc=2, imbalance_factor=4, run=run)
    assert syn.provenance["data"]["counts"] == [20, 10, 5]
    with pytest.raises(InputError, match="image_size is given beside data that are a ImageSet"):
        potstill.distill(method, real, image_size=4, run=run)
    with pytest.raises(InputError, match="imbalance_factor is given beside data that are a Data"):
        potstill.distill(method, potstill.Data(), imbalance_factor=4, run=run)


def test_an_artifact_does_not_tell_where_the_images_lie(tmp_path, run):
    import numpy as np

    from potstill import distill

    draw = np.random.RandomState(0)
    place = tmp_path / "secret-place" / "beasts.npz"
    place.parent.mkdir()
    labels = np.repeat(np.arange(3), 12)
    np.savez(place, images=draw.randint(0, 255, (36, 8, 8), dtype=np.uint8), labels=labels)
    distill("random", str(place), ipc=1, out=tmp_path / "run", run=run)
    for path in (tmp_path / "run" / "synthetic").rglob("*"):
        if path.is_file():
            assert b"secret-place" not in path.read_bytes(), path.name
    assert "beasts.npz" in (tmp_path / "run" / "synthetic" / "README.md").read_text()
