"""One pass through a backbone: sums against loops over images, and what a kill must not change."""

import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from potstill.data import Normalize
from potstill.data.views import Views, clean_view
from potstill.experts import feature_pass as room
from potstill.experts.feature_stats import BLOCK
from potstill.experts.features import (
    FeatureStats,
    StoredFeatures,
    collect_features,
    image_features,
    sub_centres,
)
from potstill.nets.backbone import own_backbone
from potstill.nets.frozen import frozen
from potstill.run import InputError, StorageError
from potstill.run.checkpoint import load_state, save_state

COUNTS = (80, 50, 13)
VIEWS = Views(noise=0.5)
N = sum(COUNTS)


@pytest.fixture
def real(make_blobs):
    """Classes in no order, so that a class is spread over blocks."""
    data = make_blobs(COUNTS, channels=3)
    return data.select(torch.randperm(N, generator=torch.Generator().manual_seed(1)))


@pytest.fixture
def backbone(real, run):
    return make_backbone(real, run)


def make_backbone(real, run, seed=0, size=8):
    shape = (real.shape[0], size, size)
    draw = run.with_(seed=seed).generator("backbone/weights")
    return own_backbone("convnet-d2-w8-in", shape, draw, Normalize.fit(real))


def slow_features(real, backbone, run, views=None, count=1):
    """Image by image, (count, n, d) in float64."""
    found = torch.empty(count, len(real), backbone.dim, dtype=torch.float64)
    for view in range(count):
        draw = None
        if views is not None:
            draw = views.draw(len(real), run.generator("features/views", view))
        for row in range(len(real)):
            image = real.images[row : row + 1].float() / 255
            if draw is None:
                seen = clean_view(image, backbone.size)
            else:
                own = {name: values[row : row + 1] for name, values in draw.items()}
                seen = views.apply(image, own, backbone.size)
            found[view, row] = backbone.features(seen)[0]
    return found


CASES = [(None, 1), (VIEWS, 1), (VIEWS, 3)]


@pytest.mark.parametrize(("views", "count"), CASES)
def test_sums_equal_a_loop_over_images(real, backbone, run, views, count):
    stats = collect_features(real, backbone, run, views=views, count=count)
    z = slow_features(real, backbone, run, views, count)
    assert stats.counts.tolist() == list(COUNTS) and stats.views == count
    assert stats.sums.dtype == torch.float64
    for label in range(3):
        own = z[:, real.labels == label].flatten(0, 1)
        torch.testing.assert_close(stats.sums[label], own.sum(0), atol=1e-3, rtol=1e-6)
        torch.testing.assert_close(stats.centres[label].double(), own.mean(0), atol=1e-5, rtol=1e-5)
    assert stats.moment is None and not isinstance(stats, StoredFeatures)
    assert (stats.centres[0] - stats.centres[1]).norm() > 0.1


@pytest.mark.parametrize("moment", ["natural", "balanced"])
@pytest.mark.parametrize(("views", "count"), CASES)
def test_second_moments_equal_a_loop(real, backbone, run, moment, views, count):
    stats = collect_features(real, backbone, run, views=views, count=count, moment=moment)
    z = slow_features(real, backbone, run, views, count)
    share = torch.full((N,), 1 / N, dtype=torch.float64)
    if moment == "balanced":
        share = torch.tensor([1 / (3 * COUNTS[c]) for c in real.labels.tolist()]).double()
    expected = torch.zeros(backbone.dim, backbone.dim, dtype=torch.float64)
    for view in range(count):
        for row in range(N):
            expected += share[row] / count * torch.outer(z[view, row], z[view, row])
    torch.testing.assert_close(stats.moment, expected, atol=1e-5, rtol=1e-4)


def test_the_two_moments_differ_on_a_long_tail_and_agree_when_balanced(make_blobs, real, run):
    def both(data):
        seen = make_backbone(data, run)
        return [
            collect_features(data, seen, run, moment=kind).moment
            for kind in ("natural", "balanced")
        ]

    natural, balanced = both(real)
    assert (natural - balanced).norm() > 1e-2 * natural.norm()
    natural, balanced = both(make_blobs((20, 20), channels=3))
    torch.testing.assert_close(natural, balanced)


