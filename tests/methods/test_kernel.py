"""KIP, FRePo and RFAD: against plain formulas, finite differences and the exact kernel."""

import pytest
import torch
import torch.nn.functional as F

from potstill.data import ImageSet
from potstill.match.ntk import WideNetwork
from potstill.methods import CATALOGUE, KIP, RFAD, FRePo
from potstill.methods.kernel.ridge_regression import Outer
from potstill.run import InputError
from potstill.run.machine import CPU_CHUNK
from potstill.run.memory import saved_bytes

SMALL = {"network": "convnet-d2-w4-bn", "members": 2, "batch_real": 8, "preprocess": "normalize"}
RANDOM = {"network": "convnet-d2-w4-none", "nets_per_step": 3, "batch_real": 8}
LOSSES = ("squared_error", "cross_entropy", "balanced_softmax")


def frepo(**fields):
    return FRePo.budget("quick", **SMALL | fields)


def rfad(**fields):
    return RFAD.budget("quick", **RANDOM | {"preprocess": "normalize"} | fields)


def value_of(objective, step=3, piece=100):
    return sum(term.values for term in objective.terms(step, objective.canvas, piece))


def in_float64(objective):
    """The same objective, all of it in float64."""
    canvas = objective.canvas
    for name in ("images", "mixing"):
        if hasattr(canvas, name):
            setattr(canvas, name, getattr(canvas, name).detach().double().requires_grad_())
    labels = objective.labels
    labels.values = labels.values.detach().double().requires_grad_()
    if objective.platt is not None:
        objective.platt = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
    objective.networks.at(3).net.double()
    seen = objective.real_images
    objective.real_images = lambda rows: seen(rows).double()
    return objective


def assert_slopes_are_those_of_differences(objective, size=1e-6):
    leaves = objective.canvas.parameters() | objective.leaves()
    value_of(objective).backward()
    draw = torch.Generator().manual_seed(5)
    for name, leaf in leaves.items():
        step = size * torch.randn(leaf.shape, generator=draw, dtype=torch.float64)
        with torch.no_grad():
            leaf += step
            more = value_of(objective)
            leaf -= 2 * step
            change = more - value_of(objective)
            leaf += step
        expected = float(2 * (leaf.grad * step).sum())
        assert abs(expected) > 0, name
        assert float(change) == pytest.approx(expected, rel=1e-4), name


@pytest.mark.parametrize("outer_loss", LOSSES)
def test_frepos_gradients_are_those_of_finite_differences(outer_loss, make_blobs, run):
    method = frepo(outer_loss=outer_loss, reg=1e-3, members=1)
    objective, networks = method.begin(make_blobs((12, 6, 5)), 2, run)
    assert len(objective.canvas.images) == 6
    networks.after(0, objective.canvas, objective.labels.targets())
    assert_slopes_are_those_of_differences(in_float64(objective))


@pytest.mark.parametrize("outer_loss", LOSSES)
def test_rfads_gradients_are_those_of_finite_differences(outer_loss, make_blobs, run):
    method = rfad(outer_loss=outer_loss, learn_labels=True)
    objective, _ = method.begin(make_blobs((12, 6, 5)), 2, run)
    assert_slopes_are_those_of_differences(in_float64(objective))


