"""The gradient matching methods: whose features are compared, IDC's step and DREAM's batches."""

import pytest
import torch
import torch.nn.functional as F

from potstill.canvas.tiled import mosaic, tiles
from potstill.data import ImageSet
from potstill.methods import DC, DREAM, DSA, IDC
from potstill.methods.gradient.representatives import representatives
from potstill.run import DivergedError, InputError

SMALL = {"network": "convnet-d2-w8-in", "real_steps": 2}


def idc(method=IDC, **fields):
    return method.budget("quick", **SMALL | {"factor": 2, "batch_real": 8} | fields)


def slopes(objective, step=0):
    for term in objective.terms(step, objective.canvas, 1):
        term.values.sum().backward()
    return objective.canvas.images.grad


def test_features_are_those_of_the_steps_network_with_its_batch_norm(make_blobs, run):
    method = DC.budget(
        "quick", networks="pool", network="convnet-d2-w8-bn", members=2, pool_epochs=1
    )
    objective, _ = method.begin(make_blobs((12, 6)), 1, run)
    x, seen = torch.rand(3, 1, 8, 8), []
    for step in range(2):
        net = objective.networks.at(step).net
        seen.append(objective.matching.features(dict(net.named_parameters()), x))
        assert torch.equal(seen[-1], net.features(x))
    assert not torch.equal(*seen)


def test_an_idc_step_is_the_released_one_written_plainly(make_blobs, run):
    real = make_blobs((12, 6), channels=3)
    objective, networks = idc().begin(real, 2, run)
    objective.after(0, objective.canvas)  # let the network learn from real images first
    found = slopes(objective, step=1)

    net, dsa = networks.at(1).net, idc().dsa()
    kernels = [p.requires_grad_() for p in net.body.parameters() if p.ndim > 1]
    pixels, total = objective.canvas.images.detach().clone().requires_grad_(), 0
    for label in range(2):
        draw = run.generator("augment", 1, label)
        how = dsa.draw(1, (8, 8), draw, siamese=True)
        x = networks.transform.forward(real.batch(objective.real_batch(1, label)))
        s = networks.transform.forward(tiles(pixels[2 * label : 2 * label + 2], 2))
        grads = []
        for images in (x, s):
            logits = net(dsa.apply(images, how))
            loss = F.cross_entropy(logits, torch.full((len(images),), label))
            grads.append(torch.autograd.grad(loss, kernels, create_graph=True))
        total = total + sum(((a.detach() - b) ** 2).sum() for a, b in zip(*grads, strict=True))
    (expected,) = torch.autograd.grad(total, pixels)
    assert expected.abs().max() > 0
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("canvas", ["tiled", "pixels", "frequency"])
def test_a_step_of_idc_grows_with_images_per_class_and_area(canvas, make_blobs, run):
    real, fields = make_blobs((12, 6)), {"canvas": canvas}
    method = IDC.budget("paper", network="convnet-d2-w8-in", **fields)
    (two, _), (five, _) = (method.begin(real, ipc, run) for ipc in (2, 5))
    assert two.lr == pytest.approx(5e-3 * 2 / 10 * 8 * 8 / 32**2)
    assert five.lr == pytest.approx(2.5 * two.lr)
    assert two.canvas.behind is None  # published for RGB 0-1, not behind the transform
    adam, _ = method.with_(optimizer="adam").begin(real, 5, run)
    assert adam.lr == method.descent.lr_images


def test_idc_trains_its_network_on_real_images_with_cutmix_and_without_cutout(make_blobs, run):
    real = make_blobs((12, 6))
    assert idc().lesson().ops == ("color", "crop") and idc(augment="none").lesson() is None
    assert DSA().lesson() == DSA().dsa()

    def weights(grey=None, **fields):
        objective, networks = idc(**fields).begin(real, 2, run)
        if grey is not None:
            objective.canvas.images.data.fill_(grey)
        objective.after(0, objective.canvas)
        return networks.at(1).net.classifier.weight.clone()

    assert torch.equal(weights(), weights(grey=0.3))  # the canvas is not looked at
    for other in ({"real_cutmix": 0.9}, {"real_prior": "balanced_softmax"}, {"real_steps": 3}):
        assert not torch.equal(weights(), weights(**other))
    assert not torch.equal(weights(real_prior="balanced"), weights())
    with pytest.raises(InputError, match="real_prior is 'drw'; use one of plain, balanced"):
        idc(real_prior="drw").check()


