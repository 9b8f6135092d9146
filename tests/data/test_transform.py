from __future__ import annotations

import numpy as np
import pytest
import torch

from potstill.data import ZCA, ImageSet, Normalize, load, transform_from
from potstill.run import ArtifactError, InputError, cache_folder

CACHE = cache_folder()  # the developer's own: CIFAR-10 is decoded once, not once per test


def noise(n=40, shape=(3, 4, 4), seed=0):
    draw = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (n, *shape), generator=draw, dtype=torch.uint8)
    labels = torch.arange(n) % 2
    return ImageSet(images, labels, ("a", "b"), "noise", torch.arange(n), "0" * 16)


def test_normalize_fit_against_float64():
    real = noise()
    fitted = Normalize.fit(real)
    x = real.images.double() / 255
    assert torch.allclose(fitted.mean.double(), x.mean((0, 2, 3)), atol=1e-7)
    assert torch.allclose(fitted.std.double(), x.std((0, 2, 3), correction=0), atol=1e-7)
    y = fitted(real.batch(torch.arange(40)))
    assert torch.allclose(y.mean((0, 2, 3)), torch.zeros(3), atol=1e-5)
    assert torch.allclose(y.std((0, 2, 3), correction=0), torch.ones(3), atol=1e-5)


def test_normalize_does_not_depend_on_chunks(monkeypatch):
    real = noise()
    whole = Normalize.fit(real)
    monkeypatch.setattr("potstill.data.transform._CHUNK", 7 * 48)
    assert torch.equal(Normalize.fit(real).mean, whole.mean)
    assert torch.equal(Normalize.fit(real).std, whole.std)


def test_constant_channel_gets_std_one():
    real = noise(shape=(1, 2, 2))
    flat = ImageSet(
        torch.full_like(real.images, 51), real.labels, real.classes, "flat", real.indices, "0"
    )
    fitted = Normalize.fit(flat)
    assert fitted.std.tolist() == [1.0]
    assert fitted(flat.batch(torch.tensor([0]))).abs().max() < 1e-6


def test_cifar10_statistics(shared_data):
    fitted = Normalize.fit(load(shared_data / "cifar10", cache=CACHE, quiet=True))
    mean, std = [0.49139968, 0.48215841, 0.44653091], [0.24703223, 0.24348513, 0.26158784]
    assert np.allclose(fitted.mean.numpy(), mean, atol=5e-8)
    assert np.allclose(fitted.std.numpy(), std, atol=5e-8)


def test_published_constants():
    cifar = Normalize.published("cifar10")
    assert torch.allclose(cifar.mean, torch.tensor([0.4914, 0.4822, 0.4465]))
    assert torch.allclose(cifar.std, torch.tensor([0.2023, 0.1994, 0.2010]))
    with pytest.raises(InputError, match="did you mean 'cifar10'"):
        Normalize.published("cifar-10")


def test_zca_is_the_published_formula():
    real = noise(n=60, shape=(1, 3, 3))
    fitted = ZCA.fit(real, eps=0.1)
    x = real.images.numpy().reshape(60, 9).astype(np.float64) / 255
    centred = x - x.mean(0)
    u, s, _ = np.linalg.svd(centred.T @ centred / 59)
    expected = centred @ (u @ np.diag((s + 0.1) ** -0.5) @ u.T)
    got = fitted(real.batch(torch.arange(60))).flatten(1)
    assert np.allclose(got.numpy(), expected, atol=1e-5)


def test_zca_with_tiny_eps_whitens(monkeypatch):
    monkeypatch.setattr("potstill.data.transform._CHUNK", 64)
    real = noise(n=400, shape=(1, 2, 2))
    y = ZCA.fit(real, eps=1e-9)(real.batch(torch.arange(400))).flatten(1).double()
    assert torch.allclose(torch.cov(y.T), torch.eye(4, dtype=torch.float64), atol=1e-4)


@pytest.mark.parametrize("fit", [Normalize.fit, ZCA.fit])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_round_trip_and_tensors(fit, dtype):
    real = noise()
    fitted = fit(real)
    x = real.batch(torch.arange(8)).to(dtype)
    y = fitted(x)
    assert y.dtype == dtype and y.shape == x.shape
    assert torch.equal(y, fitted.forward(x))
    assert torch.allclose(fitted.inverse(y), x, atol=2e-5)
    again = transform_from(fitted.kind, fitted.to_tensors())
    assert torch.equal(again(x), y)
    assert again.kind == fitted.kind


@pytest.mark.parametrize("fit", [Normalize.fit, ZCA.fit])
def test_differentiable(fit):
    real = noise()
    fitted = fit(real)
    x = real.batch(torch.arange(2)).double().requires_grad_()
    assert torch.autograd.gradcheck(fitted, x)


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("normalise", {}, "did you mean 'normalize'"),
        ("normalize", {"std": None}, r"has tensors \['mean'\]"),
        ("normalize", {"more": torch.zeros(1)}, "it needs"),
        ("normalize", {"std": torch.zeros(3)}, "positive std"),
        ("normalize", {"mean": torch.tensor([0.0, float("nan"), 0.0])}, "finite"),
        ("normalize", {"mean": torch.zeros(2)}, "one value per channel"),
        ("normalize", {"mean": torch.zeros(3, dtype=torch.int64)}, "wrong type"),
        ("zca", {"matrix": torch.zeros(16, 15)}, "damaged"),
        ("zca", {"shape": torch.tensor([1, 4, 5])}, "damaged"),
        ("zca", {"shape": torch.tensor([-1, -4, 4])}, "damaged"),
        ("zca", {"shape": torch.tensor([16])}, "damaged"),
        ("zca", {"matrix": torch.full((16, 16), float("inf"))}, "NaN or infinity"),
    ],
)
def test_damaged_tensors_are_refused(kind, change, message):
    fit = ZCA.fit(noise(shape=(1, 4, 4))) if kind == "zca" else Normalize.fit(noise())
    tensors = {**fit.to_tensors(), **change}
    tensors = {name: value for name, value in tensors.items() if value is not None}
    with pytest.raises(ArtifactError, match=message):
        transform_from(kind, tensors)


def test_wrong_eps():
    with pytest.raises(InputError, match="eps is 0"):
        ZCA.fit(noise(), eps=0)
