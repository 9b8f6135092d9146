"""Sets that other people's code distilled: each layout is written here as they write it."""

from __future__ import annotations

import json
import shutil
import struct
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import potstill
from potstill.app.cli import main
from potstill.data import ZCA, Normalize
from potstill.run import InputError, Run
from potstill.synthetic.foreign import read_foreign

QUICK = potstill.PROTOCOLS["quick-noflip"].with_(epochs=1)
NAMES = tuple("0123456789")


@pytest.fixture(scope="module")
def digits():
    train, test, _ = potstill.load_pair("digits")
    keep = torch.cat([train.of_class(label)[:2] for label in range(10)])
    return train, test, train.batch(keep), train.labels[keep]


def told(folder):
    return json.loads((folder / "synthetic" / "provenance.json").read_text())


def run(capsys, *words):
    code = main([*map(str, words)])
    said = capsys.readouterr()
    return code, said.out + said.err


def test_trajectory_methods_in_whitened_space(digits, tmp_path, capsys):
    """MTT, DATM, LAD: three files, soft labels as logits, a learned step size."""
    train, _, x, y = digits
    zca, logits = ZCA.fit(train), 4 * torch.eye(10)[y] + torch.arange(10) / 10
    torch.save(zca(x), tmp_path / "images_best.pt")
    torch.save(torch.zeros(2), tmp_path / "images_zca_500.pt")
    torch.save(logits, tmp_path / "labels_best.pt")
    torch.save(torch.tensor(0.02), tmp_path / "lr_best.pt")
    out = tmp_path / "run"
    how = ("--data", "digits", "--normalisation", "zca", "--out", out)
    code, said = run(capsys, "import", tmp_path, *how)
    assert (code, "20 images (MTT)" in said) == (0, True), said
    syn = potstill.SyntheticSet.load(out)
    assert torch.allclose(syn.images, x, atol=1e-4) and syn.syn_lr == pytest.approx(0.02)
    assert torch.allclose(syn.transform(syn.images), zca(x), atol=1e-4)
    assert torch.allclose(syn.soft_labels, logits.softmax(1)) and syn.labels.tolist() == y.tolist()
    facts = told(out)
    assert facts["method"]["name"] == "imported" and facts["imported"]["layout"] == "MTT"
    assert facts["data"]["checksum"] == train.checksum
    assert run(capsys, "import", tmp_path / "images_best.pt", *how)[0] == 0  # the same job
    code, said = run(capsys, "import", tmp_path, *how[:2], "--out", out)
    assert (
        code == 2 and "no RGB from 0 to 1; say what was done to them with --normalisation" in said
    )
    assert len(potstill.SyntheticSet.load(out)) == 20


def test_it_is_evaluated_reported_and_compared_like_ours(digits, tmp_path, capsys):
    """DM's layout: a dictionary with one pair per experiment, in normalised space."""
    train, test, x, y = digits
    plain = Normalize.fit(train)
    pairs = [[plain(x), y], [plain(x) + 1, y]]
    torch.save({"data": pairs, "accs_all_exps": {"ConvNet": []}}, tmp_path / "res_DM_2ipc.pt")
    out = tmp_path / "dm"
    words = ("import", tmp_path / "res_DM_2ipc.pt", "--data", "digits", "--normalisation", "data")
    assert run(capsys, *words, "--out", out)[0] == 0
    (own,) = potstill.evaluate(
        (x, y), train, test, network="mlp-w16", protocol=QUICK, runs=1, run=Run(quiet=True),
        baseline=False, quantized=False,
    )  # fmt: skip
    how = ("--network", "mlp-w16", "--protocol", "quick-noflip", "--runs", 1, "--no-baseline")
    code, said = run(capsys, "evaluate", out, *how, "--no-quantized", "--quiet")
    assert code == 0 and own.accuracy["mean"] > 0, said
    (record,) = json.loads((out / "scores.json").read_text())["scores"]
    assert record["artifact"] == told(out)["imported"]["artifact"]
    assert run(capsys, "report", out)[0] == 0 and "imported" in (out / "report.html").read_text()
    shutil.copytree(out, tmp_path / "again")
    words = ("compare", out, tmp_path / "again", "--out", tmp_path / "two.html")
    assert run(capsys, *words)[0] == 0 and "imported" in (tmp_path / "two.html").read_text()
    code, said = run(capsys, "import", tmp_path / "res_DM_2ipc.pt", "--experiment", 3, "--out", "x")
    assert code == 2 and "--experiment is 3; res_DM_2ipc.pt has 1 to 2" in said


