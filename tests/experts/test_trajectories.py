import multiprocessing
import signal
import sys
import time
from collections import namedtuple

import pytest
import torch

from potstill.data import DSA, ZCA, Normalize
from potstill.experts import trainer as room
from potstill.experts.rows import Rows
from potstill.experts.trajectories import train_experts
from potstill.losses import cross_entropy, logit_adjusted
from potstill.nets import Examples, Sharpness, Training, create, train_many
from potstill.nets.feed import Feed
from potstill.nets.places import MembersKeeper
from potstill.run import DivergedError, InputError, Run
from potstill.run.keeper import Keeper

NETWORK = "convnet-d2-w8-in"
TRAINING = Training(
    epochs=6, batch=8, lr=0.05, momentum=0, weight_decay=5e-3, sharpness=Sharpness(),
    augment=DSA.parse("color_crop"),
)  # fmt: skip


def make(real, run, members=2, epochs=range(5), training=TRAINING, network=NETWORK, **options):
    transform = options.pop("transform", None) or Normalize.fit(real)
    return train_experts(real, transform, network, members, training, run, epochs=epochs, **options)


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def same(a, b, members, epochs):
    return all(equal(a.at(m, e), b.at(m, e)) for m in members for e in epochs)


class Killed(BaseException):
    """Stands for what ends a process."""


def killed_after(monkeypatch, real, run, rows, **options):
    """Train until ``rows`` rows are written, then stop as a kill does: nothing is flushed."""
    original, count = Rows.write, []

    def write(self, *args):
        if len(count) == rows:
            self._dirty.clear()
            raise Killed
        count.append(1)
        original(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Rows, "write", write)
        with pytest.raises(Killed):
            make(real, run, **options)


# -- what is trained ------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", ["plain", "logit_adjusted"])
def test_snapshots_are_those_of_the_network_as_it_trains(real, run, loss):
    experts = make(real, run, prior=loss)
    nets = [
        create(
            NETWORK, channels=1, size=8, classes=3, generator=run.generator("experts/weights", m)
        )
        for m in range(2)
    ]
    for m, net in enumerate(nets):
        assert equal(experts.at(m, 0), dict(net.named_parameters()))
    seen = []

    def compare(m, epoch, net):
        seen.append(equal(experts.at(m, epoch + 1), dict(net.named_parameters())))

    train_many(
        nets, Examples(real.images.float() / 255, real.labels, Normalize.fit(real)), TRAINING,
        generators=lambda purpose, *index: run.generator(f"experts/{purpose}", *index),
        loss=cross_entropy if loss == "plain" else logit_adjusted(real.counts),
        on_epoch=compare, stop_epoch=4, quiet=True,
    )  # fmt: skip
    assert seen == [True] * 8
    assert list(experts.at(0, 0)) == [name for name, _ in nets[0].named_parameters()]


def test_images_kept_as_bytes_make_the_same_experts(real, run, tmp_path, monkeypatch):
    """Where the transform works pixel by pixel."""
    floats = make(real, run)
    monkeypatch.setattr(room, "_AS_FLOATS", 0)
    assert same(floats, make(real, run.with_(cache=tmp_path / "bytes")), range(2), range(5))


def test_snapshots_differ(real, run):
    experts = make(real, run)
    whole = {tuple(torch.cat([v.flatten() for v in experts.at(m, e).values()]).tolist())
             for m in range(2) for e in range(5)}  # fmt: skip
    assert len(whole) == 10


def test_a_snapshot_is_the_callers_own(real, run):
    experts = make(real, run)
    experts.at(0, 1)["classifier.bias"].zero_()
    assert experts.at(0, 1)["classifier.bias"].any()


def test_loss_sampling_seed_and_transform_change_the_experts(real, run):
    plain = make(real, run, epochs=[2])
    others = [
        make(real, run, epochs=[2], prior="logit_adjusted"),
        make(real, run, epochs=[2], training=Training(**{**vars(TRAINING), "sampling": "cyclic"})),
        make(real, run.with_(seed=1), epochs=[2]),
        make(real, run, epochs=[2], transform=ZCA.fit(real)),
    ]
    assert len({experts.key for experts in (plain, *others)}) == 5
    assert not any(equal(plain.at(0, 2), experts.at(0, 2)) for experts in others)


