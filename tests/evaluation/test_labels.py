import pytest
import torch

from potstill.data import Normalize
from potstill.evaluation.labels import (
    TIERS,
    receiver_bytes,
    soft_labels,
    tier_of,
    with_soft_labels,
)
from potstill.nets import create, predict
from potstill.run import InputError
from potstill.synthetic import SyntheticSet

TRANSFORM = Normalize(torch.tensor([0.4]), torch.tensor([0.2]))
TILED = {"kind": "tiled", "factor": 2, "formation": "single"}


def synthetic(**more):
    images = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    return SyntheticSet(images, torch.tensor([0, 1, 2]), ("a", "b", "c"), TRANSFORM, **more)


def teacher(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return create("convnet-d2-w8-in", channels=1, size=8, classes=3, generator=generator)


def test_soft_labels_are_the_teachers_softmax():
    images = synthetic().images
    logits = predict(teacher(), images, TRANSFORM)
    found = soft_labels([teacher()], images, TRANSFORM, temperature=4.0)
    torch.testing.assert_close(found, torch.exp(logits / 4) / torch.exp(logits / 4).sum(1, True))
    sharp = soft_labels([teacher()], images, TRANSFORM, temperature=0.25)
    assert (sharp.max(1).values > found.max(1).values).all()


def test_adjustment_divides_by_the_prior():
    images, counts = synthetic().images, (100, 10, 1)
    plain = soft_labels([teacher()], images, TRANSFORM)
    found = soft_labels([teacher()], images, TRANSFORM, counts=counts)
    expected = plain / torch.tensor(counts)
    torch.testing.assert_close(found, expected / expected.sum(1, keepdim=True))
    untouched = soft_labels([teacher()], images, TRANSFORM, counts=counts, tau=0.0)
    torch.testing.assert_close(untouched, plain)


def test_several_teachers_are_averaged():
    images = synthetic().images
    one, two = (soft_labels([teacher(seed)], images, TRANSFORM) for seed in (0, 1))
    assert not torch.allclose(one, two)
    both = soft_labels([teacher(0), teacher(1)], images, TRANSFORM)
    torch.testing.assert_close(both, (one + two) / 2)


def test_plain_artifacts_keep_their_images():
    syn = synthetic(weights=torch.tensor([1.0, 2.0, 0.5]), provenance={"ipc": 1})
    found = with_soft_labels(syn, [teacher()], temperature=2.0)
    assert torch.equal(found.images, syn.images) and torch.equal(found.weights, syn.weights)
    expected = soft_labels([teacher()], syn.images, TRANSFORM, temperature=2.0)
    assert torch.equal(found.soft_labels, expected)
    assert found.provenance["ipc"] == 1
    assert found.provenance["soft_labels"]["temperature"] == 2.0
    assert found.label_tier == "static" and "soft_labels" not in syn.provenance


def test_tiled_artifacts_keep_their_storage_and_get_a_label_for_each_decoded_image():
    syn = synthetic(decode=TILED, weights=torch.tensor([1.0, 2.0, 0.5]))
    found = with_soft_labels(syn, [teacher()], temperature=2.0)
    assert torch.equal(found.images, syn.images) and found.decode == TILED
    images, labels, soft, weights = found.decoded()
    assert torch.equal(images, syn.decoded()[0]) and labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert found.soft_labels.shape == (3, 4, 3) and soft.shape == (12, 3)
    said = predict(teacher(), images, TRANSFORM)
    torch.testing.assert_close(soft, (said / 2).softmax(1))
    assert not torch.allclose(soft[0], soft[1])  # each tile has its own
    assert torch.equal(weights, syn.weights.repeat_interleave(4))
    assert found.nbytes == syn.nbytes + 12 * 3 * 4 == receiver_bytes(found, "static")
    assert receiver_bytes(found, "hard") == syn.nbytes


def test_bytes_count_stored_labels_only_where_they_are_used():
    syn = synthetic()
    images, labels, constants = 3 * 64 * 4, 3 * 8, 2 * 4
    assert receiver_bytes(syn, "hard") == images + labels + constants == syn.nbytes
    weights = sum(p.numel() for p in teacher().parameters()) * 4
    assert receiver_bytes(syn, "online", weights) == syn.nbytes + weights
    told = with_soft_labels(syn, [teacher()])
    assert receiver_bytes(told, "static") == told.nbytes == syn.nbytes + 3 * 3 * 4
    assert receiver_bytes(told, "hard") == syn.nbytes
    assert (tier_of(told), tier_of(told, "hard"), tier_of(syn)) == ("static", "hard", "hard")


def test_impossible_arguments():
    syn = synthetic()
    with pytest.raises(InputError, match="did you mean 'stored'"):
        receiver_bytes(syn, "store")
    for tier in ("static", "regression", "stored", "projected"):
        with pytest.raises(InputError, match=f"tier is '{tier}', but the artifact has no labels"):
            receiver_bytes(syn, tier)
    for tier in ("online", "inherited"):
        with pytest.raises(InputError, match=f"held is 0 for tier '{tier}'"):
            receiver_bytes(syn, tier)
    with pytest.raises(InputError, match="temperature is 0"):
        soft_labels([teacher()], syn.images, TRANSFORM, temperature=0)
    with pytest.raises(InputError, match="teachers is empty"):
        soft_labels([], syn.images, TRANSFORM)
    assert list(TIERS) == [
        "hard",
        "static",
        "regression",
        "stored",
        "online",
        "projected",
        "inherited",
    ]
