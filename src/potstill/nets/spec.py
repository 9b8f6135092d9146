"""Names of networks, the one place where they are read, and the way from a name to a network."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import log2
from typing import TYPE_CHECKING

import torch
from torch import nn

from potstill.nets.alexnet import alexnet, lenet
from potstill.nets.convnet import convnet
from potstill.nets.layers import ACTIVATIONS, Network, initialise
from potstill.nets.mlp import mlp
from potstill.nets.own import STUDENT, build, known
from potstill.nets.resnet import resnet, wide_resnet
from potstill.nets.vgg import vgg11
from potstill.run import InputError, nearest

if TYPE_CHECKING:
    from potstill.data import ImageSet

__all__ = ["NAMES", "RESIDUAL", "NetSpec", "create", "create_for", "parse"]

NAMES = (
    "convnet", "convnet-d3-w128-in", "resnet18-in", "resnet18-bn", "resnet10-w32-bn",
    "wrn16-w32-bn", "vgg11-in", "vgg11-bn", "alexnet", "mlp-w128", "lenet",
)  # fmt: skip
_DEPTH, _WIDTH = r"(?:-d(?P<depth>[1-9]\d?))?", r"(?:-w(?P<width>[1-9]\d{0,4}))?"
_NORM = r"(?:-(?P<norm>in|bn|ln|gn|none))?"
_ACT = rf"(?:-(?P<act>{'|'.join(ACTIVATIONS)}))?"
_POOL = r"(?:-(?P<pool>avg|max|nopool))?"
_PARTS = {
    "convnet": _DEPTH + _WIDTH + _NORM + _ACT + _POOL,
    "resnet18": _NORM,
    "resnet10": _WIDTH + _NORM,
    "wrn16": _WIDTH + _NORM,
    "vgg11": _NORM,
    "alexnet": "",
    "mlp": _WIDTH,
    "lenet": "",
}
_WIDTHS = {"convnet": "128", "mlp": "128", "resnet10": "32", "wrn16": "32"}
RESIDUAL = ("resnet18", "resnet10", "wrn16")


@dataclass(frozen=True)
class NetSpec:
    """A network without its image size and classes; ``parse(str(spec)) == spec``."""

    family: str
    depth: int | None = None  # blocks of a convnet; None = chosen from the image size
    width: int | None = None  # channels of a convnet or a first stage, hidden units of an mlp
    norm: str | None = None  # in, bn, ln, gn, none
    pool: str | None = None  # convnet: avg, max or nopool
    act: str | None = None  # convnet: one of layers.ACTIVATIONS; None = relu

    def __str__(self) -> str:
        parts = [self.family]
        parts += [f"d{self.depth}"] if self.depth else []
        parts += [f"w{self.width}"] if self.width else []
        parts += [self.norm] if self.norm else []
        parts += [self.act] if self.act else []
        parts += [self.pool] if self.pool in ("max", "nopool") else []
        return "-".join(parts)

    @property
    def thin(self) -> bool:
        """Whether it is a thin residual network with batch norm.

        A CPU trains those a fifth faster with channels last, and no others (docs/speed.md).
        """
        return self.family in RESIDUAL and self.width is not None and self.norm == "bn"

    def at(self, size: tuple[int, int]) -> NetSpec:
        """Return the specification with the depth that suits images of ``size`` (h, w).

        As in the literature: 3 blocks at 32x32, 4 at 64x64, 5 at 128x128.
        """
        if self.family != "convnet" or self.depth:
            return self
        return replace(self, depth=min(6, max(2, round(log2(min(size))) - 2)))


def parse(name: str) -> NetSpec:
    """Read a network's name, e.g. ``"convnet-d3-w128-in"``, ``"wrn16-w32-bn"``, ``"mlp-w128"``.

    Parts may be left out: ``"convnet"`` has width 128, instance norm, average pooling and the depth
    that suits the images. ``"convnet-silu-nopool"`` has another activation (``relu`` is none) and
    keeps the size of its maps. ``"wrn16-w32"`` is WRN-16-2, with 32 channels in its first stage.
    A name that :func:`potstill.network_of` made stands for a network of your own.

    Raises:
        InputError: the name is unknown.
    """
    if name.startswith(STUDENT) and known(name):
        return NetSpec(name)
    family = name.lower().partition("-")[0]
    match = re.fullmatch(family + _PARTS[family], name.lower()) if family in _PARTS else None
    if match is None:
        raise InputError(f"network is {name!r}, which is not known{nearest(name, NAMES)}")
    parts = match.groupdict()
    for part, default in ("width", _WIDTHS.get(family)), ("norm", "in"), ("pool", "avg"):
        if part in parts:
            parts[part] = parts[part] or default
    if parts.get("act") == "relu":
        parts["act"] = None
    numbers = {key: int(parts.pop(key)) for key in ("depth", "width") if parts.get(key)}
    return NetSpec(family, **{**parts, **numbers})  # type: ignore[arg-type]


_BUILDERS: dict[str, Callable[[NetSpec, int, tuple[int, int]], tuple[nn.Module, int]]] = {
    "convnet": lambda s, c, size: convnet(
        c, size, s.depth or 0, s.width or 0, s.norm or "", s.pool or "", s.act or "relu"
    ),
    "resnet18": lambda s, c, size: resnet(c, size, s.norm or "", 64, 2),
    "resnet10": lambda s, c, size: resnet(c, size, s.norm or "", s.width or 0, 1),
    "wrn16": lambda s, c, size: wide_resnet(c, size, s.norm or "", s.width or 0, 2),
    "vgg11": lambda s, c, size: vgg11(c, size, s.norm or ""),
    "alexnet": lambda s, c, size: alexnet(c, size),
    "mlp": lambda s, c, size: mlp(c, size, s.width or 0),
    "lenet": lambda s, c, size: lenet(c, size),
}


def create(
    name: str | NetSpec,
    *,
    channels: int,
    size: int | tuple[int, int],
    classes: int,
    generator: torch.Generator,
) -> Network:
    """Build a network on the CPU in float32, all of its parameters drawn from ``generator``.

    Example:
        >>> network = create("convnet", channels=3, size=32, classes=10,
        ...                  generator=torch.Generator().manual_seed(0))
        >>> network.feature_dim
        2048

    Raises:
        InputError: the name is unknown, or the images are too small for the network.
    """
    size = (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
    for argument, value in ("channels", channels), ("size", min(size)), ("classes", classes):
        if value < 1:
            raise InputError(f"{argument} is {value}; use a positive number")
    spec = (parse(name) if isinstance(name, str) else name).at(size)
    if spec.family.startswith(STUDENT):
        return build(spec.family, channels, size, classes, generator)
    with torch.device("meta"):  # nothing is drawn while the layers are built
        body, feature_dim = _BUILDERS[spec.family](spec, channels, size)
        if feature_dim == 0:
            raise InputError(
                f"network is {str(spec)!r}, whose maps vanish on images of {size[0]}x{size[1]}; "
                "use 'convnet', which chooses its depth, or larger images"
            )
        network = Network(body, feature_dim, classes)
    network.to_empty(device="cpu")
    initialise(network, generator)
    return network


def create_for(real: ImageSet, name: str | NetSpec, generator: torch.Generator) -> Network:
    """Build a network for the images and classes of a real set, see :func:`create`."""
    channels, height, width = real.shape
    return create(
        name,
        channels=channels,
        size=(height, width),
        classes=real.num_classes,
        generator=generator,
    )
