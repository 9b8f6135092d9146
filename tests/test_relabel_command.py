"""``potstill relabel``: a finished run's images in another run, with a teacher's labels."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch

from potstill.app.cli import main
from potstill.data import Normalize
from potstill.evaluation import PROTOCOLS
from potstill.nets.backbone import own_backbone, save_backbone
from potstill.synthetic import SyntheticSet

MACHINE = "--device cpu --threads 1 --quiet"


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A finished run on three uneven classes of images 8 pixels wide."""
    quick = PROTOCOLS["quick"].with_(epochs=3, augment="color_crop", name="quick")
    monkeypatch.setitem(PROTOCOLS, "quick", quick)
    labels = np.repeat([0, 1, 2], [14, 9, 4])
    noise = np.random.default_rng(0).integers(0, 60, (len(labels), 8, 8))
    images = (noise + 90 * labels[:, None, None]).astype(np.uint8)
    for name in ("set", "test"):
        np.savez(tmp_path / f"{name}.npz", images=images, labels=labels, classes=[*"abc"])
    data = f"--data {tmp_path}/set.npz --test {tmp_path}/test.npz"
    assert main(shlex.split(f"distill random --ipc 2 --out {tmp_path}/a {data} {MACHINE}")) == 0
    return tmp_path / "a"


def relabel(made: Path, more: str) -> int:
    protocol = "" if "projected" in more or "--protocol" in more else "--protocol quick"
    words = f"relabel {made} --out {made.parent}/b {protocol} {MACHINE} {more}"
    return main(shlex.split(words))


@pytest.mark.parametrize(
    ("flags", "tier"),
    [
        ("--epochs 2 --teacher mlp-w8 --top 2 --cutmix 0.5 --flip 0", "stored"),
        ("--labels soft --teacher mlp-w8 --temperature 2", "static"),
        ("--labels soft --teacher mlp-w8 --calibration adsa --hard-share 0.25", "static"),
        ("--labels soft --teacher wrn16-w4-bn --teacher-epochs 2 --teachers 2", "static"),
        ("--labels projected --teacher {made.parent}/backbone --flip 0", "projected"),
    ],
)
def test_each_kind_of_label_is_made_scored_and_shown(made, capsys, monkeypatch, flags, tier):
    from potstill.app import relabel_command

    short = relabel_command.train_head  # ten thousand steps otherwise
    monkeypatch.setattr(
        relabel_command, "train_head", lambda *at, **how: short(*at, **how, least_steps=20)
    )
    flags = flags.replace("{made.parent}", str(made.parent))
    draw, plain = torch.Generator().manual_seed(0), Normalize(*torch.full((2, 1), 0.5))
    backbone = own_backbone("convnet-d2-w8-in", (1, 8, 8), draw, plain)
    save_backbone(backbone, "convnet-d2-w8-in", made.parent / "backbone", {})
    assert relabel(made, flags) == 0
    out = made.parent / "b"
    assert f"labels {tier}" in capsys.readouterr().out
    syn, before = SyntheticSet.load(out), SyntheticSet.load(made)
    assert syn.label_tier == tier and torch.equal(syn.images, before.images)
    stored = (out / "synthetic" / "synthetic.safetensors").read_bytes()
    assert str(made.parent).encode() not in stored  # places of this machine do not travel
    record = json.loads((out / "run.json").read_text())
    assert record["status"] == "finished" and record["artifact"] == syn.checksum
    words = f"evaluate {out} --network mlp-w8 --protocol quick --runs 1 {MACHINE}"
    assert main(shlex.split(words)) == 0
    (score,) = json.loads((out / "scores.json").read_text())["scores"]
    assert score["label_tier"] == tier
    assert main(["report", str(out)]) == 0
    page = (out / "report.html").read_text()
    assert f"label tier: {tier}" in page
    assert main(["compare", str(made), str(out), "--out", f"{out}/c.html"]) == 2  # not scored
    capsys.readouterr()
    when = (out / "synthetic" / "synthetic.safetensors").stat().st_mtime_ns
    assert relabel(made, flags) == 0  # the same job: read
    assert (out / "synthetic" / "synthetic.safetensors").stat().st_mtime_ns == when
    assert relabel(made, flags + " --seed 1") == 2
    assert "--force" in capsys.readouterr().err
    assert relabel(made, flags + " --seed 1 --force") == 0


def test_mosaics_stay_mosaics_with_a_soft_label_for_each_tile(made, capsys):
    data = f"--data {made.parent}/set.npz --test {made.parent}/test.npz"
    stored = made.parent / "m"
    words = f"distill mosaic --ipc 2 --factor 2 --out {stored} {data} {MACHINE}"
    assert main(shlex.split(words)) == 0
    assert relabel(stored, "--labels soft --teacher mlp-w8") == 0
    before, found = SyntheticSet.load(stored), SyntheticSet.load(made.parent / "b")
    assert torch.equal(found.images, before.images) and found.decode == before.decode
    assert found.soft_labels.shape == (6, 4, 3)
    assert found.nbytes == before.nbytes + 6 * 4 * 3 * 4
    out = made.parent / "b"
    words = f"evaluate {out} --network mlp-w8 --protocol quick --runs 1 {MACHINE}"
    assert main(shlex.split(words)) == 0
    (score,) = json.loads((out / "scores.json").read_text())["scores"]
    assert score["label_tier"] == "static" and score["receiver_bytes"] == found.nbytes
    assert score["mosaic"] is not None and main(["report", str(out)]) == 0
    assert "Soft labels" in (out / "report.html").read_text()


