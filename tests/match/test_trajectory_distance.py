"""Constant-memory gradients of a student's arrival against the graph of its whole way."""

import gc

import pytest
import torch
from torch.func import functional_call

from potstill import nets
from potstill.data import DSA
from potstill.losses import cross_entropy, dam
from potstill.match import StudentStep, trajectory_distance
from potstill.match import rollout as rollout_module
from potstill.run import InputError

N, K = 6, 3  # images, classes


def stream(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=stream(seed), dtype=torch.float64)


class Scene:
    """A small student and where an expert went, in float64."""

    def __init__(self, size=8, name="convnet-d2-w8-in"):
        net = nets.create(name, channels=3, size=size, classes=K, generator=stream(1)).double()
        self.net = net
        self.start = {key: value.detach().clone() for key, value in net.named_parameters()}
        self.target = {
            key: value + 0.1 * normal(*value.shape, seed=7) for key, value in self.start.items()
        }
        self.x, self.size = normal(N, 3, size, size, seed=2), size
        self.targets = (2 * normal(N, K, seed=3)).softmax(1)

    def forward(self, parameters, x):
        return functional_call(self.net, dict(parameters), (x,))

    def backbone(self):
        return {key for key in self.start if not key.startswith("classifier.")}

    def inputs(self, rho=-1.5):
        leaves = [self.x.clone(), self.targets.clone(), torch.tensor(rho, dtype=torch.float64)]
        return [leaf.requires_grad_() for leaf in leaves]

    def derivatives(self, steps, rho=-1.5, **options):
        """Value and gradients in images, soft labels and log step size."""
        x, targets, log_lr = self.inputs(rho)
        value = trajectory_distance(
            x, targets, log_lr.exp(), forward=self.forward, start=self.start, target=self.target,
            steps=steps, **options,
        )  # fmt: skip
        return value.detach(), *torch.autograd.grad(value, (x, targets, log_lr))


@pytest.fixture
def scene():
    return Scene()


def whole(count):
    return [StudentStep(None, {}) for _ in range(count)]


def batches(sizes, seed=5):
    """Rows drawn with replacement, so that some repeat within a step."""
    draw = stream(seed)
    return [StudentStep(torch.randint(N, (size,), generator=draw), {}) for size in sizes]


def augmented(dsa, rows, size=8, siamese=False, seed=11):
    """One draw per step; all six families occur in six steps."""
    steps = []
    for i, step in enumerate(rows):
        one = DSA((dsa.ops[i % len(dsa.ops)],), align_corners=dsa.align_corners)
        draw = one.draw(step.count(N), (size, size), stream(seed + i), siamese)
        steps.append(StudentStep(step.rows, draw))
    return steps


def agree(ours, theirs, tolerance=1e-10):
    """Relative distance of whole tensors: biases before a norm have noise for gradients."""
    for a, b in zip(ours, theirs, strict=True):
        assert (a - b).norm() <= tolerance * b.norm(), (a - b).norm() / b.norm()


SIX = DSA.parse("color_crop_cutout_flip_scale_rotate")
CASES = {
    "soft labels": lambda s: {"steps": whole(5)},
    "class weights": lambda s: {"steps": whole(5), "loss": dam([50, 7, 1], tau=0.3)},
    "backbone": lambda s: {"steps": whole(5), "matched": s.backbone()},
    "classifier": lambda s: {"steps": whole(5), "matched": ["classifier.bias"]},
    "batches": lambda s: {"steps": batches([4, 4, 4, 1, 3])},
    "DSA": lambda s: {"steps": augmented(SIX, whole(6)), "dsa": SIX},
    "DSA of batches": lambda s: {
        "steps": augmented(SIX, batches([4, 4, 1, 4, 2, 3])),
        "dsa": DSA.parse(SIX.name, align_corners=True),
        "matched": s.backbone(),
        "loss": dam([50, 7, 1], weight_scale="sum1"),
    },
    "one draw": lambda s: {"steps": augmented(SIX, batches([4] * 6), siamese=True), "dsa": SIX},
}


@pytest.mark.parametrize("case", CASES)
def test_exact_equals_the_whole_graph(scene, case):
    options = CASES[case](scene)
    expected = scene.derivatives(gradient="unroll", **options)
    agree(scene.derivatives(**options), expected)
    assert all(value.norm() > 1e-6 for value in expected)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("gradient", ["exact", "tesla", "unroll"])
def test_chunks_and_kept_graphs_change_nothing(scene, case, gradient):
    options = CASES[case](scene) | {"gradient": gradient}
    expected = scene.derivatives(**options)
    agree(scene.derivatives(chunk=2, **options), expected)
    agree(scene.derivatives(keep_bytes=1 << 40, **options), expected)
    agree(scene.derivatives(chunk=4, keep_bytes=1_000_000, **options), expected)


