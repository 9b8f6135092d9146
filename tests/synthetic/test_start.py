"""The start: kept in eight bits beside a set, scored by the same students, said as a gain."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest
import torch

from potstill.canvas import canvas_spec
from potstill.data import Normalize
from potstill.evaluation import PROTOCOLS, evaluate, with_soft_labels
from potstill.evaluation.record import gain
from potstill.nets import create
from potstill.reports.remarks import remarks
from potstill.run import ArtifactError, InputError
from potstill.synthetic import SyntheticSet
from potstill.synthetic.started import START, kept, started


@pytest.fixture
def outcome() -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(1)
    return {
        "images": torch.rand(4, 1, 8, 8, generator=draw) * 1.4 - 0.2,
        "soft_labels": torch.randn(4, 2, generator=draw).softmax(1),
        "syn_lr": 0.5,
    }


@pytest.fixture
def syn(real, outcome) -> SyntheticSet:
    draw = torch.Generator().manual_seed(0)
    found = SyntheticSet(
        images=torch.rand(4, 1, 8, 8, generator=draw),
        labels=torch.tensor([0, 0, 1, 1]),
        classes=real.classes,
        transform=Normalize.fit(real),
        soft_labels=torch.randn(4, 2, generator=draw).softmax(1),
        syn_lr=0.02,
        provenance={"x": 1},
    )
    return started(found, kept(outcome))


def test_it_is_what_an_outcome_was_in_eight_bits(syn, outcome):
    first = syn.start
    assert torch.equal(first.images, (outcome["images"].clamp(0, 1) * 255).round() / 255)
    torch.testing.assert_close(first.soft_labels, outcome["soft_labels"], atol=1e-3, rtol=0)
    assert first.syn_lr == syn.syn_lr == 0.02  # students' step size, not what it began with
    assert first.start is None and torch.equal(first.labels, syn.labels)


def test_it_travels_and_counts_for_nothing(syn, tmp_path):
    syn.save(tmp_path / "a")
    again = SyntheticSet.load(tmp_path / "a")
    assert torch.equal(again.start.images, syn.start.images)
    assert torch.equal(again.start.soft_labels, syn.start.soft_labels)
    bare = replace(syn, start=None)
    assert bare.checksum == syn.checksum and bare.nbytes == syn.nbytes
    bare.save(tmp_path / "a")  # an older start goes with its set
    assert SyntheticSet.load(tmp_path / "a").start is None
    assert not (tmp_path / "a" / START).exists()


def test_views_of_a_set_have_no_start(syn):
    tiled = replace(syn, decode=canvas_spec(2), start=None)
    tiled = started(tiled, kept({"images": syn.images, "soft_labels": syn.soft_labels}))
    assert tiled.quantized().start is None and tiled.start.decoded()[0].shape[0] == 16
    draw = torch.Generator().manual_seed(0)
    net = create("mlp-w8", channels=1, size=8, classes=2, generator=draw)
    assert with_soft_labels(tiled, [net]).start is None
    with pytest.raises(InputError, match="start has images of shape"):
        replace(syn, images=torch.rand(4, 1, 6, 6), transform=syn.transform)


def test_anothers_start_and_a_damaged_one_are_refused(syn, tmp_path):
    syn.save(tmp_path / "a")
    replace(syn, images=syn.images * 0.5).save(tmp_path / "b")
    own, other = tmp_path / "a" / START, tmp_path / "b" / START
    content = own.read_bytes()
    own.write_bytes(other.read_bytes())
    with pytest.raises(ArtifactError, match=r"of another artifact.*delete it"):
        SyntheticSet.load(tmp_path / "a")
    own.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(ArtifactError, match="delete it to load the set without its start"):
        SyntheticSet.load(tmp_path / "a")
    own.unlink()
    os.mkfifo(own)
    with pytest.raises(ArtifactError, match="no regular file"):
        SyntheticSet.load(tmp_path / "a")
    own.unlink()
    assert SyntheticSet.load(tmp_path / "a").checksum == syn.checksum


@pytest.mark.parametrize("learned_lr", [False, True])
def test_the_same_students_score_it(syn, real, make_blobs, run, learned_lr):
    test = make_blobs((6, 6), seed=1)
    protocol = PROTOCOLS["quick"].with_(
        epochs=4, batch=8, augment="color_crop", learned_lr=learned_lr, optimizer="sgd"
    )
    how = {"protocol": protocol, "network": "mlp-w8", "runs": 2, "run": run, "quantized": False}
    (found,) = evaluate(syn, real, test, **how)
    (alone,) = evaluate(syn.start, real, test, **how)
    assert found.start["accuracy"] == alone.accuracy and alone.start is None
    own, other = found.accuracy, found.start["accuracy"]
    points, error = gain(found.to_json())
    assert points == own["mean"] - other["mean"]
    assert error == pytest.approx(((own["std"] ** 2 + other["std"] ** 2) / 2) ** 0.5)
    said = f"Over its start, the same set before step 0: {points:+.1f} ± {error:.1f} points"
    assert any(text.startswith(said) for text in remarks(found))
    assert evaluate(syn, real, test, **how, baseline=False)[0].start is None


def test_a_gain_of_single_students_has_no_error():
    record = {"accuracy": {"mean": 50.0, "std": None, "values": [50.0]}}
    assert gain(record) is None
    beside = record | {"start": {"accuracy": {"mean": 40.0, "std": 1.0, "values": [39.0, 41.0]}}}
    assert gain(beside) == (10.0, None)
