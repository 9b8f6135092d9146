"""Building blocks shared by all networks, and the shell around each of them.

Convolutions, ReLU and max pooling are torch's. Two choices are ours, both measured by
``benchmarks/machine.py``: "instance norm" is ``GroupNorm`` with one group per channel (what the
published code uses, and forward and backward together the faster of torch's two), and average
pooling on a CPU is written out, because torch's NCHW kernel is scalar.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from copy import deepcopy
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from potstill.nets.training import rgb
from potstill.run.machine import CPU_CHUNK
from potstill.run.memory import Portion

if TYPE_CHECKING:
    from potstill.data.transform import Transform

__all__ = [
    "ACTIVATIONS",
    "AveragePool",
    "Centred",
    "GlobalAverage",
    "Network",
    "average_pool",
    "initialise",
    "initialise_normal",
    "norm",
    "pool",
    "predict",
]


class _Halve(torch.autograd.Function):
    """2x2 means of the last two axes; linear, and the adjoint of :class:`_Spread`."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        height, width = x.shape[-2] // 2 * 2, x.shape[-1] // 2 * 2
        rows = x[..., 0:height:2, :width] + x[..., 1:height:2, :width]
        return (rows[..., 0::2] + rows[..., 1::2]).mul_(0.25)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.size = inputs[0].shape[-2:]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _Spread.apply(gradient, *ctx.size)

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:
        return _Halve.apply(tangent)


class _Spread(torch.autograd.Function):
    """Give a quarter of each value to its 2x2 block; a cut-off odd row or column gets zero."""

    generate_vmap_rule = True

    @staticmethod
    def forward(y: Tensor, height: int, width: int) -> Tensor:
        # A complex number of equal parts is a row's pair in one write of a kernel that vectorises;
        # whole rows are then copied: a sixth of the time of torch's backward.
        y = y * 0.25
        rows = torch.view_as_real(torch.complex(y, y)).flatten(-2)
        full = torch.stack((rows, rows), -2).flatten(-3, -2)
        cut_off = (0, width - full.shape[-1], 0, height - full.shape[-2])
        return F.pad(full, cut_off) if any(cut_off) else full  # an empty pad would be a copy

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, int, int], output: Tensor) -> None:
        ctx.size = inputs[1:]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return _Halve.apply(gradient), None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: None) -> Tensor:
        return _Spread.apply(tangent, *ctx.size)


def average_pool(x: Tensor) -> Tensor:
    """Average 2x2 blocks of ``x`` (..., h, w) -> (..., h // 2, w // 2), as ``F.avg_pool2d(x, 2)``.

    Differentiable any number of times, and under ``torch.func`` transforms.
    """
    ours = x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64)
    if not ours or torch.compiler.is_compiling():
        return F.avg_pool2d(x, 2)
    return _Halve.apply(x)


class AveragePool(nn.Module):
    """:func:`average_pool` as a layer."""

    def forward(self, x: Tensor) -> Tensor:
        """Return (b, c, h // 2, w // 2)."""
        return average_pool(x)


class GlobalAverage(nn.Module):
    """Mean over all pixels, so that a network takes images of any size."""

    def forward(self, x: Tensor) -> Tensor:
        """Return (b, c)."""
        return x.mean((-2, -1))


ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": lambda: nn.ReLU(inplace=True),
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "leaky": lambda: nn.LeakyReLU(0.01),
    "sigmoid": nn.Sigmoid,
}


def pool(kind: str) -> nn.Module:
    """Return the layer that halves a map, ``"avg"`` or ``"max"``, or leaves it: ``"nopool"``."""
    if kind == "nopool":
        return nn.Identity()
    return AveragePool() if kind == "avg" else nn.MaxPool2d(2)


def norm(kind: str, channels: int) -> nn.Module:
    """Return the normalisation layer ``kind``, all with a learnt scale and shift per channel.

    ``"in"``: each channel of each image (GroupNorm with one group per channel); ``"bn"``: batch
    norm; ``"ln"``: all channels of an image; ``"gn"``: four groups (fewer if four does not divide
    ``channels``); ``"none"``: identity.
    """
    if kind == "bn":
        return nn.BatchNorm2d(channels)
    if kind == "none":
        return nn.Identity()
    groups = {"in": channels, "ln": 1, "gn": math.gcd(4, channels)}[kind]
    return nn.GroupNorm(groups, channels)


