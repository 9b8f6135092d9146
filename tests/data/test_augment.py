"""DSA and CutMix against hand-worked cases, published ranges and rules."""

import math
from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck

from potstill.data.augment import DSA, OPERATIONS, cutmix
from potstill.run import InputError

ALL = "color_crop_cutout_flip_scale_rotate"


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def pictures(n=3, c=3, h=8, w=8, dtype=torch.float64):
    return torch.rand(n, c, h, w, generator=seeded(9), dtype=dtype)


@pytest.mark.parametrize("per_image", [False, True])
def test_crop_moves_by_whole_pixels_and_fills_with_zero(per_image):
    x, dsa = pictures(h=16, w=16), DSA.parse("crop")  # reach 2
    shifts = [(1, -2), (0, 0), (-2, 1)] if per_image else [(1, -2)] * 3
    got = dsa.apply(x, {"crop": torch.tensor(shifts if per_image else shifts[:1])})
    for image, out, (dy, dx) in zip(x, got, shifts, strict=True):
        for y in range(16):
            for col in range(16):
                inside = 0 <= y + dy < 16 and 0 <= col + dx < 16
                expected = image[:, y + dy, col + dx] if inside else torch.zeros(3).double()
                assert torch.equal(out[:, y, col], expected)


def test_crop_gradient_is_the_opposite_shift_to_second_order():
    dsa, x = DSA.parse("crop", crop=0.25), pictures(2, 1, 5, 4).requires_grad_()
    for shift in ([[1, -1]], [[1, -1], [-1, 0]]):
        params = {"crop": torch.tensor(shift)}
        assert gradcheck(lambda x, p=params: dsa.apply(x, p), x)
        assert torch.autograd.gradgradcheck(lambda x, p=params: dsa.apply(x, p) ** 2, x)


def test_crop_runs_under_vmap():
    dsa, stacked = DSA.parse("crop", crop=0.25), pictures(6, h=5, w=4).view(2, 3, 3, 5, 4)
    for shift in ([[1, -1]], [[1, -1], [-1, 0], [0, 1]]):
        params = {"crop": torch.tensor(shift)}
        got = torch.vmap(lambda x, p=params: dsa.apply(x, p))(stacked)
        assert torch.equal(got, torch.stack([dsa.apply(x, params) for x in stacked]))


def test_cutout_square_is_clipped_at_the_border():
    x = torch.ones(1, 2, 8, 8)
    dsa = DSA.parse("cutout")  # side 4
    for centre, rows, columns in [
        ((4, 4), (2, 6), (2, 6)),
        ((0, 8), (0, 2), (6, 8)),
        ((1, 7), (0, 3), (5, 8)),
    ]:
        expected = torch.ones(8, 8)
        expected[slice(*rows), slice(*columns)] = 0
        got = dsa.apply(x, {"cutout": torch.tensor([centre])})
        assert torch.equal(got, expected.expand(1, 2, 8, 8))


def test_flip_mirrors_only_the_chosen_images():
    x = pictures()
    got = DSA.parse("flip").apply(x, {"flip": torch.tensor([1, 0, 1], dtype=torch.uint8)})
    assert torch.equal(got, torch.stack([x[0].flip(-1), x[1], x[2].flip(-1)]))


@pytest.mark.parametrize("channels", [1, 3])
def test_colour_is_brightness_then_saturation_then_contrast(channels):
    x = pictures(c=channels)
    value = torch.tensor([[0.3, 1.7, 0.6], [-0.5, 0.0, 1.5], [0.1, 1.0, 1.0]]).double()
    offset, saturation, contrast = (v[:, None, None, None] for v in value.unbind(1))
    step = x + offset
    mean = step.mean(1, keepdim=True)
    step = (step - mean) * saturation + mean
    mean = step.mean((1, 2, 3), keepdim=True)
    step = (step - mean) * contrast + mean
    torch.testing.assert_close(DSA.parse("color").apply(x, {"color": value}), step)


