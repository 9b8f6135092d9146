"""What inner layers of a network see and say, in any forward pass within a ``with`` block.

CAFE matches the maps behind several layers; SRe2L and its successors compare the statistics of a
batch in front of every batch norm with those of the training set, which the layer keeps. Both work
on any module, through ``torch.func.functional_call``, too, and leave nothing behind in it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, interpolate

from potstill.run import InputError, nearest

__all__ = [
    "LayerStatistics",
    "batch_statistics",
    "conv_moments",
    "image_moments",
    "relu_layers",
    "tap_names",
    "tapped",
]


def tap_names(network: nn.Module) -> list[str]:
    """Return the names of the inner layers that :func:`tapped` takes, outer ones first."""
    lists = (nn.ModuleList, nn.ModuleDict)  # never called themselves
    return [n for n, layer in network.named_modules() if n and not isinstance(layer, lists)]


def relu_layers(network: nn.Module, name: str = "") -> list[str]:
    """Return the names of all ReLUs, behind which CAFE and MIM4DD look.

    Raises:
        InputError: there is none; ``name`` is that of the network in the sentence.
    """
    found = [n for n in tap_names(network) if isinstance(network.get_submodule(n), nn.ReLU)]
    if not found:
        raise InputError(f"network is {name!r}, which has no ReLU to look behind; use a convnet")
    return found


@contextmanager
def tapped(network: nn.Module, names: Iterable[str]) -> Iterator[dict[str, Tensor]]:
    """Collect the outputs of the layers of these names, as they are passed.

    The dictionary holds the last pass's outputs by name, with their graph. They are what the layer
    returned even where the next one works in place, for that one is given a copy.

    Example:
        >>> network = nn.Sequential(nn.Linear(3, 2), nn.ReLU(inplace=True))
        >>> with tapped(network, ["0"]) as outputs:
        ...     y = network(torch.ones(1, 3))
        >>> bool((outputs["0"].relu() == y).all())
        True

    Raises:
        InputError: a name is unknown.
    """
    known, outputs = tap_names(network), dict[str, Tensor]()

    def keep(name: str, layer: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        outputs[name] = output
        return output.clone()

    with ExitStack() as hooks:
        for name in dict.fromkeys(names):
            if name not in known:
                raise InputError(f"layer is {name!r}{nearest(name, known)}")
            handle = network.get_submodule(name).register_forward_hook(partial(keep, name))
            hooks.callback(handle.remove)
        yield outputs


class LayerStatistics(NamedTuple):
    """Of the inputs of one batch norm, (c,) each."""

    mean: Tensor  # over the batch and its pixels, with their graph
    variance: Tensor  # biased
    running_mean: Tensor  # what the layer had kept before the pass
    running_variance: Tensor


@contextmanager
def batch_statistics(network: nn.Module) -> Iterator[dict[str, LayerStatistics]]:
    """Collect the statistics in front of every ``BatchNorm2d``, in the order of the pass.

    The dictionary holds those of the last pass by the layer's name. SRe2L's loss (Yin et al.,
    NeurIPS 2023, as released) is the sum of ‖mean - running mean‖₂ + ‖variance - running
    variance‖₂ with the network in evaluation mode, the first layer ten times.

    Raises:
        InputError: no such layer, or one that keeps no running statistics.
    """
    layers = _batch_norms(network)
    found: dict[str, LayerStatistics] = {}

    def look(name: str, layer: Any, inputs: tuple[Tensor]) -> None:
        variance, mean = torch.var_mean(inputs[0], (0, 2, 3), correction=0)
        kept = (layer.running_mean, layer.running_var)
        found[name] = LayerStatistics(mean, variance, *(v.detach().clone() for v in kept))

    with ExitStack() as hooks:
        for name, layer in layers.items():
            hooks.callback(layer.register_forward_pre_hook(partial(look, name)).remove)
        yield found


def _batch_norms(network: nn.Module) -> dict[str, nn.BatchNorm2d]:
    layers = {n: m for n, m in network.named_modules() if isinstance(m, nn.BatchNorm2d)}
    if not layers or any(layer.running_mean is None for layer in layers.values()):
        raise InputError(
            "network has no batch norm with running statistics; use one with batch norm in every "
            "place, such as 'convnet-bn' or 'resnet18-bn'"
        )
    return layers


def _full(x: Tensor) -> Tensor:
    """Return ``x`` in at least single precision."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


@contextmanager
def image_moments(network: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Collect mean and mean square, (n, 2c), of each image in front of every ``BatchNorm2d``.

    Over its pixels, with their graph, by the layer's name in the order of the pass. Their means
    over the images of a class give that class's statistics in a batch of several (WMDD, ICCV 2025).

    Raises:
        InputError: as :func:`batch_statistics`.
    """
    found: dict[str, Tensor] = {}

    def look(name: str, layer: Any, inputs: tuple[Tensor]) -> None:
        x = _full(inputs[0])
        found[name] = torch.cat([x.mean((2, 3)), x.square().mean((2, 3))], dim=1)

    with ExitStack() as hooks:
        for name, layer in _batch_norms(network).items():
            hooks.callback(layer.register_forward_pre_hook(partial(look, name)).remove)
        yield found


@contextmanager
def conv_moments(network: nn.Module, patch: int) -> Iterator[dict[str, Tensor]]:
    """Collect means and mean squares of each image in front of every ``Conv2d``, with their graph.

    By the layer's name (n, 2c), of each channel over its pixels; by "NAME/patches" (n, 2p), of each
    of the p squares of ``patch`` pixels a side over its pixels and all channels. A map whose sides
    are no multiple is enlarged to one first (G-VBSM, Shao et al., CVPR 2024).

    Raises:
        InputError: there is no such layer.
    """
    layers = {n: m for n, m in network.named_modules() if isinstance(m, nn.Conv2d)}
    if not layers:
        raise InputError("network has no convolutions to look in front of; use a convnet")
    found: dict[str, Tensor] = {}

    def look(name: str, layer: Any, inputs: tuple[Tensor]) -> None:
        x = _full(inputs[0])
        found[name] = torch.cat([x.mean((2, 3)), x.square().mean((2, 3))], dim=1)
        size = [-(-side // patch) * patch for side in x.shape[2:]]
        if size != list(x.shape[2:]):
            x = interpolate(x, size=size, mode="nearest")
        of_patches = [avg_pool2d(v.mean(1, keepdim=True), patch) for v in (x, x.square())]
        found[f"{name}/patches"] = torch.cat([v.flatten(1) for v in of_patches], dim=1)

    with ExitStack() as hooks:
        for name, layer in layers.items():
            hooks.callback(layer.register_forward_pre_hook(partial(look, name)).remove)
        yield found