def test_a_set_with_labels_gets_others_and_none_of_its_scores(made, capsys):
    words = f"evaluate {made} --network mlp-w8 --protocol quick --runs 1 {MACHINE}"
    assert main(shlex.split(words)) == 0
    assert relabel(made, "--epochs 2 --teacher mlp-w8") == 0
    views = made.parent / "b"
    assert "scores" not in SyntheticSet.load(views).provenance
    assert main(["report", str(views)]) == 0
    assert "not been evaluated yet" in (views / "report.html").read_text()
    again = f"relabel {views} --out {made.parent}/c --labels soft --teacher mlp-w8 {MACHINE}"
    assert main(shlex.split(again)) == 0
    found = SyntheticSet.load(made.parent / "c")
    assert found.label_tier == "static" and found.view_labels is None
    assert "soft_labels" in found.provenance and "view_labels" not in found.provenance
    assert main(shlex.split(f"relabel {made} --out {made} --force {MACHINE}")) == 2
    assert "--out is" in capsys.readouterr().err


def test_what_is_asked_for_is_what_labels_become(made):
    how = "--labels soft --teacher mlp-w8 --teacher-prior plain"
    found = {}
    for name, more in {
        "plain": "",
        "mixed": " --hard-share 0.25",
        "adsa": " --calibration adsa",
        "even": " --calibration even",
    }.items():
        assert relabel(made, f"{how}{more} --force") == 0
        found[name] = SyntheticSet.load(made.parent / "b")
    own = torch.eye(3)[found["plain"].labels]
    expected = 0.25 * own + 0.75 * found["plain"].soft_labels
    torch.testing.assert_close(found["mixed"].soft_labels, expected)
    tau = found["adsa"].provenance["soft_labels"]["tau"]
    counts = torch.tensor([14.0, 9.0, 4.0])  # of the real set: a source with a test split
    assert tau > 0.05
    shifted = found["plain"].soft_labels * (counts / counts.sum()) ** -tau
    torch.testing.assert_close(found["adsa"].soft_labels, shifted / shifted.sum(1, keepdim=True))
    even = found["even"].soft_labels.mean(0)
    torch.testing.assert_close(even, own.mean(0), atol=1e-5, rtol=0)
    assert not torch.allclose(found["plain"].soft_labels.mean(0), even, atol=1e-3)


def test_two_teachers_are_asked_and_averaged(made):
    how = "--labels soft --teacher wrn16-w4-bn --teacher-epochs 2"
    assert relabel(made, how) == 0
    one = SyntheticSet.load(made.parent / "b")
    assert relabel(made, how + " --teachers 2 --force") == 0
    both = SyntheticSet.load(made.parent / "b")
    about = both.provenance["soft_labels"]
    assert (about["teachers"], about["teacher"]["epochs"]) == (2, 2)
    second = 2 * both.soft_labels - one.soft_labels  # what the other one must have said
    assert bool((second > 0).all()) and not torch.allclose(second, one.soft_labels, atol=1e-3)


def test_the_same_seed_draws_the_same_views(made):
    assert relabel(made, "--epochs 2 --teacher mlp-w8") == 0
    out = made.parent / "b"
    first = SyntheticSet.load(out).checksum
    assert relabel(made, "--epochs 2 --teacher mlp-w8 --seed 1 --force") == 0
    assert SyntheticSet.load(out).checksum != first
    assert relabel(made, "--epochs 2 --teacher mlp-w8 --force") == 0
    assert SyntheticSet.load(out).checksum == first


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ("--labels view", "--labels is 'view'"),
        ("--labels projected", "--teacher is None with labels 'projected'"),
        ("--labels projected --teacher self:convnet-w8-bn", "that a receiver can open"),
        ("--labels projected --teacher convnet-w8", "that a receiver can open"),
        ("--labels projected --teacher no/such", "--teacher is 'no/such'"),
        ("--labels soft --top 2", "--top is 2 with labels 'soft'; it belongs to --labels views"),
        ("--labels views --temperature 2", "--temperature is 2.0 with labels 'views'"),
        ("--labels views --teacher mpl-w8", "is 'mpl-w8'"),
        ("--labels views --hard-share 0.5", "--hard-share is 0.5 with labels 'views'"),
        ("--labels soft --hard-share 1", "--hard-share is 1.0; use a number from 0 to below 1"),
        ("--labels soft --calibration asda", "--calibration is 'asda'"),
        ("--labels projected --teacher x --calibration adsa", "--labels soft or views"),
        ("--teacher-epochs 0", "--teacher-epochs is 0"),
        ("--teachers 0", "--teachers is 0"),
        ("--labels projected --teacher x --teachers 2", "--teachers is 2 with labels 'projected'"),
        ("--epochs 0", "--epochs is 0"),
        ("--flip 2", "--flip is 2"),
        ("--protocol probe", "a probe; name one that trains networks"),
        ("--teacher-prior balancd", "--teacher-prior is 'balancd'"),
    ],
)
def test_mistakes_are_named(made, capsys, flags, sentence):
    assert relabel(made, flags) == 2
    said = capsys.readouterr().err
    assert sentence in said and said.count("\n") == 1, said
    assert not (made.parent / "b" / "synthetic").exists()
