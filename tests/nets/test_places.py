"""A training that is killed or left goes on where it was, to the same bytes."""

import os
import signal
import threading
import time
from dataclasses import replace

import pytest
import torch
from test_many import AUGMENTED, SGD, equal, members, toy, train

from potstill.data.augment import DSA
from potstill.losses import cross_entropy
from potstill.nets import Sharpness, Training
from potstill.nets.feed import Feed
from potstill.nets.places import Places
from potstill.run import StorageError
from potstill.run import keeper as keeping
from potstill.run.checkpoint import load_state, save_state
from potstill.run.descent import pack, unpack
from potstill.run.keeper import Keeper, in_threads

NEVER = 1e9
KINDS = {
    "momentum": (SGD, "convnet-d2-w4-in"),
    "augmented": (AUGMENTED, "convnet-d2-w4-in"),
    "batch norm": (SGD, "convnet-d2-w4-bn"),
    "adamw": (Training(epochs=2, batch=8, optimizer="adamw", lr=1e-2), "convnet-d2-w4-none"),
    "mean of weights": (replace(SGD, ema=0.7), "convnet-d2-w4-bn"),
    "reset": (
        Training(epochs=2, batch=8, lr=0.05, schedule="step", milestones=(0.5,), gamma=0.5,
                 reset_momentum=True, ema=0.7),
        "convnet-d2-w4-in",
    ),
    "sharp": (
        Training(epochs=2, batch=8, lr=0.05, momentum=0.5, sharpness=Sharpness()),
        "convnet-d2-w4-in",
    ),
}  # fmt: skip


class Killed(BaseException):
    pass


def dying(at):
    """A loss that ends the training when it is taken the ``at``-th time, from 0."""
    lock, seen = threading.Lock(), []

    def loss(logits, targets):
        with lock:
            seen.append(1)
            if len(seen) > at:
                raise Killed
        return cross_entropy(logits, targets)

    return loss


@pytest.fixture
def steps(monkeypatch):
    """(member, step) of all batches that are drawn."""
    seen, original = [], Feed.batch

    def batch(feed, member, step, positions):
        seen.append((member, step))
        return original(feed, member, step, positions)

    monkeypatch.setattr(Feed, "batch", batch)
    return seen


def resumed(networks, training, folder, every=0.0, **options):
    """Go on with what lies in ``folder``."""
    places = Places(folder, "this", every)
    places.find(networks[0])
    starts = [places.take(member) or 0 for member in range(len(networks))]
    kept = places.of(range(len(networks)))
    return train(networks, training, start_epoch=starts, kept=kept, **options), places


@pytest.mark.parametrize("kind", KINDS)
def test_killed_at_every_step(kind, tmp_path, steps):
    training, name = KINDS[kind]
    passes = 2 if training.sharpness else 1
    (whole,) = train(members(1, name), training)
    for at in range(1, 6):
        folder = tmp_path / f"{at}"
        with pytest.raises(Killed):
            resumed(members(1, name), training, folder, loss=dying(at * passes))
        steps.clear()
        ((found,), places) = resumed(members(1, name), training, folder)
        assert [step for _, step in steps] == list(range(at, 6))
        assert equal(found, whole) and [*folder.iterdir()]
        places.forget(0)
        assert not [*folder.iterdir()]


def test_a_thin_residual_network_with_channels_last(tmp_path):
    how = Training(
        epochs=2, batch=8, lr=0.05, nesterov=True, warmup=0.5, schedule="cosine",
        augment=DSA.parse("crop_flip", rule="idc"), cutmix=0.5,
    )  # fmt: skip
    (whole,) = train(members(1, "wrn16-w4-bn"), how, channels_last=True)
    for at in (1, 4):
        folder = tmp_path / f"{at}"
        with pytest.raises(Killed):
            resumed(members(1, "wrn16-w4-bn"), how, folder, loss=dying(at), channels_last=True)
        ((found,), _) = resumed(members(1, "wrn16-w4-bn"), how, folder, channels_last=True)
        assert equal(found, whole)


def test_a_frozen_body(tmp_path):
    def heads():
        networks = members(1)
        networks[0].body.requires_grad_(False)
        return networks

    (whole,) = train(heads(), SGD)
    with pytest.raises(Killed):
        resumed(heads(), SGD, tmp_path, loss=dying(4))
    assert equal(resumed(heads(), SGD, tmp_path)[0][0], whole)


