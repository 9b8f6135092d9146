"""What DSA is for any operations, rule, batch and image size: per image, affine, drawn once."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from potstill.data import DSA
from potstill.data.augment import OPERATIONS

OPS = st.lists(st.sampled_from(OPERATIONS), unique=True).map(tuple)
SHAPE = st.tuples(st.integers(1, 4), st.sampled_from((1, 3)), st.integers(2, 9), st.integers(2, 9))
RULE, SEED, YES = st.sampled_from(("dc", "idc")), st.integers(0, 2**20), st.booleans()


def images(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=draw, dtype=torch.float64)


def drawn(dsa: DSA, shape: tuple[int, ...], seed: int, siamese: bool) -> dict[str, torch.Tensor]:
    return dsa.draw(shape[0], shape[2:], torch.Generator().manual_seed(seed), siamese)


@given(OPS, RULE, SHAPE, SEED, YES)
def test_shapes_stay_and_equal_seeds_draw_equally(ops, rule, shape, seed, siamese):
    dsa = DSA(ops, rule)
    params, again = drawn(dsa, shape, seed, siamese), drawn(dsa, shape, seed, siamese)
    assert params.keys() == again.keys() <= set(ops)
    assert all(torch.equal(params[op], again[op]) for op in params)
    assert all(len(value) == (1 if siamese else shape[0]) for value in params.values())
    x = images(shape, seed)
    out = dsa.apply(x, params)
    assert out.shape == x.shape and out.dtype == x.dtype and torch.isfinite(out).all()
    assert DSA.parse(dsa.name, rule) == dsa


@given(OPS, RULE, SHAPE, SEED)
def test_a_siamese_draw_serves_both_sides_alike(ops, rule, shape, seed):
    dsa = DSA(ops, rule)
    params = drawn(dsa, shape, seed, siamese=True)
    real, synthetic = images(shape, seed), images((2, *shape[1:]), seed + 1)
    both = dsa.apply(torch.cat([real, synthetic]), params)
    apart = torch.cat([dsa.apply(real, params), dsa.apply(synthetic, params)])
    assert torch.allclose(both, apart, atol=1e-12)


@given(OPS, RULE, SHAPE, SEED)
def test_an_image_is_changed_by_its_own_parameters_alone(ops, rule, shape, seed):
    dsa, x = DSA(ops, rule), images(shape, seed)
    params = drawn(dsa, shape, seed, siamese=False)
    whole = dsa.apply(x, params)
    for row in range(len(x)):
        own = {op: value[row : row + 1] for op, value in params.items()}
        assert torch.allclose(dsa.apply(x[row : row + 1], own)[0], whole[row], atol=1e-12)


@given(OPS, RULE, SHAPE, SEED, YES, st.floats(-2, 2))
def test_a_draw_is_affine_in_the_images_and_linear_without_colour(
    ops, rule, shape, seed, siamese, share
):
    dsa, x, y = DSA(ops, rule), images(shape, seed), images(shape, seed + 1)
    params = drawn(dsa, shape, seed, siamese)
    mixed = dsa.apply(share * x + (1 - share) * y, params)
    apart = share * dsa.apply(x, params) + (1 - share) * dsa.apply(y, params)
    assert torch.allclose(mixed, apart, atol=1e-10)
    if "color" not in params:
        assert not dsa.apply(torch.zeros_like(x), params).any()


@given(SHAPE, SEED)
def test_what_is_cut_out_is_a_square_of_zeros_and_the_rest_stays(shape, seed):
    dsa, x = DSA(("cutout",)), images(shape, seed)
    out = dsa.apply(x, drawn(dsa, shape, seed, siamese=False))
    blank = (out == 0).all(1)
    assert torch.equal(torch.where(blank[:, None], x, out), x)
    assert int(blank.sum((1, 2)).max()) <= (shape[2] + 1) // 2 * ((shape[3] + 1) // 2)
    assert blank.any((1, 2)).all()
