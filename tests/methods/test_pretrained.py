"""LGM and SFM against plain transcriptions; selectors that look through a backbone."""

import json
import math

import pytest
import torch
import torch.nn.functional as F

from potstill.data import ImageSet
from potstill.data.views import Views, clean_view, part_of
from potstill.experts.features import collect_features, sub_centres
from potstill.match.linear import analytic_gradient, linear_gradient
from potstill.methods import CATALOGUE, LGM, SFM, Centroids, Neighbours, Random
from potstill.methods.pretrained import backbone_matching as frozen
from potstill.methods.selection.nearest import free_nearest
from potstill.nets.backbone import save_backbone
from potstill.networks import FrozenBackbone
from potstill.run import ArtifactError, InputError

OWN = "convnet-d2-w8-in"
FIELDS = {"backbone": OWN, "steps": 3, "grow_every": 1, "augmentations": 2, "noise_mean": 0.1}
STEP = 7  # late enough for all levels


@pytest.fixture
def real(make_blobs):
    data = make_blobs((12, 9, 5), channels=3)
    return data.select(torch.randperm(26, generator=torch.Generator().manual_seed(1)))


@pytest.fixture
def exact(monkeypatch):
    """Everything in float64: what is left of a difference is no rounding."""
    batch = ImageSet.batch
    monkeypatch.setattr(ImageSet, "batch", lambda *a, **k: batch(*a, **k).double())
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def made(kind, fields=FIELDS, **more):
    return kind.budget("paper", **{**fields, **more})


def ready(method, real, run, ipc=2, step=STEP):
    """The method's objective before its first step, its canvas with all levels."""
    method.check(real)
    objective, _ = method.begin(real, ipc, run)
    objective.canvas.grow_(step)
    return objective


def step_of(objective, chunk=3, step=STEP):
    """Value and gradient of one step."""
    levels = objective.canvas.levels
    for leaf in levels:
        leaf.grad = None
    (term,) = objective.terms(step, objective.canvas, chunk)
    term.values.backward()
    return term, [leaf.grad.clone() for leaf in levels]


def flat(grads):
    return torch.cat([g.flatten() for g in grads])


def synthetic_features(objective, run, step=STEP):
    """Features (views, n, d) with a graph, drawn as the method says it draws."""
    levels, views = objective.canvas.parameters(), objective.views
    leaves = {name: level.detach().clone().requires_grad_() for name, level in levels.items()}
    images = objective.canvas.render(leaves)
    seen = []
    for number in range(objective.how.views.augmentations):
        draw = views.draw(len(images), run.generator("views", step, number))
        seen.append(objective.backbone.features(views.apply(images, draw, (8, 8))))
    return list(leaves.values()), torch.stack(seen)


def real_views(objective, real, run, rows, step=STEP):
    views = objective.views
    draw = views.draw(len(rows), run.generator("real-views", step))
    found = []
    for place, row in enumerate(rows.tolist()):
        image = real.batch(torch.tensor([row]))
        seen = views.apply(image, part_of(draw, slice(place, place + 1)), (8, 8))
        found.append(objective.backbone.features(seen))
    return torch.cat(found)


def head_gradient(z, labels, weight, share=None, create_graph=False):
    """As released: autograd of a linear layer's cross-entropy, weights then bias."""
    weight = weight.clone().requires_grad_()
    bias = torch.zeros(len(weight)).requires_grad_()
    losses = F.cross_entropy(F.linear(z, weight, bias), labels, reduction="none")
    value = losses.mean() if share is None else (losses * share).sum() / share.sum()
    grads = torch.autograd.grad(value, (weight, bias), create_graph=create_graph)
    return torch.cat([g.flatten() for g in grads])


def inverse_counts(real, rows):
    """One over the images of each row's class."""
    share = [1 / real.counts[label] for label in real.labels[rows].tolist()]
    return torch.tensor(share, dtype=torch.float64).to(torch.get_default_dtype())