def test_frepos_loss_is_its_formula(make_blobs, run):
    real = make_blobs((12, 6, 5))
    objective, networks = frepo(reg=1e-3).begin(real, 2, run)
    networks.after(3, objective.canvas, objective.labels.targets())
    targets, net = objective.labels.values, networks.pool[networks.member(3)].network
    with torch.no_grad():
        targets += 0.2 * torch.rand(6, 3, generator=torch.Generator().manual_seed(1))
        s, rows = objective.canvas.images, objective.positions(3)
        phi_s = net.features(torch.cat([s, s.flip(3)])).double()
        phi_t = net.features(objective.transform.forward(real.batch(rows))).double()
        k = phi_s @ phi_s.T
        k = k + 1e-3 * k.trace() / 12 * torch.eye(12)
        found = phi_t @ phi_s.T @ torch.linalg.solve(k, torch.cat([targets, targets]).double())
        scale = (3 / 10) ** 0.5
        goal = (F.one_hot(real.labels[rows], 3) - 1 / 3) / scale
        error = 0.5 * (found - goal).square().sum(1).mean()
        first, second, _ = targets.sort(dim=1, descending=True).values.unbind(1)
        margin = -(first - second).clamp(max=1 / 3).mean()
    found = objective.terms(3, objective.canvas, 9)
    terms = {term.name: float(term.values.detach()) for term in found}
    assert terms == {
        "regression": pytest.approx(float(error), rel=1e-4),
        "margin": pytest.approx(float(margin), rel=1e-5),
    }
    begun, _ = frepo().begin(real, 2, run)
    own = F.one_hot(begun.canvas.labels, 3) - 1 / 3
    torch.testing.assert_close(begun.labels.values.detach(), own / scale)


def test_the_mean_of_random_features_is_the_exact_kernel(make_blobs, run):
    real = make_blobs((5, 4, 3), size=4)
    method = rfad(network="mlp-w128", nets_per_step=60, learn_mixing=False)
    objective, _ = method.begin(real, 1, run)
    s, t = objective.canvas.images.detach(), objective.real_images(torch.arange(12))
    k_ss, k_ts = objective.kernels(0, t, s, 100)
    exact = WideNetwork(depth=2, kind="nngp")  # two hidden layers, and the classifier left out
    # One network is off by about 3 / sqrt(width); sixty bring that to 0.035 of the largest value.
    # With weights of torch's default or another number of layers it is off by far more.
    for found, expected in ((k_ss, exact(s, s)), (k_ts, exact(t, s))):
        assert (found - expected).abs().max() < 0.1 * expected.abs().max()
    nothing = torch.zeros(1, 1, 4, 4)  # of which biases alone are seen: 0.01 of each layer
    found = objective.kernels(0, nothing, nothing, 100)[0].item()
    assert found == pytest.approx(exact(nothing, nothing).item(), rel=0.1)
    assert found == pytest.approx(0.03, rel=0.1)
    default = rfad(network="mlp-w128", nets_per_step=8, learn_mixing=False, networks="random")
    other, _ = default.begin(real, 1, run)
    far = other.kernels(0, t, s, 100)[0] - exact(s, s)
    assert far.abs().max() > 0.3 * exact(s, s).abs().max()


@pytest.mark.parametrize("method", [frepo(), rfad(learn_labels=True)], ids=("frepo", "rfad"))
def test_features_in_pieces_are_those_of_the_whole(method, make_blobs, run, monkeypatch):
    real = make_blobs((24, 12, 6))
    slopes = []
    for piece, at_a_time in ((100, 100), (4, 3), (1, 1)):
        objective, _ = method.begin(real, 2, run)
        monkeypatch.setattr(objective, "at_a_time", lambda most=at_a_time: most)
        value = value_of(objective, piece=piece)
        value.backward()
        leaves = objective.canvas.parameters() | objective.leaves()
        slopes.append({"value": value.detach()} | {n: leaf.grad for n, leaf in leaves.items()})
    assert {"images", "targets"} < set(slopes[0])
    for other in slopes[1:]:
        for name, whole in slopes[0].items():
            assert whole.abs().max() > 0
            assert (other[name] - whole).norm() < 1e-4 * whole.norm(), name


@pytest.mark.parametrize("method", [frepo(batch_real=150), rfad(batch_real=150)], ids=str)
def test_real_images_are_seen_some_at_a_time(method, make_blobs, run, monkeypatch):
    objective, networks = method.begin(make_blobs((120, 60, 40)), 2, run)
    one, sizes = networks.at(3), []
    see = one.seen
    monkeypatch.setattr(one, "seen", lambda x: sizes.append(len(x)) or see(x))
    value_of(objective)
    assert max(sizes) == CPU_CHUNK < 150 <= sum(sizes)


