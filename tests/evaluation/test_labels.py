import math

import pytest
import torch

from potstill.data import Normalize
from potstill.evaluation.labels import (
    TIERS,
    receiver_bytes,
    soft_labels,
    tier_of,
    with_soft_labels,
    with_view_labels,
)
from potstill.labels import adsa_tau
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


def by_hand(logits, labels, temperature, share, prior=None, tau=0.0):
    """S e_y + (1 - S) softmax((z - τ log π) / T) in float64, one number at a time."""
    rows = []
    for row, label in zip(logits.double().tolist(), labels.tolist(), strict=True):
        shift = [tau * math.log(p) for p in prior] if prior else [0.0] * len(row)
        e = [math.exp((z - s) / temperature) for z, s in zip(row, shift, strict=True)]
        soft = [value / sum(e) for value in e]
        rows.append([share * (k == label) + (1 - share) * p for k, p in enumerate(soft)])
    return torch.tensor(rows, dtype=torch.float64)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
@pytest.mark.parametrize("decode", [{"kind": "pixels"}, TILED])
def test_a_share_of_the_class_is_mixed_in(share, decode):
    syn = synthetic(decode=decode)
    found = with_soft_labels(syn, [teacher()], temperature=3.0, hard_share=share)
    images, labels, soft, _ = found.decoded()
    expected = by_hand(predict(teacher(), images, TRANSFORM), labels, 3.0, share)
    torch.testing.assert_close(soft.double(), expected, atol=1e-6, rtol=0)
    assert found.provenance["soft_labels"]["hard_share"] == share
    if share == 0.9:
        assert torch.equal(soft.argmax(1), labels)


def test_adsa_shifts_before_the_temperature_and_says_so():
    syn, counts = synthetic(decode=TILED), (100, 10, 1)
    images, labels, *_ = syn.decoded()
    prior = [n / sum(counts) for n in counts]
    net = teacher()
    with torch.no_grad():  # sure enough of the classes' sizes for a shift to be found
        net.classifier.bias += 0.7 * torch.tensor(prior).log()
    logits = predict(net, images, TRANSFORM)
    tau = adsa_tau(logits, labels, counts)
    assert 0.1 < tau < 2
    how = {"temperature": 2.0, "counts": counts, "tau": "adsa", "hard_share": 0.25}
    found = with_soft_labels(syn, [net], **how)
    expected = by_hand(logits, labels, 2.0, 0.25, prior, tau)
    torch.testing.assert_close(found.decoded()[2].double(), expected, atol=1e-6, rtol=0)
    told = found.provenance["soft_labels"]
    assert (told["tau"], told["calibration"], told["adjusted"]) == (tau, "adsa", True)
    mean = [expected[labels == c, c].mean() for c in range(3)]
    plain = by_hand(logits, labels, 2.0, 0.25)
    before = [plain[labels == c, c].mean() for c in range(3)]
    assert torch.stack(mean).std() < torch.stack(before).std()


def test_even_labels_weigh_alike_at_their_temperature_and_say_so():
    syn = synthetic(decode=TILED)
    found = with_soft_labels(syn, [teacher(), teacher()], temperature=2.0, tau="even")
    _, labels, soft, _ = found.decoded()
    shares = torch.bincount(labels).double() / len(labels)
    assert torch.allclose(soft.double().mean(0), shares, atol=1e-5)
    told = found.provenance["soft_labels"]
    assert told["calibration"] == "even" and len(told["shift"]) == 3 and not told["adjusted"]


def test_adsa_shifts_every_stored_view_alike(run):
    syn, counts = synthetic(decode=TILED), (100, 10, 1)
    net = teacher()
    with torch.no_grad():
        net.classifier.bias += 0.7 * torch.tensor([100 / 111, 10 / 111, 1 / 111]).log()
    images, labels, *_ = syn.decoded()
    tau = adsa_tau(predict(net, images, TRANSFORM), labels, counts)
    found = with_view_labels(syn, [net], run, epochs=2, counts=counts, tau="adsa")
    assert found.provenance["view_labels"]["tau"] == tau > 0
    rows, views = torch.arange(12), found.view_labels
    said = predict(net, views.view(images, rows, 1), TRANSFORM)
    expected = soft_labels([net], views.view(images, rows, 1), TRANSFORM, counts=counts, tau=tau)
    torch.testing.assert_close(views.targets(rows, 1, 3), expected, atol=2e-3, rtol=2e-3)
    assert not torch.allclose(expected, said.softmax(1), atol=1e-2)


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
    for share in (1.0, -0.1, float("nan")):
        with pytest.raises(
            InputError, match=f"hard_share is {share}; use a number from 0 to below"
        ):
            with_soft_labels(syn, [teacher()], hard_share=share)
    with pytest.raises(InputError, match="tau is 'adsa' without counts"):
        with_soft_labels(syn, [teacher()], tau="adsa")
    with pytest.raises(InputError, match="tau is 'asda'; use one of adsa"):
        with_soft_labels(syn, [teacher()], tau="asda", counts=(1, 1, 1))
    assert list(TIERS) == [
        "hard",
        "static",
        "regression",
        "stored",
        "online",
        "projected",
        "inherited",
    ]
