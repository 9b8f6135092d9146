"""Runs and artifacts that potstill 0.1 wrote are read, decoded, scored and shown as they were."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import potstill
from potstill.app.cli import main
from potstill.evaluation import read_scores
from potstill.synthetic import SyntheticSet

STORED = Path(__file__).parent / "fixtures" / "0.1"
# checksum, that of the 8-bit view, and the sum of all pixels, as 0.1 gave them
FACTS = {
    "csdm": ("f37c5d01ffecba23", "559393d6ce451135", 1561.136474609375, None),
    "lad": ("ec5e9a92749d21ea", "77daab58b1f42888", 259.24237060546875, 0.010418700985610485),
}


@pytest.fixture(params=FACTS)
def folder(request, tmp_path):
    shutil.copytree(STORED / request.param, tmp_path / request.param)
    return tmp_path / request.param


def test_tensors_and_their_decoding(folder):
    whole, eight_bit, total, syn_lr = FACTS[folder.name]
    syn = SyntheticSet.load(folder)
    assert (syn.checksum, syn.quantized().checksum, syn.syn_lr) == (whole, eight_bit, syn_lr)
    assert float(syn.decoded()[0].sum()) == pytest.approx(total, rel=1e-6)
    assert syn.provenance["method"]["name"] == folder.name


def test_the_parquet_view_is_a_source(folder):
    train = potstill.load(folder / "synthetic", quiet=True)
    syn = SyntheticSet.load(folder).quantized()
    assert train.classes == syn.classes and train.labels.tolist() == syn.labels.tolist()
    assert (train.images.float() / 255 - syn.images).abs().max() < 1e-6


def test_scores_reports_and_a_new_evaluation(folder, capsys):
    assert len(read_scores(folder)) == (folder.name == "csdm")
    assert main(["report", str(folder)]) == 0
    words = ["--network", "mlp-w8", "--protocol", "quick-noflip", "--runs", "1", "--device", "cpu"]
    assert main(["evaluate", str(folder), *words, "--no-baseline", "--quiet"]) == 0
    scores = json.loads((folder / "scores.json").read_text())["scores"]
    assert len(scores) == 1 + (folder.name == "csdm")  # the old one is still there
    assert main(["report", str(folder)]) == 0


def test_a_finished_run_is_not_repeated_under_another_version(folder, capsys):
    before = (folder / "synthetic" / "synthetic.safetensors").read_bytes()
    words = ["--data", "digits", "--imbalance-factor", "20", "--ipc", "3", "--device", "cpu"]
    assert main(["distill", "random", *words, "--out", str(folder)]) == 2
    assert "which holds a finished run of another job" in capsys.readouterr().err
    assert (folder / "synthetic" / "synthetic.safetensors").read_bytes() == before
