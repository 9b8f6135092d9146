"""The table of images and labels: what stands in a cell, and what is taken from what."""

from __future__ import annotations

import json
from argparse import Namespace

import pytest

from potstill.evaluation import PROTOCOLS


def line(images, labels, accuracy, size=1000):
    told = {"images": images, "labels": labels, "accuracy": accuracy, "std": 0.5, "bytes": size}
    return told | {"imbalance_factor": 200.0, "ipc": 10, "calibration": "none"}


def test_what_labels_and_images_add_is_told_apart(script):
    table = script("label_table").table
    told = [line("random", "hard", 20.0), line("random", "online", 30.0, 9000)]
    told += [line("csdm", "hard", 45.0), line("csdm", "online", 48.0), line("csdm", "online", 50.0)]
    rows = {row.split(" | ")[0]: row for row in table(told).splitlines() if row.startswith("| ")}
    assert "30.0 ± 0.5 (9 kB)" in rows["| random"] and "+10.0 online" in rows["| random"]
    assert "49.0 ± 0.5" in rows["| csdm"] and "+4.0 online" in rows["| csdm"]
    assert "+25.0 hard, +19.0 online" in rows["| csdm"] and rows["| csdm"].count("–") == 3


@pytest.mark.parametrize("labels", ["hard", "static", "stored", "online"])
def test_a_cell_is_measured_with_its_tier_and_bytes(script, make_blobs, run, tmp_path, labels):
    bench = script("label_table")
    options = Namespace(
        out=tmp_path / "lines", images=["random"], labels=[labels], seed=0, ipc=2,
        imbalance_factor=2.0, teacher="mlp-w8", temperature=2.0, calibration="even", set={},
        work=tmp_path / "work", teacher_epochs=2, crop_min=0.5, flip=0.0, epochs=3,
        network="mlp-w8", runs=2,
    )  # fmt: skip
    options.out.touch()
    real, held = make_blobs((12, 6)), make_blobs((5, 5), seed=1)
    protocol = PROTOCOLS["quick"].with_(epochs=3, batch=4)
    (found,) = bench.lines(real, held, protocol, run, options)
    bare = 4 * 64 * 4 + 4 * 8 + 2 * 4
    more = {"hard": 0, "static": 4 * 2 * 4}.get(labels)
    tiers = {"hard": "hard", "static": "static", "stored": "stored", "online": "online"}
    assert found["tier"] == tiers[labels] and 0 <= found["accuracy"] <= 100
    assert found["bytes"] == bare + more if more is not None else found["bytes"] > bare
    options.out.write_text(json.dumps(found) + "\n")
    assert not list(bench.lines(real, held, protocol, run, options))
