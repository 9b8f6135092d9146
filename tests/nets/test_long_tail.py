"""Samplers, mixing, corrections and MaxNorm against their formulas written out."""

import math

import pytest
import torch
from test_many import RUN, Centre, members, toy, train

from potstill import nets
from potstill.data.mixing import mixup, remix_shares
from potstill.losses import LOSSES, REMEDIES, Deferred, cross_entropy, priors
from potstill.nets import Examples, Training, predict, train_many
from potstill.nets.feed import Feed
from potstill.nets.post_hoc import CORRECTIONS, MaxNorm, correct, correct_
from potstill.nets.sampling import epoch_length, epoch_order, shared_order
from potstill.run import InputError

COUNTS = [64, 16, 4]
LABELS = torch.tensor([c for c, n in enumerate(COUNTS) for _ in range(n)])
GROUPS = [(c == LABELS).nonzero().flatten() for c in range(3)]


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def drawn(sampling, share, seeds=200):
    """Mean images per class and epoch."""
    total = torch.zeros(3)
    for seed in range(seeds):
        order = epoch_order(sampling, GROUPS, 84, share, seeded(seed))
        assert len(order) == 84
        total += LABELS[order].bincount(minlength=3)
    return (total / seeds).tolist()


def kang(sampling, share):
    """p_c of Kang et al., eqs. 1 and 3."""
    q = {"sqrt": 0.5}.get(sampling)
    if q is not None:
        return [n**q / sum(m**q for m in COUNTS) for n in COUNTS]
    return [(1 - share) * n / sum(COUNTS) + share / 3 for n in COUNTS]


@pytest.mark.parametrize(
    ("sampling", "share"),
    [("sqrt", 0.0), ("progressive", 0.0), ("progressive", 0.3), ("progressive", 0.9)],
)
def test_shares_of_the_classes(sampling, share):
    wanted = [84 * p for p in kang(sampling, share)]
    assert drawn(sampling, share) == pytest.approx(wanted, abs=0.15)
    one = LABELS[epoch_order(sampling, GROUPS, 84, share, seeded(1))].bincount().tolist()
    assert all(abs(n - want) < 1 for n, want in zip(one, wanted, strict=True))


def test_a_progressive_training_begins_with_images_and_ends_near_classes():
    examples = Examples(torch.zeros(84, 3, 8, 8), LABELS, Centre())
    how = Training(epochs=10, batch=84, sampling="progressive")
    feed = Feed(examples, how, RUN.generator, members(1)[0])
    first, last = (LABELS[feed.order(0, epoch)].bincount().tolist() for epoch in (0, 9))
    assert first == COUNTS and feed.length == 84
    assert all(abs(n - 84 * p) < 1 for n, p in zip(last, kang("progressive", 0.9), strict=True))


def test_a_class_shows_all_its_images_before_one_again():
    order = shared_order(GROUPS, torch.tensor([1.0, 1.0, 1.0]), 84, seeded(0))
    times = order.bincount(minlength=84)
    assert times[LABELS == 2].tolist() == [7] * 4
    assert times[LABELS == 1].min() >= 1 and times[LABELS == 0].max() == 1
    assert epoch_length("cyclic", GROUPS) == 192 and epoch_length("sqrt", GROUPS) == 84


def test_remix_labels():
    n = [90.0, 30.0, 29.0, 10.0]
    for keep in (0.1, 0.49, 0.5, 0.51, 0.9):
        for i in n:
            for j in n:
                wanted = keep
                if i / j >= 3 and keep < 0.5:
                    wanted = 0.0
                if i / j <= 1 / 3 and 1 - keep < 0.5:
                    wanted = 1.0
                got = remix_shares(keep, torch.tensor([i]).double(), torch.tensor([j]).double())
                assert float(got) == wanted


@pytest.mark.parametrize("remix", [False, True])
def test_mixup_is_the_line_between_two_images(remix):
    x, y = torch.rand(6, 3, 4, 4, generator=seeded(0)).double(), torch.eye(3).double()
    y = y[torch.tensor([0, 0, 1, 1, 2, 2])]
    counts = torch.tensor(COUNTS)
    for seed in range(5):
        mixed, targets = mixup(x, y, seeded(seed), counts if remix else None)
        draw = seeded(seed)
        keep, partner = float(torch.rand((), generator=draw)), torch.randperm(6, generator=draw)
        torch.testing.assert_close(mixed, keep * x + (1 - keep) * x[partner])
        for i, j in enumerate(partner.tolist()):
            a, b = counts[y[i].argmax()], counts[y[j].argmax()]
            share = float(remix_shares(keep, a[None].double(), b[None].double())) if remix else keep
            torch.testing.assert_close(targets[i], share * y[i] + (1 - share) * y[j])


