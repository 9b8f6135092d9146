"""The recover step against plain loops with hooks of their own, in float64; views, aims, faults."""

import math

import pytest
import torch
from tests.canvas.test_pyramid import Killed, killed_at
from tests.test_contract import build
from torch import nn
from torch.nn.functional import cross_entropy

from potstill.data.views import part_of
from potstill.methods.decoupled.recovery import RecoveryViews
from potstill.nets import create_for
from potstill.nets.taps import conv_moments
from potstill.networks import SqueezedNetworks
from potstill.networks.parts import fit_transform
from potstill.run import InputError

COUNTS = (14, 9, 5)
STILL = {"crop_min": 1.0, "flip": 0.0, "roll": 0}


def double(objective):
    """The objective in float64, with images that are not those it began with."""
    canvas = objective.canvas
    for one in objective.networks.finished():
        one.net.double()
    draw = torch.Generator().manual_seed(7)
    moved = canvas.images.detach().double()
    moved += 0.1 * torch.rand(moved.shape, generator=draw, dtype=torch.float64)
    canvas.images = moved.requires_grad_(True)
    return canvas


def inputs_of(net, kind, x):
    """What layers of a kind are given, in the order of the pass, and the logits."""
    found, handles = [], []
    for module in net.modules():
        if isinstance(module, kind):
            handles.append(module.register_forward_pre_hook(lambda m, i: found.append((m, i[0]))))
    logits = net(x)
    for handle in handles:
        handle.remove()
    return found, logits


def plain_apart(pairs):
    """The distance of a batch from aims (x, mean, variance), the first ten times."""
    total = 0.0
    for number, (x, mean, variance) in enumerate(pairs):
        flat = x.transpose(0, 1).flatten(1)  # (c, n h w)
        own = ((flat - flat.mean(1, keepdim=True)) ** 2).mean(1)
        apart = ((flat.mean(1) - mean) ** 2).sum().sqrt() + ((own - variance) ** 2).sum().sqrt()
        total = total + (10 if number == 0 else 1) * apart
    return total


def compare(objective, canvas, expected, step=0):
    """Value and gradient of the terms, whole and in pieces."""
    (slope,) = torch.autograd.grad(expected, canvas.images)
    assert slope.abs().max() > 0
    for piece in (100, 3, 1):
        value = sum(term.values.sum() for term in objective.terms(step, canvas, piece))
        torch.testing.assert_close(value.detach(), expected.detach(), rtol=1e-9, atol=1e-12)
        (found,) = torch.autograd.grad(value, canvas.images)
        torch.testing.assert_close(found, slope, rtol=1e-6, atol=1e-10)


@pytest.mark.parametrize("name", ["convnet-d2-w8-bn", "resnet10-w4-bn"])
def test_sre2l_is_cross_entropy_and_running_statistics_of_the_whole_shard(make_blobs, run, name):
    real = make_blobs(COUNTS, channels=3)
    made = build("sre2l", observers=name, norm_weight=0.7, view_per="step", flip=1.0, crop_min=1.0)
    objective, networks = made.begin(real, 2, run)
    canvas = double(objective)
    assert canvas.members.tolist() == [0, 1, 2, 4]
    labels = torch.tensor([0, 0, 1, 2])
    draw = run.generator("views", 5)
    torch.rand(1, 6, generator=draw), torch.randint(2**62, (1,), generator=draw)
    down, across = torch.randint(-4, 5, (1, 2), generator=draw)[0].tolist()
    x = canvas.images.flip(3).roll((down, across), (2, 3))
    net = networks.at(0).net
    found, logits = inputs_of(net, nn.BatchNorm2d, networks.transform.forward(x))
    assert len(found) == (2 if name.startswith("conv") else 12)
    pairs = [(x, norm.running_mean, norm.running_var) for norm, x in found]
    expected = cross_entropy(logits, labels) + 0.7 * plain_apart(pairs)
    compare(objective, canvas, expected, step=5)


