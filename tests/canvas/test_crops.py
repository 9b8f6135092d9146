"""Crops that trained networks choose: rounds, judges, and what starts from them."""

import pytest
import torch
from tests.test_pairings import tiny

from potstill.canvas.crops import by_rounds, confident_crops
from potstill.losses import adjust
from potstill.methods.distribution.csdm import CSDM
from potstill.methods.distribution.dm import DM
from potstill.run import InputError


def by_hand(scores, needed):
    """Round after round, as the paper says it."""
    used = [set() for _ in scores]
    taken = []
    while len(taken) < needed:
        offers = []
        for image, row in enumerate(scores.tolist()):
            left = [(value, crop) for crop, value in enumerate(row) if crop not in used[image]]
            if left:
                value, crop = max(left)
                offers.append((value, image, crop))
        for _, image, crop in sorted(offers, reverse=True)[: needed - len(taken)]:
            used[image].add(crop)
            taken.append([image, crop])
    return taken


@pytest.mark.parametrize(("images", "needed"), [(50, 20), (50, 50), (3, 12), (3, 15), (1, 4)])
def test_rounds_are_the_papers(images, needed):
    scores = torch.rand(images, 5, generator=torch.Generator().manual_seed(images))
    found = by_rounds(scores, needed).tolist()
    assert found == by_hand(scores, needed)
    assert len({tuple(pair) for pair in found}) == needed  # no crop twice


def test_crops_are_those_that_the_judge_is_surest_of(make_blobs, run):
    real = make_blobs((30, 2), channels=3, size=16)

    def judge(images):  # the brighter, the surer, of every class
        return images.mean((1, 2, 3))[:, None].expand(-1, 2)

    best = confident_crops(real, [4, 7], judge, run.generator)
    worst = confident_crops(real, [4, 7], lambda x: -judge(x), run.generator)
    assert [len(own) for own in best] == [4, 7]  # seven of two images
    assert all(own.shape[1:] == (3, 16, 16) for own in best)
    for high, low in zip(best, worst, strict=True):
        assert judge(high)[:, 0].mean() > judge(low)[:, 0].mean()
        flat = high.flatten(1)
        assert len({tuple(row.tolist()) for row in flat}) == len(flat)
    again = confident_crops(real, [4, 7], judge, run.generator)
    assert all(torch.equal(a, b) for a, b in zip(best, again, strict=True))


@pytest.mark.parametrize("networks", ["pool", "snapshots"])
def test_a_canvas_starts_from_them(networks, make_blobs, run):
    real = make_blobs((12, 3), channels=3, size=16)
    method = tiny(CSDM, networks=networks, start="crops", factor=2, pool_epochs=2, members=2)
    method.check(real)
    opened = method.open(real, run)
    canvas = method.start(real, 2, opened, run)
    assert canvas.images.shape == (4, 3, 16, 16)
    plain = method.with_(start="tiled").start(real, 2, opened, run)
    assert not torch.equal(canvas.images, plain.images)
    images = real.batch(torch.arange(5))
    says = opened.judged(images, real.counts, "plain")
    ends = [adjust(one.logits(images), real.counts).log_softmax(1) for one in opened.finished()]
    assert torch.allclose(says, torch.stack(ends).mean(0)) and len(ends) == 2
    assert not torch.allclose(ends[0], ends[1])
    debiased = opened.judged(images, real.counts, "balanced_softmax")
    assert not torch.allclose(debiased, says)


def test_without_trained_networks_they_are_refused():
    with pytest.raises(InputError, match="start is 'crops' with networks 'random'"):
        DM.budget("quick", canvas="tiled", start="crops").check()
