"""Out of memory outside of the loop: real side, features, teachers, pools, experts, students."""

from dataclasses import replace

import left
import pytest
import torch
from test_opinions import NETWORK, weights
from tests.networks.test_real_statistics import side

from potstill.data import Normalize
from potstill.data.views import Views
from potstill.evaluation import student as students
from potstill.evaluation.examples import real_examples
from potstill.evaluation.protocol import PROTOCOLS
from potstill.experts.features import collect_features, image_features
from potstill.experts.teachers import right_candidates, teacher_logits
from potstill.nets import Training
from potstill.nets.backbone import own_backbone
from potstill.nets.layers import Network
from potstill.run import InputError


@pytest.fixture
def little(monkeypatch):
    """Let no network see more than so many images at a time; returns the numbers that it saw."""
    original = Network.features

    def limit(most):
        seen = []

        def features(net, x):
            seen.append(len(x))
            if len(x) > most:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return original(net, x)

        monkeypatch.setattr(Network, "features", features)
        return seen

    return limit


def limited(backbone, most):
    body = backbone.body

    def hungry(x):
        if len(x) > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return body(x)

    return replace(backbone, body=hungry)


@pytest.mark.parametrize("policy", ["fixed", "features", "exact"])
def test_the_real_side(make_blobs, run, tmp_path, little, caplog, policy):
    real = make_blobs((70, 9, 3))

    def entry(cache):
        exact = policy == "exact"
        room = side(real, run.with_(cache=cache), policy="fixed" if exact else policy)
        room.embedding.keeps_features = exact
        view = room.at(2)
        kept = {"features": view.features} if exact else {"table": view.table}
        return kept | ({"bank": room.bank(2).features} if policy == "features" else {})

    whole, seen = entry(tmp_path / "a"), little(20)
    found = entry(tmp_path / "b")
    assert max(seen[2:]) <= 16  # 64, 32, then what fits
    assert all(torch.allclose(whole[name], found[name], atol=1e-5) for name in whole)
    assert caplog.text.count("out of memory") == 1


def test_the_embedding_of_kept_features(make_blobs, run, tmp_path, caplog):
    def entry(cache, most):
        room = side(make_blobs((70, 9, 3)), run.with_(cache=cache), policy="features")
        embed = room.embedding.embed

        def hungry(f, e):
            if len(f) > most:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return embed(f, e)

        room.embedding.embed = hungry
        return room.at(3).table

    assert torch.allclose(entry(tmp_path / "a", 999), entry(tmp_path / "b", 30), atol=1e-5)
    assert "going on with 41 rows at a time" in caplog.text


@pytest.mark.parametrize("views", [None, Views(noise=0.5)])
def test_a_pass_of_a_backbone(make_blobs, run, tmp_path, caplog, views):
    real = make_blobs((80, 50, 13), channels=3)
    draw = run.generator("backbone/weights")
    backbone = own_backbone("convnet-d2-w8-in", real.shape, draw, Normalize.fit(real))
    options = {"views": views, "count": 2 if views else 1, "moment": "natural", "bank": True}
    found = [
        collect_features(real, seen, run.with_(cache=tmp_path / f"{most}"), **options)
        for most, seen in ((64, backbone), (20, limited(backbone, 20)))
    ]
    for name in ("sums", "moment", "bank"):
        a, b = (getattr(stats, name) for stats in found)
        assert torch.allclose(a.double(), b.double(), rtol=1e-3, atol=1e-4)
    assert caplog.text.count("out of memory") == 1
    with pytest.raises(InputError, match=r"a pass of backbone .* one of the images at a time"):
        collect_features(real, limited(backbone, 0), run, **options)


def test_features_of_synthetic_images(make_blobs, run):
    real = make_blobs((80, 50), channels=3)
    draw = run.generator("backbone/weights")
    backbone = own_backbone("convnet-d2-w8-in", real.shape, draw, Normalize.fit(real))
    images = real.images.float() / 255
    whole = image_features(images, backbone, None, None)
    assert torch.allclose(
        image_features(images, limited(backbone, 9), None, None), whole, atol=1e-5
    )


def test_opinions_of_experts(real, run, little, caplog):
    transform = Normalize.fit(real)
    whole = [*teacher_logits(weights(2, run), NETWORK, real.images, transform, run)]
    right = right_candidates(real, [4, 4, 4], weights(2, run), NETWORK, transform, run)
    little(5)
    found = [*teacher_logits(weights(2, run), NETWORK, real.images, transform, run)]
    for a, b in zip(found, whole, strict=True):
        assert torch.allclose(a, b, atol=1e-6)
    assert caplog.text.count("out of memory") == 1  # for both experts
    again = right_candidates(real, [4, 4, 4], weights(2, run), NETWORK, transform, run)
    assert all(torch.equal(a, b) for a, b in zip(again, right, strict=True))


@pytest.mark.parametrize("kind", ["pool", "experts", "experts with momentum", "classifiers"])
def test_trainings(kind, real, run, tmp_path, little, caplog):
    whole = left.KINDS[kind][0](real, run.with_(cache=tmp_path / "whole"))
    seen = little(5)
    found = left.KINDS[kind][0](real, run.with_(cache=tmp_path / "pieces"))
    for a, b in zip(found, whole, strict=True):
        assert torch.allclose(a, b, atol=1e-3)
    assert "going on with 4 images at a time" in caplog.text and 4 in seen


def test_a_backbone_of_ones_own_says_what_to_do(real, run, little):
    little(9)
    with pytest.raises(InputError, match=r"for 8 images in two views each.*use a smaller batch"):
        left.backbone(real, run)


@pytest.mark.parametrize("selection", ["last", "test_max"])
def test_students(real, run, little, caplog, selection):
    every = 0 if selection == "last" else 1
    protocol = replace(PROTOCOLS["quick"], selection=selection, test_every=every)
    training = Training(epochs=3, batch=8, lr=0.05)
    examples = real_examples(real, Normalize.fit(real))

    def train():
        return students.train_students(
            examples, training, protocol, network="convnet-d2-w8-in", test=real, runs=2, run=run
        )

    whole = train()
    little(5)
    assert torch.equal(train().last, whole.last)
    assert "images at a time" in caplog.text


def test_one_image_too_many(real, run, little):
    little(0)
    with pytest.raises(InputError, match="use a narrower network"):
        left.pool(real, run)
