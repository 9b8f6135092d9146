"""A frozen network from images to features, with what it wants to see and what identifies it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from potstill.data.transform import Normalize
from potstill.run import InputError
from potstill.run.memory import bytes_per_image

__all__ = ["Backbone", "content_key", "frozen"]


@dataclass(frozen=True, eq=False)
class Backbone:
    """A frozen network from images to features, with what it wants to see.

    ``key`` identifies weights, input and normalisation: whatever was computed with a backbone says
    so by this key.
    """

    label: str  # for people; never a place on a disk
    body: nn.Module  # evaluation mode, no parameter wants a gradient
    dim: int  # features
    size: tuple[int, int]  # (h, w) of its input
    channels: int  # of its input
    transform: Normalize  # its own mean and standard deviation
    key: str  # 16 hexadecimal digits
    computes: str  # what is done with the weights; part of the key
    trained_seconds: float = 0.0  # of the training that made it, where that is ours and known
    device: str = "cpu"
    precision: str = "fp32"  # "bf16": autocast on a GPU

    def on(self, device: str, precision: str = "fp32", compiled: bool = False) -> Backbone:
        """Return the same backbone on a device; ``precision`` is that of its passes."""
        body = self.body.to(device)
        if compiled:
            body = torch.compile(body)  # type: ignore[assignment]
        return replace(self, body=body, device=device, precision=precision)

    def check(self, shape: tuple[int, int, int]) -> None:
        """Raise InputError unless images of this (c, h, w) can be shown to it."""
        if shape[0] not in (1, self.channels):
            raise InputError(
                f"backbone is {self.label!r}, which takes {self.channels} channel(s), but the "
                f"images have {shape[0]}; load them with channels={self.channels}"
            )

    def features(self, x: Tensor) -> Tensor:
        """Return features (b, d), float32, of RGB 0-1 images (b, c, *size); differentiable."""
        if tuple(x.shape[2:]) != self.size:
            raise InputError(
                f"images are {x.shape[2]}x{x.shape[3]}, but backbone {self.label!r} takes "
                f"{self.size[0]}x{self.size[1]}; make a view of that size first"
            )
        x = x.expand(-1, self.channels, -1, -1) if x.shape[1] == 1 else x
        kind = self.device.split(":")[0]
        with torch.autocast(kind, torch.bfloat16, enabled=self.precision == "bf16"):
            found = self.body(self.transform.forward(x))
        found = found.flatten(1)
        return found.float() if found.dtype in (torch.bfloat16, torch.float16) else found

    @property
    def nbytes(self) -> int:
        """Bytes of its weights."""
        return sum(value.nbytes for value in self.body.state_dict().values())

    def image_bytes(self) -> int:
        """Bytes that the graph of one more image keeps for its backward pass, measured."""

        def see(n: int) -> Tensor:
            x = torch.zeros((n, self.channels, *self.size), device=self.device)
            return self.features(x.requires_grad_(True))

        return bytes_per_image(see)


def content_key(body: nn.Module, transform: Normalize, facts: Mapping[str, Any]) -> str:
    """16 hexadecimal digits over the weights, the normalisation and ``facts``."""
    total = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    tensors = {
        **body.state_dict(),
        **{f"transform.{n}": t for n, t in transform.to_tensors().items()},
    }
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        total.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        total.update(value.reshape(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]
    return total.hexdigest()[:16]


def frozen(
    label: str,
    body: nn.Module,
    size: tuple[int, int],
    channels: int,
    transform: Normalize,
    computes: str,
) -> Backbone:
    """Freeze ``body``, look at one grey image through it and wrap it up.

    ``computes`` says what is done with the weights (architecture, activation, pooling): networks
    with equal weights are not the same backbone.

    Raises:
        InputError: it does not turn an image into a vector of finite features.
    """
    body.eval().requires_grad_(False)
    grey = torch.full((1, channels, *size), 0.5)
    try:
        with torch.no_grad():
            found = body(transform.forward(grey))
    except (RuntimeError, AssertionError, TypeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error)
        raise InputError(
            f"backbone is {label!r}, which cannot see images of {size[0]}x{size[1]} with "
            f"{channels} channel(s) ({reason}); choose another size or backbone"
        ) from error
    if not isinstance(found, Tensor) or len(found) != 1 or not bool(torch.isfinite(found).all()):
        raise InputError(
            f"backbone is {label!r}, whose features of a grey image are not finite numbers; "
            "its weights are damaged or it is no feature extractor"
        )
    key = content_key(body, transform, {"size": list(size), "computes": computes})
    return Backbone(label, body, found[0].numel(), size, channels, transform, key, computes)