def plain_lgm(objective, real, run, step=STEP):
    """One step of LGM by double backward through the whole graph."""
    draw = run.generator("head", step)
    head = torch.randn(3, objective.backbone.dim, generator=draw) * objective.how.head_std
    rows = objective.positions(step)
    share = inverse_counts(real, rows) if objective.how.balance == "weights" else None
    z = real_views(objective, real, run, rows, step)
    goal = head_gradient(z, real.labels[rows], head, share).detach()
    leaves, seen = synthetic_features(objective, run, step)
    labels = objective.canvas.labels.repeat(len(seen))
    found = head_gradient(seen.flatten(0, 1), labels, head, create_graph=True)
    value = 1 - (goal * found).sum() / (goal.norm() * found.norm())
    return value.item(), torch.autograd.grad(value, leaves)


@pytest.mark.parametrize("balance", ["none", "weights", "sampling"])
@pytest.mark.parametrize("std", [0.01, 1.0])
def test_a_step_of_lgm_is_the_double_backward(real, run, balance, std, exact):
    method = made(LGM, balance=balance, head_std=std)
    objective = ready(method, real, run)
    term, grads = step_of(objective)
    value, expected = plain_lgm(objective, real, run)
    assert term.values.item() == pytest.approx(value, abs=1e-10)
    assert len(grads) == 4 and all(g.norm() > 0 for g in grads)
    torch.testing.assert_close(flat(grads), flat(expected), atol=1e-11, rtol=1e-7)


def test_a_step_of_lgm_in_single_precision(real, run):
    method = made(LGM)
    objective = ready(method, real, run)
    term, grads = step_of(objective)
    value, expected = plain_lgm(objective, real, run)
    assert term.values.item() == pytest.approx(value, abs=1e-5)
    for found, wanted in zip(grads, expected, strict=True):
        assert F.cosine_similarity(found.flatten(), wanted.flatten(), dim=0) > 0.9999
        assert found.norm().item() == pytest.approx(wanted.norm().item(), rel=1e-3)


def test_the_real_gradient_is_summed_block_by_block(real, run, exact, monkeypatch):
    """More real images than a block, in a batch that wraps around the set."""
    for balance in ("none", "weights"):
        method = made(LGM, balance=balance, batch_real=1100)
        objective = ready(method, real, run)
        features = torch.randn(len(real), objective.backbone.dim, generator=run.generator("z"))
        monkeypatch.setattr(
            objective,
            "_real_features",
            lambda step, rows, parts, f=features: (f[rows[part]] for part in parts),
        )
        objective.begin(STEP)
        rows = objective.positions(STEP)
        share = inverse_counts(real, rows) if balance == "weights" else None
        expected = head_gradient(features[rows], real.labels[rows], objective.head, share)
        found = torch.cat([objective.goal[:, :-1].flatten(), objective.goal[:, -1]])
        torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-9)
        assert found.norm() > 1e-2


def test_heads_are_new_at_every_step_and_the_same_for_the_same_step(real, run):
    method = made(LGM)
    objective = ready(method, real, run)
    heads = []
    for step in (0, 1, 0):
        objective.begin(step)
        heads.append(objective.head)
    assert torch.equal(heads[0], heads[2]) and not torch.equal(heads[0], heads[1])
    assert heads[0].std().item() == pytest.approx(0.01, rel=0.2)


def test_rounds_over_the_real_set_as_published(real, run):
    method = made(LGM, batch_real=8)
    objective = ready(method, real, run)
    first = torch.cat([objective.positions(step) for step in range(3)])  # 26 = 3 * 8 + 2 dropped
    second = torch.cat([objective.positions(step) for step in range(3, 6)])
    assert len(first.unique()) == len(second.unique()) == 24
    assert not torch.equal(first, second)
    released = ready(made(LGM), real, run, ipc=2)
    assert len(released.positions(0)) == 12  # classes x ipc x augmentations
    wrapping = ready(made(LGM, batch_real=60), real, run)
    counts = torch.bincount(wrapping.positions(0), minlength=26)
    assert counts.sum() == 60 and counts.min() >= 2 and counts.max() <= 3


