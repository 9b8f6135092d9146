"""Gradients through a student's training against the graph of its whole way, in float64."""

import gc

import pytest
import torch
from torch.func import functional_call

from potstill import nets
from potstill.data import DSA
from potstill.losses import balanced_softmax, cross_entropy
from potstill.match import unrolled as unrolled_module
from potstill.match.rollout import Student, StudentStep
from potstill.match.unrolled import Inner, Unrolled, _judged
from potstill.run import InputError

N, K, SIZE = 6, 3, 8
INNERS = {"sgd": Inner(), "momentum": Inner("sgd", 0.9), "adam": Inner("adam")}


def stream(seed):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed):
    return torch.randn(*shape, generator=stream(seed), dtype=torch.float64)


NET = nets.create("convnet-d2-w4-in", channels=3, size=SIZE, classes=K, generator=stream(1))
NET.double().requires_grad_(False)
# biases in front of a norm have gradients that are nothing but rounding, which Adam makes large
MOVES = {n for n, _ in NET.named_parameters() if not (n.startswith("body") and n.endswith("bias"))}
START = {n: p.detach().clone() for n, p in NET.named_parameters() if n in MOVES}
REAL, LABELS = normal(10, 3, SIZE, SIZE, seed=4), torch.arange(10) % K
OUTER = balanced_softmax([50, 7, 1])


def forward(theta, x):
    return functional_call(NET, dict(theta), (x,))


def judge(theta, chunk=4):
    for rows in torch.arange(10).split(chunk):
        yield OUTER(forward(theta, REAL[rows]), LABELS[rows]).sum() / 10


def steps_of(kind):
    if kind == "all":
        return [StudentStep(None, {})] * 5, None
    rows = [torch.randint(N, (4,), generator=stream(s)) for s in range(5)]
    if kind == "batches":
        return [StudentStep(own, {}) for own in rows], None
    dsa = DSA.parse("flip_rotate")
    drawn = [dsa.draw(4, (SIZE, SIZE), stream(20 + s), False) for s in range(5)]
    return [StudentStep(a, b) for a, b in zip(rows, drawn, strict=True)], dsa


def unrolled(x, targets, rates, inner="sgd", kind="all", **more):
    steps, dsa = steps_of(kind)
    student = Student(
        x, targets, torch.zeros(()), forward, cross_entropy, dsa, more.pop("chunk", None)
    )
    return Unrolled(student, steps, rates, INNERS[inner], **more)


def leaves():
    rates = 0.05 + 0.01 * torch.arange(5, dtype=torch.float64)
    found = normal(N, 3, SIZE, SIZE, seed=2), normal(N, K, seed=3).softmax(1), rates
    return [value.requires_grad_() for value in found]


def plain(x, targets, rates, inner, kind, first=0):
    """The loop as anybody would write it, with torch's own optimiser rules by hand."""
    steps, dsa = steps_of(kind)
    theta = {n: p.clone().requires_grad_() for n, p in START.items()}
    memory = {n: [torch.zeros_like(p), torch.zeros_like(p)] for n, p in START.items()}
    for i, step in enumerate(steps):
        own, goal = (x, targets) if step.rows is None else (x[step.rows], targets[step.rows])
        if dsa is not None:
            own = dsa.apply(own, step.augment)
        value = cross_entropy(forward(theta, own), goal).mean()
        slopes = torch.autograd.grad(value, list(theta.values()), create_graph=True)
        for (name, place), slope in zip(list(theta.items()), slopes, strict=True):
            if inner == "adam":
                a, b = memory[name]
                memory[name] = a, b = 0.9 * a + 0.1 * slope, 0.999 * b + 0.001 * slope**2
                root = (b / (1 - 0.999 ** (i + 1)) + 1e-16).sqrt()
                theta[name] = place - rates[i] * (a / (1 - 0.9 ** (i + 1))) / root
            elif inner == "momentum":
                memory[name] = [0.9 * memory[name][0] + slope, slope]
                theta[name] = place - rates[i] * memory[name][0]
            else:
                theta[name] = place - rates[i] * slope
        if i < first:
            theta = {n: p.detach().requires_grad_() for n, p in theta.items()}
            memory = {n: [v.detach() for v in own] for n, own in memory.items()}
    return sum(judge(theta, 10))


def derivatives(value, inputs):
    found = torch.autograd.grad(value, inputs, materialize_grads=True)
    return [value.detach(), *found]


def agree(ours, theirs, tolerance=1e-9):
    for a, b in zip(ours, theirs, strict=True):
        assert b.norm() > 1e-6
        assert (a - b).norm() <= tolerance * b.norm()


@pytest.mark.parametrize("first", [0, 3])
@pytest.mark.parametrize("kind", ["all", "batches", "augmented"])
@pytest.mark.parametrize("inner", INNERS)
def test_it_is_the_graph_of_the_loop_with_a_detached_prefix(inner, kind, first):
    a, b = leaves(), leaves()
    ours = unrolled(*a, inner, kind, first=first).loss(START, judge)
    agree(derivatives(ours, a), derivatives(plain(*b, inner, kind, first), b))


