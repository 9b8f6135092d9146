"""Targets that are real numbers: stored, read, shown to others and learned by squared error."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from potstill.evaluation import Protocol, find_protocol
from potstill.evaluation.examples import synthetic_examples
from potstill.evaluation.labels import receiver_bytes, tier_of
from potstill.evaluation.student import train_students
from potstill.losses import squared_error
from potstill.methods import KIP
from potstill.nets import Training, create, train_many
from potstill.run import InputError
from potstill.synthetic import SyntheticSet
from potstill.synthetic import tensors as exact


@pytest.fixture
def syn(syn) -> SyntheticSet:
    """The tiled set with targets."""
    draw = torch.Generator().manual_seed(1)
    return replace(syn, regression_targets=torch.randn(4, 2, generator=draw))


def test_they_travel_and_sets_without_them_keep_their_version(syn, tmp_path):
    syn.save(tmp_path / "a")
    again = SyntheticSet.load(tmp_path / "a")
    assert torch.equal(again.regression_targets, syn.regression_targets)
    assert again.checksum == syn.checksum and exact.facts_of(syn)["version"] == 2
    plain = replace(syn, regression_targets=None)
    assert exact.facts_of(plain)["version"] == 1 and plain.checksum != syn.checksum
    assert "regression_targets" not in exact.tensors_of(plain)


def test_others_find_them_beside_their_images(syn, tmp_path):
    from pyarrow import parquet

    syn.save(tmp_path / "a")
    rows = parquet.read_table(next((tmp_path / "a" / "data").glob("*.parquet")))
    found = torch.tensor(rows["regression_target"].to_pylist())
    assert torch.equal(found, syn.decoded_targets()) and len(found) == 16
    assert torch.equal(found[4:8], syn.regression_targets[1].expand(4, 2))
    assert torch.equal(syn.quantized().regression_targets, found)
    assert "squared error" in (tmp_path / "a" / "README.md").read_text()


def test_tier_and_bytes(syn):
    assert tier_of(syn) == "regression" and tier_of(syn, "hard") == "hard"
    assert receiver_bytes(syn, "regression") - receiver_bytes(syn, "hard") == 4 * 2 * 4


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        (torch.zeros(4, 3), r"regression_targets has .*float32 \(4, 2\) is expected"),
        (torch.full((4, 2), float("nan")), "NaN"),
    ],
)
def test_bad_targets_are_refused(syn, wrong, sentence):
    with pytest.raises(InputError, match=sentence):
        replace(syn, regression_targets=wrong)
    with pytest.raises(InputError, match="beside soft labels or weights"):
        replace(syn, weights=torch.ones(4))


def test_a_student_learns_them_by_squared_error(syn, make_blobs, run):
    """The same weights as a plain training on the same batches with the loss written out."""
    examples = synthetic_examples(syn)
    assert examples.regression and torch.equal(examples.targets, syn.decoded_targets())
    a, b = torch.randn(5, 2), torch.randn(5, 2)
    assert torch.allclose(squared_error(a, b), 0.5 * ((a - b) ** 2).sum(1))
    training = Training(epochs=2, batch=16, lr=0.1, momentum=0.0, weight_decay=0.0)
    protocol: Protocol = find_protocol("quick").with_(training=training)
    test = make_blobs((6, 6), seed=1)
    how = {"network": "convnet-d2-w8-in", "test": test, "runs": 1, "run": run}
    outcome = train_students(examples, training, protocol, **how)
    draw = run.generator("student", 0)
    net = create("convnet-d2-w8-in", channels=1, size=8, classes=2, generator=draw)
    train_many(
        [net],
        examples,
        training,
        loss=lambda z, t: 0.5 * ((z - t) ** 2).sum(1),
        generators=lambda purpose, k, index: run.generator(f"student/{purpose}", k, index),
        quiet=True,
    )
    x = examples.transform.forward(test.batch(torch.arange(12)))
    right = net.eval()(x).argmax(1) == test.labels
    expected = [float(right[test.labels == c].float().mean()) for c in (0, 1)]
    found = torch.as_tensor(outcome.chosen).flatten().tolist()
    assert found == pytest.approx([100 * v for v in expected]) or found == pytest.approx(expected)


def test_kip_stores_what_it_learned(make_blobs, run):
    real = make_blobs((12, 8))
    method = KIP.budget("quick", steps=3, batch_real=10, learn_labels=True)
    syn = method(real, 2, run)
    centred = torch.tensor([[0.5, -0.5]] * 2 + [[-0.5, 0.5]] * 2)
    assert syn.label_tier == "regression"
    assert 0 < (syn.regression_targets - centred).abs().max() < 1
    assert KIP.budget("quick", steps=3)(real, 2, run).label_tier == "hard"