def test_sampling_draws_classes_equally_often(real, run):
    method = made(LGM, balance="sampling", batch_real=21)
    objective = ready(method, real, run)
    batches = [objective.positions(step) for step in range(20)]
    for rows in batches:
        assert torch.bincount(real.labels[rows]).tolist() == [7, 7, 7]
        head = rows[real.labels[rows] == 0]
        assert len(head.unique()) == 7  # 12 images: none twice
    assert len(torch.cat(batches).unique()) == 26
    assert not torch.equal(batches[0], batches[1])


QUIET = {"crop_min": 1.0, "flip": 0.0, "noise": 0.0, "augmentations": 1}  # views are the images


@pytest.mark.parametrize("balance", ["balanced set", "weights"])
def test_sfm_is_lgm_with_a_head_of_nothing(make_blobs, real, run, balance, exact):
    if balance == "balanced set":
        real, balance = make_blobs((8, 8, 8), channels=3), "none"
    options = {**FIELDS, **QUIET}
    lgm = made(LGM, options, head_std=1e-6, batch_real=len(real), balance=balance)
    sfm = made(SFM, options)
    one, other = ready(lgm, real, run), ready(sfm, real, run)
    pairs = zip(one.canvas.levels, other.canvas.levels, strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    a, slopes = step_of(one)
    b, expected = step_of(other)
    assert a.values.item() == pytest.approx(b.values.item(), abs=1e-5) and b.values > 1e-3
    cosine = F.cosine_similarity(flat(slopes), flat(expected), dim=0)
    assert cosine > 1 - 1e-8
    # and is not, without either
    unlike = made(LGM, options, head_std=3.0, batch_real=len(real), balance=balance)
    _, slopes = step_of(ready(unlike, real, run))
    assert F.cosine_similarity(flat(slopes), flat(expected), dim=0) < 0.99


def test_a_natural_batch_is_not_sfm_on_a_long_tail(real, run, exact):
    options = {**FIELDS, **QUIET}
    lgm, sfm = made(LGM, options, head_std=1e-6, batch_real=26), made(SFM, options)
    a, _ = step_of(ready(lgm, real, run))
    b, _ = step_of(ready(sfm, real, run))
    assert abs(a.values - b.values) > 1e-3


def test_the_bank_gives_what_its_features_give(real, run):
    method = made(LGM, real_side="bank", bank_views=3, batch_real=20)
    objective = ready(method, real, run)
    objective.begin(STEP)
    bank = collect_features(
        real, objective.backbone, run, views=objective.views, count=3, bank=True
    ).bank.float()
    rows = objective.positions(STEP)
    view = torch.randint(3, (20,), generator=run.generator("real-views", STEP))
    z = torch.stack([bank[v, row] for v, row in zip(view.tolist(), rows.tolist(), strict=True)])
    expected = head_gradient(z, real.labels[rows], objective.head)
    found = torch.cat([objective.goal[:, :-1].flatten(), objective.goal[:, -1]])
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-4)
    assert objective.seconds_saved == 0
    assert ready(method, real, run).seconds_saved > 0


@pytest.mark.parametrize("balance", ["none", "weights"])
def test_the_analytic_side_is_the_whole_bank_for_a_small_head(real, run, balance):
    method = made(LGM, real_side="analytic", bank_views=4, balance=balance, head_std=0.03)
    objective = ready(method, real, run)
    objective.begin(STEP)
    bank = collect_features(
        real, objective.backbone, run, views=objective.views, count=4, bank=True
    ).bank
    z, labels = bank.flatten(0, 1).double(), real.labels.repeat(4)
    share = None
    if balance == "weights":
        share = (1 / torch.tensor(real.counts).double())[labels]
    exact = linear_gradient(z, labels, objective.head.double(), image_weights=share)
    cosine = F.cosine_similarity(exact.flatten(), objective.goal.double().flatten(), dim=0)
    assert cosine > 0.9995
    share = torch.full((len(z),), 1 / len(z)).double() if share is None else share / share.sum()
    priors = torch.stack([share[labels == label].sum() for label in range(3)])
    centres = torch.stack([z[labels == label].mean(0) for label in range(3)])
    expected = analytic_gradient(
        centres, priors, (z * share[:, None]).T @ z, objective.head.double()
    )
    torch.testing.assert_close(objective.goal.double(), expected, atol=1e-3, rtol=0)
    natural = analytic_gradient(centres, priors, z.T @ z / len(z), objective.head.double())
    if balance == "weights":  # the moment is weighted as the classes are
        assert (objective.goal - expected).norm() < 0.1 * (natural - expected).norm()