def test_a_view_is_one_for_all_or_one_for_each_and_crops_stay_inside(make_blobs):
    x = torch.rand(5, 3, 12, 12, generator=torch.Generator().manual_seed(0)) + 1
    one = RecoveryViews(crop_min=0.3, flip=0.5, roll=3)
    draw = one.draw(5, 0.0, torch.Generator().manual_seed(1))
    seen = one.apply(x, draw)
    for k in range(5):  # the same whatever else is passed with it
        alone = one.apply(x[k : k + 1], part_of(draw, slice(k, k + 1)))
        torch.testing.assert_close(alone[0], seen[k])
    assert (draw["box"] == draw["box"][0]).all()
    each = RecoveryViews(crop_min=0.3, roll=0, view_per="image")
    boxes = each.draw(400, 0.0, torch.Generator().manual_seed(1))["box"]
    assert len(boxes.unique(dim=0)) == 400
    assert boxes[:, :2].min() >= 0 and (boxes[:, :2] + boxes[:, 2:]).max() <= 1 + 1e-6
    for seed in range(30):
        draw = one.draw(5, 0.0, torch.Generator().manual_seed(seed))
        assert one.apply(x, draw).min() > 0.5  # zeros of a border would be seen
    still = RecoveryViews(**STILL)
    assert torch.equal(still.apply(x, still.draw(5, 0.5, torch.Generator())), x)


def test_networks_without_batch_norm_or_of_other_classes_are_one_sentence(make_blobs, run):
    real = make_blobs(COUNTS)
    wrong = build("sre2l", observers="convnet-d2-w8-bn+convnet-d2-w8-in")
    for refused in (lambda: wrong.check(real), lambda: wrong(real, 1, run)):
        with pytest.raises(InputError, match="in', of which 'convnet-d2-w8-in' has no batch norm"):
            refused()
    assert not list(run.cache.glob("pools/*"))  # nothing was trained
    with pytest.raises(
        InputError, match="observers is 'resnet19', of which 'resnet19' is not known"
    ):
        build("sre2l", observers="resnet19").check()
    net = create_for(make_blobs((3, 3)), "convnet-d2-w8-bn", torch.Generator())
    with pytest.raises(InputError, match="network is of 2 classes and the real set of 3; give"):
        SqueezedNetworks([net], real, fit_transform(real, "normalize"), run)


def test_several_networks_take_turns_and_equal_ones_are_two(make_blobs, run):
    real = make_blobs(COUNTS)
    made = build("sre2l", observers="convnet-d2-w8-bn+resnet10-w4-bn+convnet-d2-w8-bn")
    _, networks = made.begin(real, 1, run)
    nets = [networks.at(k).net for k in range(6)]
    assert nets[:3] == nets[3:] and len(set(nets)) == 3
    assert not torch.equal(nets[0].classifier.weight, nets[2].classifier.weight)
    told = networks.facts()["squeezed"]["observers"]
    assert [one["network"] for one in told] == ["convnet-d2-w8-bn", "resnet10-w4-bn"]


def test_the_same_network_squeezes_and_labels(make_blobs, run):
    """A teacher of labels of the same kind, prior and epochs is not trained again."""
    how = {"labels": "taught", "teacher": "resnet10-w4-bn", "squeeze_prior": "glmc"}
    made = build("sre2l", observers="resnet10-w4-bn", teacher_prior="glmc", **how)
    syn = made(make_blobs(COUNTS), 1, run)
    assert syn.soft_labels.shape == (3, 3)
    (squeezed,) = syn.provenance["squeezed"]["observers"]
    assert syn.provenance["labelled_by"]["key"] == squeezed["key"]


def test_the_optimiser_of_a_shard_forgets_fast(make_blobs, run):
    how = build("sre2l").descent
    optimizer = how.build({"images": torch.zeros(1, requires_grad=True)})
    assert optimizer.param_groups[0]["betas"] == (0.5, 0.9)
    assert math.isclose(optimizer.param_groups[0]["lr"], 0.25)


