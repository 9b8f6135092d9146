"""RDED: the crops that are kept, against a slow search over all of them."""

from __future__ import annotations

import pytest
import torch
from tests.test_contract import build

from potstill.canvas.crops import confident_crops
from potstill.canvas.tiled import small_views
from potstill.methods.selection.rded import RDED, log_realism
from potstill.run import InputError


class Observer:
    """Knows two classes: bright and dark, by the middle of an image more than by its border."""

    def __init__(self, shape):
        from potstill.data import Normalize

        self.shown = []
        self.transform = Normalize(torch.tensor([0.3]), torch.tensor([0.2]))
        self.backbone, self.head = self, lambda z: z
        self.size = shape[1:]

    def features(self, x):
        assert tuple(x.shape[2:]) == tuple(self.size)
        self.shown.append(x)
        middle = x[:, 0, 2:6, 2:6].mean((1, 2))
        return torch.stack([middle, 1 - x.mean((1, 2, 3))], 1)


def every_crop(real, label, seed_run, crops, looked_at, needed, crop_min):
    """All crops that a class offers, one at a time, by the class's generator."""
    draw, own = seed_run.generator("crops", label), real.of_class(label)
    own = own[torch.randperm(len(own), generator=draw)[: max(looked_at, needed)]]
    u = torch.rand(len(own) * crops, 6, generator=draw)
    high, wide = real.shape[1:]
    for k, image in enumerate(own.tolist()):
        for j in range(crops):
            row = u[k * crops + j]
            side = float((crop_min + (1 - crop_min) * row[0]) ** 0.5)
            left, top = float(row[2]) * (1 - side), float(row[3]) * (1 - side)
            x = real.batch(torch.tensor([image]))
            grid = torch.empty(1, high, wide, 2)
            for y in range(high):
                for z in range(wide):
                    grid[0, y, z, 0] = 2 * (left + side * (z + 0.5) / wide) - 1
                    grid[0, y, z, 1] = 2 * (top + side * (y + 0.5) / high) - 1
            found = torch.nn.functional.grid_sample(x, grid, align_corners=False)
            yield k, found.clamp(0, 1)


@pytest.mark.parametrize("needed", [4, 9])
def test_what_is_kept_is_the_best_crop_of_the_images_that_are_best(make_blobs, run, needed):
    """Nine of nine images, and the four best of them."""
    real, observer = make_blobs((9, 30)), Observer((1, 8, 8))

    def judge(x):
        return log_realism(observer, 1, "padded", x)

    how = {"crops": 3, "crop_min": 0.1, "looked_at": 7}
    found = confident_crops(real, [needed, 1], judge, run.generator, **how)[0]
    best: dict[int, tuple[float, torch.Tensor]] = {}
    for image, crop in every_crop(real, 0, run, 3, 7, needed, 0.1):
        score = float(judge(crop)[0, 0])
        if image not in best or score > best[image][0]:
            best[image] = score, crop[0]
    assert len(best) == max(7, needed)
    kept = sorted(best.values(), key=lambda one: -one[0])[:needed]
    for mine, (_, slow) in zip(found, kept, strict=True):
        torch.testing.assert_close(mine, slow, atol=1e-5, rtol=1e-5)


def test_an_observer_is_shown_the_tile_that_is_stored():
    """In the middle of zeros behind the normalisation, or enlarged as a receiver does it."""
    observer, crops = Observer((1, 8, 8)), torch.rand(3, 1, 8, 8)
    tiles = crops.unflatten(2, (4, 2)).unflatten(4, (4, 2)).mean((3, 5))
    log_realism(observer, 2, "padded", crops)
    seen = observer.transform.forward(observer.shown[-1])
    expected = torch.zeros(3, 1, 8, 8)
    expected[:, :, 2:6, 2:6] = observer.transform.forward(tiles)
    torch.testing.assert_close(seen, expected, atol=1e-5, rtol=1e-5)
    log_realism(observer, 2, "enlarged", crops)
    whole = tiles.repeat(1, 1, 2, 2)  # stored, as four tiles of it
    torch.testing.assert_close(small_views(whole, 2, "single")[:, 0], tiles)
    large = torch.nn.functional.interpolate(tiles, (8, 8), mode="bilinear", align_corners=False)
    torch.testing.assert_close(observer.shown[-1], large)
    said = log_realism(observer, 1, "padded", crops)
    assert torch.equal(observer.shown[-1], crops)
    torch.testing.assert_close(said.exp().sum(1), torch.ones(3))


def test_the_set_is_made_of_what_the_observer_is_sure_of(make_blobs, run):
    """A class of four images stores twelve crops, of which no two are the same."""
    real = make_blobs((40, 20, 4), size=16)
    method = build("rded", factor=2, scorer_epochs=8, crop_min=0.3)
    syn = method(real, 3, run)
    images, labels, *_ = syn.decoded()
    assert labels.tolist() == [label for label in range(3) for _ in range(12)]
    assert len({tuple(image.flatten().tolist()) for image in images[24:]}) == 12
    networks = method.networks.open(real, run)
    random = confident_crops(real, [12] * 3, lambda x: torch.rand(len(x), 3), run.generator)
    own = torch.arange(3).repeat_interleave(12)[:, None]
    by_luck = log_realism(networks, 2, "padded", torch.cat(random)).gather(1, own)
    chosen = log_realism(networks, 1, "padded", images).gather(1, own)
    assert chosen[:24].mean() > by_luck[:24].mean()
    assert "scorer" in syn.provenance


def test_an_observer_that_tells_nothing_is_refused(make_blobs, run):
    real = make_blobs((6, 5))
    blank = real.batch(torch.arange(11)).fill_(0.5)
    from dataclasses import replace

    same = replace(real, images=(blank * 255).to(torch.uint8))
    with pytest.raises(InputError, match="says the same of all images"):
        build("rded")(same, 1, run)
    with pytest.raises(InputError, match="networks is 'none', of which rded can make nothing"):
        RDED().with_(networks="none").check()
    with pytest.raises(InputError, match="crops is 0"):
        RDED(crops=0).check()
