"""Weights of a timm architecture from a file: ``timm:ARCHITECTURE@FILE``.

Files are read as tensors and nothing else; a pickle that wants to run code is refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from potstill.nets.frozen import Backbone
from potstill.nets.pretrained import plain_timm, sized
from potstill.run import InputError, logger

__all__ = ["check_weights_name", "fill", "from_file", "is_weights_file", "read_tensors", "split"]

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
    if size is not None and hasattr(body, "set_input_size"):  # positions are interpolated
        try:
            body.set_input_size(img_size=(size, size))
        except (AssertionError, RuntimeError, ValueError, TypeError) as error:
            raise InputError(f"backbone is {label!r}, which takes no @{size} ({error})") from error
    return sized(label, body, size, f"timm:{architecture.partition('.')[0]}")
