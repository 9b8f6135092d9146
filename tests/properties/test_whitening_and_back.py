"""Transforms fitted on any images can be undone, stored and read again."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from potstill.data import ZCA, ImageSet, Normalize
from potstill.data.transform import transform_from

SHAPE = st.tuples(st.integers(2, 12), st.sampled_from((1, 3)), st.integers(1, 5), st.integers(1, 5))
SEED, EPS = st.integers(0, 2**20), st.floats(1e-3, 10)


def pictures(shape: tuple[int, ...], seed: int) -> ImageSet:
    """Levels between two random ends, so that some sets have hardly any variance, or none."""
    draw = torch.Generator().manual_seed(seed)
    low, high = sorted(torch.randint(0, 256, (2,), generator=draw).tolist())
    images = torch.randint(low, high + 1, shape, generator=draw, dtype=torch.uint8)
    labels, rows = (torch.arange(len(images)) > 0).long(), torch.arange(len(images))
    return ImageSet(images, labels, ("one", "others"), "drawn", rows, "drawn")


@given(SHAPE, SEED, EPS)
def test_zca_is_the_inverse_root_of_the_covariance_and_can_be_undone(shape, seed, eps):
    real = pictures(shape, seed)
    zca = ZCA.fit(real, eps)
    x = real.images.double() / 255
    assert torch.allclose(zca.inverse(zca.forward(x)), x, atol=1e-4 / eps**0.5)
    flat = x.flatten(1)
    centred = flat - flat.mean(0)
    size = flat.shape[1]
    wanted = centred.T @ centred / max(1, len(x) - 1) + eps * torch.eye(size).double()
    root = zca.inverse_matrix.double()  # T^-1, so that its square is the covariance and eps
    assert torch.allclose(root @ root, wanted, atol=1e-5 * (1 + eps))
    assert torch.allclose(root @ zca.matrix.double(), torch.eye(size).double(), atol=1e-4)


@given(SHAPE, SEED)
def test_normalised_images_have_mean_zero_and_deviation_one_or_zero(shape, seed):
    real = pictures(shape, seed)
    transform = Normalize.fit(real)
    x = real.images.double() / 255
    out = transform(x)
    std, mean = torch.std_mean(out, dim=(0, 2, 3), correction=0)
    flat = real.images.amax((0, 2, 3)) == real.images.amin((0, 2, 3))
    assert torch.allclose(mean, torch.zeros_like(mean), atol=1e-4)
    assert torch.allclose(std, 1 - flat.double(), atol=1e-4)
    assert torch.allclose(transform.inverse(out), x, atol=1e-6)


@given(SHAPE, SEED, st.sampled_from((ZCA, Normalize)))
def test_what_is_stored_is_the_same_transform(shape, seed, kind):
    real = pictures(shape, seed)
    transform = kind.fit(real)
    again = transform_from(transform.kind, transform.to_tensors())
    x = real.images.float() / 255
    assert torch.equal(again(x), transform(x)) and again.kind == transform.kind
