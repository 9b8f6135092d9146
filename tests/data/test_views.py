"""Views against a slow sampler, and what must not depend on how images are cut into chunks."""

import math

import pytest
import torch
import torch.nn.functional as F

from potstill.data.views import Views, clean_view, part_of
from potstill.run import InputError

PLAIN = Views(noise=0.0)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def images(n=4, c=3, h=12, w=10, dtype=torch.float64):
    return torch.rand(n, c, h, w, generator=generator(5), dtype=dtype)


def noiseless(box, flip):
    n = len(flip)
    return {
        "box": torch.tensor(box, dtype=torch.float64),
        "flip": torch.tensor(flip),
        "noise": torch.full((n,), -1),
    }


def pixel(image, y, x):
    """One pixel of (c, h, w); zero outside."""
    inside = 0 <= y < image.shape[1] and 0 <= x < image.shape[2]
    return image[:, y, x] if inside else torch.zeros(len(image), dtype=image.dtype)


def slow_crop(image, box, flip, size):
    """Mirror, then sample the box bilinearly at the centres of ``size`` output pixels."""
    image = image.flip(-1) if flip else image
    c, h, w = image.shape
    left, top, width, height = box
    out = torch.zeros(c, *size, dtype=image.dtype)
    for i in range(size[0]):
        for j in range(size[1]):
            y = (top + (i + 0.5) / size[0] * height) * h - 0.5
            x = (left + (j + 0.5) / size[1] * width) * w - 0.5
            y0, x0 = math.floor(y), math.floor(x)
            for dy in (0, 1):
                for dx in (0, 1):
                    share = (y - y0 if dy else y0 + 1 - y) * (x - x0 if dx else x0 + 1 - x)
                    out[:, i, j] += share * pixel(image, y0 + dy, x0 + dx)
    return out


BOXES = [
    (0.2, 0.1, 0.5, 0.4),
    (0.0, 0.0, 1.0, 1.0),
    (-0.1, 0.3, 1.15, 0.6),  # wider than the image: zero borders
    (0.55, 0.6, 0.4, 0.35),
]


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("size", [(7, 7), (5, 9)])
def test_a_view_is_a_mirrored_crop(flip, size):
    x = images()
    seen = PLAIN.apply(x, noiseless(BOXES, [flip] * 4), size)
    for row, box in enumerate(BOXES):
        torch.testing.assert_close(
            seen[row], slow_crop(x[row], box, flip, size), atol=1e-12, rtol=0
        )


def test_borders_of_a_side_longer_than_the_image_are_black():
    seen = PLAIN.apply(torch.ones(1, 1, 8, 8), noiseless([(-0.25, 0, 1.5, 1)], [False]), (8, 12))
    assert (seen[..., :1] == 0).all() and (seen[..., -1:] == 0).all()
    torch.testing.assert_close(seen[..., 3:9], torch.ones(1, 1, 8, 6))


