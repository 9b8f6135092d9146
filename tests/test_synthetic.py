"""The artifact: exact round trips, three ways to load it, and no trust in what is on disk."""

from __future__ import annotations

import errno
import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from potstill.data.transform import ZCA, Normalize
from potstill.run import ArtifactError, InputError, StorageError
from potstill.synthetic import SyntheticSet, grid
from potstill.synthetic.artifact_folder import class_folder

SOUND = b'{"dtype":"F32","shape":[16],"data_offsets":[0,64]}'
FINE = {"kind": "tiled", "factor": 8, "formation": "multi"}
NAMES = ("zebra", "../../etc", "ant | <b>x</b>")  # alphabetical order is not the label order


def make(seed: int = 0, **changes: Any) -> SyntheticSet:
    draw = torch.Generator().manual_seed(seed)
    labels = torch.tensor([0, 0, 1, 1, 2, 2])
    fields: dict[str, Any] = {
        "images": torch.rand(6, 3, 8, 8, generator=draw) * 1.2 - 0.1,
        "labels": labels,
        "classes": NAMES,
        "transform": Normalize(torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.2, 0.25, 0.3])),
        "soft_labels": torch.softmax(torch.randn(6, 3, generator=draw), dim=1),
        "weights": torch.rand(6, generator=draw),
        "syn_lr": 0.0123456789,
        "provenance": {
            "method": {"name": "csdm", "fields": {"steps": 3}},
            "data": {"source": "beasts", "counts": [50, 9, 4]},
        },
    }
    return SyntheticSet(**fields | changes)


def rewrite(folder: Path, tensors: dict[str, Any] | None = None, **facts: Any) -> None:
    """Forge a file that is well-formed and has the right checksum, but wrong content."""
    from safetensors import safe_open

    from potstill.synthetic.tensors import checksum

    path = folder / "synthetic.safetensors"
    with safe_open(path, framework="pt") as file:
        old = json.loads(file.metadata()["potstill"])
    old |= facts
    changed = load_file(path) | (tensors or {})
    changed = {name: value for name, value in changed.items() if value is not None}
    if "checksum" not in facts:
        del old["checksum"]
        old["checksum"] = checksum(changed, old)
    save_file(changed, path, metadata={"potstill": json.dumps(old)})


# round trips


def test_round_trip_is_exact(tmp_path):
    made = make()
    place = made.save(tmp_path / "run" / "synthetic")
    for folder in (place, tmp_path / "run", place / "synthetic.safetensors"):
        read = SyntheticSet.load(folder)
        for name in ("images", "labels", "soft_labels", "weights"):
            assert torch.equal(getattr(read, name), getattr(made, name)), name
        assert read.syn_lr == made.syn_lr and read.classes == NAMES
        assert torch.equal(read.transform.std, made.transform.std)
        assert read.decode == made.decode and read.provenance == made.provenance
        assert read.checksum == made.checksum and read.label_tier == "static"


def test_hard_labels_and_other_decodings_and_transforms(tmp_path, make_blobs):
    zca = ZCA.fit(make_blobs((5, 4), channels=3))
    spec = {"kind": "tiled", "factor": 2, "formation": "multi"}
    made = make(soft_labels=None, weights=None, syn_lr=None, transform=zca, decode=spec)
    read = SyntheticSet.load(made.save(tmp_path / "a"))
    assert read.label_tier == "hard" and read.decode == spec and read.syn_lr is None
    assert torch.equal(read.transform(read.images), zca(made.images))
    images, labels, soft_labels, weights = read.decoded()
    assert images.shape == (30, 3, 8, 8) and labels.tolist() == [
        c for c in range(3) for _ in range(10)
    ]
    assert soft_labels is None and weights is None


def test_size_counts_and_bytes():
    made = make(labels=torch.tensor([0, 0, 0, 1, 2, 2]))
    assert made.counts == (3, 1, 2) and made.ipc == 3 and len(made) == 6
    exact = 6 * 3 * 64 * 4 + 6 * 8 + 6 * 3 * 4 + 6 * 4 + 8 + 2 * 3 * 4
    assert made.nbytes == exact
    assert make(soft_labels=None).nbytes == exact - 6 * 3 * 4


