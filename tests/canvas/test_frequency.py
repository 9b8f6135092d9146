"""Cosine coefficients against scipy's transform, brute force and the adjoint identity."""

import numpy as np
import pytest
import torch
from scipy.fft import dctn, idctn

from potstill.canvas.frequency import (
    cosine_basis,
    from_coefficients,
    images_for,
    leading_coefficients,
    stored_bytes,
    to_coefficients,
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
def test_coefficients_are_scipys(shape):
    images = normal(3, 2, *shape)
    expected = scipys(images).flatten(2)
    everything = torch.arange(shape[0] * shape[1])
    torch.testing.assert_close(to_coefficients(images, everything), expected)
    some = everything.flip(0)[::2]
    torch.testing.assert_close(to_coefficients(images, some), expected[:, :, some])
    torch.testing.assert_close(to_coefficients(images.float(), some).double(),
                               expected[:, :, some], rtol=1e-4, atol=1e-5)  # fmt: skip


def test_images_are_scipys_inverse_of_a_masked_spectrum():
    values, positions = normal(2, 3, 4), torch.tensor([[0, 5, 17, 47], [3, 2, 1, 40]])
    spectrum = np.zeros((2, 3, 48))
    for n in range(2):
        for k in range(4):
            spectrum[n, :, positions[n, k]] = values[n, :, k].numpy()
    expected = idctn(spectrum.reshape(2, 3, 6, 8), type=2, axes=(-2, -1), norm="ortho")
    found = from_coefficients(values, positions, (6, 8))
    torch.testing.assert_close(found, torch.from_numpy(expected))
    torch.testing.assert_close(to_coefficients(found, positions), values)


def test_all_coefficients_give_the_images_back():
    images = normal(4, 3, 6, 10)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(
        from_coefficients(to_coefficients(images, order), order, (6, 10)), images
    )
    alone = images.float()
    back = from_coefficients(to_coefficients(alone, order), order, (6, 10))
    torch.testing.assert_close(back, alone, rtol=0, atol=2e-6)


def test_one_map_is_the_adjoint_of_the_other():
    values, images = normal(5, 2, 7), normal(5, 2, 6, 4, seed=1)
    draw = torch.Generator().manual_seed(2)
    positions = torch.stack([torch.randperm(24, generator=draw)[:7] for _ in range(5)])
    there = (from_coefficients(values, positions, (6, 4)) * images).sum()
    back = (values * to_coefficients(images, positions)).sum()
    torch.testing.assert_close(there, back)
    leaf = values.clone().requires_grad_()
    (slope,) = torch.autograd.grad(
        (from_coefficients(leaf, positions, (6, 4)) * images).sum(), leaf
    )
    torch.testing.assert_close(slope, to_coefficients(images, positions))
    leaf = images.clone().requires_grad_()
    (slope,) = torch.autograd.grad((to_coefficients(leaf, positions) * values).sum(), leaf)
    torch.testing.assert_close(slope, from_coefficients(values, positions, (6, 4)))


def test_kept_coefficients_are_the_nearest_image_that_has_only_them():
    images, positions = normal(2, 1, 6, 6), torch.tensor([0, 1, 6, 7])
    near = from_coefficients(to_coefficients(images, positions), positions, (6, 6))
    assert to_coefficients(images - near, positions).abs().max() < 1e-12
    energy = to_coefficients(images, positions).square().sum()
    torch.testing.assert_close(near.square().sum(), energy)


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


def test_budgets():
    assert images_for(1, 64, (32, 32)) == 16  # FreD on CIFAR-10 with DM
    assert images_for(10, 64, (32, 32)) == 160
    assert images_for(2, 32, (32, 32)) == 64
    assert images_for(1, 1000, (32, 32)) == 1
    whole = 4 * 10 * 3 * 32 * 32
    assert stored_bytes(160, 10, 3, 64, (32, 32)) == whole + 10 * 64 * 2
    assert stored_bytes(1, 1, 1, 10, (16, 16)) == 40 + 10
    assert stored_bytes(1, 1, 1, 10, (257, 256)) == 40 + 40


def test_what_cannot_be_kept_is_refused():
    images, values = normal(2, 1, 4, 4), normal(2, 1, 3)
    with pytest.raises(InputError, match="keep is 17; use a number of coefficients from 1 to 16"):
        leading_coefficients(images, 17)
    with pytest.raises(InputError, match="keep is 0"):
        images_for(1, 0, (4, 4))
    with pytest.raises(InputError, match="images has none of the class"):
        leading_coefficients(images[:0], 1)
    with pytest.raises(InputError, match="leave the spectrum; use numbers from 0 to 15"):
        to_coefficients(images, torch.tensor([0, 16]))
    with pytest.raises(InputError, match=r"shape \(3, 2\) for 2 images"):
        to_coefficients(images, torch.zeros(3, 2, dtype=torch.long))
    with pytest.raises(InputError, match="positions has 2 per image and values 3"):
        from_coefficients(values, torch.tensor([0, 1]), (4, 4))