def test_networks_of_other_sizes():
    for scene in (Scene(16), Scene(8, "mlp-w128"), Scene(8, "convnet-d1-w4-none-max")):
        expected = scene.derivatives(whole(3), gradient="unroll")
        agree(scene.derivatives(whole(3)), expected)


def tesla_written_out(scene, steps, matched, loss, rho=-1.5):
    """Zhou et al. and its port in LAD: one vector v, every θ_i a constant (TESLA sec. 3)."""
    x, targets, log_lr = scene.inputs(rho)
    lr = log_lr.exp().detach()
    theta = {k: v.clone().requires_grad_() for k, v in scene.start.items()}
    places, total = [], {k: torch.zeros_like(v) for k, v in theta.items()}
    for step in steps:
        places.append(theta)
        value = loss(scene.forward(theta, step.take(x)), step.take(targets)).mean()
        slopes = torch.autograd.grad(value, list(theta.values()))
        total = {k: total[k] + g for k, g in zip(theta, slopes, strict=True)}
        theta = {k: (scene.start[k] - lr * total[k]).requires_grad_() for k in theta}
    scale = sum(((scene.start[k] - scene.target[k]) ** 2).sum() for k in matched)
    gap = {k: theta[k].detach() - scene.target[k] for k in matched}
    v = {k: 2 / scale * gap[k] for k in matched}
    for step, place in zip(steps, places, strict=True):
        value = loss(scene.forward(place, step.take(x)), step.take(targets)).mean()
        slopes = torch.autograd.grad(value, [place[k] for k in matched], create_graph=True)
        s = -log_lr.exp() * sum((v[k] * g).sum() for k, g in zip(matched, slopes, strict=True))
        s.backward(inputs=[x, targets, log_lr])
    return sum((g**2).sum() for g in gap.values()) / scale, x.grad, targets.grad, log_lr.grad


@pytest.mark.parametrize("part", ["all", "backbone"])
@pytest.mark.parametrize("rows", [whole(5), batches([4, 4, 4, 1, 3])], ids=["whole", "batches"])
def test_tesla_is_the_published_recursion(scene, part, rows):
    matched = sorted(scene.backbone() if part == "backbone" else scene.start)
    loss = dam([50, 7, 1])
    ours = scene.derivatives(rows, matched=matched, loss=loss, gradient="tesla")
    agree(ours, tesla_written_out(scene, rows, matched, loss))


def test_tesla_is_exact_for_one_step_only(scene):
    agree(scene.derivatives(whole(1), gradient="tesla"), scene.derivatives(whole(1)))
    tesla, exact = (scene.derivatives(whole(5), gradient=g) for g in ("tesla", "exact"))
    assert torch.equal(tesla[0], exact[0])
    for a, b in zip(tesla[1:], exact[1:], strict=True):
        assert (a - b).norm() > 0.01 * b.norm()


def test_value_is_the_distance_by_hand(scene):
    steps, loss = whole(2), cross_entropy
    theta = {k: v.clone().requires_grad_() for k, v in scene.start.items()}
    for _ in steps:
        mean = loss(scene.forward(theta, scene.x), scene.targets).mean()
        slopes = torch.autograd.grad(mean, list(theta.values()))
        theta = {
            k: (v - 0.2 * g).detach().requires_grad_()
            for (k, v), g in zip(theta.items(), slopes, strict=True)
        }
    flat = [torch.cat([p[k].flatten() for k in scene.start]) for p in (theta, scene.start)]
    goal = torch.cat([scene.target[k].flatten() for k in scene.start])
    expected = (flat[0] - goal).square().sum() / (flat[1] - goal).square().sum()
    with torch.no_grad():
        value = trajectory_distance(
            *scene.inputs()[:2], torch.tensor(0.2).double(), forward=scene.forward,
            start=scene.start, target=scene.target, steps=steps,
        )  # fmt: skip
    torch.testing.assert_close(value, expected.detach())
    assert not value.requires_grad


@pytest.mark.parametrize("gradient", ["exact", "tesla", "unroll"])
@pytest.mark.parametrize("only", [0, 1, 2])
def test_each_input_alone(scene, gradient, only):
    inputs = [scene.x, scene.targets, torch.tensor(0.2).double()]
    inputs[only] = inputs[only].clone().requires_grad_()
    options = {"forward": scene.forward, "start": scene.start, "target": scene.target}
    value = trajectory_distance(*inputs, steps=whole(3), gradient=gradient, **options)
    (slope,) = torch.autograd.grad(value, inputs[only])
    all_of_them = [value.detach().clone().requires_grad_() for value in inputs]
    value = trajectory_distance(*all_of_them, steps=whole(3), gradient=gradient, **options)
    torch.testing.assert_close(slope, torch.autograd.grad(value, all_of_them)[only])