@pytest.mark.parametrize(
    "change",
    [
        {"images": torch.zeros(6, 3, 8, 8)},
        {"labels": torch.tensor([0, 0, 1, 1, 1, 2])},
        {"classes": ("zebra", "../../etc", "bee")},
        {"soft_labels": None},
        {"decode": {"kind": "tiled", "factor": 2, "formation": "single"}},
        {"transform": Normalize(torch.full((3,), 0.4), torch.full((3,), 0.2))},
        {"syn_lr": 0.01},
    ],
    ids=lambda change: next(iter(change)),
)
def test_checksum_covers_everything_a_receiver_uses(change):
    assert make(**change).checksum != make().checksum
    assert make(provenance={}).checksum == make().checksum


def test_same_content_same_bytes_of_the_tensors_file(tmp_path):
    one, two = (
        make().save(tmp_path / "one"),
        make(provenance={"date": "today"}).save(tmp_path / "2"),
    )
    name = "synthetic.safetensors"
    assert (one / name).read_bytes() == (two / name).read_bytes()
    assert (one / name).read_bytes() != (make(1).save(tmp_path / "3") / name).read_bytes()


# what others load


def test_datasets_loads_types_names_soft_labels_and_the_8_bit_pixels(tmp_path):
    from datasets import load_dataset

    made = make(decode={"kind": "tiled", "factor": 2, "formation": "single"})
    folder = made.save(tmp_path / "artifact")
    train = load_dataset(str(folder), split="train", cache_dir=str(tmp_path / "cache"))
    assert train.features["label"].names == list(NAMES)
    assert train.features["image"].__class__.__name__ == "Image"
    assert train.features["soft_label"].length == 3
    images, labels, soft_labels, weights = made.decoded()
    rows = train.with_format("torch")[:]
    assert torch.equal(torch.stack(list(rows["image"])), (images.clamp(0, 1) * 255).round().byte())
    assert torch.equal(rows["label"], labels)
    assert torch.equal(rows["soft_label"], soft_labels) and torch.equal(rows["weight"], weights)
    view = made.quantized()
    assert torch.equal(view.images * 255, torch.stack(list(rows["image"])).float())
    assert view.decode == {"kind": "pixels"} and len(view) == 24


def test_image_folder_gives_the_order_of_the_labels(tmp_path):
    from torchvision.datasets import ImageFolder

    made = make()
    tree = ImageFolder(str(made.save(tmp_path / "artifact") / "images"))
    assert tree.classes == ["000_zebra", "001_etc", "002_ant-b-x-b"]
    assert tree.targets == made.labels.tolist()
    pixels = torch.stack([torch.tensor(list(image.tobytes())) for image, _ in tree])
    wanted = (made.images.clamp(0, 1) * 255).round().permute(0, 2, 3, 1).reshape(6, -1)
    assert torch.equal(pixels.float(), wanted)


def test_grey_images_stay_grey(tmp_path):
    from PIL import Image

    grey = Normalize(torch.tensor([0.5]), torch.tensor([0.2]))
    folder = make(images=torch.rand(6, 1, 8, 8), transform=grey).save(tmp_path / "a")
    assert Image.open(folder / "images" / "000_zebra" / "000.png").mode == "L"


@pytest.mark.parametrize("name", ["", "..", "a/b\\c", "\x00\n", "CON", "x" * 200, "猫", "C:"])
def test_class_folders_are_single_safe_names(name):
    folder = class_folder(7, ("",) * 7 + (name,))
    assert folder.startswith("007_") and Path(folder).name == folder and len(folder.encode()) < 200
    assert folder.isprintable() and "\\" not in folder and ":" not in folder


def test_a_class_without_images_keeps_its_folder_so_that_no_label_shifts(tmp_path):
    made = make(labels=torch.tensor([0, 0, 0, 2, 2, 2]))
    folder = made.save(tmp_path / "a")
    assert sorted(p.name[:3] for p in (folder / "images").iterdir()) == ["000", "001", "002"]