@pytest.mark.parametrize(("views", "count"), CASES)
def test_the_bank_holds_every_feature_in_half_precision(real, backbone, run, views, count):
    stats = collect_features(real, backbone, run, views=views, count=count, bank=True)
    z = slow_features(real, backbone, run, views, count)
    assert stats.bank.dtype == torch.float16 and stats.bank.shape == (count, N, backbone.dim)
    torch.testing.assert_close(stats.bank.double(), z, atol=2e-3, rtol=2e-3)
    assert torch.equal(stats.labels, real.labels)
    # too large for memory: mapped, with the same content
    mapped = collect_features(
        real, backbone, run.with_(memory_gb=1e-9), views=views, count=count, bank=True
    )
    assert torch.equal(mapped.bank, stats.bank) and mapped.seconds_saved > 0


def test_features_of_given_images(real, backbone, run):
    images = real.batch(torch.arange(100))  # more than a block
    expected = slow_features(real, backbone, run)[0, :100].float()
    torch.testing.assert_close(
        image_features(images, backbone, None, None), expected, atol=1e-5, rtol=1e-5
    )
    draw = VIEWS.draw(N, run.generator("features/views", 0))
    seen = image_features(real.batch(torch.arange(N)), backbone, VIEWS, draw)
    expected = slow_features(real, backbone, run, VIEWS)[0].float()
    torch.testing.assert_close(seen, expected, atol=1e-5, rtol=1e-5)
    assert not seen.requires_grad


def test_images_are_brought_to_the_size_of_the_backbone(real, run):
    larger = make_backbone(real, run, size=12)
    stats = collect_features(real, larger, run)
    expected = slow_features(real, larger, run)[0]
    torch.testing.assert_close(
        stats.centres[2].double(), expected[real.labels == 2].mean(0), atol=1e-5, rtol=1e-5
    )


# kept and killed


class Clock:
    """Time that passes only when it is looked at: a save after every block."""

    def __init__(self, tick):
        self.now, self.tick = 0.0, tick

    def monotonic(self):
        self.now += self.tick
        return self.now


class Killed(BaseException):
    pass


def counted(monkeypatch, die_after=None):
    """Count blocks; die when ``die_after`` of them are done."""
    blocks, original = [], room.FeaturePass._add

    def add(self, z, labels):
        if die_after is not None and len(blocks) == die_after:
            raise Killed
        blocks.append(len(z))
        original(self, z, labels)

    monkeypatch.setattr(room.FeaturePass, "_add", add)
    return blocks


def files(folder):
    """What does not say how long it took."""
    paths = (p for p in folder.iterdir() if p.stem not in ("about", "entry"))
    return {p.name: p.read_bytes() for p in paths}


OPTIONS = {"views": VIEWS, "count": 2, "moment": "balanced", "bank": True}  # 2 x 3 blocks


@pytest.mark.parametrize("after", [1, 3, 5])
def test_a_killed_pass_goes_on_and_gives_the_same_bytes(
    real, backbone, run, tmp_path, monkeypatch, after
):
    assert len(range(0, N, BLOCK)) == 3
    whole = collect_features(real, backbone, run.with_(cache=tmp_path / "whole"), **OPTIONS)
    monkeypatch.setattr(room, "time", Clock(10.0))
    with monkeypatch.context() as patch:
        counted(patch, after)
        with pytest.raises(Killed):
            collect_features(real, backbone, run, **OPTIONS)
    folder = run.cache / "features" / whole.key
    assert not (folder / "stats.safetensors").exists()
    with monkeypatch.context() as patch:
        blocks = counted(patch)
        stats = collect_features(real, backbone, run, **OPTIONS)
    assert len(blocks) == 6 - after
    assert files(folder) == files(tmp_path / "whole" / "features" / whole.key)
    assert torch.equal(stats.sums, whole.sums) and torch.equal(stats.moment, whole.moment)
    assert torch.equal(stats.bank, whole.bank) and stats.key == whole.key


