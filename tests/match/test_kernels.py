"""Kernels against independent closed forms, and their samplers against the kernels."""

import math

import pytest
import torch
from scipy import special

from potstill.match.kernels import KERNELS, Kernel, kernel, mixture
from potstill.run import InputError

SPECTRAL = ["rbf", "laplace", "matern32", "matern52", "rq", "rq2.5", "cauchy"]
SPECTRAL += ["laplace-l1", "cauchy-l1", "rbf+laplace"]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def matern(r, nu):
    t = math.sqrt(2 * nu) * r
    return 2 ** (1 - nu) / special.gamma(nu) * t**nu * special.kv(nu, t)


ISOTROPIC = {
    "rbf": lambda r: math.exp(-r * r / 2),
    "laplace": lambda r: matern(r, 0.5),
    "matern32": lambda r: matern(r, 1.5),
    "matern52": lambda r: matern(r, 2.5),
    "rq": lambda r: 1 / (1 + r * r / 2),
    "rq2.5": lambda r: (1 + r * r / 5) ** -2.5,
    "cauchy": lambda r: 1 / (1 + r * r),
    "rbf+laplace": lambda r: 0.5 * math.exp(-r * r / 2) + 0.5 * math.exp(-r),
}


@pytest.mark.parametrize("name", ISOTROPIC)
@pytest.mark.parametrize("length", [0.5, 2.0])
def test_value_is_the_closed_form(name, length):
    r = torch.tensor([0.3, 1.0, 2.0, 5.0], dtype=torch.float64)
    expected = torch.tensor([ISOTROPIC[name](float(v) / length) for v in r], dtype=torch.float64)
    torch.testing.assert_close(kernel(name, length).value(r**2), expected)
    assert kernel(name, length).value(torch.zeros(1)).item() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("name", [*SPECTRAL, "linear"])
def test_gram_is_the_kernel_of_every_pair(name):
    x = torch.randn(2, 5, 3, generator=seeded(), dtype=torch.float64)
    y = torch.randn(2, 4, 3, generator=seeded(1), dtype=torch.float64)
    k = kernel(name, 0.7)
    for b in range(2):
        for i in range(5):
            for j in range(4):
                d = (x[b, i] - y[b, j]) / 0.7
                if name == "linear":
                    expected = float(x[b, i] @ y[b, j])
                elif name == "laplace-l1":
                    expected = math.exp(-float(d.abs().sum()))
                elif name == "cauchy-l1":
                    expected = float((1 / (1 + d**2)).prod())
                else:
                    expected = ISOTROPIC[name](float(d.norm()))
                assert float(k.gram(x, y)[b, i, j]) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("name", [*SPECTRAL, "linear"])
def test_gram_is_positive_definite_and_safe_where_points_meet(name):
    x = torch.randn(6, 3, generator=seeded(2), dtype=torch.float64)
    x = torch.cat([x, x[:2]]).requires_grad_()
    gram = kernel(name).gram(x, x)
    assert torch.linalg.eigvalsh(gram.detach()).min() > -1e-10
    gram.sum().backward()
    assert torch.isfinite(x.grad).all()
    if name in ISOTROPIC:
        zero = torch.zeros(1, requires_grad=True)
        kernel(name).value(zero).backward()
        assert torch.isfinite(zero.grad).all()


@pytest.mark.parametrize("name", SPECTRAL)
@pytest.mark.parametrize("orthogonal", [False, True])
def test_frequencies_average_to_the_kernel(name, orthogonal):
    count, dim = (6000, 6) if orthogonal else (60_000, 6)
    k = kernel(name, 0.8)
    omega = k.frequencies(count, dim, seeded(3), orthogonal).double()
    direction = torch.nn.functional.normalize(
        torch.randn(3, dim, generator=seeded(4), dtype=torch.float64)
    )
    delta = direction * torch.tensor([[0.3], [1.0], [2.0]], dtype=torch.float64)
    waves = (omega @ delta.T).cos()
    expected = k.gram(torch.zeros(1, dim, dtype=torch.float64), delta)[0]
    error = (waves.mean(0) - expected).abs()
    assert (error < 4 * waves.std(0) / count**0.5).all(), error


@pytest.mark.parametrize("name", SPECTRAL)
def test_orthogonal_rows_lower_the_variance_of_the_estimate(name):
    dim, delta = 16, torch.full((16,), 0.2)
    k, spread = kernel(name), {}
    for orthogonal in (False, True):
        g = seeded(5)
        draws = [k.frequencies(dim, dim, g, orthogonal) @ delta for _ in range(200)]
        spread[orthogonal] = torch.stack([p.cos().mean() for p in draws]).var()
    # Orthogonality removes the variance due to directions; heavy tails leave that of the radii.
    most = {"rbf": 0.25, "matern52": 0.65, "rq2.5": 0.5, "cauchy-l1": 0.5}.get(name, 1.25)
    assert spread[True] < most * spread[False]


def test_mixtures_flatten_weigh_and_share_out_frequencies():
    wide, narrow = kernel("rbf", 100.0), kernel("rbf", 0.01)
    k = mixture([wide, mixture([narrow, wide], [3, 1])], [1, 4])
    assert k.weights == pytest.approx((0.2, 0.6, 0.2)) and k.parts == (wide, narrow, wide)
    for seed in range(5):
        large = k.frequencies(50, 8, seeded(seed)).norm(dim=1) > 1
        assert large.sum() == 30
    # Shares that are no whole numbers come out right on average.
    halves = kernel("rbf+laplace")
    assert halves.weights == (0.5, 0.5) and halves.name == "rbf+laplace"
    odd = mixture([wide, narrow])
    g = seeded(7)
    counts = [(odd.frequencies(3, 2, g).norm(dim=1) > 0.5).sum().item() for _ in range(600)]
    assert sum(counts) / 600 == pytest.approx(1.5, abs=4 * 0.5 / 600**0.5)


@pytest.mark.parametrize("name", SPECTRAL)
def test_draws_descend_from_the_generator_alone(name):
    state = torch.get_rng_state()
    k = kernel(name)
    for orthogonal in (False, True):
        first, again = (k.frequencies(12, 5, seeded(8), orthogonal) for _ in range(2))
        assert torch.equal(first, again) and first.shape == (12, 5)
        assert not torch.equal(first, k.frequencies(12, 5, seeded(9), orthogonal))
    assert torch.equal(state, torch.get_rng_state())


def test_names():
    assert kernel("rq2.5", 0.3) == Kernel("rq", 0.3, 2.5)
    assert all(kernel(name).name == name for name in KERNELS)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: kernel("lapalce"), "'lapalce'; did you mean 'laplace'"),
        (lambda: kernel("rbf", 0), "length is 0"),
        (lambda: kernel("rbf", math.nan), "length is nan"),
        (lambda: kernel("rq0"), "positive number after 'rq'"),
        (lambda: kernel("rbf+oops"), "kernel is 'oops'"),
        (lambda: mixture([kernel("rbf")], [1, 2]), "one positive weight for each"),
        (lambda: kernel("linear").frequencies(2, 2, seeded()), "no frequencies"),
        (lambda: kernel("rbf+linear").frequencies(2, 2, seeded()), "no frequencies"),
        (lambda: kernel("laplace-l1").value(torch.ones(1)), "Gram matrix"),
    ],
)
def test_refusals_name_the_value_and_the_fix(call, words):
    with pytest.raises(InputError, match=words):
        call()