def test_card_names_the_files_and_escapes_what_users_named(tmp_path):
    import yaml

    record = {
        "network": "convnet",
        "protocol": {"name": "p", "hash": "12ab34cd"},
        "label_tier": "static",
        "accuracy": {"mean": 61.24, "std": 0.44},
        "random": {"accuracy": {"mean": 50, "std": 1}},
    }
    source = {"source": "b\n---\n# fake <script>", "counts": [50, 9, 4]}
    made = make(provenance={"data": source, "method": {"name": "m"}, "scores": [record]})
    text = (made.save(tmp_path / "a") / "README.md").read_text()
    _, front, body = text.split("---\n", 2)
    facts = yaml.safe_load(front)
    assert facts["license"] == "unknown" and "long-tailed" in facts["tags"]
    assert facts["configs"][0]["data_files"][0]["path"] == "data/train-00000-of-00001.parquet"
    assert facts["configs"][0]["config_name"] == f"potstill-{made.checksum}"
    assert "61.2 ± 0.4" in body and "12ab34cd" in body and "50.0 ± 1.0" in body
    assert "<script>" not in body and "<b>" not in body and "\n# fake" not in body
    assert r"| 2 | ant \| \<b\>x\</b\> | 2 | 4 |" in body
    assert made.checksum in body and "mean (0.4000, 0.5000, 0.6000)" in body
    assert "Not evaluated yet" in (make().save(tmp_path / "b") / "README.md").read_text()


def test_grid_has_a_row_per_class_and_enlarges_without_blur():
    import io

    from PIL import Image

    images = torch.tensor([0.0, 1.0, 0.25]).view(3, 1, 1, 1).repeat(1, 1, 8, 8)
    images[0, 0, :, 3] = 1.0
    labels = torch.tensor([0, 0, 1])
    content = grid(images, labels, ("a", "b"))
    picture = Image.open(io.BytesIO(content))
    assert picture.height == 2 * 68 and picture.getpixel((0, 0))[3] == 0  # transparent ground
    tiles = picture.crop((picture.width - 2 * 68, 0, picture.width, 136)).getcolors()
    assert {colour[0] for _, colour in tiles if colour[3] == 255} == {0, 255, 64}
    assert picture.width > Image.open(io.BytesIO(grid(images, labels, ("a", "b"), columns=1))).width


# writing


