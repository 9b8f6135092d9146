"""IDM, IID and CAFE against their formulas, written out image by image in float64."""

from types import SimpleNamespace

import pytest
import torch
from tests.test_contract import build
from torch import nn

from potstill.methods.distribution.idm import ClassAware
from potstill.nets.taps import relu_layers
from potstill.networks.real_views import ClassMeans
from potstill.run import InputError

COUNTS = (14, 9, 5)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gradient(objective, step=0, piece=3):
    """Values of a step's terms by name, and the gradient in the stored pixels."""
    objective.canvas.images.grad, found = None, {}
    for term in objective.terms(step, objective.canvas, piece):
        if term.values.requires_grad:
            term.values.sum().backward()
        found[term.name] = found.get(term.name, 0.0) + float(term.values.detach().sum())
    return found, objective.canvas.images.grad.clone()


@pytest.mark.parametrize("prior", ["none", "adjusted"])
def test_idm_adds_the_cross_entropy_times_percents_of_accuracy(prior, make_blobs):
    real, classifier = make_blobs(COUNTS), nn.Linear(6, 3).double()
    seen = SimpleNamespace(
        accuracy=lambda number: 0.25, at=lambda number: SimpleNamespace(net=SimpleNamespace(
            classifier=classifier)),
    )  # fmt: skip
    how = SimpleNamespace(ce_weight=0.5, ce_prior=prior, networks=SimpleNamespace(prior="plain"))
    table, features = draw(3, 6), draw(5, 6, seed=1).requires_grad_()
    labels = torch.tensor([0, 0, 1, 1, 1])  # of the classes 1 and 2
    view = ClassMeans(0, {}, table, torch.empty(0, 6))
    found, facts = ClassAware(how, real, seen).class_distance(view, features, labels, 1, 3)
    log_prior = (torch.tensor(COUNTS).double() / sum(COUNTS)).log()
    for place, label in enumerate((1, 2)):
        own = features[labels == place]
        distance = ((own.sum(0) / len(own) - table[label]) ** 2).sum()
        logits = own @ classifier.weight.T + classifier.bias
        logits = logits - log_prior if prior == "adjusted" else logits
        entropy = -sum(row.softmax(0)[label].log() for row in logits) / len(own)
        torch.testing.assert_close(found[place], distance + 0.5 * 25 * entropy)
        torch.testing.assert_close(facts["cross_entropy"][place], entropy)


def test_iid_compares_covariances_of_the_last_maps_channels(make_blobs, run):
    real = make_blobs(COUNTS)
    objective, networks = build("iid", shrinkage=4.0, ce_weight=0.0).begin(real, 2, run)
    comparison = objective.comparison
    networks.at(0).net.double()
    dim, c = networks.dim, comparison.channels
    assert c == 8 and dim % c == 0
    of_real = [draw(count, dim, seed=count) for count in COUNTS]
    of_syn = [draw(n, dim, seed=n) + 1 for n in (2, 3, 4)]
    frequencies = torch.empty(0, dim)
    table = torch.stack([comparison.embed(x, frequencies).mean(0) for x in of_real])
    comparison.rows = torch.tensor(COUNTS)
    labels = torch.tensor([0] * 3 + [1] * 4)  # classes 1 and 2
    view = ClassMeans(0, {}, table, frequencies)
    found, facts = comparison.class_distance(view, torch.cat(of_syn[1:]), labels, 1, 3)

    def brute(x):
        maps = x.view(len(x), c, -1)
        mean = maps.mean(0)
        return sum((image - mean) @ (image - mean).T for image in maps) / len(maps)

    every = [brute(x) for x in of_real]
    for place, label in enumerate((1, 2)):
        share = 4 / (4 + COUNTS[label])
        aim = (1 - share) * every[label] + share * sum(every) / 3
        apart = ((aim - brute(of_syn[label])) ** 2).sum()
        means = ((of_real[label].mean(0) - of_syn[label].mean(0)) ** 2).sum()
        torch.testing.assert_close(facts["covariance"][place], apart)
        torch.testing.assert_close(found[place], means + 0.03 * apart)


