import pytest
import torch

from potstill.data import Normalize
from potstill.experts import pool as room
from potstill.experts.global_local import Mixtures
from potstill.experts.pool import train_pool
from potstill.experts.recipes import train_recipe
from potstill.losses import REMEDIES
from potstill.nets import Examples, Training, create_for
from potstill.nets.feed import Feed
from potstill.run import InputError

TRAINING = Training(epochs=2, batch=8, lr=0.05)


def make(real, run, members=2, **options):
    return train_pool(
        real, Normalize.fit(real), "convnet-d2-w8-in", members, TRAINING, run, **options
    )


def equal(a, b):
    return all(torch.equal(a[name], b[name]) for name in a)


def test_trained_networks_differ_from_their_beginnings(make_blobs, run):
    pool = make(make_blobs((16, 8, 4)), run)
    assert len(pool) == 2
    assert not equal(pool.initial[0], pool.trained[0]) and not equal(
        pool.initial[0], pool.initial[1]
    )


def test_blend_is_the_segment(make_blobs, run):
    pool = make(make_blobs((16, 8, 4)), run)
    assert equal(pool.blend(1, 1.0), pool.initial[1]) and equal(pool.blend(1, 0.0), pool.trained[1])
    for name, value in pool.blend(0, 0.25).items():
        expected = 0.25 * pool.initial[0][name] + 0.75 * pool.trained[0][name]
        assert torch.allclose(value, expected, atol=1e-6)


def test_members_do_not_depend_on_their_number_nor_on_a_kill(make_blobs, run, tmp_path):
    real = make_blobs((16, 8, 4))
    three = make(real, run.with_(cache=tmp_path / "a"), members=3)
    two = make(real, run.with_(cache=tmp_path / "b"), members=2)
    grown = make(real, run.with_(cache=tmp_path / "b"), members=3)  # third trained later
    for k in range(3):
        assert equal(three.trained[k], grown.trained[k])
    assert equal(two.trained[1], three.trained[1])


def test_cached_by_content_and_damaged_files_are_rebuilt(make_blobs, run, monkeypatch, caplog):
    real = make_blobs((16, 8, 4))
    first = make(real, run)
    calls = []
    original = room.train_many
    monkeypatch.setattr(room, "train_many", lambda *a, **k: (calls.append(1), original(*a, **k)))
    again = make(real, run)
    assert not calls and equal(first.trained[0], again.trained[0])
    path = next((run.cache / "pools" / first.key).glob("*.safetensors"))
    path.write_bytes(path.read_bytes()[:100])
    rebuilt = make(real, run)
    assert calls == [1] and all(equal(first.trained[k], rebuilt.trained[k]) for k in range(2))
    assert make(real, run.with_(seed=1)).key != first.key
    assert make(make_blobs((16, 8, 5)), run).key != first.key


def test_priors_change_the_networks(make_blobs, run):
    real = make_blobs((30, 8, 3))
    plain, adjusted = make(real, run), make(real, run, prior="logit_adjusted")
    assert not equal(plain.trained[0], adjusted.trained[0]) and equal(
        plain.initial[0], adjusted.initial[0]
    )
    with pytest.raises(InputError, match="pool_prior is 'fair'"):
        make(real, run, prior="fair")


def recipe_by_hand(real, run, row):
    """Two networks of a pool without the pool."""
    draws = lambda purpose, k, i: run.generator(f"pool/{purpose}", k, i)  # noqa: E731
    nets = [
        create_for(real, "convnet-d2-w8-in", run.generator("pool/weights", k)) for k in range(2)
    ]
    examples = Examples(real.rows(), real.labels, Normalize.fit(real))
    train_recipe(row.stages, nets, examples, TRAINING, generators=draws, quiet=True)
    return [net.state_dict() for net in nets]


class Killed(BaseException):
    pass


@pytest.fixture
def steps(monkeypatch):
    """Batches that are drawn, by stage; ``steps.limit`` ends the training before one."""

    class Steps(list):
        limit = None

    seen = Steps()
    for kind in (Feed, Mixtures):
        original = kind.batch

        def batch(feed, member, step, positions, original=original):
            if seen.limit is not None and len(seen) >= seen.limit:
                raise Killed
            seen.append((feed.training.epochs, member, step))
            return original(feed, member, step, positions)

        monkeypatch.setattr(kind, "batch", batch)
    return seen


STAGED = [name for name, row in REMEDIES.items() if row.stages]


@pytest.mark.parametrize("prior", STAGED)
def test_a_pool_trains_in_stages_and_resumes(prior, make_blobs, run, tmp_path, steps):
    """Killed anywhere, the same bytes; what is done again begins at the end of the first stage."""
    real = make_blobs((16, 8, 4))
    whole = make(real, run.with_(cache=tmp_path / "whole"), prior=prior)
    by_hand = recipe_by_hand(real, run, REMEDIES[prior])
    assert all(equal(whole.trained[k], by_hand[k]) for k in range(2))
    total, first = len(steps) // 2, 2 * 4  # the pool's, not those by hand; epochs times steps
    each = total // 2  # one member after the other
    for at in sorted({1, first - 1, (first + each) // 2, each + 3, total - 1}):
        cut = run.with_(cache=tmp_path / f"{at}")
        steps.clear()
        steps.limit = at
        with pytest.raises(Killed):
            make(real, cut, prior=prior)
        steps.clear()
        steps.limit = None
        found = make(real, cut, prior=prior)
        assert all(equal(found.trained[k], whole.trained[k]) for k in range(2))
        assert all(equal(found.initial[k], whole.initial[k]) for k in range(2))
        done = at % each
        assert len(steps) == total - at + (done - first + 1 if done >= first else 0)
        assert not [*cut.cache.rglob("resume*")]
        steps.clear()
        assert make(real, cut, prior=prior).key == whole.key and not steps  # from the cache


def test_a_pool_reads_the_table(make_blobs, run):
    """Sampling, mixing and correction of a row, whatever the training says."""
    real = make_blobs((30, 8, 3))
    plain, made = make(real, run), {}
    for prior in ("balanced", "remix_drw", "post_hoc"):
        made[prior] = make(real, run, prior=prior)
        assert made[prior].key != plain.key
        assert not equal(made[prior].trained[0], plain.trained[0])
    sampled = Training(**{**vars(TRAINING), "sampling": "balanced"})
    by_hand = train_pool(real, Normalize.fit(real), "convnet-d2-w8-in", 1, sampled, run)
    assert equal(made["balanced"].trained[0], by_hand.trained[0])
    first, last = plain.trained[0], made["post_hoc"].trained[0]
    log_prior = (torch.tensor([30.0, 8.0, 3.0]) / 41).log()
    for name, value in last.items():
        shift = log_prior if name == "classifier.bias" else 0
        torch.testing.assert_close(value, first[name] - shift)