@pytest.mark.parametrize("gradient", ["exact", "tesla"])
def test_backward_scales_and_adds(scene, gradient):
    _, dx, *_ = scene.derivatives(whole(2), gradient=gradient)
    x, targets, log_lr = scene.inputs()
    for weight in (2.0, 3.0):
        value = trajectory_distance(
            x, targets.detach(), log_lr.exp().detach(), forward=scene.forward, start=scene.start,
            target=scene.target, steps=whole(2), gradient=gradient,
        )  # fmt: skip
        (weight * value).backward()
    torch.testing.assert_close(x.grad, 5 * dx)


@pytest.mark.parametrize("gradient", ["exact", "tesla", "unroll"])
def test_arguments_are_left_as_they_are(scene, gradient):
    before = {k: v.clone() for k, v in scene.start.items()}
    scene.derivatives(whole(2), gradient=gradient, keep_bytes=1 << 20)
    for parameters in (scene.start, scene.target):
        assert not any(
            value.requires_grad or value.grad is not None for value in parameters.values()
        )
    assert all(torch.equal(before[k], v) for k, v in scene.start.items())
    assert all(p.requires_grad and p.grad is None for p in scene.net.parameters())


def held_at_most(scene, **options):
    """Bytes of graphs alive at the worst moment of a whole derivative."""
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
        scene.derivatives(**options)
    gc.collect()
    return worst[0]


def test_memory_is_that_of_one_step(scene):
    few, many = (held_at_most(scene, steps=whole(n)) for n in (2, 12))
    assert many <= 1.01 * few
    unrolled = held_at_most(scene, steps=whole(12), gradient="unroll")
    assert unrolled > 5 * many
    part = held_at_most(scene, steps=whole(12), chunk=2)
    assert part < 0.6 * many


def test_kept_graphs_stay_within_their_bytes(scene, monkeypatch):
    one = held_at_most(scene, steps=whole(6))
    several = held_at_most(scene, steps=whole(6), keep_bytes=3 * one)
    assert 2 * one < several < 4.1 * one

    built = []
    link = rollout_module.Student.link
    monkeypatch.setattr(
        rollout_module.Student, "link", lambda self, *a: built.append(1) or link(self, *a)
    )
    for keep, count in ((0, 6), (1 << 40, 1 + 6)):  # one is measured
        built.clear()
        scene.derivatives(whole(6), keep_bytes=keep)
        assert len(built) == count


BAD = {
    "gradient is 'exakt'; did you mean 'exact'": {"gradient": "exakt"},
    "chunk is 0": {"chunk": 0},
    "keep_bytes is -1": {"keep_bytes": -1},
    "steps are empty": {"steps": []},
    "see no image": {"steps": [StudentStep(torch.zeros(0, dtype=torch.long), {})]},
    "dsa is None": {"steps": [StudentStep(None, {"flip": torch.ones(1)})]},
    r"matched names \['head'\]": {"matched": ["head", "classifier.bias"]},
    "matched names nothing": {"matched": []},
    "target holds no 'body.0.weight'": {"target": {}},
    "target equals start": {"target": "start"},
    r"lr has shape \(1,\)": {"lr": torch.ones(1).double()},
    "targets have 2 rows": {"targets": torch.ones(2, K).double()},
}


@pytest.mark.parametrize("words", BAD)
def test_bad_arguments(scene, words):
    options = {"x": scene.x, "targets": scene.targets, "lr": torch.tensor(0.1).double()}
    options |= {"forward": scene.forward, "start": scene.start, "target": scene.target}
    options |= {"steps": whole(1)} | BAD[words]
    if options["target"] == "start":
        options["target"] = scene.start
    with pytest.raises(InputError, match=words):
        trajectory_distance(**options)


def test_one_vanishing_part_is_enough_to_refuse(scene):
    target = scene.target | {k: scene.start[k] for k in scene.backbone()}
    lr = torch.tensor(0.1).double()
    options = {"forward": scene.forward, "start": scene.start, "steps": whole(1)}
    with pytest.raises(InputError, match="target equals start in all matched"):
        trajectory_distance(
            scene.x, scene.targets, lr, target=target, matched=scene.backbone(), **options
        )
    trajectory_distance(scene.x, scene.targets, lr, target=target, **options)


def test_target_may_hold_the_matched_names_only(scene):
    target = {k: v for k, v in scene.target.items() if k in scene.backbone()}
    lr = torch.tensor(0.1).double()
    options = {"forward": scene.forward, "start": scene.start, "matched": scene.backbone()}
    options |= {"steps": whole(2)}
    a, b = (
        trajectory_distance(scene.x, scene.targets, lr, target=t, **options)
        for t in (target, scene.target)
    )
    assert torch.equal(a, b)