def test_some_tiles_of_a_class_are_matched(make_blobs, run):
    objective, _ = idc(batch_syn=1).begin(make_blobs((12, 6)), 1, run)
    for step in range(3):
        objective.canvas.images.grad = None
        touched = slopes(objective, step).abs().sum((1, 2, 3))
        quarters = objective.canvas.images.grad.abs().sum(1).unfold(1, 4, 4).unfold(2, 4, 4)
        assert (touched > 0).all() and ((quarters.sum((-1, -2)) > 0).sum((1, 2)) == 1).all()


def three_kinds(per_kind=(6, 5, 4), tail=3):
    """Two classes, of which the first has images of three kinds."""
    draw = torch.Generator().manual_seed(0)
    kinds = torch.rand(3, 1, 8, 8, generator=draw) * 200
    rows = torch.arange(3).repeat_interleave(torch.tensor(per_kind))
    noise = torch.rand(len(rows) + tail, 1, 8, 8, generator=draw) * 20
    images = torch.cat([kinds[rows], kinds[:1].expand(tail, -1, -1, -1)]) + noise
    labels = torch.tensor([0] * len(rows) + [1] * tail)
    place = torch.arange(len(labels))
    return ImageSet(images.to(torch.uint8), labels, ("a", "b"), "kinds", place, "kinds"), rows


def test_representatives_lie_nearest_to_the_centres_of_their_clusters(run):
    real, rows = three_kinds()
    _, networks = idc(DREAM).begin(real, 1, run)
    network, own = networks.at(0), real.of_class(0)
    z = network.features(real.batch(own)).double()
    expected = set()
    for kind in range(3):
        members = (rows == kind).nonzero().flatten()
        gaps = (z[members] - z[members].mean(0)).norm(dim=1)
        expected.add(int(members[gaps.argmin()]))
    found = representatives(real, own, network, 3, run.generator("k-means", 0, 0))
    assert set(found.tolist()) == expected
    everyone = representatives(real, own, network, len(own), run.generator("k-means", 0, 0))
    assert sorted(everyone.tolist()) == own.tolist()  # none twice
    network.net.body[0].weight.data.fill_(torch.nan)
    with pytest.raises(DivergedError, match="features of the real images are not finite"):
        representatives(real, own, network, 3, run.generator("k-means", 0, 0))


def test_equal_images_can_be_clustered(run, recwarn):
    images = torch.full((8, 1, 8, 8), 7, dtype=torch.uint8)
    images[6:] = 200
    labels, place = torch.tensor([0] * 6 + [1] * 2), torch.arange(8)
    real = ImageSet(images, labels, ("a", "b"), "grey", place, "grey")
    _, networks = idc(DREAM).begin(real, 1, run)
    draw = run.generator("k-means", 0, 0)
    found = representatives(real, real.of_class(0), networks.at(0), 4, draw)
    assert len(set(found.tolist())) == 4 and not recwarn.list


def test_dream_keeps_its_batch_until_the_next_clustering(run):
    real, _ = three_kinds()
    objective, networks = idc(DREAM, batch_real=3, recluster=2, network="convnet-d2-w8-in").begin(
        real, 1, run
    )
    own = real.of_class(0)
    for step in range(5):
        if step % 2 == 0:
            draw = run.generator("k-means", step, 0)
            expected = representatives(real, own, networks.at(step), 3, draw)
        assert torch.equal(objective.real_batch(step, 0), expected)
        assert objective.real_batch(step, 1).tolist() == real.of_class(1).tolist()  # all it has
        objective.after(step, objective.canvas)
    assert list(objective.state()["chosen/0"]) == list(expected)
    assert "chosen/1" not in objective.state()


def test_dream_begins_with_representatives_others_do_not(run, caplog):
    real, _ = three_kinds()
    method = idc(DREAM)
    objective, networks = method.begin(real, 1, run)
    chosen = representatives(
        real, real.of_class(0), networks.at(0), 4, run.generator("k-means/start", 0)
    )
    expected = mosaic(real.batch(chosen)[None], 2)
    torch.testing.assert_close(objective.canvas.images[:1].detach(), expected)
    assert "1 of 2 classes have fewer than the 4 images that 1 stored" in caplog.text
    assert not torch.equal(idc().begin(real, 1, run)[0].canvas.images[:1], expected)
    noise = idc(DREAM, start="noise").begin(real, 1, run)[0].canvas.images
    assert torch.equal(noise, idc(start="noise").begin(real, 1, run)[0].canvas.images)
