"""One step of gradient matching against DC's released loop written plainly.

CIFAR-10 sizes: 10 classes, 256 real images of each, IPC 1 and 10, ConvNet-D3 of width 32 and 128.
A step takes the distances of all classes, their gradient in the pixels and a step of SGD on them.
Images are random numbers, on which time does not depend.

The plain side is the released loop: real batches whole, gradients of all parameters (biases, too,
which the distance then ignores), a second-order graph per class, all of which live until the one
backward pass of their sum, ``nn.AvgPool2d``. Each line states the cosine of both pixel gradients.

    python benchmarks/gradient.py [--device cpu] [--threads 1] [--real 256] [--repeats 5]
                                  [--widths 32 128] [--ipc 1 10]
"""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F
from pairs import measure
from torch import Tensor, nn
from torch.func import functional_call

from potstill import nets
from potstill.match.gradients import GradientMatching
from potstill.nets.layers import AveragePool
from potstill.run.machine import tune_allocator

CLASSES = 10


def stream(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Scene:
    """One network, the real images of each class, and pixels that are learnt."""

    def __init__(self, width: int, ipc: int, real: int, device: str) -> None:
        name = f"convnet-d3-w{width}-in"
        net = nets.create(name, channels=3, size=32, classes=CLASSES, generator=stream(0))
        self.net, self.ipc = net.to(device), ipc
        self.real = torch.randn(CLASSES, real, 3, 32, 32, generator=stream(1)).to(device)
        pixels = torch.randn(CLASSES * ipc, 3, 32, 32, generator=stream(2))
        self.pixels = pixels.to(device).requires_grad_()
        self.optimizer = torch.optim.SGD([self.pixels], 0.1, 0.5)

    def sides(self, images: Tensor) -> list[tuple[Tensor, Tensor]]:
        per_class = images.view(CLASSES, -1, *images.shape[-3:])
        labels = torch.arange(CLASSES, device=images.device)
        return [(x, y.expand(len(x))) for x, y in zip(per_class, labels.unbind(), strict=True)]


class Ours(Scene):
    """The library's step."""

    def features(self, parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        body = {name[5:]: v for name, v in parameters.items() if name.startswith("body.")}
        return functional_call(self.net.body, body, (x,)).flatten(1)

    def __call__(self) -> None:
        self.optimizer.zero_grad()
        matching = GradientMatching(features=self.features)
        synthetic = self.sides(self.pixels)
        parameters = dict(self.net.named_parameters())
        for distance in matching.distances(parameters, self.sides(self.real), synthetic):
            distance.backward()
        self.optimizer.step()


class Released(Scene):
    """The released loop's arithmetic."""

    def __init__(self, width: int, ipc: int, real: int, device: str) -> None:
        super().__init__(width, ipc, real, device)
        for place, layer in enumerate(self.net.body):
            if isinstance(layer, AveragePool):
                self.net.body[place] = nn.AvgPool2d(2)

    def __call__(self) -> None:
        parameters = list(self.net.parameters())
        total = torch.zeros((), device=self.pixels.device)
        for (x, y), (s, t) in zip(self.sides(self.real), self.sides(self.pixels), strict=True):
            loss = F.cross_entropy(self.net(x), y)
            a = [g.detach().clone() for g in torch.autograd.grad(loss, parameters)]
            loss = F.cross_entropy(self.net(s), t)
            b = torch.autograd.grad(loss, parameters, create_graph=True)
            total = total + sum(map(self.layer, a, b))
        self.optimizer.zero_grad()
        total.backward()
        self.optimizer.step()

    def layer(self, a: Tensor, b: Tensor) -> Tensor:
        if a.ndim == 1:
            return torch.zeros((), device=a.device)
        a, b = a.flatten(1), b.flatten(1)
        return (1 - (a * b).sum(-1) / (a.norm(dim=-1) * b.norm(dim=-1) + 0.000001)).sum()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--real", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--widths", type=int, nargs="+", default=[32, 128])
    parser.add_argument("--ipc", type=int, nargs="+", default=[1, 10])
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    tune_allocator()
    for width in options.widths:
        for ipc in options.ipc:
            size = (width, ipc, options.real, options.device)
            ours, plain = Ours(*size), Released(*size)
            ours(), plain()
            slopes = (ours.pixels.grad.flatten(), plain.pixels.grad.flatten())
            measure(
                "DC step: gradients of all classes matched, against the released loop",
                ours,
                plain,
                repeats=options.repeats,
                device=options.device,
                cosine_of_pixel_gradients=round(float(F.cosine_similarity(*slopes, dim=0)), 6),
                width=width,
                ipc=ipc,
                real_per_class=options.real,
            )


if __name__ == "__main__":
    main()
