"""Out of memory while networks are trained: less at a time, and the same networks."""

import threading
import time
from contextlib import contextmanager

import pytest
import torch
from test_many import AUGMENTED, SGD, equal, members, toy, train
from test_places import Killed, dying, resumed

from potstill.nets import Sharpness, Training, many, predict
from potstill.run import InputError
from potstill.run.memory import Portion, out_of_memory, refusing

SHARP = Training(epochs=2, batch=8, lr=0.05, momentum=0.0, sharpness=Sharpness())


@pytest.fixture
def memory(monkeypatch):
    """Limit the networks and the images of each that a pass may hold."""
    original, seen = many.Lockstep, []

    def limited(networks, images, at=0):
        def lockstep(*args, **options):
            group = original(*args, **options)
            for name in ("forward", "see"):
                inner = getattr(group, name)

                def work(x, own, inner=inner):
                    if x.ndim == 5:  # images, no features
                        seen.append(tuple(x.shape[:2]))
                        if len(seen) > at and (x.shape[0] > networks or x.shape[1] > images):
                            raise torch.OutOfMemoryError("CUDA out of memory")
                    return inner(x, own)

                if inner is not None:
                    setattr(group, name, work)
            return group

        monkeypatch.setattr(many, "Lockstep", lockstep)
        return seen

    return limited


def close(a, b):
    pairs = zip(a.parameters(), b.parameters(), strict=True)
    return all(torch.allclose(p, q, atol=1e-9) for p, q in pairs)


def doubles(count):
    return members(count, dtype=torch.float64)


@pytest.mark.parametrize("backend", ["sequential", "threads"])
@pytest.mark.parametrize("training", [SGD, AUGMENTED, SHARP])
@pytest.mark.parametrize("at", [0, 3])
def test_smaller_pieces_of_a_batch(memory, caplog, backend, training, at):
    examples = toy(dtype=torch.float64)
    whole = train(doubles(2), training, examples, backend=backend)
    seen = memory(1, 3, at)
    found = train(doubles(2), training, examples, backend=backend)
    assert all(close(a, b) for a, b in zip(found, whole, strict=True))
    assert seen[-1][1] <= 2 and "going on with 2 images at a time" in caplog.text
    assert caplog.text.count("with 2 images") == 1


@pytest.mark.parametrize("training", [SGD, SHARP])
@pytest.mark.parametrize("limits", [(2, 99), (1, 99), (1, 5)])
def test_fewer_networks_and_then_fewer_images(memory, caplog, training, limits):
    examples = toy(dtype=torch.float64)
    whole = train(doubles(3), training, examples, backend="stacked")
    seen = memory(*limits)
    found = train(doubles(3), training, examples, backend="stacked")
    assert all(close(a, b) for a, b in zip(found, whole, strict=True))
    assert f"going on with {limits[0]} network" in caplog.text
    assert ("images at a time" in caplog.text) == (limits[1] < 8)
    assert max(n for n, _ in seen[-3:]) <= limits[0]


@pytest.mark.parametrize("backend", ["sequential", "stacked"])
def test_a_frozen_body_in_pieces(memory, backend):
    def heads():
        networks = doubles(2)
        for network in networks:
            network.body.requires_grad_(False)
        return networks

    examples = toy(dtype=torch.float64)
    whole = train(heads(), SGD, examples, backend=backend)
    seen = memory(1, 4)
    found = train(heads(), SGD, examples, backend=backend)
    assert all(close(a, b) for a, b in zip(found, whole, strict=True))
    assert (1, 4) in seen


def test_a_killed_training_goes_on_in_the_same_pieces(memory, monkeypatch, tmp_path):
    """Though there is memory again: sums in other pieces would round differently."""
    free = many.Lockstep
    memory(1, 3)
    (whole,) = train(members(1), SGD)
    with pytest.raises(Killed):
        resumed(members(1), SGD, tmp_path, loss=dying(3 * 4 + 1))
    monkeypatch.setattr(many, "Lockstep", free)
    ((found,), _) = resumed(members(1), SGD, tmp_path)
    assert equal(found, whole) and not equal(found, train(members(1), SGD)[0])