def test_cache_key_names_what_matters_and_nothing_else(real, run, make_blobs):
    key = make(real, run, epochs=[0]).key
    more = Training(**{**vars(TRAINING), "epochs": 99, "momentum": 0.0})
    assert make(real, run.with_(memory_gb=3.0, quiet=True), members=1, epochs=[0]).key == key
    assert make(real, run, epochs=[0], training=more).key == key  # constant lr: no end in sight
    cosine = [Training(**{**vars(TRAINING), "epochs": e, "schedule": "cosine"}) for e in (6, 7)]
    assert len({make(real, run, epochs=[0], training=t).key for t in cosine} | {key}) == 3
    rising = [Training(**{**vars(TRAINING), "epochs": e, "warmup": 0.5}) for e in (6, 7)]
    assert len({make(real, run, epochs=[0], training=t).key for t in rising} | {key}) == 3
    assert make(make_blobs((16, 8, 5)), run, epochs=[0]).key != key
    renamed = make_blobs((16, 8, 4))
    object.__setattr__(renamed, "classes", ("class 1", "class 0", "class 2"))
    assert make(renamed, run, epochs=[0]).key != key
    assert make(real, run, epochs=[0], network="convnet-d2-w4-in").key != key


@pytest.mark.parametrize("threads", [1, 2])
def test_members_do_not_depend_on_their_number(real, run, tmp_path, threads):
    torch.set_num_threads(threads)
    try:
        three = make(real, run.with_(cache=tmp_path / "a"), members=3, epochs=[3])
        one = make(real, run.with_(cache=tmp_path / "b"), members=1, epochs=[3])
        grown = make(real, run.with_(cache=tmp_path / "b"), members=3, epochs=[3])
    finally:
        torch.set_num_threads(1)
    assert same(three, grown, range(3), [3]) and same(one, three, [0], [3])


# -- what is read, and what is trained again ------------------------------------------------------


def test_cached_by_content(real, run, calls):
    first = make(real, run)
    assert first.seconds_saved == 0 and calls == [(0, 4)] * 2
    again = make(real, run)
    assert len(calls) == 2 and again.seconds_saved > 0 and again.key == first.key
    assert same(first, again, range(2), range(5))
    assert make(real, run, members=1, epochs=[4]).seconds_saved < again.seconds_saved


def test_one_row_is_read_and_checked_once(real, run, monkeypatch):
    experts = make(real, run)
    again = make(real, run)
    read, sums = [], []
    original = room.Rows.__module__ and sys.modules["potstill.experts.blocks"].Block.read

    def spy(block, member, epoch):
        read.append((member, epoch))
        return original(block, member, epoch)

    store = sys.modules["potstill.experts.rows"]
    monkeypatch.setattr("potstill.experts.blocks.Block.read", spy)
    crc = store.zlib.crc32
    monkeypatch.setattr(
        store, "zlib", namedtuple("Zlib", "crc32")(lambda c: (sums.append(1), crc(c))[1])
    )
    again.at(1, 3), again.at(1, 3), experts.at(1, 3)
    assert read == [(1, 3)] * 3 and len(sums) == 1  # who wrote it has summed it already


def test_later_epochs_go_on_from_the_nearest_earlier_one(real, run, tmp_path, calls):
    whole = make(real, run.with_(cache=tmp_path / "whole"), epochs=range(7))
    calls.clear()
    make(real, run, epochs=[0, 1, 2])
    grown = make(real, run, epochs=[0, 5, 6])
    assert calls == [(0, 2)] * 2 + [(2, 6)] * 2
    between = make(real, run, epochs=[4, 3])
    assert calls[4:] == [(2, 4)] * 2
    assert same(whole, grown, range(2), [0, 1, 2, 5, 6]) and same(whole, between, range(2), [3, 4])


def test_a_killed_training_goes_on_to_the_same_bytes(real, run, tmp_path, monkeypatch, calls):
    whole = make(real, run.with_(cache=tmp_path / "whole"))
    killed_after(monkeypatch, real, run, 8)  # both beginnings, one whole member, two of the next
    calls.clear()
    resumed = make(real, run)
    assert calls == [(2.75, 4)] and same(whole, resumed, range(2), range(5))  # a step is lost
    assert resumed.seconds_saved > 0 and not [*run.cache.rglob("resume*")]


def test_rows_that_never_reached_the_index_are_made_again(real, run, tmp_path, monkeypatch, calls):
    whole = make(real, run.with_(cache=tmp_path / "whole"))
    killed_after(monkeypatch, real, run.with_(checkpoint_seconds=1e9), 5)  # within the first
    calls.clear()
    assert same(whole, make(real, run), range(2), range(5)) and calls == [(0, 4)] * 2


