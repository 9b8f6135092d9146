"""DD, RaT-BPTT and AT-BPTT: against plain loops, their own rules, and what users do to them."""

import pytest
import torch
import torch.nn.functional as F
from torch.func import functional_call

from potstill.data import ImageSet
from potstill.methods import ATBPTT, DD, RaTBPTT
from potstill.run import DivergedError, InputError
from potstill.run.machine import CPU_CHUNK

TINY = {"network": "convnet-d2-w4-in", "batch_real": 8, "preprocess": "normalize", "start": "real"}
KINDS = {"dd": DD, "rat-bptt": RaTBPTT, "at-bptt": ATBPTT}


def dd(**fields):
    return DD.budget("quick", **TINY | {"student_steps": 4, "syn_lr": 0.02} | fields)


def rat(**fields):
    return RaTBPTT.budget("quick", **TINY | {"student_steps": 8, "window": 3} | fields)


def at(**fields):
    steps = {"student_steps": 8, "window": 3, "radius": 1, "look_every": 2}
    return ATBPTT.budget("quick", **TINY | steps | fields)


def value_of(objective, step=0, piece=100):
    (term,) = objective.terms(step, objective.canvas, piece)
    return term.values


def slopes(objective, value):
    leaves = {"images": objective.canvas.images} | objective.leaves()
    for leaf in leaves.values():
        leaf.grad = None
    value.backward()
    return {name: leaf.grad.clone() for name, leaf in leaves.items()}