def test_full_disk_leaves_the_old_artifact(tmp_path, monkeypatch):
    old = make()
    folder = old.save(tmp_path / "artifact")
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    write, calls, limit = Path.write_bytes, [], [0]

    def failing(self: Path, content: bytes) -> int:
        calls.append(self)
        if len(calls) == limit[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(self, content)

    monkeypatch.setattr(Path, "write_bytes", failing)
    for at in (1, 2, 3, 4, 7):
        calls.clear()
        limit[0] = at
        with pytest.raises(StorageError, match=r"cannot write .*artifact: No space left on device"):
            make(1).save(folder)
        assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before
        assert [p.name for p in tmp_path.iterdir()] == ["artifact"]
    monkeypatch.undo()
    make(1).save(folder)
    assert SyntheticSet.load(folder).checksum == make(1).checksum != old.checksum


def test_failed_swap_puts_the_old_artifact_back(tmp_path, monkeypatch):
    folder = make().save(tmp_path / "artifact")
    rename = Path.rename
    monkeypatch.setattr("potstill.run.replace._exchanged", lambda a, b: False)

    def failing(self: Path, target: Path) -> Path:
        if self.name.endswith(".part"):
            raise OSError(errno.EACCES, "Permission denied")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(StorageError, match="Permission denied"):
        make(1).save(folder)
    assert SyntheticSet.load(folder).checksum == make().checksum


def test_saving_again_replaces_our_files_and_keeps_others(tmp_path):
    folder = make().save(tmp_path / "artifact")
    (folder / ".gitattributes").write_text("*.safetensors filter=lfs")
    (folder / "images" / "000_zebra" / "mine.png").write_text("old")
    make(1).save(folder)
    assert (folder / ".gitattributes").read_text().startswith("*.safetensors")
    assert (folder / "kept" / "images" / "000_zebra" / "mine.png").read_text() == "old"
    assert not list((folder / "images").rglob("mine.png"))
    assert [p.name for p in tmp_path.iterdir()] == ["artifact"]


def test_a_folder_with_other_things_is_never_replaced(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match="holds other files; use a new or empty folder"):
        make().save(tmp_path)
    assert (tmp_path / "thesis.tex").exists()


def test_leftovers_of_a_kill_between_the_renames_are_recovered(tmp_path):
    folder = make().save(tmp_path / "artifact")
    (folder / "notes.txt").write_text("mine")
    folder.rename(tmp_path / ".artifact.old")
    make(1).save(folder)
    assert SyntheticSet.load(folder).checksum == make(1).checksum
    assert (folder / "notes.txt").exists() and len(list(tmp_path.iterdir())) == 1


# damaged and hostile files


def refused(folder: Path, match: str) -> None:
    with pytest.raises(ArtifactError, match=match) as caught:
        SyntheticSet.load(folder)
    assert "\n" not in str(caught.value) and str(folder) in str(caught.value)


@pytest.mark.parametrize("keep", [0, 4, 100, 2000, -1])
def test_truncated_tensors(tmp_path, keep):
    path = make().save(tmp_path / "a") / "synthetic.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    refused(tmp_path / "a", "damaged or not a potstill artifact")


def test_flipped_bit(tmp_path):
    path = make().save(tmp_path / "a") / "synthetic.safetensors"
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    refused(tmp_path / "a", "checksum is .* not")


@pytest.mark.parametrize(
    "header",
    [
        b"\x00" * 50,
        b"not json at all, but long enough to be read",
        b'{"images":{"dtype":"F32","shape":[1000000000000,3,9000,9000],"data_offsets":[0,64]}}',
        b'{"images":{"dtype":"F32","shape":[4,4],"data_offsets":[0,1099511627776]}}',
        b'{"__metadata__":{"potstill":"[]"},"images":' + SOUND + b"}",
        b'{"__metadata__":{"potstill":"' + b"[" * 5000 + b'"},"images":' + SOUND + b"}",
    ],
    ids=["zeros", "garbage", "huge-shape", "huge-offsets", "foreign", "deep-json"],
)
def test_hostile_headers(tmp_path, header):
    path = make().save(tmp_path / "a") / "synthetic.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + b"\x00" * 64)
    refused(tmp_path / "a", "damaged|not written by SyntheticSet.save")


@pytest.mark.parametrize(
    ("tensors", "match"),
    [
        ({"images": torch.zeros(6, 3, 8, 8, dtype=torch.float64)}, "images has type F64"),
        ({"images": torch.zeros(6, 3, 64)}, "images has type F32 and shape"),
        ({"images": torch.zeros(6, 2, 8, 8)}, "1 or 3 channels"),
        (
            {
                "images": torch.zeros(0, 3, 8, 8),
                "labels": torch.zeros(0, dtype=torch.int64),
                "soft_labels": None,
                "weights": None,
            },
            "at least one image",
        ),
        ({"images": torch.full((6, 3, 8, 8), float("nan"))}, "NaN or infinite"),
        ({"images": torch.zeros(6, 1, 8, 8)}, "transform does not fit"),
        ({"images": None}, "'images' is missing"),
        ({"labels": torch.tensor([0, 0, 1, 1, 2])}, "labels has 5 rows for 6 images"),
        ({"labels": torch.tensor([0, 0, 1, 1, 2, 3])}, "labels run from 0 to 3 with 3 classes"),
        ({"labels": torch.tensor([-1, 0, 1, 1, 2, 2])}, "labels run from -1"),
        ({"labels": torch.zeros(6)}, "labels has type F32"),
        ({"soft_labels": torch.full((6, 3), 0.5)}, "not probabilities"),
        ({"soft_labels": torch.full((6, 3), float("nan"))}, "not probabilities"),
        ({"soft_labels": torch.tensor([[2.0, -0.5, -0.5]]).repeat(6, 1)}, "not probabilities"),
        ({"soft_labels": torch.full((6, 2), 0.5)}, "soft_labels has type"),
        ({"weights": torch.full((6,), -1.0)}, "weights has negative"),
        ({"syn_lr": torch.tensor(-1.0, dtype=torch.float64)}, "syn_lr is -1"),
        ({"transform.std": torch.tensor([1.0, 0.0, 1.0])}, "damaged"),
        ({"transform.std": None}, "it needs"),
        ({"payload": torch.zeros(3)}, "'payload' is unknown"),
    ],
    ids=lambda value: value.replace(" ", "-") if isinstance(value, str) else "",
)
def test_wrong_tensors_are_named(tmp_path, tensors, match):
    folder = make().save(tmp_path / "a")
    rewrite(folder, tensors)
    refused(folder, match)


@pytest.mark.parametrize(
    ("facts", "match"),
    [
        ({"version": 6}, "format is 6, this potstill reads 1 to 5"),
        ({"classes": ["a", "b"]}, "with 2 classes"),
        ({"classes": ["a", "b", 3]}, "name of class 2 is '3'"),
        ({"classes": ["a", "b", "c" * 201]}, "name of class 2"),
        ({"classes": ["a", "b", "\ud800"]}, "not valid Unicode"),
        ({"classes": {"0": "a"}}, "list of class names is missing"),
        ({"decode": {"kind": "python", "code": "import os"}}, "decode kind is 'python'"),
        ({"decode": {"kind": "tiled", "factor": 10**9, "formation": "single"}}, "decode factor"),
        ({"decode": None}, "decode spec is missing"),
        ({"transform": "exec"}, "transform kind is 'exec'"),
        ({"transform": 3}, "kind of transform is missing"),
        ({"checksum": "0" * 16}, "checksum is"),
    ],
    ids=lambda value: value.replace(" ", "-") if isinstance(value, str) else "",
)
def test_wrong_facts_are_named(tmp_path, facts, match):
    folder = make().save(tmp_path / "a")
    rewrite(folder, **facts)
    refused(folder, match)


def test_a_name_like_a_path_is_only_a_name(tmp_path):
    folder = make().save(tmp_path / "deep" / "artifact")
    assert SyntheticSet.load(folder).classes[1] == "../../etc"
    SyntheticSet.load(folder).save(tmp_path / "deep" / "copy")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["deep"]


def test_pickles_are_never_opened(tmp_path):
    path = tmp_path / "images.pt"
    torch.save(torch.zeros(3), path)
    refused(path, "pickle files such as .pt are never opened")
    path.rename(tmp_path / "synthetic.safetensors")
    refused(tmp_path, "damaged or not a potstill artifact")


def test_missing_artifact(tmp_path):
    refused(tmp_path / "nowhere", "does not exist; give the folder")
    refused(tmp_path, "holds no synthetic.safetensors; give the folder")


def test_provenance_that_is_damaged_foreign_or_missing(tmp_path):
    folder = make().save(tmp_path / "a")
    other = make(1).save(tmp_path / "b")
    (folder / "provenance.json").write_bytes((other / "provenance.json").read_bytes())
    refused(folder, "belongs to other tensors")
    (folder / "provenance.json").write_text('{"method": ')
    refused(folder, "provenance.json is damaged")
    (folder / "provenance.json").write_text("[1, 2]")
    refused(folder, "no JSON object")
    (folder / "provenance.json").unlink()
    assert SyntheticSet.load(folder).provenance == {}


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"images": torch.zeros(6, 3, 8, 8).double()}, "images has type torch.float64"),
        ({"labels": torch.tensor([0, 0, 1, 1, 2, 9])}, "labels run from 0 to 9 with 3 classes"),
        ({"images": torch.rand(6, 3, 4, 4), "decode": FINE}, "decode factor is 8 for images"),
        ({"classes": ()}, "classes is empty"),
    ],
)
def test_a_wrong_set_cannot_be_made(change, match):
    with pytest.raises(InputError, match=match):
        make(**change)
    make(decode=FINE)