def test_iid_draws_the_images_of_a_class_together_behind_a_trained_network(make_blobs, run):
    real = make_blobs(COUNTS)
    objective, networks = build("iid", centralisation=0.5).begin(real, 2, run)
    step, canvas = 1, objective.canvas
    _, (view,) = objective.terms, list(objective.side.views(step))
    pool, side = objective.pool, objective.side
    assert networks.transform is pool.transform
    trained = pool.pool.trained[pool._draw(step)[0]]  # not blended with the initial weights
    own = pool.at(step).net.state_dict()
    assert all(torch.equal(own[name], trained[name]) for name in trained)
    (term,) = objective.further.terms(step, view.number, canvas, 3)
    images, labels = canvas.decode()
    expected = []
    for label in range(3):
        parameters = {n: v[label : label + 1] for n, v in view.augment.items()}
        seen = side.dsa.apply(pool.transform.forward(images[labels == label]), parameters)
        g = pool.at(step).net.features(seen)
        expected.append(sum(((one - g.mean(0)) ** 2).sum() for one in g))
    torch.testing.assert_close(term.values, 0.5 * torch.stack(expected))


def test_without_centralisation_nothing_is_trained_and_each_relation_moves_the_images(
    make_blobs, run
):
    real, found = make_blobs(COUNTS), {}
    for off in ("none", "centralisation", "covariance"):
        changes = {} if off == "none" else {off: 0.0}
        objective, _ = build("iid", networks="random", **changes).begin(real, 2, run)
        found[off] = gradient(objective)[1]
        assert (objective.further is None) == (off == "centralisation")
    assert not torch.allclose(found["none"], found["centralisation"])
    assert not torch.allclose(found["none"], found["covariance"])


def test_iid_without_relations_is_idm(make_blobs, run):
    real = make_blobs(COUNTS)
    plain = build("idm")(real, 2, run)
    bare = build("iid", covariance=0.0, centralisation=0.0)(real, 2, run)
    torch.testing.assert_close(plain.images, bare.images)


@pytest.mark.parametrize("augment", ["none", "color_crop"])
def test_cafe_is_its_formula_with_every_class_at_once(augment, make_blobs, run):
    real = make_blobs(COUNTS, channels=3)
    method = build("cafe", augment=augment, batch_real=8, discrimination=0.3)
    objective, networks = method.begin(real, 2, run)
    canvas, net, images_of = objective.canvas, networks.at(0).net.double(), objective.draws.images
    objective.draws.images = lambda *which: images_of(*which).double()
    canvas.images = canvas.images.detach().double().requires_grad_()

    def layers(images, labels):
        x, found = networks.transform.forward(images.double()), []
        if objective.dsa is not None:
            parameters = objective.draws.augment(0)
            x = objective.dsa.apply(x, {n: v[labels] for n, v in parameters.items()})
        for layer in net.body:
            x = x.relu() if isinstance(layer, nn.ReLU) else layer(x)
            if isinstance(layer, nn.ReLU):
                found.append(x.flatten(1))
        return [*found, x.flatten(1), x.flatten(1)]  # the last map, and the features

    rows = objective.draws.positions(0)
    truth = real.labels[rows]
    assert torch.bincount(truth).tolist() == [8, 8, 5]
    theirs = layers(real.batch(rows), truth)
    ours = layers(*canvas.decode())
    _, labels = canvas.decode()
    total = 0.0
    for weight, a, b in zip((0.1, 1.0, 1.0, 1.0), theirs, ours, strict=True):
        for label in range(3):
            apart = a[truth == label].mean(0) - b[labels == label].mean(0)
            total = total + weight * (apart**2).sum()
    centres = torch.stack([ours[-1][labels == label].mean(0) for label in range(3)])
    entropy = 0.0
    for feature, label in zip(theirs[-1], truth, strict=True):
        logits = centres @ feature + torch.tensor([8.0, 8.0, 5.0]).log().double()
        entropy = entropy - logits.log_softmax(0)[label]
    (expected,) = torch.autograd.grad(total + 0.3 * entropy, canvas.images)
    for piece in (3, 1):
        values, found = gradient(objective, piece=piece)
        assert values["match"] == pytest.approx(float(total.detach()), rel=1e-5)
        assert values["discrimination"] == pytest.approx(float(0.3 * entropy.detach()), rel=1e-5)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-7)


def test_networks_that_cannot_be_used_are_refused_by_their_own_flag(make_blobs):
    with pytest.raises(InputError, match="network is 'plain', which has no ReLU"):
        relu_layers(nn.Sequential(nn.Linear(2, 2)), "plain")
    assert relu_layers(nn.Sequential(nn.Linear(2, 2), nn.ReLU())) == ["1"]
    for name in ("foo", "convnet-d4-w4-in"):  # unknown, and for larger images
        with pytest.raises(InputError, match=rf"^relation_network is '{name}'"):
            build("iid", relation_network=name).check(make_blobs(COUNTS))