@pytest.mark.parametrize("curriculum", ["cosine", "linear", "step"])
def test_cda_crops_whole_images_first(curriculum):
    views = build("cda", curriculum=curriculum, crop_min=0.08, milestone=0.5).views
    steps = 40
    for t in range(steps):
        share = t / (0.5 * steps)
        expected = {
            "cosine": 0.08 + 0.92 * (1 + math.cos(math.pi * share)) / 2,
            "linear": 1 - 0.92 * share,
            "step": 1.0,
        }[curriculum]
        expected = 0.08 if share >= 1 else expected
        assert views.smallest(t / steps) == pytest.approx(expected)
        boxes = views.draw(3, t / steps, torch.Generator().manual_seed(t))["box"]
        assert boxes[:, 2:].prod(1).min() >= expected / 1.001 or expected > 0.7  # sides are cut
    areas = [
        views.draw(1, done, torch.Generator().manual_seed(3))["box"][0, 2:].prod()
        for done in (0.0, 0.2, 0.99)
    ]
    assert areas[0] > 0.999 and areas[2] < areas[0]


def layers_of(net, x, patch):
    """Norm inputs, conv inputs and conv patches, (name, values (q, m)), in their first order."""
    norms, logits = inputs_of(net, nn.BatchNorm2d, x)
    convs, _ = inputs_of(net, nn.Conv2d, x)
    found = [("norm", n, v.transpose(0, 1).flatten(1)) for n, v in norms]
    for conv, v in convs:
        found.append(("conv", conv, v.transpose(0, 1).flatten(1)))
        rows = []
        for top in range(0, v.shape[2], patch):
            for left in range(0, v.shape[3], patch):
                rows.append(v[:, :, top : top + patch, left : left + patch].flatten())
        found.append(("patches", conv, torch.stack(rows)))
    return found, logits


def mean_var(values):
    mean = values.mean(1)
    return mean, ((values - mean[:, None]) ** 2).mean(1)


def apart(a, b):
    return ((a[0] - b[0]) ** 2).sum().sqrt() + ((a[1] - b[1]) ** 2).sum().sqrt()


def weights(kinds):
    """Ten for the first of each kind."""
    return [10 if kind not in kinds[:k] else 1 for k, kind in enumerate(kinds)]


def doubled_tables(objective, networks, real, patch):
    """The objective's tables, made again in float64 by plain loops; classes' values by layer."""
    objective.tables, values = [], []
    for one in networks.finished():
        table, of_layers = {}, {}
        names = {module: name for name, module in one.net.named_modules()}
        for c in range(real.num_classes):
            x = networks.transform.forward(real.batch(real.of_class(c)).double())
            with torch.no_grad():
                found, _ = layers_of(one.net, x, patch)
            for kind, module, v in found:
                name = names[module] + ("/patches" if kind == "patches" else "")
                of_layers.setdefault(name, []).append(v)
                row = torch.cat([v.mean(1), (v**2).mean(1)])
                table.setdefault(name, []).append(row)
        objective.tables.append({name: torch.stack(rows) for name, rows in table.items()})
        values.append(of_layers)
    return values


def test_tables_are_the_classes_moments(make_blobs, run):
    real = make_blobs(COUNTS, channels=3)
    made = build("gvbsm", observers="convnet-d2-w8-bn+resnet10-w4-bn")
    objective, networks = made.begin(real, 2, run)
    kept = objective.tables
    double(objective)
    doubled_tables(objective, networks, real, 4)
    for ours, plain in zip(kept, objective.tables, strict=True):
        assert ours.keys() == plain.keys() and len(ours) > 5
        for name in ours:
            torch.testing.assert_close(ours[name].double(), plain[name], rtol=1e-4, atol=1e-5)