@pytest.mark.parametrize("harm", ["damaged", "foreign", "bank", "a bit of the bank"])
def test_what_cannot_be_gone_on_with_is_begun_anew(
    real, backbone, run, tmp_path, monkeypatch, harm
):
    whole = collect_features(real, backbone, run.with_(cache=tmp_path / "whole"), **OPTIONS)
    monkeypatch.setattr(room, "time", Clock(10.0))
    with monkeypatch.context() as patch:
        counted(patch, 3)
        with pytest.raises(Killed):
            collect_features(real, backbone, run, **OPTIONS)
    folder = run.cache / "features" / whole.key
    partial = folder / "partial.safetensors"
    if harm == "damaged":
        partial.write_bytes(partial.read_bytes()[:50])
    elif harm == "bank":
        (folder / "bank.f16").unlink()
    elif harm == "a bit of the bank":  # in the part that is done
        content = bytearray((folder / "bank.f16").read_bytes())
        content[5] ^= 1
        (folder / "bank.f16").write_bytes(content)
    else:
        tensors, facts = load_state(partial)
        save_state(partial, tensors, facts | {"key": "another"})
    with monkeypatch.context() as patch:
        blocks = counted(patch)
        stats = collect_features(real, backbone, run, **OPTIONS)
    assert len(blocks) == 6 and torch.equal(stats.sums, whole.sums)
    assert files(folder) == files(tmp_path / "whole" / "features" / whole.key)


def test_the_pass_saves_at_most_once_a_second(real, backbone, run, monkeypatch):
    saves = []
    monkeypatch.setattr(room.FeaturePass, "_save", lambda self, path: saves.append(path))
    monkeypatch.setattr(room, "time", Clock(0.01))
    collect_features(real, backbone, run, **OPTIONS)
    assert not saves


def test_the_second_time_nothing_is_passed(real, backbone, run, monkeypatch):
    first = collect_features(real, backbone, run, **OPTIONS)
    assert first.seconds_saved == 0
    blocks = counted(monkeypatch)
    again = collect_features(real, backbone, run, **OPTIONS)
    assert not blocks and again.seconds_saved > 0
    for name in ("counts", "sums", "moment", "bank", "labels"):
        assert torch.equal(getattr(first, name), getattr(again, name)), name
    assert (first.key, first.facts, first.views) == (again.key, again.facts, again.views)


def test_everything_that_matters_is_in_the_key(real, backbone, run, make_blobs):
    keys = [
        collect_features(real, backbone, run).key,
        collect_features(real, backbone, run, moment="natural").key,
        collect_features(real, backbone, run, views=VIEWS).key,
        collect_features(real, backbone, run, views=VIEWS, count=2).key,
        collect_features(real, backbone, run, views=Views(noise=0.4)).key,
        collect_features(real, backbone, run.with_(seed=1), views=VIEWS).key,
        collect_features(real, make_backbone(real, run, seed=1), run).key,
        collect_features(make_blobs((9, 9), channels=3), backbone, run).key,
    ]
    assert len(set(keys)) == len(keys)
    # a bank is more of the same, and the clean view has no draws, so its seed is no matter
    assert collect_features(real, backbone, run, bank=True).key == keys[0]
    assert collect_features(real, backbone, run.with_(seed=5)).key == keys[0]


def test_a_bank_in_the_making_is_never_taken_for_a_whole_one(real, backbone, run, monkeypatch):
    whole = collect_features(real, backbone, run, bank=True)
    (folder,) = (run.cache / "features").iterdir()
    (folder / "bank.f16").unlink()  # somebody needed room

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("potstill.experts.feature_pass.FeaturePass._add", killed)
        collect_features(real, backbone, run, bank=True)
    assert (folder / "bank.f16").stat().st_size == whole.bank.nbytes  # reserved, all zeros
    again = collect_features(real, backbone, run, bank=True)
    assert torch.equal(again.bank, whole.bank) and torch.equal(again.sums, whole.sums)