def test_ctrl_c_loses_nothing_that_was_written(real, run, monkeypatch, calls):
    slow = run.with_(checkpoint_seconds=1e9)
    original, count = Rows.write, []

    def write(self, *args):
        count.append(1)
        if len(count) == 9:
            raise KeyboardInterrupt
        original(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Rows, "write", write)
        with pytest.raises(KeyboardInterrupt):
            make(real, slow)
    calls.clear()
    make(real, slow)
    assert calls == [(2, 4)]


def test_a_gap_between_epochs_to_keep_is_no_loss(real, run, tmp_path, monkeypatch, calls, caplog):
    whole = make(real, run.with_(cache=tmp_path / "whole"), epochs=[0, 6])
    killed_after(monkeypatch, real, run, 2, epochs=[0, 6])  # dies at the end of the first member
    (folder,) = (run.cache / "experts").iterdir()
    assert [p.name for p in folder.glob("resume*")] == ["resume-000.safetensors"]
    calls.clear()
    assert same(whole, make(real, run, epochs=[0, 6]), range(2), [0, 6])
    assert sorted(calls) == [(0, 6), (5.75, 6)] and not [*folder.glob("resume*")]
    other = run.with_(cache=tmp_path / "other")
    killed_after(monkeypatch, real, other, 2, epochs=[0, 6])
    (path,) = other.cache.rglob("resume*")
    path.write_bytes(path.read_bytes()[:-5])
    calls.clear()
    assert same(whole, make(real, other, epochs=[0, 6]), range(2), [0, 6])
    assert calls == [(0, 6)] * 2 and "resume-000.safetensors is damaged" in caplog.text


def test_an_epoch_at_which_a_killed_training_stood_can_be_kept(real, run, tmp_path, monkeypatch):
    whole = make(real, run.with_(cache=tmp_path / "whole"))
    killed_after(monkeypatch, real, run, 2, epochs=[0, 5])
    assert same(whole, make(real, run, epochs=[4]), range(2), [4])