def test_gvbsm_matches_running_statistics_of_every_layer_and_densifies(make_blobs, run):
    real = make_blobs(COUNTS, channels=3)
    how = {"observers": "convnet-d2-w8-bn+resnet10-w4-bn", "norm_weight": 0.3, **STILL}
    made = build("gvbsm", **how, layer_drop=0.5, dense_weight=2.0, mean_decay=0.8)
    objective, networks = made.begin(real, 2, run)
    canvas = double(objective)
    values = doubled_tables(objective, networks, real, 4)
    labels = canvas.leaf_labels
    assert labels.tolist() == [0, 0, 1, 1]  # class by class
    net, seen, before, dropped = networks.at(0).net, [], {}, 0
    x = networks.transform.forward(canvas.images)
    for step in (0, 2, 4):  # the turns of the first network
        found, logits = layers_of(net, x, 4)
        names = {module: name for name, module in net.named_modules()}
        convs = [name for name, m in net.named_modules() if isinstance(m, nn.Conv2d)]
        drawn = torch.rand(len(convs), generator=run.generator("layers", step)) < 0.5
        gone = {name for name, out in zip(convs, drawn.tolist(), strict=True) if out}
        dropped += len(gone)
        total = cross_entropy(logits, labels)
        factors = weights([kind for kind, _, _ in found])
        for k, ((kind, module, v), factor) in enumerate(zip(found, factors, strict=True)):
            name = names[module] + ("/patches" if kind == "patches" else "")
            aim = mean_var(torch.cat(values[0][name], dim=1))  # of all real images
            own = mean_var(v)
            if k in before:
                kept = [(0.8 * b + 0.2 * o - o).detach() + o for b, o in zip(before[k], own)]  # noqa: B905
                own = kept
            before[k] = [o.detach() for o in own]
            if kind == "norm" or names[module] not in gone:
                total = total + 0.3 * factor * apart(own, aim)
        for c in (0, 1):
            rows = x[labels == c].flatten(1)
            s = torch.linalg.eigvalsh(rows @ rows.T / rows.shape[1])
            p, q = (s / 4).softmax(0).detach(), s.softmax(0)
            total = total + 2 * (p * (p / q).log()).sum()
        compare(objective, canvas, total, step)
        objective.after(step, canvas)
        seen.append(objective.state()["mean-0"].clone())
        with torch.no_grad():
            canvas.images += 0.05
        x = networks.transform.forward(canvas.images)
    assert dropped and not torch.equal(seen[0], seen[1])
    objective.after(made.descent.steps - 1, canvas)
    assert not objective.state()  # a shard begins without


@pytest.mark.parametrize("name", ["edc", "rldd"])
def test_edc_and_rldd_mix_all_real_images_with_the_classes_of_the_shard(make_blobs, run, name):
    real = make_blobs(COUNTS, channels=3)
    how = {"observers": "convnet-d2-w8-in", "labels": "hard", "start": "real", **STILL}
    made = build(name, **how, class_share=0.3, norm_weight=0.3, shard_images=3)
    objective, networks = made.begin(real, 2, run)
    canvas = double(objective)
    values = doubled_tables(objective, networks, real, 4)
    labels = canvas.leaf_labels
    assert labels.tolist() == [0, 0, 1]
    net, x = networks.at(0).net, networks.transform.forward(canvas.images)
    found, logits = layers_of(net, x, 4)
    names = {module: n for n, module in net.named_modules()}
    total = cross_entropy(logits, labels)
    factors = weights([kind for kind, _, _ in found])
    for (kind, module, v), factor in zip(found, factors, strict=True):
        of_class = values[0][names[module] + ("/patches" if kind == "patches" else "")]
        own = mean_var(v)
        if name == "edc":  # mixtures, whose variance holds what lies between the classes
            of_all = mean_var(torch.cat(of_class, dim=1))
            zero, one = of_class[0], of_class[1]
            mean = (2 * zero.mean(1) + one.mean(1)) / 3
            of_shard = mean, (2 * (zero**2).mean(1) + (one**2).mean(1)) / 3 - mean**2
        else:  # every class weighs the same, its variance is its own
            moments = [mean_var(w) for w in of_class]
            of_all = [sum(m[i] for m in moments) / 3 for i in (0, 1)]
            of_shard = [(2 * moments[0][i] + moments[1][i]) / 3 for i in (0, 1)]
        distance = 0.7 * apart(own, of_all) + 0.3 * apart(own, of_shard)
        total = total + 0.3 * factor * distance
    compare(objective, canvas, total)