def test_without_posix_fallocate_room_is_asked_for(real, backbone, run, monkeypatch):
    monkeypatch.delattr("potstill.experts.feature_pass.os.posix_fallocate")
    assert collect_features(real, backbone, run, bank=True).bank.shape[1] == len(real)
    usage = type("Usage", (), {"free": 10})
    monkeypatch.setattr("potstill.experts.feature_pass.shutil.disk_usage", lambda _: usage)
    with pytest.raises(StorageError, match="feature bank"):
        collect_features(real, backbone, run, views=VIEWS, bank=True)


def test_a_pass_with_a_bank_serves_one_without_but_not_the_other_way(
    real, backbone, run, monkeypatch
):
    plain = collect_features(real, backbone, run)
    banked = collect_features(real, backbone, run, bank=True)
    assert torch.equal(plain.sums, banked.sums)
    assert banked.seconds_saved == 0  # passed again, for the features
    again = collect_features(real, backbone, run)
    assert again.seconds_saved > 0 and not isinstance(again, StoredFeatures)


@pytest.mark.parametrize("name", ["stats.safetensors", "bank.f16", "about.safetensors"])
def test_a_damaged_cache_is_passed_again(real, backbone, run, monkeypatch, name):
    first = collect_features(real, backbone, run, **OPTIONS)
    path = run.cache / "features" / first.key / name
    path.write_bytes(path.read_bytes()[:-5])
    blocks = counted(monkeypatch)
    again = collect_features(real, backbone, run, **OPTIONS)
    assert len(blocks) == 6
    assert torch.equal(first.sums, again.sums) and torch.equal(first.bank, again.bank)


def test_other_files_are_no_statistics(real, backbone, run):
    tensors, facts = collect_features(real, backbone, run).state()
    assert torch.equal(FeatureStats.of(tensors, facts).sums, tensors["sums"])
    with pytest.raises(KeyError, match="another kind"):
        FeatureStats.of(tensors, facts | {"kind": "something"})
    with pytest.raises(KeyError, match="shapes"):
        FeatureStats.of(tensors | {"counts": tensors["counts"][:2]}, facts)


# refusals


class Marked(nn.Module):
    """Features are mean and largest pixel; a white image gives ``bad``."""

    def __init__(self, bad):
        super().__init__()
        self.bad = bad

    def forward(self, x):
        z = torch.stack([x.mean((1, 2, 3)), x.amax((1, 2, 3))], 1)
        return torch.where((x.amin((1, 2, 3)) == 1)[:, None], torch.full_like(z, self.bad), z)


def marked(real, bad, row=70):
    images = real.images.clone()
    images[row] = 255
    plain = Normalize(torch.zeros(3), torch.ones(3))
    seen = frozen("marked", Marked(bad), (8, 8), 3, plain, "test")
    return replace(real, images=images, indices=real.indices + 1000), seen


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("bank", [False, True])
def test_a_feature_that_is_not_finite_names_image_and_class(real, run, bad, bank):
    data, seen = marked(real, bad)
    index, name = int(data.indices[70]), data.classes[int(data.labels[70])]
    assert index >= 1000
    with pytest.raises(InputError, match=f"'marked' .* not finite for image {index} of .*'{name}'"):
        collect_features(data, seen, run, bank=bank)
    assert not list(run.cache.rglob("stats.safetensors"))


def test_a_feature_beyond_half_precision_is_refused_only_where_it_is_kept(real, run):
    data, seen = marked(real, 1e5)
    assert collect_features(data, seen, run).sums.max() > 1e5
    with pytest.raises(InputError, match=f"not finite for image {int(data.indices[70])}"):
        collect_features(data, seen, run, bank=True)


def test_statistics_of_others_are_refused(real, backbone, run, make_blobs):
    stats = collect_features(real, backbone, run)
    stats.check(real, backbone)
    with pytest.raises(InputError, match=f"taken with backbone {backbone.key}, not"):
        stats.check(real, make_backbone(real, run, seed=1))
    with pytest.raises(InputError, match=f"taken with data {real.checksum}, not"):
        stats.check(make_blobs((9, 9), channels=3), backbone)


