"""What makes a function a kernel, for every name, length, mixture and set of points."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from potstill.match.kernels import KERNELS, kernel, mixture, squared_distance

RADIAL = ("rbf", "laplace", "matern32", "matern52", "rq", "rq0.5", "rq2.5", "cauchy")
NAMES = st.sampled_from((*KERNELS, "rq2.5", "rbf+laplace", "cauchy-l1+matern32+rq"))
LENGTH, SEED = st.floats(0.05, 20), st.integers(0, 2**20)
ROWS, DIM = st.integers(1, 8), st.integers(1, 5)


def points(rows: int, dim: int, seed: int) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(rows, dim, generator=draw, dtype=torch.float64)


@given(NAMES, LENGTH, ROWS, DIM, SEED)
def test_gram_matrices_are_symmetric_and_positive_semi_definite(name, length, rows, dim, seed):
    x = points(rows, dim, seed)
    gram = kernel(name, length).gram(x, x)
    assert torch.allclose(gram, gram.T, atol=1e-12)
    assert float(torch.linalg.eigvalsh(gram).min()) > -1e-9 * (1 + float(gram.abs().max()))
    if name != "linear":
        # the clamp of squared distances that round to below 0 leaves the diagonal near 1
        assert torch.allclose(gram.diagonal(), torch.ones(rows).double(), atol=1e-5)
        assert float(gram.min()) >= 0 and float(gram.max()) <= 1 + 1e-9


@given(st.sampled_from(RADIAL), LENGTH, st.lists(st.floats(0, 1e6), min_size=2, max_size=9))
def test_values_begin_at_one_and_fall(name, length, squares):
    one = kernel(name, length)
    assert abs(float(one.value(torch.zeros(1).double())) - 1) < 1e-9
    values = one.value(torch.tensor(sorted(squares), dtype=torch.float64))
    assert (values.diff() <= 1e-12).all() and (values >= 0).all() and (values <= 1 + 1e-12).all()


@given(NAMES, LENGTH, st.floats(0.1, 10), ROWS, DIM, SEED)
def test_a_length_is_the_unit_of_the_points(name, length, unit, rows, dim, seed):
    x, y = points(rows, dim, seed), points(3, dim, seed + 1)
    scaled = kernel(name, length * unit).gram(x * unit, y * unit)
    plain = kernel(name, length).gram(x, y) * (unit**2 if name == "linear" else 1)
    assert torch.allclose(scaled, plain, atol=1e-9, rtol=1e-6)


@given(
    st.lists(st.tuples(st.sampled_from(RADIAL), LENGTH, st.floats(0.01, 100)), min_size=1),
    DIM,
    SEED,
)
def test_a_mixture_is_the_weighted_mean_of_its_parts(parts, dim, seed):
    x, y = points(4, dim, seed), points(3, dim, seed + 1)
    kernels = [kernel(name, length) for name, length, _ in parts]
    weights = [weight for _, _, weight in parts]
    mixed = mixture(kernels, weights)
    wanted = sum(w * one.gram(x, y) for one, w in zip(kernels, weights, strict=True))
    assert torch.allclose(mixed.gram(x, y), wanted / sum(weights), atol=1e-12)
    assert abs(sum(mixed.weights) - 1) < 1e-12


@given(ROWS, DIM, SEED)
def test_squared_distances_are_those_of_the_definition(rows, dim, seed):
    x, y = points(rows, dim, seed), points(3, dim, seed + 1)
    wanted = (x[:, None] - y[None]).square().sum(-1)
    assert torch.allclose(squared_distance(x, y), wanted, atol=1e-12)
    assert float(squared_distance(x, x).min()) >= 0