def test_rldd_counts_what_lies_between_the_classes_on_demand(make_blobs, run):
    from potstill.match.batch_statistics import mixed_statistics

    draw = torch.Generator().manual_seed(0)
    classes = [k + torch.randn(40, generator=draw).double() for k in range(3)]
    table = torch.stack([torch.stack([v.mean(), (v**2).mean()]) for v in classes])
    whole = torch.cat(classes)  # equally many of each
    with_it = mixed_statistics(table, torch.ones(3))
    without = mixed_statistics(table, torch.ones(3), between=False)
    assert with_it[1] == pytest.approx(float(whole.var(correction=0)))
    assert without[1] == pytest.approx(float(sum(v.var(correction=0) for v in classes) / 3))
    assert with_it[0] == without[0] == pytest.approx(float(whole.mean()))


def test_edc_asks_for_flatness_from_the_second_step(make_blobs, run):
    real = make_blobs(COUNTS, channels=3)
    how = {"observers": "convnet-d2-w8-in", "flat_weight": 0.5, "norm_weight": 0.0, **STILL}
    made = build("edc", **how, flat_decay=0.6)
    objective, networks = made.begin(real, 2, run)
    canvas = double(objective)
    net, labels = networks.at(0).net, canvas.leaf_labels

    def logits(images):
        return net(networks.transform.forward(images))

    compare(objective, canvas, cross_entropy(logits(canvas.images), labels))
    first = canvas.images.detach().clone()
    objective.after(0, canvas)  # the mean is the images themselves
    torch.testing.assert_close(objective.state()["images-mean"], first)
    with torch.no_grad():
        canvas.images += torch.rand(first.shape, generator=torch.Generator().manual_seed(2)) / 5
    p = (logits(first) / 4).softmax(1).detach()
    q = (logits(canvas.images) / 4).softmax(1)
    flat = (p * (p / q).log()).sum(1).mean()
    assert flat > 1e-6
    compare(objective, canvas, cross_entropy(logits(canvas.images), labels) + 0.5 * flat, 1)
    objective.after(1, canvas)
    mean = 0.6 * first + 0.4 * canvas.images.detach()
    torch.testing.assert_close(objective.state()["images-mean"], mean)


def test_networks_without_convolutions_are_one_sentence(make_blobs):
    for name in ("gvbsm", "edc", "rldd"):
        with pytest.raises(
            InputError, match="observers is 'mlp-w8', of which 'mlp-w8' has no convo"
        ):
            build(name, observers="mlp-w8").check(make_blobs(COUNTS))


@pytest.mark.parametrize("variant", ["sre2l", "gvbsm", "edc-flat"])
def test_a_kill_in_a_later_shard_changes_no_byte(variant, make_blobs, run, tmp_path, monkeypatch):
    real = make_blobs(COUNTS)
    whole = build(variant)(real, 2, run)
    for at in (6, 8, 11):  # six steps each; at the change, within, at the end
        with monkeypatch.context() as patch:
            killed_at(patch, at)
            with pytest.raises(Killed):
                build(variant)(real, 2, run.with_(folder=tmp_path / f"{at}"))
        again = build(variant)(real, 2, run.with_(folder=tmp_path / f"{at}"))
        assert torch.equal(again.images, whole.images)


def test_a_map_that_is_no_multiple_of_the_patch_is_enlarged():
    net = nn.Sequential(nn.Conv2d(2, 1, 1)).double()
    x = torch.rand(3, 2, 6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with conv_moments(net, 4) as found:
        net(x)
    large = x[:, :, [0, 0, 1, 2, 3, 3, 4, 5]][..., [0, 0, 1, 2, 3, 3, 4, 5]]
    corners = [large[:, :, r : r + 4, c : c + 4] for r in (0, 4) for c in (0, 4)]
    means = torch.stack([corner.mean((1, 2, 3)) for corner in corners], dim=1)
    squares = torch.stack([(corner**2).mean((1, 2, 3)) for corner in corners], dim=1)
    torch.testing.assert_close(found["0/patches"], torch.cat([means, squares], dim=1))


def test_a_shard_is_passed_in_pieces_where_memory_is_short(make_blobs, run):
    objective, _ = build("sre2l", shard_images=5).begin(make_blobs(COUNTS), 2, run)
    assert objective.pieces(run) == 5
    assert objective.pieces(run.with_(memory_gb=1e-6)) == 1