@pytest.mark.parametrize("kind", ["momentum", "adamw"])
def test_an_optimiser_remembers_in_the_layout_of_its_network(kind, tmp_path):
    """Files know rows only; on a GPU networks are channels last."""
    path, found = tmp_path / "state.safetensors", []
    for number in range(2):
        (network,) = members(1, "convnet-d2-w4-none")
        network.to(memory_format=torch.channels_last)
        optimizer = KINDS[kind][0].optimizer_for(network.parameters())
        if number:
            unpack(optimizer, load_state(path)[0])
        cross_entropy(network(toy().images.float()), toy().targets).mean().backward()
        optimizer.step()
        if not number:
            save_state(path, pack(optimizer), {})
        found.append(optimizer)
    for one, other in zip(*(optimizer.state.values() for optimizer in found), strict=True):
        strides = [{n: t.stride() for n, t in slots.items()} for slots in (one, other)]
        assert strides[0] == strides[1]


@pytest.mark.parametrize("backend", ["sequential", "threads", "stacked"])
@pytest.mark.parametrize("kind", ["momentum", "adamw"])
def test_every_back_end(backend, kind, tmp_path, steps):
    training, name = KINDS[kind]
    whole = train(members(3, name), training, backend=backend)
    at = 4 if backend == "stacked" else 9  # within the first epoch and the second
    with pytest.raises(Killed):
        resumed(members(3, name), training, tmp_path, backend=backend, loss=dying(at))
    steps.clear()
    found, places = resumed(members(3, name), training, tmp_path, backend=backend)
    assert all(equal(a, b) for a, b in zip(found, whole, strict=True))
    if backend == "sequential":  # the first is done; nobody has taken note of that here
        assert [*steps] == [(0, 5), *((1, s) for s in range(3, 6)), *((2, s) for s in range(6))]
    if backend == "stacked":
        assert [*steps] == [(m, s) for s in (4, 5) for m in range(3)]
    assert len(steps) <= 18 - at + 2
    for member in range(3):
        places.forget(member)
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(("first", "then"), [("stacked", "threads"), ("threads", "stacked")])
def test_another_back_end_goes_on(first, then, tmp_path, steps):
    whole = train(members(2), SGD, backend=then)
    at = 4 if first == "stacked" else 7
    with pytest.raises(Killed):
        resumed(members(2), SGD, tmp_path, backend=first, loss=dying(at))
    steps.clear()
    found, _ = resumed(members(2), SGD, tmp_path, backend=then)
    assert len(steps) <= 12 - 7
    for a, b in zip(found, whole, strict=True):
        for p, q in zip(a.parameters(), b.parameters(), strict=True):
            assert torch.allclose(p, q, atol=1e-5)


