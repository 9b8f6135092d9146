import pytest
import torch

from potstill.canvas import (
    Canvas,
    canvas_spec,
    check_spec,
    decode_images,
    mosaic,
    start_canvas,
    tiles,
    views_per_image,
)
from potstill.run import InputError


def test_tiles_are_the_quadrants_enlarged():
    image = torch.zeros(1, 1, 8, 8)
    image[..., :4, 4:] = 1.0  # upper right quadrant
    cut = tiles(image, 2)
    assert cut.shape == (4, 1, 8, 8)
    assert torch.equal(cut[1], torch.ones(1, 8, 8)) and cut[[0, 2, 3]].sum() == 0


def test_tiles_equal_bilinear_enlargement_of_the_crop():
    image = torch.rand(2, 3, 12, 12, dtype=torch.float64)
    expected = torch.nn.functional.interpolate(
        image[:, :, 4:8, 8:12], size=12, mode="bilinear", align_corners=False
    )
    assert torch.allclose(tiles(image, 3).unflatten(0, (2, 9))[:, 5], expected)


@pytest.mark.parametrize(("size", "factor"), [(8, 2), (32, 2), (28, 3), (9, 2)])
def test_constant_parts_survive_mosaic_and_cutting(size, factor):
    values = torch.rand(2, factor**2)
    parts = values[:, :, None, None, None].expand(2, factor**2, 1, size, size)
    cut = tiles(mosaic(parts.contiguous(), factor), factor).unflatten(0, (2, factor**2))
    inner = cut[..., 1:-2, 1:-2] if size % factor else cut
    first = inner.flatten(2).mean(2)
    assert torch.allclose(first[:, 0], values[:, 0], atol=1e-6)
    if size % factor == 0:
        assert torch.allclose(first, values, atol=1e-6)


def test_multi_formation_repeats_labels_and_extras():
    images, labels = torch.rand(2, 1, 8, 8), torch.tensor([0, 1])
    soft = torch.eye(2)
    spec = canvas_spec(2, "multi")
    decoded, ys, softs, nothing = decode_images(images, labels, spec, soft, None)
    assert decoded.shape == (10, 1, 8, 8) == (2 * views_per_image(spec), 1, 8, 8)
    assert ys.tolist() == [0] * 5 + [1] * 5 and torch.equal(softs.argmax(1), ys) and nothing is None
    assert torch.equal(decoded[0], images[0])  # factor 1 is the image itself


@pytest.mark.parametrize(
    "spec",
    [
        {},
        {"kind": "gif"},
        {"kind": "tiled", "factor": 99, "formation": "single"},
        {"kind": "tiled", "factor": 2, "formation": "x"},
        {"kind": "tiled", "factor": True},
    ],
)
def test_unknown_specs_are_refused(spec):
    with pytest.raises(InputError):
        check_spec(spec)


def test_decode_passes_gradients_to_stored_pixels():
    canvas = Canvas(torch.rand(2, 1, 8, 8), torch.tensor([0, 1]), 2, canvas_spec(2))
    images, _ = canvas.decode(1, 2)
    images.sum().backward()
    assert canvas.images.grad[0].abs().sum() == 0 and (canvas.images.grad[1] > 0).all()


def test_start_real_takes_images_of_the_class(make_blobs, run):
    real = make_blobs((6, 4))
    canvas = start_canvas(real, 3, run.generator, start="real")
    bank = real.batch(torch.arange(10))
    for image, label in zip(canvas.images, canvas.labels, strict=True):
        match = (bank == image).flatten(1).all(1).nonzero().flatten()
        assert len(match) == 1 and real.labels[match] == label


@pytest.mark.parametrize("shortage", ["repeat", "noise", "keep"])
def test_starved_policies(make_blobs, run, shortage, caplog):
    canvas = start_canvas(make_blobs((6, 2)), 4, run.generator, shortage=shortage)
    assert torch.bincount(canvas.labels).tolist() == ([4, 2] if shortage == "keep" else [4, 4])
    assert "1 of 2 classes have fewer than the 4 images" in caplog.text
    flat = canvas.images.detach().flatten(1)
    assert len(flat.unique(dim=0)) == len(flat)


def test_tiled_start_holds_different_real_images(make_blobs, run):
    canvas = start_canvas(make_blobs((12, 12)), 2, run.generator, start="tiled", factor=2)
    assert canvas.images.shape == (4, 1, 8, 8) and canvas.views == 4
    cut, _ = canvas.decode()
    assert len(cut.flatten(1).unique(dim=0)) == 16


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("start", {"start": "mosaic"}),
        ("shortage", {"shortage": "drop"}),
        ("shortage", {"start": "tiled", "shortage": "keep", "factor": 2}),
    ],
)
def test_bad_choices_are_named(make_blobs, run, name, fields):
    with pytest.raises(InputError, match=name):
        start_canvas(make_blobs((6, 4)), 2, run.generator, **fields)


def test_ipc_zero_is_refused(make_blobs, run):
    with pytest.raises(InputError, match="ipc is 0"):
        start_canvas(make_blobs((6, 4)), 0, run.generator)


def test_projection_clamps_only_bounded_canvases():
    for bounded in (True, False):
        canvas = Canvas(
            torch.full((1, 1, 2, 2), 1.5), torch.tensor([0]), 1, canvas_spec(), bounded=bounded
        )
        canvas.project_()
        assert float(canvas.images.detach().max()) == (1.0 if bounded else 1.5)
