"""Initial images of a canvas: real images, mosaics of real images, or noise.

A long-tailed class may hold fewer images than its canvas needs (25 tail images against the 40 of
ten 2x2 mosaics). What happens then is a policy with a name and a warning, never a crash.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from potstill.canvas.pixels import Canvas, canvas_spec
from potstill.canvas.tiled import mosaic
from potstill.data import ImageSet
from potstill.run import InputError, logger

__all__ = ["STARTS", "STARVED", "check_start", "start_canvas"]

STARTS = ("real", "tiled", "noise")
STARVED = ("repeat", "noise", "keep")


def _noise(count: int, shape: tuple[int, int, int], generator: torch.Generator) -> Tensor:
    """Grey noise clamp(N(0.5, 0.25**2), 0, 1), (count, c, h, w)."""
    return (torch.randn(count, *shape, generator=generator) / 4 + 0.5).clamp_(0, 1)


def _shifted(images: Tensor, generator: torch.Generator) -> Tensor:
    """Move each image by up to an eighth of its size, border repeated: no two copies are equal."""
    size = images.shape[-1]
    reach = max(1, size // 8)
    shifts = torch.randint(-reach, reach + 1, (len(images), 2), generator=generator)
    padded = F.pad(images, (reach,) * 4, mode="replicate")
    moved = [
        image[:, reach + dy : reach + dy + images.shape[-2], reach + dx : reach + dx + size]
        for image, (dy, dx) in zip(padded, shifts.tolist(), strict=True)
    ]
    return torch.stack(moved)


def _class_images(
    real: ImageSet, label: int, needed: int, starved: str, generator: torch.Generator
) -> Tensor:
    """Draw ``needed`` images of a class without replacement; fill up by the starved policy."""
    positions = real.of_class(label)
    order = torch.randperm(len(positions), generator=generator)
    images = real.batch(positions[order[:needed]])
    missing = needed - len(images)
    if missing <= 0 or starved == "keep":
        return images
    if starved == "noise":
        return torch.cat([images, _noise(missing, real.shape, generator)])
    again = torch.arange(missing) % len(images)
    return torch.cat([images, _shifted(images[again], generator)])


def check_start(start: str, starved: str) -> None:
    """Raise InputError unless both are known and go together."""
    for name, value, options in (("start", start, STARTS), ("starved", starved, STARVED)):
        if value not in options:
            raise InputError(f"{name} is {value!r}; use one of {', '.join(options)}")
    if start == "tiled" and starved == "keep":
        raise InputError("starved is 'keep' with start 'tiled'; use 'repeat' or 'noise'")


def start_canvas(
    real: ImageSet,
    ipc: int,
    generator: Callable[..., torch.Generator],
    *,
    start: str = "real",
    factor: int = 1,
    formation: str = "single",
    starved: str = "repeat",
    bounded: bool = True,
) -> Canvas:
    """Return the canvas on which a method begins.

    Args:
        real: the real training set. ipc: stored images per class, at least 1.
        generator: ``run.generator``; draws per class from ``generator("start", label)``.
        start: "real" (random images of the class), "tiled" (each stored image is a mosaic of
            factor**2 of them) or "noise".
        starved: for classes with fewer images than needed: "repeat" (shifted copies), "noise", or
            "keep" (fewer stored images; not with mosaics).
    """
    check_start(start, starved)
    if ipc < 1:
        raise InputError(f"ipc is {ipc}; use at least 1 image per class")
    per_image = factor**2 if start == "tiled" else 1
    short = [c for c, n in enumerate(real.counts) if n < ipc * per_image]
    if short and start != "noise":
        logger.warning(
            "%d of %d classes have fewer than the %d images that %d stored images start from "
            "(smallest: %d); starved=%r fills up",
            len(short),
            real.num_classes,
            ipc * per_image,
            ipc,
            min(real.counts),
            starved,
        )
    stacks = []
    for label in range(real.num_classes):
        draw = generator("start", label)
        if start == "noise":
            stacks.append(_noise(ipc, real.shape, draw))
            continue
        images = _class_images(real, label, ipc * per_image, starved, draw)
        stacks.append(
            mosaic(images.unflatten(0, (-1, per_image)), factor) if per_image > 1 else images
        )
    labels = torch.repeat_interleave(
        torch.arange(len(stacks)), torch.tensor([len(stack) for stack in stacks])
    )
    spec = canvas_spec(factor, formation)
    return Canvas(torch.cat(stacks), labels, real.num_classes, spec, bounded=bounded)
