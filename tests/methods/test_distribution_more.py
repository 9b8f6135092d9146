"""DSDM, MIM4DD and WMDD against their formulas, written out image by image in float64."""

import pytest
import torch
from tests.test_contract import build

from potstill.run import InputError

COUNTS = (14, 9, 5)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def in_double(objective):
    """Let an objective see everything in double precision; return its canvas."""
    objective.networks.at(0).net.double()
    images, canvas = objective.side.draws.images, objective.canvas
    objective.side.draws.images = lambda *which: images(*which).double()
    canvas.images = canvas.images.detach().double().requires_grad_()
    return canvas


def of_matrix(x):
    return x.T.cov() if len(x) > 1 else x.new_zeros(x.shape[1], x.shape[1])


@pytest.mark.parametrize("shrinkage", [0.0, 4.0])
def test_dsdm_is_means_covariances_and_prototypes(shrinkage, make_blobs, run):
    objective, networks = build(
        "dsdm", networks="random", augment="none", covariance=3.0, history_weight=2.0,
        history_after=2, shrinkage=shrinkage,
    ).begin(make_blobs(COUNTS), 2, run)  # fmt: skip
    canvas, dim, side = in_double(objective), networks.dim, objective.side
    comparison = objective.comparison
    comparison.history, comparison.means = comparison.history.double(), comparison.means.double()
    history = None
    for step in range(4):
        view = next(side.views(step))
        assert view.mask.sum(1).tolist() == [8, 8, 5]
        terms = list(objective.terms(step, canvas, 2))
        assert [len(term.values) for term in terms] == [2, 1]
        found = torch.cat([term.values for term in terms])
        images, labels = canvas.decode()
        features = side.features(images, labels, view)
        ours = [features[labels == c] for c in range(3)]
        theirs = [view.features[c][view.mask[c]] for c in range(3)]
        every = sum(of_matrix(x) for x in theirs) / 3
        means = torch.stack([x.mean(0) for x in ours])
        for c in range(3):
            share = shrinkage / (shrinkage + len(theirs[c]))
            aim = (1 - share) * of_matrix(theirs[c]) + share * every
            expected = ((theirs[c].mean(0) - means[c]) ** 2).sum()
            expected = expected + 3 / dim * ((aim - of_matrix(ours[c])) ** 2).sum()
            if step >= 2:
                expected = expected + 2 / dim * ((means[c] - history[c]) ** 2).sum()
            torch.testing.assert_close(found[c], expected)
        objective.after(step, canvas)
        history = means if history is None else 0.99 * history + 0.01 * means
        torch.testing.assert_close(objective.state()["history"], history)
        canvas.images = (canvas.images.detach() * 0.9).requires_grad_()


def test_dsdm_without_its_terms_is_a_match_of_means(make_blobs, run):
    real, alone = make_blobs(COUNTS), {"covariance": 0.0, "history_weight": 0.0}
    shared = {"networks": "random", "real_side": "fixed", "augment": "none", "batch_real": 0}
    plain = build("dm", canvas="tiled", start="tiled", bounded=True, lr_images=0.1, **shared)
    bare = build("dsdm", **shared, **alone)
    torch.testing.assert_close(bare(real, 2, run).images, plain(real, 2, run).images)
    for term in alone:
        other = {n: v for n, v in alone.items() if n != term}
        moved = build("dsdm", **shared, **other)(real, 2, run).images
        assert not torch.allclose(moved, bare(real, 2, run).images, atol=1e-7)


