"""How teachers are trained: residual networks by a recipe of their own, others as the ceiling."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from potstill.data import Normalize
from potstill.evaluation import PROTOCOLS, references, trained_teachers
from potstill.evaluation.teaching import teacher_training
from potstill.nets import predict
from potstill.run import InputError

QUICK, UPRIGHT = PROTOCOLS["quick"], PROTOCOLS["quick-noflip"]


@pytest.mark.parametrize("name", ["wrn16-w32-bn", "resnet10-w24-in", "resnet18-bn"])
def test_residual_networks_have_their_own_recipe(name):
    how = teacher_training(name, QUICK, 11_203)
    assert (how.epochs, how.batch, how.optimizer, how.nesterov) == (40, 64, "sgd", True)
    assert how.lr_at(0) == pytest.approx(0.01) and how.lr_at(4) == 0.05  # four epochs of rise
    assert how.lr_at(39) < 1e-3 and how.augment.ops == ("crop", "flip")
    assert teacher_training(name, UPRIGHT, 11_203).augment.ops == ("crop",)
    assert how.drop_last and how.steps(11_203) == 175
    assert teacher_training(name, QUICK, 150).epochs == 2500  # 5000 steps
    assert teacher_training(name, QUICK, 100, epochs=3) == replace(how, epochs=3)


@pytest.mark.parametrize("name", ["convnet-d3-w32-in", "vgg11-bn", "mlp-w8"])
def test_others_are_trained_as_the_ceiling(name):
    for beside in (QUICK, UPRIGHT):
        ceiling = references.reference("ceiling", beside, 11_203).training
        assert teacher_training(name, beside, 11_203) == ceiling
        assert teacher_training(name, beside, 11_203, epochs=7) == replace(ceiling, epochs=7)


def test_epochs_that_are_none_are_refused():
    with pytest.raises(InputError, match="teacher_epochs is 0"):
        teacher_training("wrn16", QUICK, 100, epochs=0)


def test_a_thin_residual_teacher_learns_is_kept_and_has_company(make_blobs, run, monkeypatch):
    from potstill.experts import pool

    real, test = make_blobs((100, 60, 34), size=12), make_blobs((20, 20, 20), size=12, seed=1)
    transform, calls = Normalize.fit(real), []
    original = pool.train_many
    monkeypatch.setattr(pool, "train_many", lambda *a, **k: calls.append(k) or original(*a, **k))
    # upright: a mirrored blob is another class
    how = {"epochs": 10, "beside": UPRIGHT, "real": real, "transform": transform, "run": run}
    (net,), facts = trained_teachers("wrn16-w8-bn", "balanced_softmax", **how)
    assert facts["epochs"] == 10 and facts["network"] == "wrn16-w8-bn" and not net.training
    found = predict(net, test.rows(), transform).argmax(1)
    assert (found == test.labels).float().mean() > 0.8  # a third by chance
    (again, other), _ = trained_teachers("wrn16-w8-bn", "balanced_softmax", **how, members=2)
    assert [len(call["start_epoch"]) for call in calls] == [1, 1]  # the first was not repeated
    assert all(call["channels_last"] for call in calls)
    first = predict(net, test.rows(), transform)
    assert torch.equal(predict(again, test.rows(), transform), first)
    assert not torch.allclose(predict(other, test.rows(), transform), first, atol=1e-2)


@pytest.mark.parametrize("prior", ["plain", "remix_drw", "post_hoc", "crt_trained", "glmc"])
def test_every_kind_of_prior_goes_with_a_residual_teacher(make_blobs, run, prior):
    real = make_blobs((20, 12, 6))
    how = {"epochs": 2, "beside": UPRIGHT, "real": real, "transform": Normalize.fit(real)}
    (net,), facts = trained_teachers("resnet10-w4-bn", prior, **how, run=run)
    assert facts["prior"] == prior
    assert predict(net, real.rows(), Normalize.fit(real)).isfinite().all()