def test_the_whole_image_mirrored_is_the_flipped_image():
    x = images()
    views = Views(crop_min=1, flip=0.5, noise=0.0)
    draw = views.draw(4, generator(1))
    assert set(draw["flip"].tolist()) == {True, False}
    assert torch.equal(draw["box"], torch.tensor([[0.0, 0.0, 1.0, 1.0]] * 4))
    expected = torch.where(draw["flip"][:, None, None, None], x.flip(-1), x)
    torch.testing.assert_close(views.apply(x, draw, (12, 10)), expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize(("flip", "count"), [(0.0, 0), (1.0, 300)])
def test_sure_flips(flip, count):
    assert Views(flip=flip).draw(300, generator())["flip"].sum() == count


def test_area_and_aspect_have_the_stated_laws():
    n, low, aspect = 20_000, 0.08, 4 / 3
    box = Views(crop_min=low, aspect=aspect).draw(n, generator())["box"].double()
    left, top, width, height = box.unbind(1)
    area, lean = width * height, (width / height).log()
    assert area.min() >= low - 1e-6 and area.max() <= 1 + 1e-6
    assert lean.abs().max() <= math.log(aspect) + 1e-5
    # uniform: mean and deviation within 5 standard errors
    for value, a, b in ((area, low, 1.0), (lean, -math.log(aspect), math.log(aspect))):
        spread = (b - a) / 12**0.5
        assert abs(value.mean() - (a + b) / 2) < 5 * spread / n**0.5
        assert value.std().item() == pytest.approx(spread, rel=0.02)
    inside = (width < 0.9) & (height < 0.9)
    across, down = (left / (1 - width))[inside], (top / (1 - height))[inside]
    for share in (across, down):
        assert share.min() >= -1e-5 and share.max() <= 1 + 1e-5
        assert share.mean().item() == pytest.approx(0.5, abs=0.02)
    # a side above 1 is not drawn again: then the image lies inside the box
    for start, side in ((left, width), (top, height)):
        assert (side > 1.001).any()
        fits = (start >= -1e-6) & (start + side <= 1 + 1e-6)
        assert fits[side <= 1].all() and not fits[side > 1.001].any()
    drawn = torch.corrcoef(torch.stack([area[inside], lean[inside], across, down]))
    assert (drawn - torch.eye(4)).abs().max() < 0.05


def test_probabilities_of_flip_and_noise():
    draw = Views(flip=0.3, noise=0.7).draw(20_000, generator())
    assert draw["flip"].double().mean().item() == pytest.approx(0.3, abs=0.02)
    assert (draw["noise"] >= 0).double().mean().item() == pytest.approx(0.7, abs=0.02)
    seeds = draw["noise"][draw["noise"] >= 0]
    assert len(seeds.unique()) == len(seeds)


@pytest.mark.parametrize("chunk", [1, 2, 3, 5])
def test_chunks_of_any_size_see_the_same_bytes(chunk):
    x = images(7, dtype=torch.float32)
    views = Views(noise=0.6)
    draw = views.draw(7, generator(3))
    assert 0 < (draw["noise"] >= 0).sum() < 7
    whole = views.apply(x, draw, 9)
    parts = [
        views.apply(x[k : k + chunk], part_of(draw, slice(k, k + chunk)), 9)
        for k in range(0, 7, chunk)
    ]
    assert torch.equal(torch.cat(parts), whole)
    rows = torch.tensor([5, 0, 3])
    assert torch.equal(views.apply(x[rows], part_of(draw, rows), 9), whole[rows])


def test_noise_has_its_mean_and_deviation_and_is_each_images_own():
    views = Views(crop_min=1, flip=0, noise=1.0, noise_mean=0.25, noise_std=0.1)
    x = torch.zeros(6, 3, 40, 40)
    seen = views.apply(x, views.draw(6, generator()), 40)
    for image in seen:
        assert image.mean().item() == pytest.approx(0.25, abs=0.01)
        assert image.std().item() == pytest.approx(0.1, abs=0.005)
    across = torch.corrcoef(seen.flatten(1))
    assert (across - torch.eye(6)).abs().max() < 0.1
    assert seen.min() < 0  # not clamped


def test_noise_is_added_to_what_would_be_seen_without():
    x, loud = images(6, dtype=torch.float32), Views(noise=0.5)
    draw = loud.draw(6, generator(2))
    noisy = draw["noise"] >= 0
    assert 0 < noisy.sum() < 6
    silent = loud.apply(x, {**draw, "noise": torch.full((6,), -1)}, 8)
    seen = loud.apply(x, draw, 8)
    assert torch.equal(seen[~noisy], silent[~noisy])
    added = (seen - silent)[noisy]
    assert added.mean().item() == pytest.approx(0.5, abs=0.05)  # as released, it brightens
    # and depends on the seed alone, not on the image
    torch.testing.assert_close(loud.apply(0 * x, draw, 8)[noisy], added, atol=1e-6, rtol=0)


def test_same_generator_same_draw():
    a, b = (PLAIN.draw(5, generator(9)) for _ in range(2))
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not torch.equal(a["box"], PLAIN.draw(5, generator(10))["box"])


def test_gradient_to_the_images():
    x = images(2, 1, 5, 4).requires_grad_()
    views = Views(noise=1.0)
    draw = views.draw(2, generator(4))
    assert torch.autograd.gradcheck(lambda x: views.apply(x, draw, (3, 4)), x)
    # adjoint of the sampling: the pixels of a view add up to weights of the image's pixels
    (slope,) = torch.autograd.grad(views.apply(x, draw, (3, 4)).sum(), x)
    assert (slope >= 0).all() and slope.sum() > 0


def test_clean_view_of_256_is_the_centre_crop_of_224():
    x = torch.rand(2, 3, 256, 256, generator=generator())
    assert torch.equal(clean_view(x, 224), x[:, :, 16:240, 16:240])


def test_clean_view_of_the_right_size_is_the_image_itself():
    x = images(2, 3, 24, 40)
    assert torch.equal(clean_view(x, (24, 40)), x)


def test_clean_view_of_a_larger_image_loses_an_eighth_and_shrinks_without_aliasing():
    x = images(2, 3, 64, 64)
    middle = x[:, :, 4:60, 4:60]  # 56 = 7/8 of 64
    expected = F.interpolate(middle, (32, 32), mode="bilinear", align_corners=False, antialias=True)
    assert torch.equal(clean_view(x, 32), expected)
    stripes = torch.arange(64).remainder(2).double().expand(1, 1, 64, 64)
    assert (clean_view(stripes, 16)[..., 1:-1] - 0.5).abs().max() < 0.05


def test_clean_view_enlarges_a_smaller_image_whole():
    x = images(2, 3, 8, 8)
    expected = F.interpolate(x, (20, 20), mode="bilinear", align_corners=False)
    assert torch.equal(clean_view(x, 20), expected)


def test_clean_view_treats_each_side_by_itself():
    x = images(1, 3, 24, 40)
    seen = clean_view(x, (32, 36))  # enlarged, and cropped to 36 of 40
    expected = F.interpolate(x[:, :, :, 2:38], (32, 36), mode="bilinear", align_corners=False)
    torch.testing.assert_close(seen, expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("crop_min", 0.0),
        ("crop_min", 1.1),
        ("crop_min", math.nan),
        ("aspect", 0.9),
        ("aspect", math.nan),
        ("aspect", math.inf),
        ("flip", -0.1),
        ("flip", 1.5),
        ("noise", 2.0),
        ("noise", math.nan),
        ("noise_mean", math.inf),
        ("noise_std", -1.0),
        ("noise_std", math.nan),
        ("noise_std", math.inf),
    ],
)
def test_bad_fields_are_named(name, value):
    with pytest.raises(InputError, match=f"{name} is {value}; use|{name} is {value} and"):
        Views(**{name: value})


def test_facts_are_every_field():
    views = Views(crop_min=0.3, noise_mean=0.1)
    assert Views(**views.facts) == views and views.facts["crop_min"] == 0.3