@pytest.mark.parametrize("align_corners", [False, True])
def test_scale_and_rotation_equal_the_affine_grid(align_corners):
    x = pictures(h=6, w=9)
    dsa = DSA.parse("scale_rotate", align_corners=align_corners)
    sy, sx, angle = 0.9, 1.15, 0.2
    for op, value, theta in [
        ("scale", [[sy, sx]], [[sx, 0, 0], [0, sy, 0]]),
        (
            "rotate",
            [angle],
            [[math.cos(angle), -math.sin(angle), 0], [math.sin(angle), math.cos(angle), 0]],
        ),
    ]:
        theta = torch.tensor(theta).double().expand(3, 2, 3)
        grid = F.affine_grid(theta, list(x.shape), align_corners=align_corners)
        expected = F.grid_sample(x, grid, align_corners=align_corners)
        got = dsa.apply(x, {op: torch.tensor(value).double()})
        torch.testing.assert_close(got, expected)


def test_a_quarter_turn_of_a_square_image():
    x = pictures(1, 1, 4, 4)
    got = DSA.parse("rotate").apply(x, {"rotate": torch.tensor([math.pi / 2]).double()})
    torch.testing.assert_close(got, x.rot90(1, (2, 3)), atol=1e-6, rtol=0)


@pytest.mark.parametrize("op", OPERATIONS)
@pytest.mark.parametrize("siamese", [True, False])
def test_gradient(op, siamese):
    dsa, x = DSA.parse(op, crop=0.25), pictures(2, 3, 4, 4).requires_grad_()
    params = dsa.draw(2, (4, 4), seeded(1), siamese)
    assert gradcheck(lambda x: dsa.apply(x, params), x)


@pytest.mark.parametrize("op", OPERATIONS)
def test_siamese_result_does_not_depend_on_the_batch(op):
    dsa, x = DSA.parse(op), pictures(7, h=16, w=16, dtype=torch.float32)
    params = dsa.draw(7, (16, 16), seeded(3), siamese=True)
    assert {len(value) for value in params.values()} == {1}
    whole = dsa.apply(x, params)
    assert torch.equal(whole, torch.cat([dsa.apply(x[:2], params), dsa.apply(x[2:], params)]))
    assert not torch.equal(whole, x) or op == "flip"


def test_per_image_parameters_differ_and_repeating_one_equals_siamese():
    dsa, x = DSA.parse(ALL, "idc"), pictures(5, h=16, w=16)
    params = dsa.draw(5, (16, 16), seeded(4), siamese=False)
    assert all(len(value) == 5 and len(value.unique(dim=0)) > 1 for value in params.values())
    first = {op: value[:1] for op, value in params.items()}
    repeated = {op: value.expand(5, *value.shape[1:]) for op, value in first.items()}
    torch.testing.assert_close(dsa.apply(x, first), dsa.apply(x, repeated))
    torch.testing.assert_close(dsa.apply(x, params)[:1], dsa.apply(x[:1], first))


def test_ranges_are_the_published_ones():
    n, g = 20_000, seeded(5)
    drawn = {op: DSA.parse(op).draw(n, (32, 48), g, siamese=False)[op] for op in OPERATIONS}
    color = drawn["color"]
    for column, (low, high) in enumerate([(-0.5, 0.5), (0.0, 2.0), (0.5, 1.5)]):
        assert low <= color[:, column].min() < low + 0.01 * (high - low)
        assert high - 0.01 * (high - low) < color[:, column].max() <= high
    assert set(drawn["crop"][:, 0].tolist()) == set(range(-4, 5))
    assert set(drawn["crop"][:, 1].tolist()) == set(range(-6, 7))
    assert set(drawn["cutout"][:, 0].tolist()) == set(range(33))  # even side: 0..32
    assert set(drawn["cutout"][:, 1].tolist()) == set(range(49))
    odd = DSA.parse("cutout").draw(n, (6, 6), g, siamese=False)["cutout"]  # side 3
    assert set(odd.flatten().tolist()) == set(range(6))
    assert abs(drawn["flip"].float().mean() - 0.5) < 4 * 0.5 / n**0.5
    scale, rotate = drawn["scale"], torch.rad2deg(drawn["rotate"])
    assert 1 / 1.2 <= scale.min() < 0.84 and 1.199 < scale.max() <= 1.2
    assert abs(torch.corrcoef(scale.T)[0, 1]) < 4 / n**0.5  # both axes on their own
    assert -15.001 <= rotate.min() < -14.9 and 14.9 < rotate.max() <= 15.001
    assert DSA.parse("crop").draw(9, (28, 28), g, False)["crop"].abs().max() <= 4  # 3.5 rounds up