@pytest.mark.parametrize("outer_loss", ["cross_entropy", "balanced_softmax"])
def test_dd_is_a_plain_loop_over_images_in_turns(outer_loss, make_blobs, run):
    """Two images per class take turns; each of four steps has a step size of its own."""
    real = make_blobs((12, 6, 3))
    objective, networks = dd(outer_loss=outer_loss, batch_real=100).begin(real, 2, run)
    ours = value_of(objective)
    found = slopes(objective, ours)
    net = networks.at(0).net
    theta = {n: p.clone().requires_grad_() for n, p in net.named_parameters()}
    x = objective.canvas.images.detach().clone().requires_grad_()
    raw = objective.raw_lr.detach().clone().requires_grad_()
    assert F.softplus(raw).tolist() == pytest.approx([0.02] * 4, rel=1e-5)
    for i in range(4):
        rows = torch.tensor([0, 2, 4]) + i % 2
        loss = F.cross_entropy(functional_call(net, theta, (x[rows],)), torch.arange(3))
        grads = torch.autograd.grad(loss, list(theta.values()), create_graph=True)
        theta = {
            n: p - F.softplus(raw[i]) * g for (n, p), g in zip(theta.items(), grads, strict=True)
        }
    logits = functional_call(
        net, theta, (objective.transform.forward(real.batch(torch.arange(21))),)
    )
    if outer_loss == "balanced_softmax":
        logits = logits + torch.tensor([12.0, 6.0, 3.0]).log()
    expected = F.cross_entropy(logits, real.labels)
    torch.testing.assert_close(ours.detach(), expected.detach(), rtol=1e-4, atol=1e-6)
    in_x, in_raw = torch.autograd.grad(expected, (x, raw))
    torch.testing.assert_close(found["images"], in_x, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(found["raw_lr"], in_raw, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("first", [0, 5])
def test_rat_is_adam_from_a_constant_place_on(first, make_blobs, run, monkeypatch):
    objective, networks = rat(augment="none", clip=0.0).begin(make_blobs((12, 6, 3)), 2, run)
    monkeypatch.setattr(objective, "stretch", lambda step, lesson: (first, first + 3))
    ours = value_of(objective)
    found = slopes(objective, ours)["images"]
    net = networks.at(0).net
    # biases in front of a norm have no gradient but rounding, of which Adam makes whole steps
    theta = {n: p.clone().requires_grad_() for n, p in net.named_parameters()}
    x = objective.canvas.images.detach().clone().requires_grad_()
    memory = {n: (torch.zeros_like(p), torch.zeros_like(p)) for n, p in theta.items()}
    for i in range(1, first + 4):
        loss = F.cross_entropy(functional_call(net, theta, (x,)), objective.canvas.labels)
        grads = torch.autograd.grad(loss, list(theta.values()), create_graph=True)
        for (n, p), g in zip(list(theta.items()), grads, strict=True):
            a, b = memory[n]
            memory[n] = a, b = 0.9 * a + 0.1 * g, 0.999 * b + 0.001 * g**2
            root = (b / (1 - 0.999**i) + 1e-16).sqrt()
            theta[n] = p - 3e-3 * (a / (1 - 0.9**i)) / root
        if i <= first:
            theta = {n: p.detach().requires_grad_() for n, p in theta.items()}
            memory = {n: (a.detach(), b.detach()) for n, (a, b) in memory.items()}
    expected = sum(objective.judged(0, theta))
    assert float(ours.detach()) == pytest.approx(float(expected.detach()), rel=1e-3)
    (slope,) = torch.autograd.grad(expected, x)
    assert (found - slope).norm() < 0.02 * slope.norm()


@pytest.mark.parametrize("make", [dd, rat, at])
def test_new_students_learn_more_from_images_that_moved(make, make_blobs, run):
    """The same students on the same real images, before and after; none of them was seen."""
    method = make(
        steps=25, lr_images=0.1, start="noise", batch_real=42, outer_loss="balanced_softmax",
        student_steps=8, window=6, syn_lr=0.05,
    )  # fmt: skip
    real = make_blobs((24, 12, 6))
    objective, _ = method.begin(real, 2, run)
    canvas = objective.canvas

    def loss():
        values = [value_of(objective, step).detach() for step in range(100, 108)]
        return float(torch.stack(values).mean())

    before, moved = loss(), method(real, 2, run).images
    with torch.no_grad():
        canvas.images.copy_(moved if canvas.behind is None else canvas.behind.forward(moved))
    assert loss() < before - 0.1


def test_windows_lie_anywhere_in_a_training(make_blobs, run):
    objective, _ = rat().begin(make_blobs((6, 5, 4)), 1, run)
    seen = {objective.stretch(step, None) for step in range(200)}
    assert seen == {(first, first + 3) for first in range(6)}
    whole, _ = rat(window=0).begin(make_blobs((6, 5, 4)), 1, run)
    assert {whole.stretch(step, None) for step in range(9)} == {(0, 8)}


def test_students_and_what_they_see_are_new_in_every_step(make_blobs, run):
    objective, _ = rat(per_class=1).begin(make_blobs((6, 5, 4)), 3, run)
    canvas = objective.canvas
    rows = [objective.rows(step, place, canvas) for step in range(3) for place in range(8)]
    assert all((own // 3).tolist() == [0, 1, 2] for own in rows)  # one of each class
    assert {int(own[0]) for own in rows} == {0, 1, 2}
    assert not torch.equal(torch.stack(rows[:8]), torch.stack(rows[8:16]))
    first, second = (objective.beginning(step)["classifier.weight"] for step in (0, 1))
    assert not torch.equal(first, second)
    assert objective.rows(0, 0, canvas) is not None
    assert rat().begin(make_blobs((6, 5, 4)), 3, run)[0].rows(0, 0, canvas) is None


def test_a_long_gradient_is_cut_to_twice_its_running_mean(make_blobs, run):
    objective, _ = rat().begin(make_blobs((6, 5)), 1, run)
    one = torch.ones(4)
    assert torch.equal(objective.clipped(one), one)  # the first is its own mean
    objective.after(0, objective.canvas)
    assert float(objective.length) == pytest.approx(2.0)
    long = objective.clipped(100 * one)
    objective.after(1, objective.canvas)
    mean = 0.9 * 2 + 0.1 * 200
    assert float(objective.length) == pytest.approx(mean, rel=1e-5)
    assert float(long.norm()) == pytest.approx(2 * mean, rel=1e-5)
    assert torch.equal(objective.clipped(0 * one), 0 * one)
    free, _ = rat(clip=0.0).begin(make_blobs((6, 5)), 1, run)
    free.after(0, free.canvas)
    assert torch.equal(free.clipped(100 * one), 100 * one)


def test_the_clip_reaches_the_images(make_blobs, run):
    objective, _ = rat(clip=1e-3).begin(make_blobs((12, 6, 3)), 2, run)
    cut = slopes(objective, value_of(objective))["images"]
    whole, _ = rat(clip=0.0).begin(make_blobs((12, 6, 3)), 2, run)
    full = slopes(whole, value_of(whole))["images"]
    torch.testing.assert_close(cut, 1e-3 * full, rtol=1e-4, atol=1e-9)


def looked(objective, norms, stage, monkeypatch):
    """All places and sizes that a stage chooses when gradients are this long."""
    objective.stage = stage
    monkeypatch.setattr(objective, "walk", lambda *_: _Norms(norms))
    return {objective.looked(step, None) for step in range(300)}


class _Norms:
    def __init__(self, norms):
        self.found = torch.tensor(norms)

    def norms(self, theta):
        return self.found


def test_the_place_follows_the_lengths_of_gradients(make_blobs, run, monkeypatch):
    objective, _ = at(student_steps=8, window=3, radius=2).begin(make_blobs((6, 5)), 1, run)
    # step 2 is certain; its change of 29 is the second largest: rank 6 of 8
    norms = [1.0, 1.0, 30.0, 0.0, 0.0, 0.0, 0.0, 0.0]
    assert looked(objective, norms, 0, monkeypatch) == {(2, int(3 - 2 + 4 * 6 / 8))}
    assert looked(objective, norms, 1, monkeypatch) == {(k, 5) for k in range(4)}
    assert looked(objective, norms, 2, monkeypatch) == {(8 - 2 - 1, 1)}
    # a window that would end after the training is moved back, one before it forward
    late = [0.0] * 7 + [30.0]
    (first, size), *rest = looked(objective, late, 0, monkeypatch)
    assert not rest and first + size == 8
    assert looked(objective, late, 2, monkeypatch) == {(0, 1)}


def test_equal_gradients_choose_any_place(make_blobs, run, monkeypatch):
    objective, _ = at(radius=0).begin(make_blobs((6, 5)), 1, run)
    assert {first for first, _ in looked(objective, [1.0] * 8, 0, monkeypatch)} == set(range(6))


def test_stages_end_when_accuracy_stands_still(make_blobs, run):
    objective, _ = at(student_steps=8, look_every=2).begin(make_blobs((6, 5)), 1, run)
    stages = []
    for step in range(12):
        objective.right = 0.1 * step if step < 4 else 0.3
        objective.after(step, objective.canvas)
        stages.append(objective.stage)
    # means of passes are 0.05, 0.25, 0.3, 0.3, ...: two idle ones are 1.2 or more, then one is 1.0
    assert stages == [0] * 9 + [1, 1, 2]


def test_the_stage_survives_a_checkpoint(make_blobs, run):
    objective, _ = at().begin(make_blobs((6, 5)), 1, run)
    objective.stage, objective.idle, objective.first, objective.size = 2, 1, 4, 2
    objective.sum, objective.before, objective.length = 0.3, 0.7, torch.tensor(5.0)
    again, _ = at().begin(make_blobs((6, 5)), 1, run)
    again.load_state(objective.state())
    assert (again.stage, again.idle, again.first, again.size) == (2, 1, 4, 2)
    assert (again.sum, again.before, float(again.length)) == (0.3, 0.7, 5.0)
    assert again.stretch(1, None) == (4, 6)  # within a pass nothing is looked at


@pytest.mark.parametrize("make", [dd, rat], ids=["dd", "rat-bptt"])
def test_log_counts_change_nothing_where_classes_are_equal(make, make_blobs, run):
    def found(outer_loss, counts):
        objective, _ = make(outer_loss=outer_loss).begin(make_blobs(counts), 2, run)
        return value_of(objective).detach()

    pair = ("cross_entropy", "balanced_softmax")
    even, uneven = ([found(loss, n) for loss in pair] for n in ((9, 9, 9), (30, 9, 3)))
    torch.testing.assert_close(*even, rtol=1e-5, atol=1e-6)
    assert abs(uneven[0] - uneven[1]) > 1e-2


@pytest.mark.parametrize("make", [dd, rat, at], ids=list(KINDS))
def test_real_images_are_seen_some_at_a_time(make, make_blobs, run, monkeypatch):
    objective, _ = make(batch_real=150).begin(make_blobs((120, 60, 40)), 2, run)
    sizes, see = [], objective.students.forward
    students = type("Students", (), {"forward": lambda _, t, x: sizes.append(len(x)) or see(t, x)})
    monkeypatch.setattr(objective, "students", students())
    theta = objective.beginning(0)
    whole = sum(objective.judged(0, theta))
    assert sizes == [CPU_CHUNK] * (150 // CPU_CHUNK) + [150 % CPU_CHUNK]
    monkeypatch.setattr(objective, "at_a_time", lambda: 1000)
    torch.testing.assert_close(sum(objective.judged(0, theta)), whole)
    assert sizes[-1] == 150


@pytest.mark.parametrize("make", [dd, rat, at], ids=list(KINDS))
def test_balanced_batches_have_as_many_of_each_class(make, make_blobs, run):
    method = make(balance="sampling", batch_real=9)
    objective, _ = method.begin(make_blobs((40, 9, 4)), 1, run)
    rows = objective.method.outer.drawn(objective.groups, 9, run.generator("real", 0))
    assert objective.real.labels[rows].bincount().tolist() == [3, 3, 3]
    with pytest.raises(InputError, match=r"^balance is 'sampling' with outer_loss .*; use"):
        make(balance="sampling", outer_loss="balanced_softmax").check()


def test_learned_step_sizes_travel_as_their_mean(make_blobs, run):
    syn = dd(steps=3, lr_syn_lr=0.5)(make_blobs((12, 6, 3)), 2, run)
    assert syn.syn_lr is not None and syn.syn_lr > 0 and syn.syn_lr != pytest.approx(0.02)
    assert rat(steps=1)(make_blobs((12, 6, 3)), 2, run).syn_lr is None


@pytest.mark.parametrize(
    ("method", "said"),
    [
        (rat(window=9), "window is 9 with student_steps 8"),
        (at(radius=3), "radius is 3 with window 3"),
        (at(radius=6), "radius is 6 with window 3"),
        (at(window=0), "radius is 1 with window 0"),
        (rat(augment="spin"), "augment is 'spin'"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_does_not_fit_is_one_sentence(method, said):
    with pytest.raises(InputError) as caught:
        method.check()
    assert str(caught.value).startswith(said) and "\n" not in str(caught.value)


@pytest.mark.parametrize("make", [dd, rat, at], ids=list(KINDS))
def test_batch_norm_is_refused(make, make_blobs, run):
    with pytest.raises(InputError, match=r"^network is 'convnet-d2-w4-bn', whose batch norm"):
        make(network="convnet-d2-w4-bn")(make_blobs((6, 5)), 1, run)


@pytest.mark.parametrize("make", [dd, rat, at], ids=list(KINDS))
def test_equal_images_and_huge_steps_end_in_images_or_one_sentence(make, make_blobs, run):
    labels = torch.tensor([0] * 6 + [1] * 4)
    images = torch.full((10, 1, 8, 8), 90, dtype=torch.uint8)
    real = ImageSet(images, labels, ("a", "b"), "grey", torch.arange(10), "grey")
    assert torch.isfinite(make(steps=2)(real, 2, run).images).all()
    with pytest.raises(DivergedError, match=r"^\w+ is not finite at step \d+; lower lr_images"):
        make(steps=3, student_optimizer="sgd", syn_lr=1e8)(make_blobs((6, 5)), 1, run)
