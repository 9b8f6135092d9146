"""The convolutional kernel: against another library's numbers, plain loops and differences."""

import math

import pytest
import torch

from potstill.match.conv_ntk import ConvNetwork
from potstill.run import InputError


def images(n, offset, channels=2, size=4):
    """Numbers without a generator, so that another library can have the same."""
    k = torch.arange(n * channels * size * size, dtype=torch.float64)
    return (1.7 * k + offset).sin().view(n, channels, size, size)


# stax of neural-tangents 0.6.5: depth times Conv(3x3, SAME), Relu, AvgPool(2x2); Flatten, Dense;
# W_std = √2, b_std = 0.1, of images(3, 0) and images(2, 5)
STAX = {
    (1, "nngp"): [[0.3079998842, 0.1527330809], [0.3631191403, 0.2999588216],
                  [0.1513571427, 0.3631753913]],
    (1, "ntk"): [[0.4235019559, 0.1326652544], [0.5384090335, 0.4084080569],
                 [0.1303141579, 0.5385084074]],
    (2, "nngp"): [[0.1163976194, 0.1062422691], [0.120794819, 0.1151459559],
                  [0.1090439787, 0.1208076859]],
    (2, "ntk"): [[0.1850195887, 0.1535361683], [0.2015537877, 0.1820665609],
                 [0.1579315355, 0.2015812335]],
}  # fmt: skip
STAX_OF_ITSELF = [[0.2249161856, 0.15996779, 0.1644456163], [0.15996779, 0.2273068498, 0.1620096],
                  [0.1644456163, 0.1620096, 0.2338209586]]  # fmt: skip


@pytest.mark.parametrize("chunk", [None, 1, 2])
@pytest.mark.parametrize(("depth", "kind"), STAX)
def test_it_is_what_neural_tangents_finds(depth, kind, chunk):
    kernel = ConvNetwork(depth=depth, kind=kind)
    found = kernel(images(3, 0.0), images(2, 5.0), chunk)
    expected = torch.tensor(STAX[depth, kind], dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-10)
    if (depth, kind) == (2, "ntk"):
        own = kernel(images(3, 0.0), images(3, 0.0), chunk)
        expected = torch.tensor(STAX_OF_ITSELF, dtype=torch.float64)
        torch.testing.assert_close(own, expected, rtol=0, atol=2e-10)


def test_it_is_the_recursion_pixel_by_pixel():
    """One block of a 2x2 image with other variances, in plain loops."""
    a, b = images(1, 1.0, 1, 2)[0, 0].tolist(), images(1, 2.0, 1, 2)[0, 0].tolist()
    weight, bias, places = 1.3, 0.2, [(0, 0), (0, 1), (1, 0), (1, 1)]

    def covariance(x, y, p, q):
        total = 0.0
        for i in (-1, 0, 1):
            for j in (-1, 0, 1):
                there = [(r + i, s + j) for r, s in (p, q)]
                if all(0 <= r < 2 and 0 <= s < 2 for r, s in there):
                    (r, s), (t, u) = there
                    total += x[r][s] * y[t][u]
        return weight * total / 9 + bias

    k = tangent = 0.0
    for p in places:
        for q in places:
            own = covariance(a, b, p, q)
            scale = math.sqrt(covariance(a, a, p, p) * covariance(b, b, q, q))
            angle = math.acos(own / scale)
            rest = math.pi - angle
            k += scale * (math.sin(angle) + rest * math.cos(angle)) / (2 * math.pi) / 16
            tangent += own * rest / (2 * math.pi) / 16
    k = weight * k + bias
    kernel = ConvNetwork(weight_variance=weight, bias_variance=bias)
    found = kernel(images(1, 1.0, 1, 2), images(1, 2.0, 1, 2)).item()
    assert found == pytest.approx(k + weight * tangent, rel=1e-12)


@pytest.mark.parametrize("chunk", [None, 2])
def test_slopes_are_those_of_finite_differences(chunk):
    x, y = images(3, 0.3), images(2, 0.9)
    kernel, weights = ConvNetwork(depth=2), images(1, 4.0, 3, 4)[0, :, :2, 0]
    for moved in ("x", "y"):
        leaf = (x if moved == "x" else y).clone().requires_grad_()
        value = (weights * kernel(*((leaf, y) if moved == "x" else (x, leaf)), chunk)).sum()
        (slope,) = torch.autograd.grad(value, leaf)
        step = 1e-6 * images(len(leaf), 7.0)
        with torch.no_grad():
            ends = [leaf + step, leaf - step]
            values = [kernel(*((e, y) if moved == "x" else (x, e))) for e in ends]
        change = float((weights * (values[0] - values[1])).sum())
        assert change == pytest.approx(2 * float((slope * step).sum()), rel=1e-6)


def test_a_kernel_of_images_with_themselves_is_symmetric_and_positive():
    x = images(5, 0.1, 1, 8)
    k = ConvNetwork(depth=2)(x, x)
    torch.testing.assert_close(k, k.T, rtol=1e-12, atol=0)
    assert torch.linalg.eigvalsh(k).min() > 0
    flat = ConvNetwork(depth=3)(torch.zeros(2, 1, 8, 8), torch.zeros(2, 1, 8, 8))
    assert torch.isfinite(flat).all()


def test_odd_sizes_lose_their_last_row_and_column():
    assert ConvNetwork(depth=2)(images(2, 0.0, 1, 7), images(1, 0.0, 1, 7)).shape == (2, 1)


@pytest.mark.parametrize(
    ("x", "y", "options", "said"),
    [
        (images(2, 0.0), images(2, 0.0, 1), {}, "x and y have shapes"),
        (images(2, 0.0), images(2, 0.0), {"depth": 3}, "depth is 3 for images of 4x4 pixels"),
    ],
)  # fmt: skip
def test_what_has_no_kernel_is_one_sentence(x, y, options, said):
    with pytest.raises(InputError) as caught:
        ConvNetwork(**options)(x, y)
    assert str(caught.value).startswith(said)
    with pytest.raises(InputError, match=r"^chunk is 0; use"):
        ConvNetwork()(images(1, 0.0), images(1, 0.0), 0)