@contextmanager
def crowded(networks, most):
    """Let passes of more than ``most`` networks at the same time fail."""
    lock, inside, hooks = threading.Lock(), [], []

    def enter(module, inputs):
        with lock:
            inside.append(module)
            full = len(inside) > most
        time.sleep(0.005)
        if full:
            inside.remove(module)
            raise torch.OutOfMemoryError("CUDA out of memory")

    def leave(module, inputs, output):
        inside.remove(module)

    for network in networks:
        hooks += [
            network.body.register_forward_pre_hook(enter),
            network.body.register_forward_hook(leave),
        ]
    yield networks
    for hook in hooks:
        hook.remove()


@pytest.mark.parametrize("name", ["convnet-d2-w4-in", "convnet-d2-w4-bn"])
def test_fewer_threads_to_the_same_bytes(caplog, name):
    whole = train(members(3, name), AUGMENTED, threads=3)
    with crowded(members(3, name), 1) as networks:
        found = train(networks, AUGMENTED, threads=3)
    assert all(equal(a, b) for a, b in zip(found, whole, strict=True))
    assert "going on with 1 network at a time" in caplog.text


def test_batch_norm_is_not_cut(memory):
    memory(1, 7)
    with pytest.raises(InputError, match=r"one network on 8 of its 8 images.*batch norm.*'-in'"):
        train(members(2, "convnet-d2-w4-bn"), SGD)


def test_one_image_too_many(memory):
    memory(1, 0)
    with pytest.raises(InputError, match=r"one network on 1 of its 8 images.*use a narrower"):
        train(members(2), SGD)


def test_memory_that_is_short_elsewhere_is_a_sentence():
    def full(purpose, member, index):
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")

    with pytest.raises(InputError, match="memory does not suffice beside"):
        train(members(1), SGD, generators=full)


def test_other_errors_come_out_as_they_are():
    def broken(logits, targets):
        raise RuntimeError("shapes do not fit")

    with pytest.raises(RuntimeError, match="shapes do not fit"):
        train(members(2), SGD, loss=broken)


def test_predictions_in_smaller_pieces(caplog):
    (network,) = members(1)
    examples, sizes = toy(), []

    def hungry(module, inputs):
        sizes.append(len(inputs[0]))
        if len(inputs[0]) > 6:
            raise torch.OutOfMemoryError("out of memory")

    whole, fits = predict(network, examples.images, examples.transform), Portion("images", "it")
    network.body.register_forward_pre_hook(hungry)
    for _ in range(2):
        found = predict(network, examples.images, examples.transform, fits=fits)
        assert torch.allclose(found, whole, atol=1e-6)
    assert sizes == [20, 10, *[5] * 4, *[5] * 4]
    assert caplog.text.count("out of memory in it; going on with 10 images") == 1
    assert network.training


def test_things_that_belong_together_are_cut_together():
    fits, sizes = Portion("rows", "it"), []

    def hungry(a, b):
        sizes.append((len(a), len(b)))
        if len(a) > 3:
            raise MemoryError
        return a[:, 0] * b

    a, b = torch.arange(14.0).view(7, 2), torch.arange(7.0)
    assert torch.equal(fits.over(hungry, a, b), a[:, 0] * b)
    assert sizes == [(7, 7), (4, 4), *[(2, 2)] * 3, (1, 1)]


def test_a_portion_of_one_is_the_last():
    fits = Portion("images", "a pass of the students")

    def hungry(x):
        raise MemoryError

    with pytest.raises(InputError, match="suffice for a pass of the students, one of the images"):
        fits.over(hungry, torch.zeros(5, 1))


def test_what_says_out_of_memory():
    assert out_of_memory(RuntimeError("CUDA error: out of memory"))
    assert out_of_memory(RuntimeError("CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"))
    assert out_of_memory(MemoryError()) and out_of_memory(torch.OutOfMemoryError("x"))
    assert not out_of_memory(RuntimeError("shape mismatch"))
    with pytest.raises(InputError, match="too big"), refusing("too big"):
        raise MemoryError
    with pytest.raises(RuntimeError, match="shape"), refusing("too big"):
        raise RuntimeError("shape")
