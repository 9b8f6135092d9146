"""The gallery: a picture at a few steps whatever the canvas holds; the user's watcher at all."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from potstill.reports.gallery import Gallery, picture_real


def canvas(**more: Any) -> SimpleNamespace:
    images = torch.full((4, 1, 8, 8), 0.25, requires_grad=True)
    return SimpleNamespace(images=images, labels=torch.tensor([0, 0, 0, 1]), **more)


def brightest(path: Any) -> int:
    """Largest value right of the class names, where images are opaque."""
    sheet = np.asarray(Image.open(path).convert("RGBA"))
    return int(sheet[:, 40:, 0].max())


@pytest.mark.parametrize(("steps", "expected"), [(1, {1}), (9, set(range(1, 10))), (0, set())])
def test_first_and_last_step_and_eight_between(steps, expected, tmp_path):
    watch = Gallery(tmp_path, ("a", "b"), steps, None)
    for step in range(steps):
        watch(step, {}, canvas())
    found = {int(p.stem.removeprefix("step-")) for p in tmp_path.glob("pictures/*.png")}
    assert found == expected


def test_a_long_run_leaves_few_pictures(tmp_path):
    watch, seen = Gallery(tmp_path, ("a", "b"), 8001, lambda *all_: seen.append(all_)), []
    board = canvas()
    for step in range(0, 8001, 40):  # the loop calls at some steps only
        watch(step, {"step": step}, board)
    found = sorted(p.name for p in tmp_path.glob("pictures/*.png"))
    assert found[0] == "step-000001.png" and found[-1] == "step-008001.png" and len(found) == 9
    assert len(seen) == 201 and seen[3] == (120, {"step": 120}, board)


def test_a_canvas_in_another_space_is_drawn_by_its_pictures(tmp_path):
    def pictures() -> torch.Tensor:
        return torch.full((4, 1, 8, 8), 1.7)  # may leave 0-1

    Gallery(tmp_path / "rgb", ("a", "b"), 1, None)(0, {}, canvas())
    Gallery(tmp_path / "own", ("a", "b"), 1, None)(0, {}, canvas(pictures=pictures))
    assert brightest(tmp_path / "rgb/pictures/step-000001.png") == 64
    assert brightest(tmp_path / "own/pictures/step-000001.png") == 255


def test_real_images_are_laid_out_like_the_synthetic_ones(tmp_path, make_blobs):
    picture_real(tmp_path, make_blobs((5, 2)), 3)
    wide = Image.open(tmp_path / "pictures" / "real.png").size
    picture_real(tmp_path, make_blobs((5, 2)), 1)
    narrow = Image.open(tmp_path / "pictures" / "real.png").size
    assert wide[1] == narrow[1] and wide[0] > narrow[0]