def test_remix_in_training_knows_the_class_sizes(monkeypatch):
    seen = []
    monkeypatch.setattr(
        "potstill.nets.feed.mixup", lambda x, y, g, n: (seen.append(n), mixup(x, y, g, n))[1]
    )
    examples = Examples(torch.zeros(84, 3, 8, 8), LABELS, Centre())
    train(members(1), Training(epochs=1, batch=84, mixing="remix"), examples)
    train(members(1), Training(epochs=1, batch=84, mixing="mixup"), examples)
    assert seen[0].tolist() == COUNTS and seen[1] is None
    with pytest.raises(InputError, match="mixing is 'remix' with cutmix"):
        Training(epochs=1, batch=8, mixing="remix", cutmix=0.5)


def test_weights_come_late_in_training():
    """A deferred loss is its first for 8 of 10 epochs, and re-weighted from there."""
    seen = []

    def first(logits, targets):
        seen.append("first")
        return cross_entropy(logits, targets)

    def late(logits, targets):
        seen.append("late")
        return cross_entropy(logits, targets)

    for backend in ("sequential", "stacked"):
        seen.clear()
        train(
            members(2), Training(epochs=10, batch=20), loss=Deferred(first, late), backend=backend
        )
        assert seen.count("late") * 4 == seen.count("first") > 0


# -- corrections -----------------------------------------------------------------------------------


def problem():
    z = torch.randn(84, 5, generator=seeded(1)).double()
    z[:, :3] += 1.5 * torch.eye(3).double()[LABELS]
    return torch.randn(3, 5, generator=seeded(2)).double(), torch.tensor([0.5, -1, 2]).double(), z


def balanced_loss(logits):
    rows = zip(logits.tolist(), LABELS.tolist(), strict=True)
    return sum((math.log(sum(map(math.exp, z))) - z[y]) / COUNTS[y] / 3 for z, y in rows)


def test_closed_forms():
    w, b, z = problem()

    def by(name):
        return correct(name, w, b, lambda: z, LABELS)

    assert all(torch.equal(x, y) for x, y in zip(by("none"), (w, b), strict=True))
    lower = [v - math.log(n / 84) for v, n in zip(b.tolist(), COUNTS, strict=True)]
    assert torch.equal(by("prior_subtraction")[0], w)
    assert by("prior_subtraction")[1].tolist() == pytest.approx(lower)
    weight, bias = by("tau_norm")
    for row, old in zip(weight.tolist(), w.tolist(), strict=True):
        assert row == pytest.approx([v / math.sqrt(sum(u * u for u in old)) for v in old])
    assert not bias.any()
    weight, bias = by("ncm")
    means = torch.stack([z[c == LABELS].mean(0) for c in range(3)])
    nearest = torch.cdist(z, means).argmin(1)
    assert torch.equal((z @ weight.T + bias).argmax(1), nearest)


@pytest.mark.parametrize("name", ["lws", "crt"])
def test_learnt_corrections_are_minima(name):
    w, b, z = problem()
    weight, bias = correct(name, w, b, lambda: z, LABELS)
    if name == "lws":  # each class's row and bias times one number
        scale = bias / b
        torch.testing.assert_close(weight, w * scale[:, None])

    def value(weight, bias):
        decay = 5e-4 / 2 * float(weight.square().sum()) if name == "crt" else 0.0
        return balanced_loss(z @ weight.T + bias) + decay

    best = value(weight, bias)
    assert best < value(w, b) - 0.05
    for k in range(3):
        for move in (0.02, -0.02):
            if name == "lws":
                factor = torch.ones(3).double()
                factor[k] += move
                assert value(weight * factor[:, None], bias * factor) > best
            else:
                shift = torch.zeros(3).double()
                shift[k] += move
                assert value(weight, bias + shift) > best
                for d in range(5):
                    other = weight.clone()
                    other[k, d] += move
                    assert value(other, bias) > best


