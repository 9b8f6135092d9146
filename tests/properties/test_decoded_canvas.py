"""Stored images become training images: shapes, rows, labels and the exact adjoint."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from potstill.canvas import Canvas, canvas_spec, decode_images, mosaic, tiles, views_per_image

SHAPE = st.tuples(st.integers(1, 4), st.sampled_from((1, 3)), st.integers(1, 9), st.integers(1, 9))
SPEC = st.builds(canvas_spec, st.integers(1, 4), st.sampled_from(("single", "multi")))
SEED = st.integers(0, 2**20)


def images(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.rand(shape, generator=draw, dtype=torch.float64)


@given(SHAPE, SPEC, SEED)
def test_every_view_has_the_shape_and_the_label_of_its_image(shape, spec, seed):
    x, labels = images(shape, seed), torch.arange(shape[0])
    soft, views = images((shape[0], 3), seed), views_per_image(spec)
    seen, repeated, softly, none = decode_images(x, labels, spec, soft, None)
    assert seen.shape == (shape[0] * views, *shape[1:]) and none is None
    assert repeated.tolist() == [label for label in range(shape[0]) for _ in range(views)]
    assert torch.equal(softly, soft[repeated])
    assert float(seen.min()) >= 0 and float(seen.max()) <= 1  # interpolated, never beyond
    for row in range(shape[0]):  # and depends on that image alone
        alone = decode_images(x[row : row + 1], labels[:1], spec)[0]
        assert torch.equal(alone, seen[row * views : (row + 1) * views])


@given(SHAPE, SPEC, SEED)
def test_the_gradient_is_the_adjoint_of_decoding(shape, spec, seed):
    x, other = images(shape, seed).requires_grad_(), images(shape, seed + 1)
    labels = torch.zeros(shape[0], dtype=torch.int64)

    def decoded(images: torch.Tensor) -> torch.Tensor:
        return decode_images(images, labels, spec)[0]

    y = images((shape[0] * views_per_image(spec), *shape[1:]), seed + 2)
    (gradient,) = torch.autograd.grad((decoded(x) * y).sum(), x)
    forward = decoded(other) - decoded(torch.zeros_like(other))  # less the grey that pads
    assert torch.allclose((forward * y).sum(), (other * gradient).sum(), atol=1e-9)
    mixed = decoded(0.3 * x + 0.7 * other)
    assert torch.allclose(mixed, 0.3 * decoded(x) + 0.7 * decoded(other), atol=1e-12)


@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 3), st.integers(1, 3), SEED)
def test_a_mosaic_of_plain_images_is_cut_into_them(factor, side, n, channels, seed):
    levels = images((n, factor**2, channels, 1, 1), seed)
    parts = levels.expand(-1, -1, -1, factor * side, factor * side)
    laid = mosaic(parts, factor)
    assert laid.shape == (n, channels, factor * side, factor * side)
    assert torch.allclose(tiles(laid, factor), parts.flatten(0, 1), atol=1e-12)


@given(SHAPE, st.integers(1, 4), SEED)
def test_a_mosaic_keeps_the_mean_of_images_that_are_cut_evenly(shape, factor, seed):
    n, c, h, w = shape
    parts = images((n, factor**2, c, h * factor, w * factor), seed)
    assert torch.allclose(mosaic(parts, factor).mean((2, 3)), parts.mean((1, 3, 4)), atol=1e-12)


@given(st.lists(st.integers(1, 4), min_size=1, max_size=4), SPEC, SEED)
def test_classes_of_a_canvas_are_decoded_apart_as_together(counts, spec, seed):
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    canvas = Canvas(images((len(labels), 1, 6, 6), seed), labels, len(counts), spec)
    whole, repeated = canvas.decode()
    apart = [canvas.decode(label, label + 1) for label in range(len(counts))]
    assert torch.equal(torch.cat([part for part, _ in apart]), whole)
    assert torch.equal(torch.cat([part for _, part in apart]), repeated)
    assert len(whole) == canvas.views * sum(counts)