# SFM


def slow_centres(z, labels, classes=3):
    """Means over the rows of each class, as lists."""
    return [
        [
            sum(z[i][d] for i in range(len(z)) if labels[i] == c)
            / sum(1 for label in labels if label == c)
            for d in range(len(z[0]))
        ]
        for c in range(classes)
    ]


def slow_flows(centres):
    classes, dim = len(centres), len(centres[0])
    return [
        [
            sum(centres[c][d] for c in range(classes) if c != k) / (classes - 1) - centres[k][d]
            for d in range(dim)
        ]
        for k in range(classes)
    ]


def slow_cosine(a, b):
    a, b = ([v for row in m for v in row] for m in (a, b))
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    return dot / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))


def slow_means(objective, run):
    """Features of each synthetic image, averaged over its views, as lists."""
    _, seen = synthetic_features(objective, run)
    views, n, dim = seen.shape
    z = seen.tolist()
    return [[sum(z[v][i][d] for v in range(views)) / views for d in range(dim)] for i in range(n)]


def slow_real(objective, real, run):
    """Centres of the clean views, image by image."""
    z = []
    for row in range(len(real)):
        seen = clean_view(real.batch(torch.tensor([row])), (8, 8))
        z += objective.backbone.features(seen).tolist()
    return slow_centres(z, real.labels.tolist())


@pytest.mark.parametrize("reduction", ["global", "per_class"])
@pytest.mark.parametrize("ipc", [1, 3])
def test_a_step_of_sfm_equals_loops(real, run, reduction, ipc, exact):
    method = made(SFM, reduction=reduction)
    objective = ready(method, real, run, ipc)
    term, grads = step_of(objective)
    goal = slow_flows(slow_real(objective, real, run))
    means = slow_means(objective, run)
    found = slow_flows(slow_centres(means, objective.canvas.labels.tolist()))
    rows = [slow_cosine([a], [b]) for a, b in zip(goal, found, strict=True)]
    expected = slow_cosine(goal, found) if reduction == "global" else sum(rows) / 3
    # the real centres are stored in single precision
    assert term.values.item() == pytest.approx(1 - expected, abs=1e-6)
    assert term.facts["cosine"].tolist() == pytest.approx(rows, abs=1e-6)
    assert flat(grads).norm() > 1e-6


@pytest.mark.parametrize("alpha", [1.0, 0.3])
def test_decoupled_equals_loops(real, run, alpha, exact):
    method = made(SFM, decouple=True, decouple_alpha=alpha)
    objective = ready(method, real, run)
    term, _ = step_of(objective)
    own, goal = slow_means(objective, run), slow_real(objective, real, run)
    found = slow_centres(own, objective.canvas.labels.tolist())
    squares, others, dim = 0.0, 0.0, len(goal[0])
    for k in range(3):
        rest = [c for c in range(3) if c != k]
        for d in range(dim):
            squares += (goal[k][d] - found[k][d]) ** 2 / (3 * dim)
            gap = sum(goal[c][d] - found[c][d] for c in rest) / 2
            others += gap**2 / (3 * dim)
    expected = alpha * squares + (1 - alpha) * others
    assert term.values.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("kind", ["only", "both"])