# which real images were distilled


def test_source_indices_travel_but_are_not_counted_as_receiver_bytes(tmp_path):
    rows = torch.tensor([9, 4, 1001])
    plain, made = make(), make(source_indices=rows)
    assert made.nbytes == plain.nbytes and made.checksum != plain.checksum
    assert torch.equal(SyntheticSet.load(made.save(tmp_path / "a")).source_indices, rows)
    with pytest.raises(InputError, match="source_indices"):
        make(source_indices=torch.tensor([-1]))


def test_a_long_tailed_run_stores_its_index_list(make_blobs, run):
    from potstill.methods import Random

    real = make_blobs((40, 40, 40)).long_tailed(4)
    made = Random()(real, 2, run)
    assert torch.equal(made.source_indices, real.indices) and len(real) < 120
    assert made.provenance["data"]["history"][0]["index_checksum"]


def test_the_card_shows_a_single_student_without_spread():
    from potstill.synthetic.card import _percent

    assert _percent({"mean": 61.25, "std": 0.5}) == "61.2 ± 0.5"
    assert _percent({"mean": 61.25, "std": None}) == "61.2" and _percent(None) == "–"


def test_tensors_without_permission_are_not_called_damaged(tmp_path, monkeypatch):
    folder = make().save(tmp_path / "a")
    monkeypatch.setattr("os.access", lambda *rest: False)  # root may read everything
    with pytest.raises(ArtifactError, match=r"synthetic.safetensors cannot be read \(Permission"):
        SyntheticSet.load(folder)
