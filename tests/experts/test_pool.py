import pytest
import torch

from potstill.data import Normalize
from potstill.experts import pool as room
from potstill.experts.pool import train_pool
from potstill.nets import Training
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