def test_parts_of_classes_equal_loops(real, run, kind, exact):
    method = made(SFM, sub_centres=kind)
    objective = ready(method, real, run, ipc=3)
    term, _ = step_of(objective)
    stats = collect_features(real, objective.backbone, run, bank=True)
    parts = sub_centres(stats, 3, run).tolist()
    goal, own = slow_real(objective, real, run), slow_means(objective, run)
    found = slow_centres(own, objective.canvas.labels.tolist())
    a, b = [], []
    for k in range(3):
        for j in range(3):
            for centres, row, into in ((goal, parts[k][j], a), (found, own[3 * k + j], b)):
                others = [sum(c) / 2 for c in zip(*(centres[c] for c in range(3) if c != k))]  # noqa: B905
                into.append([o - r for o, r in zip(others, row, strict=True)])
    expected = 1 - slow_cosine(a, b)
    if kind == "both":
        expected = (expected + 1 - slow_cosine(slow_flows(goal), slow_flows(found))) / 2
    assert term.values.item() == pytest.approx(expected, abs=1e-5)


def test_parts_keep_images_of_a_class_apart(real, run):
    """Without them the images of a class may swap without a difference; with them not."""
    values = {}
    for kind in ("off", "only"):
        method = made(SFM, **QUIET, sub_centres=kind)
        objective = ready(method, real, run, ipc=2)
        swapped = torch.tensor([1, 0, 3, 2, 5, 4])
        before = step_of(objective)[0].values.item()
        canvas = objective.canvas
        canvas.levels = [level.detach()[swapped].requires_grad_() for level in canvas.levels]
        values[kind] = abs(step_of(objective)[0].values.item() - before)
    assert values["off"] < 1e-6 < 1e-4 < values["only"]


def test_centres_from_views(real, run):
    method = made(SFM, centre_views="augmented", centre_count=5)
    objective = ready(method, real, run)
    stats = collect_features(real, objective.backbone, run, views=objective.views, count=5)
    assert torch.equal(objective.centres, stats.centres)
    clean = ready(made(SFM), real, run)
    assert not torch.equal(clean.centres, objective.centres)


def test_shrinkage_moves_the_tail_and_its_parts(real, run):
    plain = ready(made(SFM, sub_centres="both"), real, run)
    moved = ready(made(SFM, sub_centres="both", shrinkage=5.0), real, run)
    # three classes: the largest alone is the head
    for label, count in ((1, 9), (2, 5)):
        expected = (count * plain.centres[label] + 5 * plain.centres[0]) / (count + 5)
        torch.testing.assert_close(moved.centres[label], expected)
    assert torch.equal(moved.centres[0], plain.centres[0])
    # a class moves as a whole: parts stand as before to their centre
    before, after = (one.flows[:, None] - one.sub_flows for one in (plain, moved))
    torch.testing.assert_close(after, before, atol=1e-5, rtol=1e-4)  # part less centre
    assert before.abs().max() > 1e-2


# both


@pytest.mark.parametrize("kind", [LGM, SFM])
def test_pieces_of_any_size_give_the_same(real, run, kind, exact, monkeypatch):
    method = made(kind)
    objective = ready(method, real, run)
    whole, expected = step_of(objective)
    assert objective.pieces(run) == 12  # all views of all images
    budgets, original = [], frozen.feature_gradients

    def watching(*args, budget, **rest):
        budgets.append(budget)
        return original(*args, budget=budget, **rest)

    monkeypatch.setattr(frozen, "feature_gradients", watching)
    for chunk in (5, 1):
        part, grads = step_of(objective, chunk)
        torch.testing.assert_close(part.values, whole.values, atol=1e-12, rtol=0)
        torch.testing.assert_close(flat(grads), flat(expected), atol=1e-12, rtol=1e-8)
    assert budgets == [5, 1]  # views


@pytest.mark.parametrize("kind", [LGM, SFM])
def test_the_memory_budget_decides_the_pieces(real, run, kind):
    method = made(kind)
    objective = ready(method, real, run)
    each = objective.image_bytes() / 0.5e9  # half of the budget is for activations
    fit = [objective.pieces(run.with_(memory_gb=each * views)) for views in (0.1, 3.5, 7.5, 99)]
    assert fit == [1, 3, 7, 12]


