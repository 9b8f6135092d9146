"""The closed form for a frozen backbone against the rollout through the whole network."""

import pytest
import torch
from torch.func import functional_call

from potstill import nets
from potstill.data import DSA
from potstill.losses import cross_entropy, dam
from potstill.match import StudentStep, classifier_distance, trajectory_distance
from potstill.run import InputError

N, K = 6, 3  # images, classes
NAMES = ("classifier.weight", "classifier.bias")
SIX = DSA.parse("color_crop_cutout_flip_scale_rotate", align_corners=True)


def stream(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=stream(seed), dtype=torch.float64)


class Scene:
    """A small network with a frozen backbone, counting what goes through it."""

    def __init__(self):
        net = nets.create("convnet-d2-w8-in", channels=3, size=8, classes=K, generator=stream(1))
        self.net, self.batches = net.double(), []
        self.start = {key: value.detach().clone() for key, value in net.named_parameters()}
        self.target = {
            key: value + 0.1 * normal(*value.shape, seed=7) if key in NAMES else value
            for key, value in self.start.items()
        }
        self.x, self.targets = normal(N, 3, 8, 8, seed=2), normal(N, K, seed=3).softmax(1)

    def features(self, x):
        self.batches.append(len(x))
        return self.net.features(x)

    def inputs(self):
        leaves = [self.x.clone(), self.targets.clone(), torch.tensor(-0.5).double()]
        return [leaf.requires_grad_() for leaf in leaves]

    def derivatives(self, steps, **options):
        self.batches.clear()
        x, targets, log_lr = self.inputs()
        value = classifier_distance(
            x, targets, log_lr.exp(), features=self.features, start=self.start, target=self.target,
            steps=steps, **options,
        )  # fmt: skip
        return value.detach(), *torch.autograd.grad(value, (x, targets, log_lr))

    def naive(self, steps, loss=cross_entropy, dsa=None, tesla=False):
        """Every step through the whole network; the backbone's gradients are set to zero."""
        x, targets, log_lr = self.inputs()
        theta = {key: value.clone().requires_grad_() for key, value in self.start.items()}
        for step in steps:
            here = {k: v.detach().requires_grad_() for k, v in theta.items()} if tesla else theta
            images = x if step.rows is None else x[step.rows]
            labels = targets if step.rows is None else targets[step.rows]
            images = dsa.apply(images, step.augment) if step.augment else images
            mean = loss(functional_call(self.net, here, (images,)), labels).mean()
            slopes = torch.autograd.grad(mean, list(here.values()), create_graph=True)
            moved = zip(theta.items(), slopes, strict=True)
            theta = {k: v - log_lr.exp() * g * float(k in NAMES) for (k, v), g in moved}
        gap = sum(((theta[k] - self.target[k]) ** 2).sum() for k in self.start)
        scale = sum(((self.start[k] - self.target[k]) ** 2).sum() for k in self.start)
        value = gap / scale
        return value.detach(), *torch.autograd.grad(value, (x, targets, log_lr))


@pytest.fixture
def scene():
    return Scene()


def whole(count):
    return [StudentStep(None, {}) for _ in range(count)]


def batches(sizes):
    draw = stream(5)
    return [StudentStep(torch.randint(N, (size,), generator=draw), {}) for size in sizes]


def augmented(rows, siamese=False):
    """One draw per step; all six families occur in six steps."""
    steps = []
    for i, step in enumerate(rows):
        one = DSA((SIX.ops[i % 6],), align_corners=True)
        draw = one.draw(step.count(N), (8, 8), stream(11 + i), siamese)
        steps.append(StudentStep(step.rows, draw))
    return steps


def agree(ours, theirs, tolerance=1e-10):
    for a, b in zip(ours, theirs, strict=True):
        assert (a - b).norm() <= tolerance * b.norm(), (a - b).norm() / b.norm()