def test_kips_error_is_half_the_mean_square(make_blobs, run):
    real = make_blobs((12, 6, 3))
    objective, _ = KIP().begin(real, 1, run)
    rows, prediction = torch.tensor([0, 13, 20]), torch.rand(3, 3).double()
    goal = torch.eye(3).double() - 1 / 3
    expected = sum(float(d) ** 2 for d in (prediction - goal).flatten()) / 18
    assert float(objective.error(prediction, rows)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("name", ["kip", "frepo", "rfad"])
def test_log_counts_change_nothing_where_classes_are_equal(name, make_blobs, run):
    def found(outer_loss, counts):
        method = CATALOGUE[name].budget("quick", outer_loss=outer_loss, learn_labels=True)
        known = {k: v for k, v in (SMALL | RANDOM).items() if k in method.fields()}
        objective, _ = method.with_(**known).begin(make_blobs(counts), 2, run)
        value = value_of(objective)
        value.backward()
        return [value.detach(), objective.canvas.images.grad, objective.platt.grad]

    for a, b in zip(
        found("cross_entropy", (9, 9, 9)), found("balanced_softmax", (9, 9, 9)), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-8)
    tail = [found(loss, (30, 9, 3))[0] for loss in ("cross_entropy", "balanced_softmax")]
    assert abs(tail[0] - tail[1]) > 1e-2


def test_the_prediction_is_judged_with_the_class_sizes(make_blobs, run):
    real = make_blobs((12, 6, 3))
    objective, _ = KIP(outer=Outer(outer_loss="balanced_softmax")).begin(real, 1, run)
    with torch.no_grad():
        objective.platt.fill_(0.7)
    rows, prediction = torch.tensor([0, 13, 20]), torch.rand(3, 3).double()
    weights = torch.tensor([12.0, 6.0, 3.0]) * (prediction * torch.tensor(0.7).exp()).exp()
    expected = -(weights / weights.sum(1, keepdim=True)).diagonal().log().mean()
    found = float(objective.error(prediction, rows).detach())
    assert found == pytest.approx(float(expected), rel=1e-6)


def test_balanced_batches_have_as_many_of_each_class(make_blobs, run):
    for method in (frepo(balance="sampling", batch_real=9), rfad(balance="sampling", batch_real=9)):
        objective, _ = method.begin(make_blobs((40, 9, 4)), 1, run)
        assert objective.real.labels[objective.positions(0)].bincount().tolist() == [3, 3, 3]


def test_the_pool_has_all_ages_and_learns_from_the_set_one_at_a_time(make_blobs, run):
    method = frepo(members=4, renew_every=8)
    objective, networks = method.begin(make_blobs((12, 6)), 2, run)
    assert [networks.age(member) for member in range(4)] == [0, 2, 4, 6]
    weights = [one.network.classifier.weight.clone() for one in networks.pool]
    assert not torch.equal(weights[0], weights[1])
    renewed = []
    for step in range(80):
        turn, ages = networks.member(step), [networks.age(m) for m in range(4)]
        objective.after(step, objective.canvas)
        for member, one in enumerate(networks.pool):
            if member != turn:
                assert networks.age(member) == ages[member]
            elif ages[member] < 8:
                assert networks.age(member) == ages[member] + 1
            else:
                assert networks.age(member) == 0 and one.births > 0
                renewed.append(member)
    assert set(renewed) == {0, 1, 2, 3}


def test_an_update_is_one_step_of_adam_on_the_squared_error(make_blobs, run):
    method = frepo(network="convnet-d2-w4-in", inner_lr=0.01)
    objective, networks = method.begin(make_blobs((12, 6)), 2, run)
    member = networks.member(0)
    net = networks.pool[member].network
    x, y = objective.canvas.images.detach(), objective.labels.values.detach()
    (slope,) = torch.autograd.grad(0.5 * (net(x) - y).square().sum(1).mean(), net.classifier.weight)
    before = net.classifier.weight.detach().clone()
    objective.after(0, objective.canvas)
    moved = net.classifier.weight.detach() - before
    clear = slope.abs() > 1e-4  # Adam's first step is of its size, against the slope
    assert clear.any()
    torch.testing.assert_close(moved[clear], -0.01 * slope[clear].sign(), rtol=1e-2, atol=1e-5)


def test_what_rfad_stores_is_behind_the_matrix(make_blobs, run):
    seen = {}

    def keep(step, record, canvas):
        seen.update(x=canvas.images.detach().clone(), a=canvas.mixing.detach().clone())
        seen["transform"] = canvas.behind

    method = rfad(steps=4, lr_mixing=0.01, preprocess="zca")
    syn = method(make_blobs((12, 6)), 2, run.with_(watch=keep))
    assert not torch.equal(seen["a"], torch.eye(64))
    mixed = (seen["x"].flatten(1) @ seen["a"]).view(4, 1, 8, 8)
    torch.testing.assert_close(syn.images, seen["transform"].inverse(mixed))
    torch.testing.assert_close(syn.transform.forward(syn.images), mixed, rtol=1e-3, atol=1e-3)


def test_the_prior_is_taken_out_once(make_blobs):
    for kind in (KIP, FRePo, RFAD):
        with pytest.raises(InputError, match=r"^balance is 'sampling' with outer_loss .*; use"):
            kind.budget("quick", outer_loss="balanced_softmax", balance="sampling").check()


def test_a_matrix_of_large_images_is_refused(make_blobs):
    real = make_blobs((2, 2), channels=3, size=80)
    with pytest.raises(
        InputError, match=r"^learn_mixing is True for images of 19200 values, .*; use"
    ):
        rfad().check(real)
    rfad(learn_mixing=False).check(real)


def test_equal_images_are_one_sentence_or_work(run):
    labels = torch.tensor([0] * 6 + [1] * 4)
    images = torch.full((10, 1, 8, 8), 90, dtype=torch.uint8)
    real = ImageSet(images, labels, ("a", "b"), "grey", torch.arange(10), "grey")
    for method in (frepo(steps=2), rfad(steps=2)):
        assert torch.isfinite(method(real, 2, run).images).all()
        with pytest.raises(InputError, match=r"^reg is 1e-18, .* singular .*; use a larger reg$"):
            method.with_(reg=1e-18)(real, 2, run)


def conv(**fields):
    return KIP.budget("quick", kernel_network="conv", batch_real=8, **fields)


@pytest.mark.parametrize("outer_loss", LOSSES)
def test_kips_gradients_are_those_of_finite_differences(outer_loss, make_blobs, run):
    for kind in ("dense", "conv"):
        method = conv(outer_loss=outer_loss, learn_labels=True, reg=1e-3)
        objective, _ = method.with_(kernel_network=kind).begin(make_blobs((12, 6, 5)), 2, run)
        canvas, labels, seen = objective.canvas, objective.labels, objective.real_images
        canvas.images = canvas.images.detach().double().requires_grad_()
        labels.values = labels.values.detach().double().requires_grad_()
        if objective.platt is not None:
            objective.platt = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
        objective.real_images = lambda rows, seen=seen: seen(rows).double()
        assert_slopes_are_those_of_differences(objective, 1e-5)


def test_a_convolutional_kernel_is_computed_some_rows_at_a_time(make_blobs, run):
    real = make_blobs((12, 6, 5))
    objective, _ = conv().begin(real, 2, run)
    whole = value_of(objective)
    assert objective.rows(torch.zeros(6, 1, 8, 8)) > 8
    poor, _ = conv().begin(real, 2, run.with_(memory_gb=0.01))
    assert poor.rows(torch.zeros(6, 1, 8, 8)) == 2
    torch.testing.assert_close(value_of(poor), whole)


def test_a_convolutional_kernel_of_large_images_is_refused(make_blobs):
    with pytest.raises(InputError, match=r"^kernel_network is 'conv' for images of 20x20 pixels"):
        conv().check(make_blobs((2, 2), size=20))
    with pytest.raises(InputError, match=r"^depth is 4 for images of 8x8 pixels"):
        conv(depth=4).check(make_blobs((2, 2)))
    conv(depth=3).check(make_blobs((2, 2)))


@pytest.mark.parametrize("name", ["kip", "frepo", "rfad"])
def test_kernel_regression_from_the_set_is_that_of_a_step(name, make_blobs, run):
    """The mean over the kernels of steps after the last, of any images."""
    known = SMALL | RANDOM | {"network": "convnet-d2-w4-in"}
    fields = CATALOGUE[name].budget("quick").fields()
    method = CATALOGUE[name].budget("quick", **{k: v for k, v in known.items() if k in fields})
    real = make_blobs((12, 6, 5))
    objective, _ = method.with_(steps=7).begin(real, 2, run)
    rows = torch.arange(23)
    found = objective.predicted(real.batch(rows), looks=2)
    s, targets = (value.detach() for value in objective.support(objective.canvas))
    expected = []
    for step in (7, 8):
        k, k_ts = objective.kernels(step, objective.real_images(rows), s, 100)
        k = k + method.reg * k.diagonal().mean() * torch.eye(len(k))
        expected.append(k_ts @ torch.linalg.solve(k, targets.double()))
    assert found.shape == (23, 3) and not found.requires_grad
    error = (found - torch.stack(expected).mean(0).detach()).norm() / found.norm()
    assert error < 1e-4
    assert (found.argmax(1) == real.labels).double().mean() > 0.5


@pytest.mark.parametrize("name", ["kip", "kip-conv", "frepo", "rfad"])
def test_memory_does_not_grow_with_the_real_set(name, make_blobs, run):
    """Bytes that graphs of a step hold: the same for a set of 90 images and one of 900."""
    known = SMALL | RANDOM | {"network": "convnet-d2-w4-in", "start": "noise"}
    known |= {"kernel_network": "conv"} if name == "kip-conv" else {}
    kind = CATALOGUE[name.partition("-")[0]]
    fields = kind.budget("quick").fields()
    method = kind.budget("quick", **{k: v for k, v in known.items() if k in fields})
    held = []
    for size in (30, 300):
        objective, _ = method.begin(make_blobs((size,) * 3), 2, run)
        held.append(saved_bytes(lambda one=objective: value_of(one))[1])
    assert held[0] == held[1] > 0
    more, _ = method.with_(batch_real=64).begin(make_blobs((30,) * 3), 2, run)
    assert saved_bytes(lambda: value_of(more))[1] > held[0]  # only the batch counts


@pytest.mark.parametrize("name", ["kip", "frepo", "rfad", "dd", "rat-bptt", "at-bptt"])
def test_a_class_without_images_is_one_sentence(name, run):
    images = torch.randint(0, 255, (10, 1, 8, 8), generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0] * 6 + [2] * 4)
    with pytest.raises(InputError) as caught:
        real = ImageSet(
            images.to(torch.uint8), labels, ("a", "b", "c"), "gap", torch.arange(10), "gap"
        )
        CATALOGUE[name].budget("quick", steps=1, network="convnet-d2-w4-in")(real, 1, run)
    assert "b" in str(caught.value) and "\n" not in str(caught.value)


def test_equal_images_are_one_sentence_under_either_kernel_of_kip(run):
    images = torch.full((10, 1, 8, 8), 90, dtype=torch.uint8)
    labels = torch.tensor([0] * 6 + [1] * 4)
    real = ImageSet(images, labels, ("a", "b"), "grey", torch.arange(10), "grey")
    for network in ("dense", "conv"):
        method = KIP.budget("quick", steps=2, batch_real=8, kernel_network=network)
        with pytest.raises(InputError, match=r"^reg is 1e-18, .* singular .*; use a larger reg$"):
            method.with_(reg=1e-18)(real, 2, run)
        assert torch.isfinite(method.with_(reg=1e-3)(real, 2, run).images).all()