@pytest.mark.parametrize("kind", [LGM, SFM])
def test_it_learns_classes_apart(make_blobs, run, kind):
    real = make_blobs((10, 10, 10), channels=3)
    fields = {**FIELDS, **QUIET, "steps": 60, "grow_every": 10, "lr_images": 0.05}
    records = []
    watched = run.with_(watch=lambda step, record, canvas: records.append(record))
    method = made(kind, fields, **({"real_side": "analytic"} if kind is LGM else {}))
    syn = method(real, 1, watched)
    assert syn.images.shape == (3, 3, 8, 8) and 0 <= syn.images.min() <= syn.images.max() <= 1
    assert records[-1]["loss"]["match"] < 0.5 * records[0]["loss"]["match"]
    assert len(records[-1]["classes"]["cosine"]) == 3


@pytest.mark.parametrize("kind", [LGM, SFM])
def test_grey_images_and_pixels(make_blobs, run, kind):
    syn = made(kind, levels="one")(make_blobs((6, 5)), 2, run)
    assert syn.images.shape == (4, 1, 8, 8) and torch.isfinite(syn.images).all()


@pytest.mark.parametrize(
    ("kind", "fields", "text"),
    [
        (LGM, {"head_std": 0.0}, "head_std is 0.0"),
        (LGM, {"balance": "fair"}, "balance is 'fair'"),
        (LGM, {"real_side": "disk"}, "real_side is 'disk'"),
        (LGM, {"bank_views": 0}, "bank_views is 0"),
        (LGM, {"batch_real": -1}, "batch_real is -1"),
        (SFM, {"centre_views": "all"}, "centre_views is 'all'"),
        (SFM, {"centre_count": 0}, "centre_count is 0"),
        (SFM, {"reduction": "mean"}, "reduction is 'mean'"),
        (SFM, {"sub_centres": "on"}, "sub_centres is 'on'"),
        (SFM, {"shrinkage": -1.0}, "shrinkage is -1.0"),
        (SFM, {"decouple_alpha": 2.0}, "decouple_alpha is 2.0"),
        (SFM, {"decouple": True, "sub_centres": "only"}, "decouple is set with sub_centres"),
        (SFM, {"augmentations": 0}, "augmentations is 0"),
        (SFM, {"crop_min": 0.0}, "crop_min is 0.0"),
        (SFM, {"growth": "up"}, "growth is 'up'"),
        (SFM, {"backbone": "self:nothing"}, "backbone is 'self:nothing'"),
        (SFM, {"backbone": "dinov2_vitb@2"}, "backbone is 'dinov2_vitb@2'"),
        (SFM, {"backbone_epochs": 0}, "backbone_epochs is 0"),
        (Centroids, {"backbone": "self:nothing"}, "backbone is 'self:nothing'"),
        (Neighbours, {}, "of is empty"),
    ],
)
def test_bad_fields_are_named(kind, fields, text):
    with pytest.raises(InputError, match=text):
        kind.budget("paper", **fields).check()


def test_no_images_or_no_such_backbone(real, run):
    with pytest.raises(InputError, match="ipc is 0"):
        made(SFM)(real, 0, run)
    with pytest.raises(InputError, match="backbone is 'dinov4', neither a folder nor a known"):
        made(SFM, backbone="dinov4")(real, 1, run)


# selectors


def seen_by(method, real, run):
    """Clean features of every real image."""
    return method.networks.open(real, run).backbone.features(real.batch(torch.arange(len(real))))


def positions(syn, real):
    where = {index: row for row, index in enumerate(real.indices.tolist())}
    return [where[index] for index in syn.provenance["indices"]]


def test_the_centroid_is_the_image_nearest_to_the_mean(real, run):
    method = made(Centroids, {}, backbone=OWN)
    syn = method(real, 1, run)
    z = seen_by(method, real, run)
    for label, row in enumerate(positions(syn, real)):
        own = (real.labels == label).nonzero().flatten().tolist()
        middle = sum(z[i] for i in own) / len(own)
        assert row == min(own, key=lambda i: (z[i] - middle).norm().item())
    assert syn.labels.tolist() == [0, 1, 2]
    assert torch.equal(syn.images, real.batch(torch.tensor(positions(syn, real))))


