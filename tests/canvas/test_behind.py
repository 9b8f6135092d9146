"""Canvases behind a transform; how many images a class begins with, and which."""

import pytest
import torch

from potstill.canvas import Canvas, canvas_spec, images_per_class, start_canvas
from potstill.data import ZCA, Normalize
from potstill.methods import MTT
from potstill.run import InputError


def start(bounded=False):
    images = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    return Canvas(images, torch.tensor([0, 0, 1, 1]), 2, canvas_spec(), bounded=bounded)


@pytest.mark.parametrize("kind", [Normalize, ZCA])
def test_images_move_behind_a_transform_and_are_stored_as_rgb(make_blobs, kind):
    transform = kind.fit(make_blobs((30, 20), channels=3))
    before = start()
    canvas = before.moved_behind(transform)
    assert torch.allclose(canvas.images.detach(), transform.forward(start().images.detach()))
    assert canvas.seen(transform) is canvas.images and canvas.behind is transform
    assert torch.allclose(canvas.pictures(), start().images, atol=1e-4)
    moved = canvas.images.detach() + 1
    assert torch.allclose(transform.forward(canvas.pictures({"images": moved})), moved, atol=1e-3)
    assert set(canvas.parameters()) == {"images"} and canvas.images.requires_grad
    assert before.behind is None and torch.equal(before.images, start().images)  # as it was
    there = canvas.to("cpu")
    assert there.behind is transform and torch.equal(there.images, canvas.images)


def test_training_images_behind_a_transform_have_a_graph(make_blobs):
    transform = Normalize.fit(make_blobs((30, 20), channels=3))
    canvas = start().moved_behind(transform)
    images, labels = canvas.decode(1, 2)
    assert torch.allclose(images, start().images[2:], atol=1e-6) and labels.tolist() == [1, 1]
    images.sum().backward()
    assert torch.allclose(canvas.images.grad[2:, 0], transform.std[0].expand(2, 8, 8))
    assert canvas.images.grad[:2].abs().max() == 0


def test_a_canvas_in_front_applies_the_transform_with_a_graph_and_clamps(make_blobs):
    transform = Normalize.fit(make_blobs((30, 20), channels=3))
    canvas = start(bounded=True)
    canvas.seen(transform).sum().backward()
    assert torch.allclose(canvas.images.grad[:, 0], 1 / transform.std[0])
    with torch.no_grad():
        canvas.images.add_(5)
    canvas.project_()
    assert canvas.images.max() == 1
    free = start(bounded=True).moved_behind(transform)
    with torch.no_grad():
        free.images.add_(5)
    free.project_()
    assert free.images.max() > 5  # 0-1 means nothing behind the transform


def test_tiles_stay_in_front_and_are_seen_all(make_blobs):
    real = make_blobs((30, 20), channels=3)
    transform = Normalize.fit(real)
    tiled = start_canvas(real, 1, lambda *_: torch.Generator().manual_seed(0), factor=2)
    assert not tiled.plain and start().plain and start().moved_behind(transform).plain
    assert torch.equal(tiled.seen(transform), transform.forward(tiled.decode()[0]))
    assert len(tiled.seen(transform)) == 8


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"space": "pixel"}, "space is 'pixel'"),
        ({"syn_lr": 0.0}, "syn_lr is 0"),
        ({"canvas": "tiled", "start": "correct"}, "start is 'correct' with canvas 'tiled'"),
    ],
)
def test_what_does_not_fit_is_refused(fields, sentence):
    with pytest.raises(InputError, match=sentence):
        MTT.budget("paper", bounded=False, **fields).check()


def test_images_per_class_by_profile(make_blobs):
    real = make_blobs((60, 30, 9, 1))
    assert images_per_class(real, 5) == [5, 5, 5, 5]
    uneven = images_per_class(real, 5, "long_tailed")
    assert sum(uneven) == 20 and uneven == [12, 5, 2, 1]
    for sizes in ((5000, 2775, 1540, 854, 474, 263, 146, 81, 45, 25), (20, 19, 18, 2), (9, 9, 9)):
        real = make_blobs(tuple(size // 5 + 1 for size in sizes))
        for ipc in (1, 2, 7, 20):
            uneven = images_per_class(real, ipc, "long_tailed")
            assert sum(uneven) == min(ipc * len(sizes), len(real))
            assert uneven == sorted(uneven, reverse=True) and min(uneven) >= 1
            assert all(own <= most for own, most in zip(uneven, real.counts, strict=True))
    real = make_blobs((60, 30, 9, 1))
    assert images_per_class(make_blobs((4, 4)), 9, "long_tailed") == [4, 4]  # no more than it has
    with pytest.raises(InputError, match="ipc_profile is 'tail'"):
        images_per_class(real, 5, "tail")


def test_candidates_are_taken_in_their_order_and_filled_up(make_blobs, run, caplog):
    real = make_blobs((6, 4))
    chosen = [real.of_class(0)[[3, 1, 2]], real.of_class(1)[:0]]
    canvas = start_canvas(real, [2, 3], run.generator, candidates=chosen)
    assert canvas.labels.tolist() == [0, 0, 1, 1, 1]
    assert torch.equal(canvas.images[:2], real.batch(chosen[0][:2]))
    assert "1 of 2 classes have fewer than the 3 rightly classified images" in caplog.text
    noise = canvas.images[2:].detach()  # nothing of class 1 qualifies
    assert all(not torch.equal(n, r) for n in noise for r in real.batch(real.of_class(1)))
    with pytest.raises(InputError, match="at least 1 image per class"):
        start_canvas(real, [2, 0], run.generator)