@pytest.mark.parametrize("backend", ["sequential", "threads", "stacked"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_left_between_two_steps(backend, number, tmp_path, steps):
    """However long the next writing would have been away, and wherever the signal hits."""

    class Told(Exception):
        pass

    def tell(*_):
        raise Told

    once = threading.Lock()

    def loss(logits, targets):
        if len(steps) >= 4:
            if once.acquire(blocking=False):
                os.kill(os.getpid(), number)
            time.sleep(0.05)
        return cross_entropy(logits, targets)

    before = signal.signal(number, tell)
    try:
        with pytest.raises(Told):
            resumed(members(2), SGD, tmp_path, NEVER, backend=backend, loss=loss)
    finally:
        signal.signal(number, before)
    done = len(steps)
    assert done < 12 and [*tmp_path.iterdir()] == [*tmp_path.glob("resume-*.safetensors")] != []
    found, _ = resumed(members(2), SGD, tmp_path, NEVER, backend=backend)
    if backend != "threads":  # there a member may have been between its epoch's end and its tick
        assert len(steps) == 12
    whole = train(members(2), SGD, backend=backend)
    assert all(equal(a, b) for a, b in zip(found, whole, strict=True))


def test_nobody_waits_for_a_slow_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(keeping, "_BRIEF", 0.0)
    keeper = Keeper(tmp_path / "state.safetensors", NEVER)
    keeper.save({"x": torch.zeros(1)}, {"step": 1})
    keeper.leave({"x": torch.ones(1)}, {"step": 2})
    assert load_state(keeper.path)[1]["step"] == 1 and not keeper.due


@pytest.mark.parametrize(("cost", "wait"), [(0.01, 10), (0.4, 20), (9.0, 30)])
def test_a_slow_disk_is_written_to_less_often(tmp_path, cost, wait):
    keeper = Keeper(tmp_path / "state.safetensors", 10.0)
    keeper.cost = cost
    keeper.saved = time.monotonic() - wait + 5
    assert not keeper.due
    keeper.saved -= 5
    assert keeper.due


def test_a_full_disk_does_not_cover_what_happened(tmp_path, monkeypatch):
    def full(*_):
        raise StorageError("full")

    monkeypatch.setattr(keeping, "save_state", full)
    Keeper(tmp_path / "state.safetensors", 0.0).leave({}, {})
    with pytest.raises(StorageError):
        Keeper(tmp_path / "state.safetensors", 0.0).save({}, {})


def test_no_work_begins_after_one_has_failed():
    begun = []

    def work(number):
        begun.append(number)
        yield
        raise RuntimeError("stop here")

    with pytest.raises(RuntimeError, match="stop here"):
        list(in_threads([lambda k=k: work(k) for k in range(5)], 1))
    assert begun == [0]


def test_an_error_after_the_last_step_comes_out():
    def work():
        yield
        raise RuntimeError("at the end")

    with pytest.raises(RuntimeError, match="at the end"):
        list(in_threads([work], 2))


# -- what is not gone on with ---------------------------------------------------------------------


def cut(path):
    path.write_bytes(path.read_bytes()[:-9])


def rewritten(change):
    def damage(path):
        tensors, facts = load_state(path)
        change(tensors, facts)
        save_state(path, tensors, facts)

    return damage


DAMAGE = {
    "cut": cut,
    "empty": lambda path: path.write_bytes(b""),
    "other key": rewritten(lambda tensors, facts: facts.update(key="that")),
    "no key": rewritten(lambda tensors, facts: facts.pop("key")),
    "no step": rewritten(lambda tensors, facts: facts.update(step="many")),
    "no pieces": rewritten(lambda tensors, facts: facts.pop("pieces")),
    "no images": rewritten(lambda tensors, facts: facts.update(pieces=[1, 0])),
    "step 0": rewritten(lambda tensors, facts: facts.update(step=0)),
    "members": rewritten(lambda tensors, facts: facts.update(seconds=[1.0])),
    "missing": rewritten(lambda tensors, facts: tensors.pop("0.network.classifier.bias")),
    "shape": rewritten(
        lambda tensors, facts: tensors.update({"0.network.classifier.bias": torch.zeros(4)})
    ),
    "dtype": rewritten(
        lambda tensors, facts: tensors.update(
            {"0.network.classifier.bias": torch.zeros(3, dtype=torch.int32)}
        )
    ),
    "optimiser": rewritten(
        lambda tensors, facts: tensors.update(
            {"0.optimizer.0.momentum_buffer": torch.zeros(5), "0.optimizer.99.x": torch.zeros(1)}
        )
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_state_is_named_and_the_member_begins_again(damage, tmp_path, steps, caplog):
    with pytest.raises(Killed):
        resumed(members(1), SGD, tmp_path, loss=dying(4))
    (path,) = tmp_path.iterdir()
    DAMAGE[damage](path)
    steps.clear()
    ((found,), places) = resumed(members(1), SGD, tmp_path)
    assert len(steps) == 6 and equal(found, train(members(1))[0])
    (said,) = (record.message for record in caplog.records)
    assert str(path) in said and said.endswith("; beginning again")
    places.forget(0)
    assert not [*tmp_path.iterdir()]


def test_a_state_that_waits_for_its_turn_is_neither_written_over_nor_removed(tmp_path):
    with pytest.raises(Killed):
        resumed(members(1), SGD, tmp_path, loss=dying(4))
    (path,) = tmp_path.iterdir()
    content = path.read_bytes()
    places = Places(tmp_path, "this", 0.0)
    places.find(members(1)[0])
    train(members(1), SGD, kept=places.of([0]), stop_epoch=1)  # an earlier part of the same member
    places.forget(0)
    assert path.read_bytes() == content and places.take(0).step == 4


def test_the_further_of_two_states_counts(tmp_path):
    for at, folder in ((2, tmp_path / "a"), (4, tmp_path / "b")):
        with pytest.raises(Killed):
            resumed(members(1), SGD, folder, loss=dying(at))
    (early,) = (tmp_path / "a").iterdir()
    early.rename(tmp_path / "b" / "resume-000-older.safetensors")
    places = Places(tmp_path / "b", "this", 0.0)
    places.find(members(1)[0])
    assert places.take(0).step == 4
    places.forget(0)
    assert not [*(tmp_path / "b").iterdir()]


def test_seconds_add_up_over_a_kill(tmp_path):
    places = Places(tmp_path, "this", 0.0)
    with pytest.raises(Killed):
        train(members(1), SGD, kept=places.of([0]), loss=dying(4))
    tensors, facts = load_state(tmp_path / "resume-000.safetensors")
    facts["seconds"]["0"] = 1000.0
    save_state(tmp_path / "resume-000.safetensors", tensors, facts)
    _, places = resumed(members(1), SGD, tmp_path)
    assert 1000 < places.lap(0) < 1060 and places.lap(0) < 60


def test_nothing_is_written_before_its_time(tmp_path):
    places = Places(tmp_path, "this", NEVER)
    train(members(2), SGD, kept=places.of(range(2)))
    assert not [*tmp_path.iterdir()]


def test_a_state_is_written_after_what_it_relies_on(tmp_path):
    seen = []
    places = Places(tmp_path, "this", 0.0, lambda: seen.append(len([*tmp_path.iterdir()])))
    train(members(1), SGD, kept=places.of([0]))
    assert seen == [0, 1, 1, 1, 1]  # before each of five writings; the sixth step is the last