def test_more_centroids_are_nearest_to_parts_and_distinct(real, run):
    method = made(Centroids, {}, backbone=OWN)
    syn = method(real, 4, run)
    chosen = positions(syn, real)
    assert len(set(chosen)) == 12 and syn.labels.tolist() == real.labels[chosen].tolist()
    z = seen_by(method, real, run)
    backbone = method.networks.open(real, run).backbone
    goals = sub_centres(collect_features(real, backbone, run, bank=True), 4, run)
    for label in range(3):
        free = set((real.labels == label).nonzero().flatten().tolist())
        for part, row in enumerate(chosen[4 * label : 4 * label + 4]):
            gaps = {i: (z[i] - goals[label, part]).norm().item() for i in free}
            assert gaps[row] == pytest.approx(min(gaps.values()), rel=1e-2)
            free.remove(row)


def test_a_small_class_gives_all_it_has(real, run):
    syn = made(Centroids, {}, backbone=OWN)(real, 7, run)
    assert torch.bincount(syn.labels).tolist() == [7, 7, 5]
    tail = [row for row in positions(syn, real) if real.labels[row] == 2]
    assert sorted(tail) == (real.labels == 2).nonzero().flatten().tolist()


def test_nearest_that_is_free():
    gaps = torch.tensor([[3.0, 1.0, 2.0], [5.0, 0.0, 4.0], [1.0, 1.0, 1.0], [0.0, 0.0, 0.0]])
    assert free_nearest(gaps).tolist() == [1, 2, 0]  # its second choice; then what is left
    assert free_nearest(gaps[:1]).tolist() == [1]
    assert gaps[1, 1] == 0  # the argument stays


def distilled(real, run, folder, ipc=2, **fields):
    method = made(SFM, **fields)
    syn = method(real, ipc, run)
    syn.save(folder)
    return syn


def test_neighbours_have_the_highest_cosine_and_are_distinct(real, run, tmp_path):
    syn = distilled(real, run, tmp_path / "sfm", ipc=3)
    method = made(Neighbours, {}, backbone=OWN, of=str(tmp_path / "sfm"))
    found = method(real, 3, run)
    chosen = positions(found, real)
    assert len(set(chosen)) == 9 and found.labels.tolist() == [0] * 3 + [1] * 3 + [2] * 3
    z = seen_by(method, real, run)
    goals = method.networks.open(real, run).backbone.features(syn.images)
    taken = set()
    for image, row in enumerate(chosen):
        own = (real.labels == syn.labels[image]).nonzero().flatten().tolist()
        free = [i for i in own if i not in taken]
        cosines = {i: F.cosine_similarity(z[i], goals[image], dim=0).item() for i in free}
        assert cosines[row] == pytest.approx(max(cosines.values()), abs=2e-3)
        taken.add(row)


def test_neighbours_of_real_images_are_these_images(real, run, tmp_path):
    syn = Random()(real, 2, run)
    syn.save(tmp_path / "random")
    found = made(Neighbours, {}, backbone=OWN, of=str(tmp_path / "random"))(real, 2, run)
    assert found.provenance["indices"] == syn.provenance["indices"]


def test_the_distilled_set_is_part_of_the_identity(real, run, tmp_path):
    distilled(real, run, tmp_path / "a")
    distilled(real, run.with_(seed=1), tmp_path / "b")
    method = made(Neighbours, {}, backbone=OWN, of=str(tmp_path / "a"))
    first = method.key(real, 2, run)
    (tmp_path / "a").rename(tmp_path / "old")
    (tmp_path / "b").rename(tmp_path / "a")
    assert method.key(real, 2, run) != first


