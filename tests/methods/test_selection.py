"""Selection against brute force: what is chosen, how much of each class, and what it weighs."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from potstill.canvas.start import dealt
from potstill.experts.features import StoredFeatures, collect_features
from potstill.experts.heads import Head
from potstill.experts.labelling import train_teachers
from potstill.methods import DQ, DQAS, GraphCut, Herding, KCenter
from potstill.methods.selection.class_by_class import ClassFeatures, mass, quotas
from potstill.methods.selection.dq import binned, from_each
from potstill.methods.selection.dqas import shrunk
from potstill.methods.selection.graphcut import Likeness
from potstill.nets import predict
from potstill.nets.frozen import Backbone
from potstill.networks import FrozenBackbone, HeadedBackbone, Scorer
from potstill.networks.scorer import residuals
from potstill.run import InputError
from potstill.synthetic import SyntheticSet

TINY = {"network": "convnet-d2-w8-in", "scorer_epochs": 1}
CLASSES, DIM = 5, 7
ALL = [Herding, KCenter, GraphCut, DQ]  # DQAS picks as DQ


def drawn(*shape, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=draw, dtype=torch.float64)


def seen_class(n, seed=0, label=2, spread=1.0):
    """Features with a mean of their own, and a head that is neither sure nor blind."""
    weight, bias = drawn(CLASSES, DIM, seed=seed + 50), drawn(CLASSES, seed=seed + 51)
    head = Head(weight * spread, bias, tuple("abcde"), "none", {})
    return ClassFeatures(label, drawn(n, DIM, seed=seed) + 0.5, head)


def greedy(n, count, value):
    """Choose one after another what ``value(chosen, j)`` makes largest, the first of equals."""
    chosen = []
    for _ in range(count):
        left = [j for j in range(n) if j not in chosen]
        chosen.append(max(left, key=lambda j: (value(chosen, j), -j)))
    return chosen


def full_likeness(seen):
    """s from the gradients of the last layer by autograd, one image at a time."""
    rows = []
    for z in seen.z:
        weight = seen.head.weight.clone().requires_grad_()
        bias = seen.head.bias.clone().requires_grad_()
        loss = F.cross_entropy((weight @ z + bias)[None], torch.tensor([seen.label]))
        rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, (bias, weight))]))
    g = F.normalize(torch.stack(rows), dim=1)
    return 0.5 + 0.5 * g @ g.T


@pytest.mark.parametrize("seed", range(5))
def test_herding_takes_the_image_that_brings_the_running_mean_nearest(seed, run):
    seen = seen_class(40, seed)
    z, mean = seen.z, seen.z.mean(0)

    def nearness(chosen, j):
        return -float((z[[*chosen, j]].sum(0) - (len(chosen) + 1) * mean).norm())

    found = Herding().pick(seen, 25, run).tolist()
    assert found == greedy(40, 25, nearness)
    farthest = greedy(40, 25, lambda chosen, j: -nearness(chosen, j))  # DeepCore's sign
    off = [float((z[picks[:10]].mean(0) - mean).norm()) for picks in (found, farthest)]
    assert off[0] < 0.1 * off[1]
    assert sorted(Herding().pick(seen, 40, run).tolist()) == list(range(40))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("first", ["random", "central"])
def test_k_center_takes_the_farthest_and_is_at_most_twice_as_wide_as_the_best(seed, first, run):
    seen = seen_class(11, seed)
    table = torch.cdist(seen.z, seen.z)
    found = KCenter(first=first).pick(seen, 6, run).tolist()
    if first == "central":
        assert found[0] == int((seen.z - seen.z.mean(0)).norm(dim=1).argmin())
    for k in range(1, 6):
        assert found[k] == int(table[found[:k]].amin(0).argmax())
    radius = float(table[found[:3]].amin(0).max())
    best = min(float(table[list(c)].amin(0).max()) for c in combinations(range(11), 3))
    assert best <= radius <= 2 * best


def test_the_first_centre_is_the_seeds(run):
    seen = seen_class(200)
    firsts = {int(KCenter().pick(seen, 1, run.with_(seed=s))[0]) for s in range(8)}
    assert len(firsts) > 3
    assert int(KCenter().pick(seen, 1, run)[0]) == int(KCenter().pick(seen, 1, run)[0])


@pytest.mark.parametrize("coverage", [0.0, 0.05, 1.0])
@pytest.mark.parametrize("spread", [0.3, 3.0])
def test_graph_cut_without_the_matrix_picks_as_with_it(coverage, spread, run):
    seen = seen_class(200, spread=spread)
    s = full_likeness(seen)
    like = Likeness(seen.residuals, seen.z)
    torch.testing.assert_close(torch.stack([like.to(j) for j in range(200)]), s)
    torch.testing.assert_close(like.sums(), s.sum(0))
    found = GraphCut(coverage=coverage).pick(seen, 60, run).tolist()
    deepcore = greedy(
        200, 60, lambda chosen, j: float(coverage * s[:, j].sum() - 2 * s[chosen, j].sum())
    )
    assert found == deepcore


def test_graph_cut_climbs_the_function_itself(run):
    seen = seen_class(24, spread=2.0)
    s = full_likeness(seen)

    def cut(picks):
        return float(s[:, picks].sum() - s[picks][:, picks].sum())

    found = GraphCut().pick(seen, 8, run).tolist()
    assert found == greedy(24, 8, lambda chosen, j: cut([*chosen, j]))
    best = max(cut(list(c)) for c in combinations(range(24), 3))
    assert best * (1 - 1 / 2.72) <= cut(found[:3]) <= best


def test_bins_are_what_graph_cut_takes_of_what_is_left():
    seen = seen_class(47, spread=2.0)
    s, left, expected = full_likeness(seen), list(range(47)), []
    for size in (10, 10, 9, 9):  # the last bin is what is left
        own = s[left][:, left]
        picks = greedy(
            len(left), size, lambda c, j, own=own: float(own[:, j].sum() - 2 * own[c, j].sum())
        )
        expected.append([left[j] for j in picks])
        left = [place for place in left if place not in expected[-1]]
    found = [own.tolist() for own in binned(seen.residuals, seen.z, 5, 1.0)]
    assert found == [*expected, left]
    assert sorted(place for own in found for place in own) == list(range(47))
    assert [len(own) for own in binned(seen.residuals[:3], seen.z[:3], 10, 1.0)] == [1, 1, 1]


def test_every_bin_gives_the_same_share_by_a_uniform_draw(run):
    bins = [torch.arange(0, 4), torch.arange(4, 8), torch.arange(8, 11)]
    seen = torch.zeros(11)
    for seed in range(300):
        found = from_each(bins, 5, run.with_(seed=seed).generator("draw"))
        assert len(found.unique()) == 5
        per = [int(torch.isin(found, own).sum()) for own in bins]
        assert sorted(per) == [1, 2, 2]
        seen[found] += 1
    assert float(seen.max() / seen.min()) < 2  # 5/3 of each bin: 125 of each four, 167 of the three
    for count in range(1, 12):  # also where only the larger bins have one more
        found = from_each(bins, count, run.generator("draw", count))
        assert len(found.unique()) == count
    seen_all = seen_class(40)
    assert not torch.equal(DQ().pick(seen_all, 9, run), DQ().pick(seen_all, 9, run.with_(seed=1)))


def test_residuals_keep_their_digits_where_the_network_is_sure():
    head = Head(torch.eye(3) * 60, torch.zeros(3), tuple("abc"), "none", {})
    sure = residuals(torch.tensor([[1.0, 0.0, 0.1], [1.0, 0.1, 0.0]]), 0, head)
    assert float(sure.abs().max()) < 1e-20  # 1 - p would be 0 here
    s = Likeness(sure, torch.eye(3, dtype=torch.float64)[:2]).to(0)
    assert float(s[0]) == pytest.approx(1) and float(s[1]) < 0.9
    p = (drawn(4, 3) @ head.weight.double().T).softmax(1)
    y = F.one_hot(torch.full((4,), 1), 3)
    torch.testing.assert_close(residuals(drawn(4, 3), 1, head), p - y)


@pytest.mark.parametrize("kind", ALL)
def test_nothing_of_n_times_n_is_made(kind, run):
    most = 0

    class Watched(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal most
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                most = max(most, out.numel())
            return out

    seen = seen_class(3000)
    with Watched():
        kind().pick(seen, 20, run)
    assert 3000 <= most <= 3000 * (DIM + 1)


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("quota", ["balanced", "proportional"])
def test_equal_features_of_a_class_still_give_different_images(kind, quota, run):
    seen = ClassFeatures(1, torch.ones(6, DIM, dtype=torch.float64), seen_class(1).head)
    for count in (1, 4, 6):
        assert len(set(kind().pick(seen, count, run).tolist())) == count


def test_quotas_are_balanced_or_those_of_deepcore():
    counts = [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]  # CIFAR-10-LT, factor 100
    assert quotas(counts, 10, "balanced") == [10] * 10
    share = 100 / sum(counts)
    found = quotas(counts, 10, "proportional")
    assert found == [round(share * n) for n in counts]
    assert (found[0], found[-2:]) == (40, [1, 0])
    assert quotas([7, 2], 3, "balanced") == [3, 2]
    assert quotas([7, 2], 9, "proportional") == [7, 2]


def test_a_proportional_subset_leaves_the_tail_out_and_says_so(make_blobs, run, tmp_path, caplog):
    real = make_blobs((60, 20, 2))
    syn = GraphCut.budget("quick", quota="proportional", **TINY)(real, 1, run)
    assert syn.counts == tuple(quotas(real.counts, 1, "proportional")) == (2, 1, 0)
    assert "no image is taken of 1 of 3 classes ('class 2' first)" in caplog.text
    syn.save(tmp_path / "artifact")
    assert SyntheticSet.load(tmp_path / "artifact").counts == (2, 1, 0)


def test_a_small_class_gives_all_it_has_and_says_so(make_blobs, run, caplog):
    syn = Herding.budget("quick", **TINY)(make_blobs((20, 9, 2)), 4, run)
    assert syn.counts == (4, 4, 2)
    assert "1 of 3 classes have fewer than 4 images and give all they have" in caplog.text
    assert syn.weights is None


def test_weights_are_the_images_nearest_to_each(make_blobs, run):
    z = drawn(50, 3)
    places = torch.tensor([3, 14, 15, 9])
    nearest = [min(range(4), key=lambda k: float((row - z[places[k]]).norm())) for row in z]
    expected = [nearest.count(k) * 4 / 50 for k in range(4)]
    assert mass(z, places).tolist() == pytest.approx(expected)
    assert mass(torch.ones(6, 2), torch.tensor([4, 5])).tolist() == pytest.approx([5 / 3, 1 / 3])
    real = make_blobs((30, 9, 4))
    syn = KCenter.budget("quick", weighting="mass", **TINY)(real, 3, run)
    for label in range(3):
        assert float(syn.weights[syn.labels == label].sum()) == pytest.approx(3)
    assert syn.weights.unique().numel() > 1
    plain = KCenter.budget("quick", **TINY)(real, 3, run)
    assert torch.equal(plain.images, syn.images)


def test_chosen_positions_stand_in_the_artifact(make_blobs, run):
    whole = make_blobs((30, 9, 4))
    real = whole.select(torch.arange(42, 0, -1))  # positions are those of the source
    syn = Herding.budget("quick", **TINY)(real, 2, run)
    own = torch.tensor(syn.provenance["indices"])
    assert torch.equal(whole.batch(own), syn.images)
    assert syn.provenance["scorer"]["prior"] == "balanced_softmax"


def test_the_scorer_is_a_pool_member_under_the_table_and_all_selectors_share_it(make_blobs, run):
    real = make_blobs((30, 9, 4))
    part = Scorer(network="convnet-d2-w8-in", scorer_epochs=2, scorer_prior="crt")
    opened = part.open(real, run)
    (net,), _, _ = train_teachers(
        part.network, part.training(), "crt", 1, real, opened.transform, run
    )
    features = opened.backbone.features(real.batch(torch.arange(43)))
    wanted = predict(net, real.rows(), opened.transform, features=True)
    torch.testing.assert_close(features, wanted)
    torch.testing.assert_close(
        features @ opened.head.weight.T + opened.head.bias,
        predict(net, real.rows(), opened.transform),
    )
    assert opened.facts()["scorer"]["prior"] == "crt"
    plain = Scorer(network="convnet-d2-w8-in", scorer_epochs=2).open(real, run)
    assert not torch.equal(plain.head.weight, opened.head.weight)
    before = sorted((run.cache / "pools").iterdir())
    for kind in ALL:
        kind.budget("quick", **TINY | {"scorer_epochs": 2, "scorer_prior": "crt",
                                       "scorer_lr": part.scorer_lr})(real, 2, run)  # fmt: skip
    assert sorted((run.cache / "pools").iterdir()) == before


def test_a_backbone_gets_a_head_under_the_table(make_blobs, run):
    real, fields = make_blobs((30, 9, 4)), {"backbone": "convnet-d2-w8-in", "head_steps": 50}
    opened = HeadedBackbone(**fields, head_prior="crt").open(real, run)
    plain = HeadedBackbone(**fields, head_prior="plain").open(real, run)
    assert opened.head.facts["prior"] == "crt" and opened.head.backbone == opened.backbone.key
    assert opened.key == plain.key and not torch.equal(opened.head.weight, plain.head.weight)
    told = opened.facts()
    assert told["backbone"]["key"] == opened.key and told["head"]["prior"] == "crt"
    syn = GraphCut.budget("quick", networks="backbone-head", **fields)(real, 2, run)
    assert syn.counts == (2, 2, 2) and syn.provenance["head"]["prior"] == "balanced_softmax"


def test_features_are_those_of_the_bank(make_blobs, run):
    real, part = make_blobs((12, 9, 4)), FrozenBackbone(backbone="convnet-d2-w8-in")
    method = Herding(networks=part)
    syn = method(real, 3, run)
    bank = collect_features(real, part.open(real, run).backbone, run, bank=True).bank[0]
    for label in range(3):
        own = real.of_class(label)
        places = method.pick(ClassFeatures(label, bank[own].double()), 3, run)
        assert torch.equal(real.batch(own[places]), syn.images[syn.labels == label])


@pytest.mark.parametrize("kind", ALL)
def test_a_blind_network_is_one_sentence(kind, make_blobs, run, tmp_path):
    real = make_blobs((12, 9, 4))
    grey = real.images.clone().fill_(99)
    with pytest.raises(InputError) as caught:
        kind.budget("quick", **TINY)(replace(real, images=grey), 2, run)
    said = str(caught.value)
    assert said.startswith("networks is 'scorer', which sees the same in all 25 images; ")
    assert "\n" not in said


@pytest.mark.parametrize("kind", ALL)
def test_features_that_are_not_finite_name_the_image_and_nothing_is_lost(
    kind, make_blobs, run, monkeypatch
):
    real, method = make_blobs((12, 9, 4)), kind.budget("quick", **TINY)
    features = Backbone.features

    def poisoned(self, x):
        found = features(self, x)
        return found if len(found) == 1 else found.index_fill(0, torch.tensor([13]), torch.nan)

    with monkeypatch.context() as patch:
        patch.setattr(Backbone, "features", poisoned)
        with pytest.raises(InputError, match="not finite for image 13 of class 'class 1'"):
            method(real, 2, run)
    assert len(method(real, 2, run)) == 6  # the next one goes on from the trained network


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"network": "convnex"}, "network is 'convnex'"),
        ({"scorer_augment": "crops"}, "augment is 'crops'"),
        ({"quota": "even"}, "quota is 'even'; use one of balanced, proportional"),
        ({"scorer_prior": "fair"}, "scorer_prior is 'fair'"),
        ({"networks": "pool"}, "networks is 'pool', of which graphcut can make nothing"),
        ({"networks": "backbone"}, "networks is 'backbone', of which graphcut can make nothing"),
        ({"networks": "backbone-head", "head_prior": "remix"}, "head_prior is 'remix'"),
    ],
)
def test_bad_fields_are_one_sentence_before_anything_is_trained(fields, said, make_blobs, run):
    with pytest.raises(InputError) as caught:
        GraphCut.budget("quick", **fields)(make_blobs((4, 3)), 1, run)
    assert str(caught.value).startswith(said) and "\n" not in str(caught.value)
    assert not (run.cache / "pools").exists()


def two_kinds(counts, run, seed=0):
    """Class 0 lies at the origin; class 1 on 12 axes, and those unseen look like the origin."""
    draw = torch.Generator().manual_seed(seed)
    apart = 6 * torch.eye(13) * (torch.arange(13) > 0)
    places = [torch.zeros(counts[0], dtype=torch.long), 1 + torch.arange(counts[1]) % 12]
    z = torch.cat([apart[p] for p in places])
    z += 0.1 * torch.randn(z.shape, generator=draw)
    labels = torch.repeat_interleave(torch.arange(2), torch.tensor(counts))
    stats = StoredFeatures(
        counts=torch.tensor(counts), sums=torch.zeros(2, 13), views=1, facts={}, key="",
        bank=z.half()[None], labels=labels,
    )  # fmt: skip
    head = Head(torch.randn(2, 13, generator=draw), torch.zeros(2), ("a", "b"), "none", {})
    return stats, head


def test_budgets_move_to_the_class_that_gains_within_floor_and_size(run):
    stats, head = two_kinds((60, 60), run)
    method = DQAS(rounds=3)
    found = method.class_budgets(stats, head, 8, run)
    assert sum(found) == 16 and found[1] > found[0] >= 4
    held = method.held(stats.labels, run)
    whole = [(stats.labels == c).nonzero().flatten()[~held[stats.labels == c]] for c in (0, 1)]
    few = [own[:3] for own in whole]
    gain = method.accuracy(stats, whole, held) - method.accuracy(stats, few, held)
    assert float(gain[1]) > float(gain[0]) + 0.2  # the set is what it says
    assert method.class_budgets(stats, head, 8, run) == found
    assert DQAS(least_share=1.0).class_budgets(stats, head, 8, run) == [8, 8]
    free = DQAS(rounds=3, least_share=0.0).class_budgets(stats, head, 8, run)
    assert free[0] < 4 and sum(free) == 16
    small, head = two_kinds((60, 9), run)
    assert DQAS().class_budgets(small, head, 12, run)[1] <= 9


def test_held_out_images_are_a_share_of_each_class_and_never_all_of_it(run):
    labels = torch.repeat_interleave(torch.arange(4), torch.tensor([50, 9, 2, 1]))
    held = DQAS().held(labels, run)
    assert labels[held].bincount(minlength=4).tolist() == [10, 1, 1, 0]
    assert not torch.equal(held, DQAS().held(labels, run.with_(seed=1)))


def test_the_scorer_of_dqas_never_saw_what_is_held_out(make_blobs, run, monkeypatch, caplog):
    real, seen = make_blobs((30, 9, 4)), []
    opened = Scorer.open
    monkeypatch.setattr(
        Scorer, "open", lambda self, given, run: (seen.append(given), opened(self, given, run))[1]
    )
    method = DQAS.budget("quick", **TINY)
    syn = method(real, 4, run)
    held = method.held(real.labels, run)
    assert torch.equal(seen[0].indices, real.indices[~held]) and 0 < int(held.sum()) < len(real)
    assert "no image" not in caplog.text
    assert sum(syn.counts) == 12 and min(syn.counts) >= 2 and syn.counts[2] <= 4
    assert len(set(syn.provenance["indices"])) == 12


def test_the_accuracy_of_a_subset_is_that_of_a_balanced_linear_classifier(run):
    stats, _ = two_kinds((40, 30), run)
    held = DQAS().held(stats.labels, run)
    rows = [torch.arange(0, 9), torch.arange(45, 50)]
    found = DQAS().accuracy(stats, rows, held)
    z, own = stats.bank[0].double(), torch.cat(rows)
    scale = z[own].std()
    weight = torch.zeros(2, 13, dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    for _ in range(3000):
        losses = F.cross_entropy(
            z[own] / scale @ weight.T + bias, stats.labels[own], reduction="none"
        )
        loss = sum(losses[stats.labels[own] == c].mean() for c in (0, 1)) / 2
        loss = loss + 2.5e-4 * weight.square().sum()
        for value, grad in zip(
            (weight, bias), torch.autograd.grad(loss, (weight, bias)), strict=True
        ):
            value.data -= 0.5 * grad
    right = (z[held] / scale @ weight.T + bias).argmax(1) == stats.labels[held]
    assert found.tolist() == [
        pytest.approx(float(right[stats.labels[held] == c].double().mean())) for c in (0, 1)
    ]


def test_gains_of_few_images_are_drawn_to_the_mean():
    gains, images = torch.tensor([0.2, 0.0, 1.0]).double(), torch.tensor([90, 10, 0])
    mean = 0.2 * 90 / 100
    expected = [(18 + 10 * mean) / 100, 10 * mean / 20, mean]
    assert shrunk(gains, images).tolist() == pytest.approx(expected)


def test_what_is_dealt_goes_by_weight_and_never_over():
    def deal(left, weights, counts, most):
        return dealt(*(torch.tensor(v) if isinstance(v, list) else v
                       for v in (left, weights, counts, most))).tolist()  # fmt: skip

    assert deal(6, [2.0, 1.0, 0.0], [1, 1, 1], [9, 9, 9]) == [5, 3, 1]
    assert deal(6, [2.0, 1.0, 0.0], [1, 1, 1], [2, 9, 9]) == [2, 6, 1]
    assert deal(6, [0.0, 0.0, 0.0], [1, 1, 1], [9, 9, 9]) == [3, 3, 3]
    assert deal(3, [1.0, 0.0, 0.0], [1, 1, 1], [2, 9, 9]) == [2, 2, 2]
    assert deal(99, [1.0, 1.0, 1.0], [1, 0, 0], [2, 3, 4]) == [2, 3, 4]