def test_mosaics_without_their_data(digits, tmp_path, capsys):
    """IDC's and NCFM's layout: a list, RGB, tiles; and an artifact that is no run."""
    _, _, x, y = digits
    torch.save([x, y], tmp_path / "data_best.pt")
    out = tmp_path / "idc"
    words = ("import", tmp_path / "data_best.pt", "--factor", 2, "--classes", "10", "--out", out)
    assert run(capsys, *words)[0] == 0
    code, said = run(capsys, *words)
    assert code == 2 and "holds a set already" in said and run(capsys, *words, "--force")[0] == 0
    syn = potstill.SyntheticSet.load(out)
    assert syn.classes == NAMES and len(syn.decoded()[0]) == 80 and torch.equal(syn.images, x)
    assert torch.allclose(syn.transform(x).mean((0, 2, 3)), torch.zeros(1), atol=1e-5)
    how = ("--network", "mlp-w16", "--protocol", "quick-noflip", "--runs", 1, "--no-baseline")
    code, said = run(capsys, "evaluate", out, *how)
    assert code == 2 and "--data is not given, and" in said
    more = ("--data", "digits", "--imbalance-factor", 50, "--no-quantized", "--quiet")
    assert run(capsys, "evaluate", out, *how, *more)[0] == 0
    (record,) = json.loads((out / "scores.json").read_text())["scores"]
    assert max(record["train_counts"]) > 50 * min(record["train_counts"])


def test_arrays_and_pictures(digits, tmp_path):
    _, _, x, y = digits
    bytes_ = (x * 255).round().to(torch.uint8)
    np.savez(tmp_path / "a.npz", images=bytes_.numpy(), labels=y.numpy(), lr=np.float64(0.1))
    save_file({"images": x, "labels": y}, tmp_path / "a.safetensors")
    torch.save({"images": x.double(), "labels": y[:, None]}, tmp_path / "a.pt")
    syn = potstill.import_set(x, y)
    syn.save(tmp_path / "own")
    for name in ("a.npz", "a.safetensors", "a.pt", "own/images"):
        found = read_foreign(tmp_path / name)
        again = potstill.import_set(found.images, found.labels, classes=found.classes)
        assert again.images.shape == x.shape and again.labels.tolist() == y.tolist()
        assert torch.allclose(again.images, x, atol=0.003), name
        assert again.classes == NAMES
    assert read_foreign(tmp_path / "a.npz").lr == 0.1
    assert potstill.import_set(x, classes=10).labels.tolist() == y.tolist()
    assert potstill.import_set(x, torch.eye(10)[y]).soft_labels is None
    tenth = torch.full((20, 10), 0.1)
    assert torch.equal(potstill.import_set(x, tenth).soft_labels, tenth)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"labels": None}, "labels are not given"),
        ({"labels": np.zeros(3)}, r"labels have shape \(3,\) for 20 images"),
        ({"labels": np.full(20, 0.5)}, "no whole numbers from 0"),
        ({"labels": np.full(20, -1)}, "no whole numbers from 0"),
        ({"labels": np.full((20, 4), np.nan)}, "NaN or infinity"),
        ({"classes": 3}, "labels hold 9, but there are 3 classes"),
        ({"classes": [*"abcdefghi", ""]}, "name of class 9"),
        ({"labels": np.ones((20, 3)), "classes": 10}, "3 columns for 10 classes"),
        ({"images": np.zeros((20, 2, 2, 2))}, "must be the channel"),
        ({"images": np.zeros((0, 1, 2, 2))}, "give numbers"),
        ({"images": np.full((20, 1, 2, 2), np.nan)}, "NaN"),
        ({"normalisation": "cifar"}, "normalisation is 'cifar'; did you mean"),
        ({"normalisation": "zca"}, "fitted on real images"),
        ({"normalisation": "cifar10"}, r"does not fit images of shape \(1, 8, 8\)"),
        ({"factor": 9}, "factor is 9"),
        ({"classes": ["a", "a", *"bcdefghi"]}, "classes has 'a' twice"),
        ({"lr": -1.0}, "syn_lr is -1"),
    ],
)
def test_what_does_not_fit(digits, changes, match):
    _, _, x, y = digits
    given = {"images": x, "labels": y} | changes
    with pytest.raises(InputError, match=match):
        potstill.import_set(given.pop("images"), given.pop("labels"), **given)