def test_sets_that_cannot_have_neighbours(real, run, tmp_path, make_blobs):
    distilled(real, run, tmp_path / "a")
    with pytest.raises(InputError, match=r"ipc is 3, but .* has 2 images per class; use --ipc 2"):
        made(Neighbours, {}, backbone=OWN, of=str(tmp_path / "a"))(real, 3, run)
    for other in (make_blobs((5, 5), channels=3), make_blobs((5, 5, 5)), make_blobs((5,) * 4, 3)):
        with pytest.raises(InputError, match="whose classes or image shape"):
            made(Neighbours, {}, backbone=OWN, of=str(tmp_path / "a")).check(other)
    with pytest.raises(ArtifactError, match="nowhere"):
        made(Neighbours, {}, backbone=OWN, of=str(tmp_path / "nowhere")).check(real)


# what an artifact says


def folder_of(real, run, folder):
    backbone = made(SFM).networks.open(real, run).backbone
    save_backbone(backbone, OWN, folder, {})
    return backbone


@pytest.mark.parametrize("suffix", ["", "+imagenet", "@8"])
def test_provenance_knows_the_backbone_but_not_where_it_lies(real, run, tmp_path, suffix):
    place = tmp_path / "secret" / "eye"
    backbone = folder_of(real, run, place)
    distilled(real, run, tmp_path / "secret" / "set", ipc=1)
    methods = [
        made(SFM, backbone=f"{place}{suffix}"),
        made(LGM, backbone=f"{place}{suffix}"),
        made(Centroids, {}, backbone=f"{place}{suffix}"),
        made(Neighbours, {}, backbone=f"{place}{suffix}", of=str(tmp_path / "secret" / "set")),
    ]
    for method in methods:
        syn = method(real, 1, run)
        facts = syn.provenance["backbone"]
        assert (facts["key"] == backbone.key) == (suffix != "+imagenet")
        assert facts["features"] == backbone.dim and facts["input"] == [3, 8, 8]
        assert facts["bytes"] == backbone.nbytes and len(facts["mean"]) == 3
        assert syn.provenance["method"]["fields"]["backbone"] == f"eye{suffix}"
        assert str(tmp_path) not in json.dumps(syn.provenance)


def test_names_without_place(tmp_path):
    folder = tmp_path / "eye"
    folder.mkdir()
    assert FrozenBackbone(backbone=str(folder)).travelling == {"backbone": "eye"}
    assert FrozenBackbone(backbone=f"{folder}/").travelling == {"backbone": "eye"}
    assert FrozenBackbone(backbone=f"{folder}@32+imagenet").travelling == {
        "backbone": "eye@32+imagenet"
    }
    assert FrozenBackbone(backbone=f"transformers:{folder}@32").travelling == {
        "backbone": "transformers:eye@32"
    }
    for name in ("dinov2_vitb@196", "transformers:facebook/dinov2-base", "self:convnet-w8/barlow"):
        assert not FrozenBackbone(backbone=name).travelling


@pytest.mark.parametrize("name", ["lgm", "sfm", "centroids", "neighbours"])
def test_the_key_of_a_folder_is_its_content(real, run, tmp_path, name):
    folder_of(real, run, tmp_path / "eye")
    distilled(real, run, tmp_path / "set", ipc=1)
    fields = {"backbone": str(tmp_path / "eye"), "of": str(tmp_path / "set")}
    kind = CATALOGUE[name]
    method = kind.budget("paper", **{k: v for k, v in fields.items() if k in kind().fields()})
    first = method.key(real, 1, run)
    assert method.key(real, 1, run) == first
    folder_of(real, run.with_(seed=1), tmp_path / "eye")
    assert method.key(real, 1, run) != first


def test_views_are_the_methods_fields():
    given = {"crop_min": 0.3, "noise": 0.2, "noise_mean": 0.4, "noise_std": 0.6}
    for kind in (LGM, SFM):
        method = made(kind, given, flip=0.1)
        assert method.views.with_flip(method.networks.flip) == Views(**given, flip=0.1)
        plain = kind()
        assert plain.views.with_flip(plain.networks.flip) == Views()
