"""Labels that residual teachers give to finished images."""

from dataclasses import replace

import pytest
import torch
from tests.test_pairings import tiny

from potstill.data import Normalize
from potstill.experts import taught_labels
from potstill.experts.labelling import residual_training
from potstill.experts.taught_labels import Taught
from potstill.labels import adsa_tau
from potstill.methods.distribution.csdm import CSDM
from potstill.methods.distribution.dm import DM
from potstill.nets import create_for
from potstill.run import InputError

TEACHER = {"teacher": "resnet10-w4-bn", "teacher_epochs": 2, "teachers": 2}


@pytest.fixture
def real(make_blobs):
    return make_blobs((60, 20, 8), channels=3, size=16)


def method(**changes):
    return tiny(CSDM, labels="taught", factor=2, **TEACHER | changes)


def halved(images):
    """Images (n, c, h, w) in 8 bits, four pixels averaged to one."""
    n, c, h, w = images.shape
    means = images.double().reshape(n, c, h // 2, 2, w // 2, 2).mean((3, 5))
    return means.round().to(torch.uint8)  # torch rounds halves to even, and so does the shrinking


def nets_of(made, real, run, factor=1):
    """The teachers and what stands before them, trained again without the labels room."""
    from potstill.experts.pool import train_pool

    training, transform = residual_training(len(real), 2), made.transform
    if factor == 2:
        real = replace(real, images=halved(real.images), fingerprint="halved")
        transform = Normalize.fit(real)
    pool = train_pool(real, transform, "resnet10-w4-bn", 2, training, run, prior="balanced_softmax")
    found = []
    for state in pool.trained:
        net = create_for(real, "resnet10-w4-bn", torch.Generator().manual_seed(0))
        net.load_state_dict(state)
        found.append(net.eval())
    return found, transform


@pytest.mark.parametrize("calibration", ["none", "adsa"])
def test_labels_are_the_mean_of_teachers_mixed_with_the_class(calibration, real, run):
    made = method(hard_share=0.25, label_temperature=2.0, label_calibration=calibration)(
        real, 2, run
    )
    assert made.soft_labels.shape == (6, 4, 3) and made.label_tier == "static"
    _, labels, soft, _ = made.decoded()
    tiles = made.images.unfold(2, 8, 8).unfold(3, 8, 8)  # (n, c, 2, 2, 8, 8)
    tiles = tiles.permute(0, 2, 3, 1, 4, 5).flatten(0, 2)
    nets, transform = nets_of(made, real, run, factor=2)
    with torch.no_grad():
        z = torch.stack([net(transform.forward(tiles)) for net in nets])
    shares = torch.tensor(real.counts).double() / len(real)
    tau = adsa_tau(z, labels, real.counts) if calibration == "adsa" else 0.0
    own = ((z.double() - tau * shares.log()) / 2.0).softmax(2).mean(0)
    expected = 0.25 * torch.eye(3, dtype=torch.float64)[labels] + 0.75 * own
    assert torch.allclose(soft.double(), expected, atol=1e-5)
    told = made.provenance["labelled_by"]
    assert told["network"] == "resnet10-w4-bn" and told["epochs"] == 2
    assert told["tau"] == (pytest.approx(tau, abs=1e-3) if calibration == "adsa" else None)


def test_even_labels_give_each_class_its_images_worth(real, run):
    made = method(hard_share=0.0, label_temperature=2.0, label_calibration="even")(real, 2, run)
    assert torch.allclose(made.soft_labels.mean((0, 1)), torch.full((3,), 1 / 3), atol=1e-5)
    assert made.provenance["labelled_by"]["calibration"] == "even"
    start = made.start.soft_labels.float().mean((0, 1))  # of other images, by a shift of their own
    assert torch.allclose(start, torch.full((3,), 1 / 3), atol=2e-3)


def test_the_start_has_labels_of_its_own_images(real, run):
    made = method(steps=3)(real, 1, run)
    assert made.start.soft_labels.shape == made.soft_labels.shape
    assert not torch.equal(made.start.soft_labels, made.soft_labels)
    again = method(steps=0)(real, 1, run)
    assert torch.allclose(again.soft_labels, made.start.soft_labels, atol=2e-2)  # of 8-bit images


def test_images_do_not_depend_on_labels_and_teachers_are_kept(real, run):
    taught = method()(real, 1, run)
    hard = tiny(CSDM, factor=2)(real, 1, run)
    assert torch.equal(taught.images, hard.images) and hard.soft_labels is None
    again = method()(real, 1, run)
    assert again.checksum == taught.checksum
    assert again.provenance["seconds_from_cache"] > hard.provenance["seconds_from_cache"]


def test_labels_are_of_the_bytes_that_are_stored(real, run):
    chosen = {"canvas": "pixels", "start": "real", "lr_images": 300.0, **TEACHER}
    chosen |= {"labels": "taught", "label_calibration": "none", "label_temperature": 1.0}
    made = tiny(DM, bits=8, **chosen)(real, 2, run)
    plain = tiny(DM, **chosen)(real, 2, run)
    assert plain.images.max() > 1.1  # bytes cannot hold it
    nets, transform = nets_of(made, real, run)
    with torch.no_grad():
        z = [net(transform.forward(made.images)) for net in nets]
    expected = torch.stack([one.softmax(1) for one in z]).mean(0)
    assert torch.allclose(made.soft_labels, expected, atol=1e-5)
    assert not torch.allclose(plain.soft_labels, expected, atol=1e-3)


def test_a_poor_teacher_is_told_of_once(real, run, caplog):
    made = method(teacher_epochs=1, teachers=1)(real, 2, run)  # two steps
    right = made.provenance["labelled_by"]["right"]
    _, labels, soft, _ = made.decoded()
    assert right == pytest.approx(float((soft.argmax(1) == labels).double().mean()), abs=1e-3)
    assert right < 0.5
    (told,) = [r.getMessage() for r in caplog.records if "poor teacher's" in r.getMessage()]
    assert "use more teacher_epochs" in told
    caplog.clear()
    good = method(teacher_epochs=60, teachers=1)(real, 2, run)
    assert good.provenance["labelled_by"]["right"] > 0.5
    assert "poor teacher's" not in caplog.text


def test_a_stored_image_that_is_one_has_one_label(real, run):
    made = tiny(DM, labels="taught", canvas="pixels", start="real", **TEACHER)(real, 2, run)
    assert made.soft_labels.shape == (6, 3)


def test_teachers_of_few_images_have_as_many_steps_as_any(real, run, monkeypatch):
    seen = []

    def train(name, training, *others):
        seen.append(training.epochs)
        return [], {}, 0.0

    monkeypatch.setattr(taught_labels, "train_teachers", train)
    transform = Normalize.fit(real)
    for asked in (Taught(), Taught(teacher_epochs=3)):
        asked.trained(real, 1, transform, run)
    assert seen == [5000, 3]  # 88 images are one whole batch of 64 an epoch


def test_an_unknown_teacher_is_refused_before_anything_is_opened():
    with pytest.raises(InputError, match="teacher is 'resnet11'"):
        CSDM.budget("quick", labels="taught", teacher="resnet11").check()
    with pytest.raises(InputError, match="hard_share is 1"):
        CSDM.budget("quick", labels="taught", hard_share=1.0).check()


def test_a_teacher_for_larger_images_is_refused_before_networks_are_trained(make_blobs):
    chosen = {"labels": "taught", "teacher": "wrn16-w4-bn", "network": "mlp-w8"}
    made = CSDM.budget("quick", **chosen)
    made.check()
    with pytest.raises(InputError, match="teacher is 'wrn16-w4-bn', whose maps vanish"):
        made.check(make_blobs((8, 4), size=4))
    tiled = CSDM.budget("quick", factor=4, **chosen)  # of tiles of 4 pixels
    with pytest.raises(InputError, match=r"teacher is .* maps vanish on images of 4x4"):
        tiled.check(make_blobs((8, 4), size=16))
