"""Cosine coefficients against scipy's transform, brute force and the adjoint identity."""

import numpy as np
import pytest
import torch
from scipy.fft import dctn, idctn

from potstill.canvas.frequency import (
    cosine_basis,
    from_spectrum,
    leading_coefficients,
    spectrum,
)
from potstill.run import InputError


def normal(*shape, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=draw, dtype=torch.float64)


def scipys(images):
    return torch.from_numpy(dctn(images.numpy(), type=2, axes=(-2, -1), norm="ortho"))


@pytest.mark.parametrize("n", [1, 2, 7, 32])
def test_the_basis_is_orthonormal(n):
    basis = cosine_basis(n, torch.float64)
    torch.testing.assert_close(basis @ basis.T, torch.eye(n, dtype=torch.float64))
    assert cosine_basis(n).dtype == torch.float32


@pytest.mark.parametrize("shape", [(8, 8), (6, 9), (1, 5)])
def test_coefficients_are_scipys_and_give_the_images_back(shape):
    images = normal(3, 2, *shape)
    torch.testing.assert_close(spectrum(images), scipys(images))
    torch.testing.assert_close(
        spectrum(images.float()).double(), scipys(images), rtol=1e-4, atol=1e-5
    )
    torch.testing.assert_close(from_spectrum(spectrum(images)), images)
    alone = images.float()
    torch.testing.assert_close(from_spectrum(spectrum(alone)), alone, rtol=0, atol=2e-6)


def test_one_map_is_the_adjoint_of_the_other():
    values, images = normal(5, 2, 6, 4), normal(5, 2, 6, 4, seed=1)
    there, back = (from_spectrum(values) * images).sum(), (values * spectrum(images)).sum()
    torch.testing.assert_close(there, back)
    leaf = values.clone().requires_grad_()
    (slope,) = torch.autograd.grad((from_spectrum(leaf) * images).sum(), leaf)
    torch.testing.assert_close(slope, spectrum(images))


@pytest.mark.parametrize("keep", [1, 7, 48])
def test_leading_coefficients_by_brute_force(keep):
    scale = normal(6, 8, seed=3).exp()
    images = normal(9, 3, 6, 8)
    images = torch.from_numpy(idctn(images.numpy() * scale.numpy(), axes=(-2, -1), norm="ortho"))
    variances = []
    for position in range(48):
        row, column = divmod(position, 8)
        values = [
            dctn(image.mean(0).numpy(), type=2, norm="ortho")[row, column] for image in images
        ]
        variances.append(np.var(values))
    expected = sorted(range(48), key=lambda position: -variances[position])[:keep]
    assert leading_coefficients(images, keep).tolist() == expected


def test_a_common_offset_does_not_count_and_grey_noise_does():
    images = normal(6, 3, 8, 8) * 1e-3 + 50 * normal(1, 1, 8, 8, seed=1)
    wave = cosine_basis(8, torch.float64)[2].outer(cosine_basis(8, torch.float64)[5])
    images += normal(6, 1, 1, 1, seed=2) * wave
    assert leading_coefficients(images, 1).tolist() == [2 * 8 + 5]


@pytest.mark.parametrize("copies", [1, 4])
def test_images_that_do_not_differ_keep_their_energy(copies):
    image = normal(1, 3, 6, 6)
    energy = scipys(image.mean(1)).flatten().square()
    found = leading_coefficients(image.expand(copies, -1, -1, -1), 5)
    assert found.tolist() == energy.argsort(descending=True)[:5].tolist()
    assert leading_coefficients(torch.zeros(2, 1, 4, 4), 3).tolist() == [0, 1, 2]


def test_what_cannot_be_kept_is_refused():
    images = normal(2, 1, 4, 4)
    for keep in (0, 17):
        with pytest.raises(InputError, match=f"keep is {keep}; use a number of coeffic"):
            leading_coefficients(images, keep)
    with pytest.raises(InputError, match="images has none of the class"):
        leading_coefficients(images[:0], 1)