class Attack:
    def __reduce__(self):
        return print, ("executed",)


def test_files_that_hold_more_than_tensors_are_refused(tmp_path, capsys):
    path = tmp_path / "a.pt"
    for content in ({"images": torch.zeros(2), "x": Attack()}, torch.nn.Linear(2, 2)):
        torch.save(content, path)
        with pytest.raises(InputError, match="holds more than tensors, and nothing else is opened"):
            read_foreign(path)
    assert "executed" not in capsys.readouterr().out
    torch.save({"images": torch.zeros(1).expand(10**9), "labels": torch.zeros(1)}, path)
    with pytest.raises(InputError, match="claims more values than it holds"):
        read_foreign(path)
    torch.save({"images": torch.zeros(4000), "labels": torch.zeros(1)}, path)
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(tmp_path / "b.pt", "w", 8) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    with pytest.raises(InputError, match="it is packed"):
        read_foreign(tmp_path / "b.pt")
    header = json.dumps({"images": {"dtype": "F32", "shape": [10**9], "data_offsets": [0, 4]}})
    bad = struct.pack("<Q", len(header)) + header.encode() + b"0000"
    for name, content in (("a.npz", b"x"), ("a.safetensors", bad), ("a.pt", b""), ("b.pt", b"x")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=r"cannot be read|holds more"):
            read_foreign(tmp_path / name)
    for name in ("c.pt", "c.zip"):
        with pytest.raises(InputError, match=r"does not exist|unknown kind"):
            (tmp_path / "c.zip").write_bytes(b"")
            read_foreign(tmp_path / name)


def test_odd_contents_are_refused_in_a_sentence(tmp_path):
    x, y = torch.rand(4, 1, 8, 8), torch.arange(4) % 2
    pair = {"images": x, "labels": y}
    for content, match in (
        ({"data": [x, y]}, "holds no pair of images and labels as experiment 1"),
        ({"data": [[x, y, 1, 2, 3, 4]]}, "holds no pair"),
        ({"data": [3]}, "holds no pair"),
        (pair | {"lr": torch.rand(4)}, "the step size in the file is no number"),
        (pair | {"lr": "fast"}, "the step size in the file is no number"),
        (pair | {"labels": ["a", "b", "a", "b"]}, "labels are <U1; give whole numbers"),
        (pair | {"images": x.to_sparse()}, r"images are a tensor of layout torch.sparse_coo"),
        (pair | {"labels": torch.tensor([0, 1, 10**12, 1])}, "labels hold 1000000000000 for 4"),
    ):
        torch.save(content, tmp_path / "a.pt")
        with pytest.raises(InputError, match=match):
            found = read_foreign(tmp_path / "a.pt")
            potstill.import_set(found.images, found.labels, lr=found.lr)
    for classes in (0, 10**12):
        with pytest.raises(InputError, match=f"classes is {classes}; give 1 to 100000, or names"):
            potstill.import_set(x, y, classes=classes)
    assert potstill.import_set(x, y > 0).labels.tolist() == y.tolist()
    torch.save(x, tmp_path / "images_best.pt")
    (tmp_path / "labels_best.pt").write_bytes(b"x")
    with pytest.raises(InputError, match=r"labels_best.pt (cannot be read|holds more)"):
        read_foreign(tmp_path / "images_best.pt")