CASES = {
    "whole": {"steps": whole(5)},
    "class weights": {"steps": whole(4), "loss": dam([50, 7, 1], tau=0.3)},
    "batches": {"steps": batches([4, 4, 4, 1, 3])},
    "few": {"steps": batches([2, 3])},
    "DSA": {"steps": augmented(whole(6)), "dsa": SIX},
    "DSA of batches": {"steps": augmented(batches([4, 1, 4, 4, 2, 3])), "dsa": SIX},
    "one draw": {"steps": augmented(batches([4] * 6), siamese=True), "dsa": SIX},
    "now and then": {
        "steps": [*augmented(batches([4, 2])), *whole(2), *augmented(whole(3)), *batches([3])],
        "dsa": SIX,
    },
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("gradient", ["exact", "tesla"])
def test_it_is_the_rollout_through_the_network(scene, case, gradient):
    expected = scene.naive(**CASES[case], tesla=gradient == "tesla")
    assert all(value.norm() > 1e-6 for value in expected)
    agree(scene.derivatives(**CASES[case], gradient=gradient), expected)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("gradient", ["exact", "tesla"])
def test_it_is_the_trajectory_distance_of_the_classifier(scene, case, gradient):
    x, targets, log_lr = scene.inputs()
    backbone = {k: v for k, v in scene.start.items() if k not in NAMES}
    value = trajectory_distance(
        x, targets, log_lr.exp(), start={k: scene.start[k] for k in NAMES}, target=scene.target,
        forward=lambda theta, x: functional_call(scene.net, backbone | dict(theta), (x,)),
        gradient=gradient, **CASES[case],
    )  # fmt: skip
    expected = value.detach(), *torch.autograd.grad(value, (x, targets, log_lr))
    agree(scene.derivatives(**CASES[case], gradient=gradient), expected)


@pytest.mark.parametrize("case", CASES)
def test_chunks_and_kept_graphs_change_nothing(scene, case):
    expected = scene.derivatives(**CASES[case])
    for chunk in (1, 4, 5, 1000):
        for keep_bytes in (0, 200_000, 1 << 40):
            options = {"chunk": chunk, "keep_bytes": keep_bytes}
            agree(scene.derivatives(**CASES[case], **options), expected)
            assert max(scene.batches) <= chunk
    agree(scene.derivatives(**CASES[case], gradient="unroll"), expected)


def test_tesla_is_exact_for_one_step_only(scene):
    agree(scene.derivatives(whole(1), gradient="tesla"), scene.derivatives(whole(1)))
    tesla, exact = (scene.derivatives(whole(5), gradient=g) for g in ("tesla", "exact"))
    torch.testing.assert_close(tesla[0], exact[0])
    for a, b in zip(tesla[1:], exact[1:], strict=True):
        assert (a - b).norm() > 1e-3 * b.norm()


def test_what_goes_through_the_backbone(scene):
    scene.derivatives(whole(5))  # once there and, recomputed, back
    assert scene.batches == [N, N]
    scene.derivatives(whole(5), keep_bytes=1 << 40)
    assert scene.batches == [N]
    scene.derivatives(batches([2, 3]), chunk=5, keep_bytes=1 << 40)  # fewer than all images
    assert scene.batches == [5]
    scene.derivatives(augmented(whole(3)), dsa=SIX, chunk=2 * N, keep_bytes=1 << 40)
    assert scene.batches == [2 * N, N]


def test_kept_graphs_stay_within_their_bytes(scene):
    """The first passes stay, as many as fit."""
    steps = augmented(whole(6))
    recomputed = []
    for keep_bytes in (0, 1, 20_000, 60_000, 120_000, 1 << 30):
        scene.derivatives(steps, dsa=SIX, chunk=N, keep_bytes=keep_bytes)
        recomputed.append(len(scene.batches) - 6)
    assert recomputed == sorted(recomputed, reverse=True)
    assert recomputed[:2] == [6, 6] and recomputed[-1] == 0 and len(set(recomputed)) > 2


def test_without_gradients(scene):
    x, targets, log_lr = scene.inputs()
    lr = log_lr.exp()
    options = {"features": scene.features, "start": scene.start, "target": scene.target}
    options |= {"steps": whole(4)}
    with torch.no_grad():
        value = classifier_distance(x, targets, lr, **options)
    assert not value.requires_grad and len(scene.batches) == 1
    torch.testing.assert_close(value, scene.derivatives(whole(4))[0])
    value = classifier_distance(scene.x, targets, lr.detach(), **options)
    expected = scene.derivatives(whole(4))[2]
    torch.testing.assert_close(torch.autograd.grad(value, targets)[0], expected)


def test_arguments_are_left_as_they_are(scene):
    scene.derivatives(whole(2), keep_bytes=1 << 30)
    for parameters in (scene.start, scene.target):
        assert not any(v.requires_grad or v.grad is not None for v in parameters.values())
    assert all(p.requires_grad and p.grad is None for p in scene.net.parameters())


BAD = {
    "gradient is 'teslar'; did you mean 'tesla'": {"gradient": "teslar"},
    "chunk is -1": {"chunk": -1},
    "keep_bytes is -1": {"keep_bytes": -1},
    "steps are empty": {"steps": []},
    "start holds no 'classifier.bias'": {"start": {"classifier.weight": torch.ones(K, 32)}},
    "target equals start": {"target": None},
}


@pytest.mark.parametrize("words", BAD)
def test_bad_arguments(scene, words):
    options = {"x": scene.x, "targets": scene.targets, "lr": torch.tensor(0.1).double()}
    options |= {"features": scene.features, "start": scene.start, "target": scene.target}
    options |= {"steps": whole(1)} | BAD[words]
    options["target"] = options["target"] or scene.start
    with pytest.raises(InputError, match=words):
        classifier_distance(**options)