@pytest.mark.parametrize("options", [{"chunk": 2}, {"keep_bytes": 10**9}, {"keep_bytes": 10**6},
                                     {"chunk": 4, "keep_bytes": 10**9}], ids=str)  # fmt: skip
@pytest.mark.parametrize("inner", ["sgd", "adam"])
def test_pieces_and_kept_graphs_change_nothing(inner, options):
    found = []
    for more in ({}, options):
        own = leaves()
        found.append(derivatives(unrolled(*own, inner, first=1, **more).loss(START, judge), own))
    agree(found[1], found[0])


@pytest.mark.parametrize("inner", INNERS)
def test_slopes_are_those_of_finite_differences(inner, monkeypatch):
    # Adam's first step is all but the sign of a slope; with a large ε it is smooth
    monkeypatch.setattr(unrolled_module, "_EPSILON", 0.01)
    own = leaves()
    walk = unrolled(*own, inner, "batches")
    _, *slopes = derivatives(walk.loss(START, judge), own)
    for place, slope in enumerate(slopes):
        direction = normal(*slope.shape, seed=9)
        ends = []
        for sign in (1, -1):
            moved = [value.detach().clone() for value in own]
            moved[place] += sign * 1e-6 * direction
            ends.append(unrolled(*moved, inner, "batches").loss(START, judge))
        change = float(ends[0] - ends[1]) / 2e-6
        assert change == pytest.approx(float((slope * direction).sum()), rel=1e-4)


def test_constant_steps_have_no_slope_and_the_value_stays():
    whole, cut = leaves(), leaves()
    first = derivatives(unrolled(*whole, "adam", "batches").loss(START, judge), whole)
    second = derivatives(unrolled(*cut, "adam", "batches", first=2).loss(START, judge), cut)
    assert first[0] == second[0]
    assert (second[3][:2] == 0).all() and (second[3][2:] != 0).all()
    assert (first[1] - second[1]).norm() > 1e-3 * first[1].norm()


def held_at_most(build):
    """Bytes of graphs alive at the worst moment."""
    alive, worst = {}, [0]

    class Held:
        def __init__(self, tensor):
            self.tensor, self.key = tensor, (tensor.data_ptr(), tensor.nbytes)
            alive[self.key] = alive.get(self.key, 0) + 1
            worst[0] = max(worst[0], sum(size for _, size in alive))

        def __del__(self):
            alive[self.key] -= 1
            if not alive[self.key]:
                del alive[self.key]

    with torch.autograd.graph.saved_tensors_hooks(Held, lambda held: held.tensor):
        build()
    gc.collect()
    return worst[0]


def test_graphs_do_not_grow_with_the_steps():
    def build(count, whole=False):
        x, targets, _ = leaves()
        steps = [StudentStep(None, {})] * count
        student = Student(x, targets, torch.tensor(0.05).double(), forward, cross_entropy, None, 4)
        if whole:
            theta = {n: p.clone().requires_grad_() for n, p in START.items()}
            return sum(judge(student.unroll(theta, steps), 10))
        rates = torch.full((count,), 0.05, dtype=torch.float64, requires_grad=True)
        return Unrolled(student, steps, rates, Inner("adam")).loss(START, judge)

    few, many = (held_at_most(lambda n=n: build(n).backward()) for n in (2, 16))
    assert many <= 1.01 * few
    assert held_at_most(lambda: build(16, whole=True).backward()) > 5 * many


def test_real_images_are_seen_some_at_a_time():
    def alone(chunk):
        return held_at_most(lambda: _judged(START, lambda theta: judge(theta, chunk), True))

    assert alone(10) > 3 * alone(1)
    few, all_at_once = leaves(), leaves()
    agree(
        derivatives(unrolled(*few).loss(START, lambda theta: judge(theta, 1)), few),
        derivatives(
            unrolled(*all_at_once).loss(START, lambda theta: judge(theta, 10)), all_at_once
        ),
    )


def test_norms_are_lengths_of_the_gradients():
    own = leaves()
    walk = unrolled(*own, "adam", "batches")
    found = walk.norms(START)
    assert found.shape == (5,) and not found.requires_grad
    slope = walk.student.gradient(START, walk.steps[0])
    expected = torch.cat([value.flatten() for value in slope.values()]).norm()
    assert float(found[0]) == pytest.approx(float(expected), rel=1e-12)


def test_nothing_is_differentiated_without_being_asked():
    own = [value.detach() for value in leaves()]
    value = unrolled(*own, "adam").loss(START, judge)
    assert not value.requires_grad
    assert float(value) == pytest.approx(float(plain(*own, "adam", "all").detach()), rel=1e-12)


@pytest.mark.parametrize(
    ("rates", "first"), [(torch.ones(4), 0), (torch.ones(5), 5), (torch.ones(5), -1)]
)
def test_impossible_walks_are_refused(rates, first):
    x, targets, _ = leaves()
    with pytest.raises(InputError, match=r"^rates have shape"):
        unrolled(x, targets, rates, first=first)


@pytest.mark.parametrize("given", [("lion", 0.0), ("sgd", 1.0)])
def test_unknown_optimisers_are_refused(given):
    with pytest.raises(InputError, match="; use "):
        Inner(*given)
