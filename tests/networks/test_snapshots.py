"""Networks as they were after each epoch, and the later ones that judge."""

import pytest
import torch

from potstill.losses import REMEDIES
from potstill.networks import PoolNets, SnapshotNets
from potstill.run import InputError

FIELDS = {"network": "convnet-d2-w8-in", "members": 2, "pool_epochs": 5, "pool_cutmix": 0.0}


@pytest.fixture
def real(make_blobs):
    return make_blobs((40, 20, 8))


def weights(extractor):
    return {name: value.clone() for name, value in extractor.net.state_dict().items()}


def equal(a, b):
    return all(torch.equal(a[name], b[name]) for name in a)


def test_a_number_names_a_snapshot_and_the_judge_comes_later(real, run):
    opened = SnapshotNets(**FIELDS, judge_ahead=2).open(real, run)
    places = [opened.place(number) for number in range(60)]
    assert {epoch for _, epoch in places} == set(range(6))
    for number, (member, epoch) in enumerate(places):
        judge = opened.judge_of(number)
        assert judge[0] == member and epoch <= judge[1] <= min(5, epoch + 2)
    assert any(opened.judge_of(number)[1] > places[number][1] for number in range(60))
    for turn in range(10):  # every member once before any comes again
        assert {places[2 * turn][0], places[2 * turn + 1][0]} == {0, 1}
    number = next(n for n in range(60) if opened.judge_of(n) != places[n])
    eye, judge = opened.at(number), opened.trained_at(number)  # both at a time
    seen = opened.trajectories.at(*places[number])
    assert equal(seen, weights(eye))
    assert equal(opened.trajectories.at(*opened.judge_of(number)), weights(judge))
    again = SnapshotNets(**FIELDS, judge_ahead=2).open(real, run)  # from the cache
    assert again.seconds_saved > 0 and again.key == opened.key
    assert equal(weights(again.at(number)), seen)


def test_without_a_lead_the_judge_is_the_same_network(real, run):
    opened = SnapshotNets(**FIELDS, judge_ahead=0).open(real, run)
    assert all(opened.judge_of(number) == opened.place(number) for number in range(20))


def test_members_are_trained_as_those_of_a_pool(real, run):
    """The same recipe, of which more is kept; draws have names of their own."""
    ours, pools = SnapshotNets(**FIELDS), PoolNets(**FIELDS)
    assert ours.training() == pools.training() and ours.has_trained
    assert REMEDIES[ours.prior].left == 1


def test_a_prior_that_corrects_afterwards_is_refused(real, run):
    from potstill.methods.distribution.csdm import CSDM

    with pytest.raises(InputError, match="pool_prior is 'crt'"):
        CSDM.budget("quick", networks="snapshots", pool_prior="crt").check()
    CSDM.budget("quick", networks="pool", pool_prior="crt").check()
