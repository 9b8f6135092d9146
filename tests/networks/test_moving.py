"""Networks that learn while the canvas moves: a queue of them, and one that settles."""

import pytest
import torch

from potstill.methods import CAFE, DM, IDM
from potstill.nets.layers import predict
from potstill.networks import QueueNets, SettlingNets
from potstill.networks.queue import _Counted
from potstill.networks.settling import _settled
from potstill.run import ArtifactError, InputError

SMALL = {"network": "convnet-d2-w4-in", "inner_batch": 64}


@pytest.fixture
def real(make_blobs):
    return make_blobs((30, 12, 6))


def queue(real, run, **fields):
    wanted = {"queue_start": 2, "queue_every": 3, "queue_most": 4, "real_steps": 2} | fields
    return QueueNets(**SMALL, **wanted).open(real, run)


def pass_steps(networks, canvas, steps, first=0):
    for step in range(first, first + steps):
        networks.after(step, canvas, torch.eye(3)[canvas.labels])


@pytest.fixture
def canvas(real, run):
    return DM().canvas.make(real, 2, run)


def test_networks_join_and_the_oldest_leaves(real, run, canvas):
    networks, seen = queue(real, run), []
    for step in range(15):
        pass_steps(networks, canvas, 1, step)
        seen.append(list(networks.queue))
    assert seen[1] == [0, 1] and seen[2] == [0, 1, 2]  # after three steps
    assert seen[8] == [1, 2, 3, 4] and seen[14] == [3, 4, 5, 6]
    assert networks.right.keys() == networks.queue.keys()


def test_so_many_are_trained_after_a_step_and_all_are_seen(real, run, canvas):
    networks = queue(real, run, queue_start=5, queue_trained=2, queue_every=1000)
    pass_steps(networks, canvas, 1)
    assert sorted(one.steps for one in networks.queue.values()) == [0, 0, 0, 2, 2]
    assert {networks.member(number) for number in range(60)} == set(range(5))
    for number in range(8):
        own = networks.queue[networks.member(number)].network.state_dict()
        held = networks.at(number).net.state_dict()
        assert all(torch.equal(own[name], held[name]) for name in own)


def test_accuracy_is_the_share_of_training_images_that_were_right(real, run, canvas):
    networks = queue(real, run, queue_start=1, queue_trained=1, real_steps=1, inner_lr=1e-9)
    assert networks.accuracy(0) == 0
    pass_steps(networks, canvas, 1)  # one batch holds all images, and the network stays
    said = predict(networks.queue[0].network, real.rows(), networks.transform)
    assert networks.accuracy(0) == pytest.approx(
        float((said.argmax(1) == real.labels).double().mean())
    )
    counted = _Counted(lambda logits, targets: logits[:, 0])
    for logits in ([[2.0, 1.0], [0.0, 1.0]], [[0.0, 1.0], [0.0, 1.0]]):
        counted(torch.tensor(logits), torch.tensor([0, 0]))
    assert counted.share == 0.25


def test_a_queue_put_back_goes_on_to_the_byte(real, run, canvas):
    whole, again = queue(real, run), queue(real, run)
    pass_steps(whole, canvas, 7)
    again.load_state(whole.state())
    for networks in (whole, again):
        pass_steps(networks, canvas, 6, first=7)
    ours, theirs = whole.state(), again.state()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[n], theirs[n]) for n in ours)
    with pytest.raises(ArtifactError, match="holds no network"):
        again.load_state({})


def test_under_a_prior_the_tail_is_told_more_often(make_blobs, run):
    real = make_blobs((200, 40, 8))
    tail, canvas = {}, DM().canvas.make(real, 2, run)
    for prior in ("plain", "balanced_softmax"):
        networks = queue(
            real,
            run,
            queue_start=1,
            queue_trained=1,
            queue_every=1000,
            real_steps=4,
            pool_prior=prior,
        )
        pass_steps(networks, canvas, 6)
        said = predict(networks.queue[0].network, real.rows(), networks.transform).softmax(1)
        tail[prior] = float(said[:, 2].mean())
    assert tail["balanced_softmax"] > 1.5 * tail["plain"]


def test_what_moves_cannot_be_kept_and_batch_norm_has_seen_nothing(real):
    with pytest.raises(InputError, match="networks is 'queue', of which nothing can be kept"):
        IDM.budget("quick", real_side="fixed").check()
    with pytest.raises(InputError, match="queue_start is 3 and queue_most is 2, fewer than"):
        IDM.budget("quick", queue_most=2).check()
    for method in (IDM, CAFE):
        with pytest.raises(InputError, match="no statistics when it is new"):
            method.budget("quick", network="convnet-d2-w4-bn").check(real)


def test_settled_means_that_the_last_ten_hardly_differ():
    assert not _settled([0.5] * 9, 0.1)
    assert _settled([0.9, *[0.5] * 10], 0.1)
    assert not _settled([0.5] * 9 + [0.6], 0.09) and _settled([0.5] * 9 + [0.6], 0.11)


def settling(real, run, **fields):
    return SettlingNets(**SMALL, queries=5, **fields).open(real, run)


@pytest.mark.parametrize(("within", "turn"), [(1.0, 10), (0.0, 12)])
def test_a_network_is_given_up_when_it_has_settled_or_at_the_cap(within, turn, real, run, canvas):
    networks = settling(real, run, settled=within, renew_every=12, inner_epochs=1)
    births = []
    for step in range(26):
        pass_steps(networks, canvas, 1, step)
        births.append(networks.online.births)
    assert births == [(step + 1) // turn for step in range(26)]


@pytest.mark.parametrize(
    ("within", "epochs"), [(1.0, [4, 8, 10, 11, 12]), (0.0, [4, 8, 12, 16, 20])]
)
def test_training_rests_when_it_has_settled_but_looks_once(within, epochs, real, run, canvas):
    networks = settling(real, run, settled_inner=within, inner_epochs=4)
    passes = []
    for step in range(5):
        pass_steps(networks, canvas, 1, step)
        passes.append(networks.online.passes)
    assert passes == epochs


def test_queries_count_classes_alike(real, run):
    networks = settling(real, run)
    with torch.no_grad():  # everything is said to be of class 2
        networks.online.network.classifier.bias.copy_(torch.tensor([0.0, 0.0, 1e6]))
    assert networks.measured() == pytest.approx(1 / 3)


@pytest.mark.parametrize("settled", [0.0, 1.0])  # given up at the cap, or when it has settled
def test_a_turn_put_back_goes_on_to_the_byte(settled, real, run, canvas):
    fields = {"settled": settled, "settled_inner": 0.5, "renew_every": 14, "inner_epochs": 3}
    whole, again = settling(real, run, **fields), settling(real, run, **fields)
    pass_steps(whole, canvas, 8)
    again.load_state(whole.state())
    for networks in (whole, again):
        pass_steps(networks, canvas, 9, first=8)
        assert networks.online.births == 1
    ours, theirs = whole.state(), again.state()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[n], theirs[n]) for n in ours)