def test_rule_dc_applies_one_operation_chosen_uniformly():
    dsa, g, n = DSA.parse(ALL), seeded(6), 3000
    seen = Counter(tuple(dsa.draw(1, (8, 8), g, siamese=True)) for _ in range(n))
    assert set(seen) == {(op,) for op in OPERATIONS}
    assert all(abs(count - n / 6) < 5 * (n * 5 / 36) ** 0.5 for count in seen.values())


def test_rule_idc_applies_all_but_one_geometric_operation_only():
    dsa, g, n = DSA.parse(ALL, "idc"), seeded(7), 1500
    seen = Counter(frozenset(dsa.draw(1, (8, 8), g, siamese=True)) for _ in range(n))
    always = {"flip", "color", "cutout"}
    assert set(seen) == {frozenset(always | {op}) for op in ("crop", "scale", "rotate")}
    assert all(abs(count - n / 3) < 5 * (n * 2 / 9) ** 0.5 for count in seen.values())
    plain = DSA.parse("color_crop_cutout", "idc")
    assert set(plain.draw(1, (8, 8), g, True)) == {"color", "crop", "cutout"}
    assert set(plain.without("cutout").draw(1, (8, 8), g, True)) == {"color", "crop"}


def test_rule_idc_cuts_out_after_the_colours():
    dsa = DSA.parse("color_cutout", "idc")
    params = {"cutout": torch.tensor([[4, 4]]), "color": torch.tensor([[0.4, 1.0, 1.0]])}
    got = dsa.apply(torch.ones(1, 3, 8, 8), params)
    assert (got[0, :, 2:6, 2:6] == 0).all() and torch.allclose(got[0, :, 0], torch.tensor(1.4))


def test_draws_descend_from_the_generator_alone():
    dsa, state = DSA.parse(ALL, "idc"), torch.get_rng_state()
    first, again = (dsa.draw(4, (16, 16), seeded(8), False) for _ in range(2))
    other = dsa.draw(4, (16, 16), seeded(11), False)
    assert all(torch.equal(first[op], again[op]) for op in first)
    assert not torch.equal(first["color"], other["color"])
    x, y = pictures(4), torch.eye(4)
    assert torch.equal(cutmix(x, y, seeded(8), 1.0)[0], cutmix(x, y, seeded(8), 1.0)[0])
    assert torch.equal(state, torch.get_rng_state())


def test_none_leaves_the_images_alone():
    dsa, x = DSA.parse("none"), pictures()
    assert dsa.draw(3, (8, 8), seeded(), False) == {} and dsa.apply(x, {}) is x
    assert DSA.parse(ALL).name == ALL and dsa.name == "none"


@pytest.mark.parametrize(
    ("text", "rule", "words"),
    [
        ("color_corp", "dc", "'corp'; did you mean 'crop'"),
        ("color", "idcc", "augment_rule is 'idcc'; use one of dc, idc"),
        ("crop_crop", "dc", "list each operation once"),
    ],
)
def test_unknown_names_are_refused_with_the_nearest(text, rule, words):
    with pytest.raises(InputError, match=words):
        DSA.parse(text, rule)


def test_cutmix_mixes_targets_by_the_pasted_area():
    n, h, w = 6, 40, 50
    x = torch.arange(n).float()[:, None, None, None].expand(n, 2, h, w).contiguous()
    y, g, shares = torch.eye(n), seeded(12), []
    for _ in range(300):
        mixed, soft = cutmix(x, y, g, probability=1.0)
        pasted = torch.zeros_like(soft)  # share of each image that shows image j
        for j in range(n):
            pasted[:, j] = (mixed == j).float().mean((1, 2, 3))
        torch.testing.assert_close(soft, pasted)
        shares.append(1 - soft.diagonal().min().item())
    assert torch.equal(x[:, 0, 0, 0], torch.arange(n).float()) and torch.equal(y, torch.eye(n))
    # Area a uniform, each side clipped to c - c²/4 of the image: E a (1 - √a/4)² = 0.32.
    assert sum(shares) / 300 == pytest.approx(0.31, abs=0.035)


def test_cutmix_applies_with_its_probability():
    x, y, g = pictures(4), torch.eye(4), seeded(13)
    changed = sum(cutmix(x, y, g, probability=0.3)[0] is not x for _ in range(1000))
    assert abs(changed - 300) < 5 * (1000 * 0.21) ** 0.5
    assert cutmix(x, y, g, probability=0.0)[0] is x