def test_a_network_is_corrected_by_its_own_features():
    examples, (network,) = toy(dtype=torch.float64), members(1, dtype=torch.float64)
    z = predict(network, examples.images, Centre(), features=True)
    wanted = correct("ncm", network.classifier.weight, network.classifier.bias, lambda: z,
                     examples.targets)  # fmt: skip
    correct_(network, "ncm", examples)
    torch.testing.assert_close(network.classifier.weight.detach(), wanted[0].detach())
    torch.testing.assert_close(network.classifier.bias.detach(), wanted[1].detach())
    assert network.classifier.weight.requires_grad


# -- MaxNorm ---------------------------------------------------------------------------------------


def test_rows_are_cut_to_the_bound():
    weight = torch.diag(torch.tensor([3.0, 1.0, 2.0]))
    bound = MaxNorm(weight, 0.1)  # 1 + 0.1 * (3 - 1)
    weight[1, 1] = 0.5
    bound.project_()
    torch.testing.assert_close(weight, torch.diag(torch.tensor([1.2, 0.5, 1.2])))
    MaxNorm(weight, None).project_()
    torch.testing.assert_close(weight, torch.diag(torch.tensor([1.2, 0.5, 1.2])))


@pytest.mark.parametrize("backend", ["sequential", "stacked"])
def test_no_row_leaves_the_bound_in_training(backend):
    networks = members(2, dtype=torch.float64)
    norms = [n.classifier.weight.detach().norm(dim=1) for n in networks]
    bounds = [n.min() + 0.1 * (n.max() - n.min()) for n in norms]
    how = Training(epochs=3, batch=8, lr=0.5, momentum=0, max_norm=0.1)
    train(networks, how, toy(dtype=torch.float64), backend=backend)
    for network, bound in zip(networks, bounds, strict=True):
        norm = network.classifier.weight.detach().norm(dim=1)
        assert norm.max() <= bound * (1 + 1e-12) and (norm > 0.999 * bound).any()
    with pytest.raises(InputError, match="max_norm is set"):
        train(members(1), how, start_epoch=1)


# -- the table -------------------------------------------------------------------------------------


def test_every_row_names_things_that_exist():
    how = Training(epochs=1, batch=8, cutmix=0.5)
    for name, row in REMEDIES.items():
        changed = how.under(name)  # refuses what Training does not know
        assert (changed.sampling, changed.mixing) == (row.sampling, row.mixing)
        assert row.loss in LOSSES and row.post_hoc in CORRECTIONS
        assert bool(changed.cutmix) == (row.mixing == "none")
    assert {row.loss for row in REMEDIES.values()} == set(LOSSES)
    assert {row.post_hoc for row in REMEDIES.values()} == set(CORRECTIONS)
    assert "remix" not in priors(mixing=False) and "crt" not in priors(post_hoc=False)
    assert {REMEDIES[name].stages for name in priors(stages=False)} == {""}


def test_fields_left_alone_leave_the_key_alone():
    facts = Training(epochs=1, batch=8).facts
    assert not {"mixing", "max_norm", "sharpness"} & set(facts)
    assert Training(epochs=1, batch=8, max_norm=0.1).facts["max_norm"] == 0.1


LEFT = {name: row.left for name, row in REMEDIES.items() if row.mixing == "none" and not row.stages}
SHAPED = ("focal", "ldam", "ldam_drw", "tau_norm", "lws", "ncm")  # whose logits are no posterior


@pytest.mark.parametrize("name", sorted(set(LEFT) - set(SHAPED)))
def test_what_is_left_of_the_prior(name):
    """Dark and bright images of two classes, 40 to 4, of which a quarter looks like the other."""
    labels = torch.tensor([0] * 40 + [1] * 4)
    bright = torch.tensor([0.0] * 30 + [1.0] * 10 + [1.0] * 3 + [0.0])
    images = bright[:, None, None, None].expand(44, 1, 8, 8).contiguous()
    network = nets.create("mlp-w8", channels=1, size=8, classes=2, generator=seeded(0))
    examples, row = Examples(images, labels, Centre()), REMEDIES[name]
    how = Training(epochs=400, batch=44, lr=0.05, weight_decay=0).under(name)
    generators = {"generators": RUN.generator, "quiet": True}
    train_many([network], examples, how, loss=row.loss_for([40, 4]), **generators)
    correct_(network, row.post_hoc, examples)
    z = predict(network, images[[0, 43 - 1]], Centre())
    found = (z[:, 1] - z[:, 0]).tolist()
    wanted = [sign * math.log(3) - row.left * math.log(10) for sign in (-1, 1)]
    assert found == pytest.approx(wanted, abs=0.35)