def test_a_place_at_the_very_end_is_kept_and_cleared_away(real, run, tmp_path, monkeypatch, calls):
    training = {"training": Training(epochs=6, batch=8, lr=0.05), "members": 1}
    whole = make(real, run.with_(cache=tmp_path / "whole"), epochs=[4], **training)
    original = MembersKeeper.put

    def dying(keeper, states, step, *rest):
        if step > 16:
            raise Killed
        original(keeper, states, step, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(MembersKeeper, "put", dying)
        with pytest.raises(Killed):
            make(real, run, epochs=[6], **training)
    calls.clear()
    assert same(whole, make(real, run, epochs=[4], **training), [0], [4])
    assert calls == [(4, 4)] and not [*run.cache.rglob("resume*")]


def test_no_place_is_ahead_of_the_rows_on_the_disk(real, run, tmp_path, monkeypatch, calls):
    training = {"training": Training(epochs=3, batch=8, lr=0.05), "members": 1, "epochs": [1, 3]}
    whole = make(real, run.with_(cache=tmp_path / "whole"), **training)
    steps, original = [], Feed.batch

    def batch(feed, member, step, positions):
        steps.append(step)
        if step == 8:
            patch.setattr(Rows, "flush", lambda *_: None)  # the process is gone
            raise Killed
        return original(feed, member, step, positions)

    with monkeypatch.context() as patch:
        patch.setattr(Feed, "batch", batch)
        patch.setattr(Keeper, "due", property(lambda keeper: len(steps) == 6))
        with pytest.raises(Killed):
            make(real, run.with_(checkpoint_seconds=1e9), **training)
    calls.clear()
    assert same(whole, make(real, run, **training), [0], [1, 3]) and calls == [(1.5, 3)]


def test_momentum_starts_anew(real, run, calls):
    training = Training(epochs=4, batch=8, lr=0.05, momentum=0.9)
    make(real, run, training=training, epochs=[2])
    later = make(real, run, training=training, epochs=[4])
    assert calls == [(0, 2)] * 2 + [(0, 4)] * 2 and not [*run.cache.rglob("resume*")]
    assert not equal(later.at(0, 2), later.at(0, 4))


def test_a_lost_row_before_the_place_of_a_killed_training(real, run, tmp_path, monkeypatch, calls):
    """It is trained from the beginning, and what was further on is gone on with all the same."""
    options = {"training": Training(epochs=4, batch=8, lr=0.05), "members": 1, "epochs": range(5)}
    whole = make(real, run.with_(cache=tmp_path / "whole"), **options)
    killed_after(monkeypatch, real, run, 4, **options)  # 0, 1, 2, 3
    lost = make(real, run, **{**options, "epochs": [0]})
    lost.rows._forget((0, 2))
    calls.clear()
    killed_after(monkeypatch, real, run, 0, **options)  # before the lost row is made
    assert same(whole, make(real, run, **options), [0], range(5))
    assert calls == [(0, 2), (0, 2), (3.75, 4)] and not [*run.cache.rglob("resume*")]


def test_a_process_killed_at_any_moment_goes_on_to_the_same_bytes(
    make_blobs, tmp_path, monkeypatch
):
    """SIGKILL, several times, wherever it hits after some rows have been written."""
    real = make_blobs((60, 30, 10))
    training = Training(epochs=20, batch=8, lr=0.02, momentum=0)
    fork = multiprocessing.get_context("fork")
    original, written = Rows.write, fork.Value("i", 0)

    def write(self, *args):
        original(self, *args)
        written.value += 1

    def rows(cache):
        run = Run(device="cpu", cache=cache, quiet=True, checkpoint_seconds=0.05)
        kept = [*range(15), 20]
        experts = make(real, run, 3, training=training, epochs=kept)
        return [experts.rows.read(m, e) for m in range(3) for e in kept]

    whole = rows(tmp_path / "whole")  # first: what is imported late, children need not import
    monkeypatch.setattr(Rows, "write", write)
    for count, wait in ((1, 0.02), (12, 0.0), (20, 0.05)):
        written.value = 0
        child = fork.Process(target=rows, args=(tmp_path / "cut",))
        child.start()
        while written.value < count and child.is_alive():
            time.sleep(0.001)
        child.join(wait)
        child.kill()
        child.join()
        assert child.exitcode == -signal.SIGKILL
    assert all(map(torch.equal, rows(tmp_path / "cut"), whole))


# -- what is refused ------------------------------------------------------------------------------


def test_bad_calls(real, run):
    experts = make(real, run, epochs=[0, 2])
    with pytest.raises(InputError, match=r"epoch is 1, which expert 0 has not kept.*kept are 0, 2"):
        experts.at(0, 1)
    with pytest.raises(InputError, match="member is 2; use 0 to 1"):
        experts.at(2, 0)
    with pytest.raises(InputError, match=r"epochs is .*name at least one, from 0$"):
        make(real, run, epochs=[])
    with pytest.raises(InputError, match="epochs is"):
        make(real, run, epochs=[-1])
    with pytest.raises(InputError, match="from 0 to 6"):
        make(real, run, epochs=[7], training=Training(**{**vars(TRAINING), "schedule": "cosine"}))
    with pytest.raises(InputError, match="experts is 0"):
        make(real, run, members=0)
    with pytest.raises(InputError, match="prior is 'fair'"):
        make(real, run, prior="fair")
    with pytest.raises(InputError, match=r"network is 'convnet-bn'.*use 'convnet-d2-w128-in'"):
        make(real, run, network="convnet-bn")
    with pytest.raises(InputError, match="network is 'covnet'"):
        make(real, run, network="covnet")


def test_divergence_is_told(real, run):
    with pytest.raises(DivergedError, match="NaN or infinite in epoch"):
        make(real, run, training=Training(epochs=3, batch=8, lr=1e9, momentum=0))


def test_experts_whose_epochs_depend_on_their_number_are_cached_by_it(real, run):
    keys = {}
    for prior in ("plain", "sqrt", "progressive", "ldam_drw"):
        for epochs in (4, 5):
            training = Training(**{**vars(TRAINING), "epochs": epochs})
            keys[prior, epochs] = make(real, run, epochs=[0], training=training, prior=prior).key
    assert keys["plain", 4] == keys["plain", 5] and keys["sqrt", 4] == keys["sqrt", 5]
    assert len(set(keys.values())) == 6
    with pytest.raises(InputError, match="prior is 'crt'; use one of plain"):
        make(real, run, prior="crt")


def test_an_end_asked_for_later_is_reached_in_the_same_way(real, run, tmp_path):
    """Progressive sampling knows its last epoch, wherever a training stopped in between."""
    training = Training(**{**vars(TRAINING), "epochs": 4, "momentum": 0.0})
    once = make(real, run, epochs=[4], training=training, prior="progressive")
    late = run.with_(cache=tmp_path / "late")
    make(real, late, epochs=[2], training=training, prior="progressive")
    twice = make(real, late, epochs=[4], training=training, prior="progressive")
    assert equal(once.at(0, 4), twice.at(0, 4))