@pytest.mark.parametrize("augment", ["none", "color_crop"])
def test_mim4dd_lets_images_find_real_ones_of_their_class_at_every_layer(augment, make_blobs, run):
    real = make_blobs(COUNTS, channels=3)
    how = {"contrast": 3.0, "contrast_temperature": 0.5, "contrast_growth": 4.0}
    objective, networks = build(
        "mim4dd", networks="random", real_side="fresh", contrast_keys=8, augment=augment, **how
    ).begin(real, 2, run)
    canvas, side, step = in_double(objective), objective.side, 1
    (view,) = side.views(step)
    asked = objective.further
    images_of = asked.draws.images
    asked.draws.images = lambda *which: images_of(*which).double()

    def layers(images):  # means over the pixels of what is behind each ReLU
        x, found = networks.transform.forward(images.double()), []
        if side.dsa is not None:
            x = side.dsa.apply(x, view.augment)
        for layer in networks.at(step).net.body:
            x = x.relu() if isinstance(layer, torch.nn.ReLU) else layer(x)
            if isinstance(layer, torch.nn.ReLU):
                z = x.mean((2, 3))
                found.append(z / z.norm(dim=1, keepdim=True))
        return found

    rows = asked.draws.positions(step)
    truth = real.labels[rows]
    assert torch.bincount(truth).tolist() == [8, 8, 5]
    images, labels = canvas.decode()
    expected = [0.0] * 3
    pairs = list(zip(layers(images), layers(real.batch(rows)), strict=True))
    assert len(pairs) == 2
    for weight, (ours, theirs) in zip((1 / 4, 1.0), pairs, strict=True):
        for z, label in zip(ours, labels.tolist(), strict=True):
            near = [
                sum(((z @ k) / 0.5).exp() for k in theirs[truth == c]) / int((truth == c).sum())
                for c in range(3)
            ]
            bound = -(near[label] / sum(near)).log()
            expected[label] = expected[label] + 3.0 * weight * bound / 2
    (slope,) = torch.autograd.grad(sum(expected), canvas.images)
    for piece in (3, 1):
        terms = [t for t in objective.terms(step, canvas, piece) if t.name == "contrast"]
        found = torch.cat([term.values for term in terms])
        torch.testing.assert_close(found, torch.stack(expected))
        torch.testing.assert_close(torch.autograd.grad(found.sum(), canvas.images)[0], slope)


def test_mim4dd_without_contrast_is_dm(make_blobs, run):
    real = make_blobs(COUNTS)
    plain, off = build("dm")(real, 2, run), build("mim4dd", contrast=0.0)(real, 2, run)
    assert torch.equal(plain.images, off.images)
    assert not torch.equal(plain.images, build("mim4dd")(real, 2, run).images)


def test_wmdd_leads_to_barycentres_under_the_statistics_of_each_class(make_blobs, run):
    real = make_blobs(COUNTS, channels=3)
    weights = {"point_weight": 2.0, "ce_weight": 3.0, "norm_weight": 5.0, "shrinkage": 4.0}
    objective, networks = build("wmdd", augment="flip", **weights).begin(real, 4, run)
    canvas, net = objective.canvas, networks.trained_at(1).net
    assert not torch.equal(objective.known[0][0], objective.known[1][0])  # of two members

    def passed(images, flip=False):  # what is in front of each batch norm, features, logits
        x, found = networks.transform.forward(images), []
        x = x.flip(3) if flip else x
        for layer in net.body:
            if isinstance(layer, torch.nn.BatchNorm2d):
                found.append(x)
            x = layer(x)
        return found, x.flatten(1), net.classifier(x.flatten(1))

    flip = bool(objective.dsa.draw(1, (8, 8), run.generator("augment", 1), siamese=True)["flip"])
    inner, _, _ = passed(real.batch(torch.arange(len(real))))
    moments = [
        [(x[real.labels == c].mean((0, 2, 3)), (x[real.labels == c] ** 2).mean((0, 2, 3)))
         for c in range(3)] for x in inner
    ]  # fmt: skip
    expected = []
    for c, share in enumerate(4 / (4 + torch.tensor(COUNTS).float())):
        images, _ = canvas.decode(c, c + 1)
        maps, features, logits = passed(images, flip)
        aims = objective.plans[c].float() @ passed(real.batch(real.of_class(c)))[1]
        total = 2 * ((features - aims) ** 2).sum().sqrt()
        total = total - 3 * logits.log_softmax(1)[:, c].mean()
        for x, of_class, factor in zip(maps, moments, (10, 1), strict=True):
            mean, square = (
                (1 - share) * of_class[c][i] + share * sum(m[i] for m in of_class) / 3
                for i in (0, 1)
            )
            variance = x.var((0, 2, 3), correction=0) - (square - mean**2)
            apart = variance.norm() + (x.mean((0, 2, 3)) - mean).norm()
            total = total + 5 * factor * apart
        expected.append(total / 3)
    for piece in (3, 1):
        found = torch.cat([term.values for term in objective.terms(1, canvas, piece)])
        torch.testing.assert_close(found, torch.stack(expected), rtol=1e-4, atol=1e-5)


def test_wmdd_gives_a_small_class_its_images_again_and_needs_batch_norm(make_blobs, run):
    real = make_blobs((9, 2))
    objective, networks = build("wmdd", members=1).begin(real, 3, run)
    rows = networks.trained_at(0).features(real.batch(real.of_class(1)))
    points = objective.known[0][0]
    torch.testing.assert_close(points[3:], rows[[0, 1, 0]])
    assert objective.plans[0].sum(0) == pytest.approx([1 / 3] * 9)  # each image weighs the same
    with pytest.raises(InputError, match="network is 'convnet-w8-in', which has no batch norm"):
        build("wmdd", network="convnet-w8-in").check(real)
