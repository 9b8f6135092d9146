"""The two sides of ``trajectory.py``: the library's gradients, and loops in plain torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from potstill import nets
from potstill.data import DSA
from potstill.losses import Loss, cross_entropy, dam
from potstill.match import StudentStep, classifier_distance, trajectory_distance
from potstill.nets.layers import AveragePool

IMAGES, CLASSES, LR = 100, 10, 0.01
DSA_ = DSA.parse("color_crop_cutout_flip_scale_rotate", align_corners=True)
COUNTS = [5000, 2775, 1540, 854, 474, 263, 146, 81, 45, 25]  # CIFAR-10-LT, factor 200
Params = Mapping[str, Tensor]
Work = Callable[[], Tensor]


def stream(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def classifier(name: str) -> bool:
    return name.startswith("classifier.")


class Scene:
    """Synthetic images, an expert's way and the students' steps."""

    def __init__(self, width: int, steps: int, device: str, plain_pool: bool = False) -> None:
        name = f"convnet-d3-w{width}-in"
        net = nets.create(name, channels=3, size=32, classes=CLASSES, generator=stream(0))
        if plain_pool:
            for place, layer in enumerate(net.body):
                if isinstance(layer, AveragePool):
                    net.body[place] = nn.AvgPool2d(2)
        self.net = net.to(device)
        draw = stream(1)
        self.start = {key: value.detach().clone() for key, value in net.named_parameters()}
        self.target = {
            key: value + 0.004 * torch.randn(value.shape, generator=draw).to(device)
            for key, value in self.start.items()
        }
        self.x = torch.randn(IMAGES, 3, 32, 32, generator=draw).to(device).requires_grad_()
        logits = 2 * torch.randn(IMAGES, CLASSES, generator=draw)
        self.targets = logits.softmax(1).to(device).requires_grad_()
        self.lr = torch.tensor(LR, device=device, requires_grad=True)
        self.steps = [
            StudentStep(None, DSA_.draw(IMAGES, (32, 32), stream(i), siamese=False, device=device))
            for i in range(2 * steps)
        ]
        self.backbone = {key: v for key, v in self.start.items() if not classifier(key)}

    def forward(self, parameters: Params, x: Tensor) -> Tensor:
        return functional_call(self.net, dict(parameters), (x,))

    def features(self, x: Tensor) -> Tensor:
        parts = {key.removeprefix("body."): value for key, value in self.backbone.items()}
        return functional_call(self.net.body, parts, (x,)).flatten(1)

    def leaves(self) -> tuple[Tensor, Tensor, Tensor]:
        for leaf in (self.x, self.targets, self.lr):
            leaf.grad = None
        return self.x, self.targets, self.lr


@dataclass
class Ours:
    """Both phases as the library computes them."""

    scene: Scene
    gradient: str
    keep_bytes: int = 0

    def __call__(self) -> Tensor:
        s = self.scene
        leaves, half = s.leaves(), len(s.steps) // 2
        trajectory_distance(
            *leaves, forward=s.forward, start=s.start, target=s.target, steps=s.steps[:half],
            loss=dam(COUNTS), dsa=DSA_, matched=set(s.backbone), gradient=self.gradient,
            keep_bytes=self.keep_bytes,
        ).backward()  # fmt: skip
        classifier_distance(
            *leaves, features=s.features, start=s.start, target=s.target, steps=s.steps[half:],
            dsa=DSA_, gradient=self.gradient, keep_bytes=self.keep_bytes,
        ).backward()  # fmt: skip
        return s.x.grad


@dataclass
class PlainTesla:
    """TESLA's two passes in plain torch (TESLA sec. 3): one vector, every place a constant."""

    scene: Scene
    graph: bool = False  # whether the first pass builds a graph, only to throw it away

    def __call__(self) -> Tensor:
        self.scene.leaves()
        self.phase(self.scene.steps, cross_entropy, lambda name: True)
        return self.scene.x.grad

    def phase(
        self,
        steps: list[StudentStep],
        loss: Loss,
        matched: Callable[[str], bool],
        frozen: bool = False,
    ) -> None:
        s = self.scene
        names = [name for name in s.start if matched(name)]
        theta, passed = {name: v.clone().requires_grad_() for name, v in s.start.items()}, []
        total = {name: torch.zeros_like(value) for name, value in theta.items()}
        for step in steps:
            passed.append(theta)
            slopes = self.slopes(theta, step, loss, self.graph)
            for (name, so_far), slope in zip(total.items(), slopes, strict=True):
                so_far += slope.detach() * float(not frozen or classifier(name))
            theta = {
                name: (value - s.lr.detach() * total[name]).requires_grad_()
                for name, value in s.start.items()
            }
        scale = sum((s.start[name] - s.target[name]).square().sum() for name in names)
        v = {name: 2 / scale * (theta[name].detach() - s.target[name]) for name in names}
        for step, there in zip(steps, passed, strict=True):
            slopes = dict(zip(there, self.slopes(there, step, loss, graph=True), strict=True))
            pull = sum((v[name] * slopes[name]).sum() for name in names)
            (-s.lr * pull).backward(inputs=[s.x, s.targets, s.lr])

    def slopes(
        self, theta: Params, step: StudentStep, loss: Loss, graph: bool
    ) -> tuple[Tensor, ...]:
        s = self.scene
        logits = s.forward(theta, DSA_.apply(s.x, step.augment))
        mean = loss(logits, s.targets).mean()
        return torch.autograd.grad(mean, list(theta.values()), create_graph=graph)


class PublishedLAD(PlainTesla):
    """Both phases as LAD's released loop orders them (paper sec. 4)."""

    def __call__(self) -> Tensor:
        s = self.scene
        s.leaves()
        half = len(s.steps) // 2
        self.phase(s.steps[:half], dam(COUNTS), lambda name: not classifier(name))
        self.phase(s.steps[half:], cross_entropy, classifier, frozen=True)
        return s.x.grad


@dataclass
class OnePhase:
    """The distance of all parameters with the library's gradients."""

    scene: Scene
    gradient: str

    def __call__(self) -> Tensor:
        s = self.scene
        trajectory_distance(
            *s.leaves(), forward=s.forward, start=s.start, target=s.target, steps=s.steps,
            dsa=DSA_, gradient=self.gradient,
        ).backward()  # fmt: skip
        return s.x.grad