class Network(nn.Module):
    """A body that turns images into features, and a linear classifier on them.

    Attributes:
        body: images (b, c, h, w), normalised, to anything that flattens to (b, feature_dim).
        classifier: the last linear layer.
        feature_dim: its number of inputs.
    """

    def __init__(self, body: nn.Module, feature_dim: int, classes: int) -> None:
        super().__init__()
        self.body = body
        self.classifier = nn.Linear(feature_dim, classes)
        self.feature_dim = feature_dim

    def features(self, x: Tensor) -> Tensor:
        """Return what the classifier sees, (b, feature_dim)."""
        return self.body(x).flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits, (b, classes)."""
        return self.classifier(self.features(x))

    def channels_last_(self) -> None:
        """Bring the weights into the memory layout in which convolutions of a GPU are fastest."""
        layout: dict[str, Any] = {"memory_format": torch.channels_last}  # older torch: not typed
        self.to(**layout)


class Centred(Network):
    """A network less what it was when this was made, so that it begins at 0 (RFAD)."""

    def __init__(self, network: Network) -> None:
        nn.Module.__init__(self)  # its parts are there, so nothing is drawn
        self.body, self.classifier = network.body, network.classifier
        self.feature_dim = network.feature_dim
        self.before = deepcopy(network).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits, (b, classes)."""
        return super().forward(x) - self.before(x)


@torch.no_grad()
def predict(
    network: Network,
    images: Tensor,
    transform: Transform,
    *,
    device: torch.device | str = "cpu",
    chunk: int | None = None,
    fits: Portion | None = None,
    features: bool = False,
) -> Tensor:
    """Return the logits (n, K) of ``images`` (n, c, h, w), uint8 or float RGB 0-1, on ``device``.

    Or their ``features`` (n, d).
    In evaluation mode and in chunks (64 images on a CPU, 1024 on a GPU, fewer where memory does not
    suffice: ``fits`` remembers how many from call to call); the mode is put back.
    """
    chunk = chunk or (CPU_CHUNK if torch.device(device).type == "cpu" else 1024)
    mode = network.training
    network.to(device).eval()
    dtype, fits = network.classifier.weight.dtype, fits or Portion("images", "a network's pass")

    def seen(part: Tensor) -> Tensor:
        x = transform.forward(rgb(part.to(device))).to(dtype)
        return network.features(x) if features else network(x)

    try:
        return torch.cat([fits.over(seen, part) for part in images.split(chunk)])
    finally:
        network.train(mode)


@torch.no_grad()
def initialise(network: nn.Module, generator: torch.Generator) -> None:
    """Draw all parameters anew, in place, from torch's default distributions.

    Weights and biases of convolutions and linear layers are uniform on ±1/√fan_in (which is what
    Kaiming's rule with a = √5 comes to); scales are 1, shifts 0, running statistics fresh. Values
    are drawn on the CPU generator in module order, so they do not depend on the network's device.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            bound = module.weight[0].numel() ** -0.5
            for value in filter(torch.is_tensor, (module.weight, module.bias)):
                value.copy_(torch.empty(value.shape).uniform_(-bound, bound, generator=generator))
        elif isinstance(module, nn.GroupNorm | nn.BatchNorm2d):
            module.reset_parameters()


@torch.no_grad()
def initialise_normal(
    network: nn.Module,
    generator: torch.Generator,
    *,
    weight_variance: float = 2.0,
    bias_variance: float = 0.01,
) -> None:
    """Draw all parameters anew, in place, as wide networks with a kernel in closed form have them.

    Weights of convolutions and linear layers are normal with variance ``weight_variance`` over
    fan_in and biases with ``bias_variance`` (the "ntk" parameterisation at its start, see
    :class:`potstill.match.ntk.WideNetwork`); the rest is as in :func:`initialise`.
    """
    initialise(network, generator)
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            variance = weight_variance / module.weight[0].numel()
            for value, own in (module.weight, variance), (module.bias, bias_variance):
                if value is not None:
                    drawn = torch.empty(value.shape).normal_(0, own**0.5, generator=generator)
                    value.copy_(drawn)