def test_a_full_disk_is_said_before_the_first_image(real, backbone, run, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    blocks = counted(monkeypatch)
    with pytest.raises(StorageError, match=r"feature bank of .* GB .*No space left.* free space"):
        collect_features(real, backbone, run, bank=True)
    assert not blocks and not list(run.cache.rglob("bank.f16"))
    collect_features(real, backbone, run)  # sums need no space


def test_bad_arguments_are_refused(real, backbone, run, make_blobs):
    with pytest.raises(InputError, match="moment is 'all'; use one of none, natural, balanced"):
        collect_features(real, backbone, run, moment="all")
    for options in ({"count": 2}, {"count": 0, "views": VIEWS}):
        with pytest.raises(InputError, match=f"count is {options['count']}; use 1"):
            collect_features(real, backbone, run, **options)
    grey = make_backbone(make_blobs((4, 4)), run)
    with pytest.raises(InputError, match="takes 1 channel"):
        collect_features(real, grey, run)


# parts of classes


def by_hand(clusters, views=1, seed=0):
    """Statistics whose class c has points around ``clusters[c]``, a list of (place, how many)."""
    draw = torch.Generator().manual_seed(seed)
    points, labels = [], []
    for label, spots in enumerate(clusters):
        for place, count in spots:
            spot = torch.tensor(place) + 0.1 * torch.randn(views, count, 2, generator=draw)
            points.append(spot)
            labels += [label] * count
    bank, labels = torch.cat(points, 1).half(), torch.tensor(labels)
    zero = torch.zeros(len(clusters), 2, dtype=torch.float64)
    return StoredFeatures(
        torch.bincount(labels), zero, views, {}, "by hand", bank=bank, labels=labels
    )


def sorted_rows(x):
    return x[x[:, 0].argsort()]


@pytest.mark.parametrize("views", [1, 3])
def test_parts_are_the_clusters_of_each_class(run, views):
    stats = by_hand(
        [[([0.0, 0.0], 9), ([5.0, 0.0], 4), ([9.0, 9.0], 6)], [([-4.0, 1.0], 5), ([1.0, 7.0], 3)]],
        views,
    )
    three = sub_centres(stats, 3, run)
    assert three.shape == (2, 3, 2) and three.dtype == torch.float32
    expected = [
        stats.bank[:, rows].float().mean((0, 1))
        for rows in (slice(0, 9), slice(9, 13), slice(13, 19))
    ]
    torch.testing.assert_close(sorted_rows(three[0]), torch.stack(expected), atol=1e-3, rtol=0)
    two = sub_centres(stats, 2, run)[1]
    expected = [stats.bank[:, rows].float().mean((0, 1)) for rows in (slice(19, 24), slice(24, 27))]
    torch.testing.assert_close(sorted_rows(two), torch.stack(expected), atol=1e-3, rtol=0)


def test_one_part_is_the_centre_of_the_class(real, backbone, run):
    stats = collect_features(real, backbone, run, bank=True)
    found = sub_centres(stats, 1, run)[:, 0]
    torch.testing.assert_close(found, stats.centres, atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize("views", [1, 2])
def test_a_class_with_fewer_images_gives_them_in_turn(run, views):
    stats = by_hand([[([0.0, 0.0], 9)], [([3.0, 1.0], 2)]], views)
    found = sub_centres(stats, 5, run)
    own = stats.bank[:, 9:].float().mean(0)  # the views of an image together
    torch.testing.assert_close(found[1], own[[0, 1, 0, 1, 0]])
    assert len(found[0].unique(dim=0)) == 5


def test_parts_are_the_same_every_time_and_draw_from_no_global_generator(real, backbone, run):
    stats = collect_features(real, backbone, run, bank=True)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    first, again = (sub_centres(stats, 4, run) for _ in range(2))
    other = sub_centres(stats, 4, run.with_(seed=1))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(before[0], torch.get_rng_state())
    assert (before[1] == np.random.get_state()[1]).all()
