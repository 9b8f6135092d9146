"""Initial images of a canvas: real images, mosaics of real images, or noise.

A long-tailed class may hold fewer images than its canvas needs (25 tail images against the 40 of
ten 2x2 mosaics). What happens then is a policy with a name and a warning, never a crash.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated

import torch
from torch import Tensor

from potstill.canvas.pixels import Canvas, canvas_spec, tiles_per_image
from potstill.canvas.tiled import mosaic
from potstill.data import ImageSet
from potstill.data.augment import moved, reach_of
from potstill.run import InputError, logger
from potstill.run.fields import OneOf, check_value

__all__ = ["Profile", "Start", "Shortage", "check_start", "images_per_class", "start_canvas"]

Start = Annotated[str, OneOf("real", "tiled", "noise", "correct", "crops")]
Shortage = Annotated[str, OneOf("repeat", "noise", "keep")]
Profile = Annotated[str, OneOf("balanced", "long_tailed")]


def _noise(count: int, shape: tuple[int, int, int], generator: torch.Generator) -> Tensor:
    """Grey noise clamp(N(0.5, 0.25**2), 0, 1), (count, c, h, w)."""
    return (torch.randn(count, *shape, generator=generator) / 4 + 0.5).clamp_(0, 1)


def _shifted(images: Tensor, generator: torch.Generator) -> Tensor:
    """Move each image by up to an eighth of its size, border repeated: no two copies are equal."""
    reach = reach_of(images.shape[-1])
    shifts = torch.randint(-reach, reach + 1, (len(images), 2), generator=generator)
    return moved(images, shifts)


def _class_images(
    real: ImageSet, positions: Tensor, needed: int, shortage: str, generator: torch.Generator
) -> Tensor:
    """Take the first ``needed`` of these images of a class; fill up by the shortage policy."""
    if not len(positions):  # nothing of the class qualifies, see ``candidates``
        return _noise(needed, real.shape, generator)
    images = real.batch(positions[:needed])
    missing = needed - len(images)
    if missing <= 0 or shortage == "keep":
        return images
    if shortage == "noise":
        return torch.cat([images, _noise(missing, real.shape, generator)])
    again = torch.arange(missing) % len(images)
    return torch.cat([images, _shifted(images[again], generator)])


def check_start(start: str, shortage: str) -> None:
    """Raise InputError unless both go together."""
    if start == "tiled" and shortage == "keep":
        raise InputError("shortage is 'keep' with start 'tiled'; use shortage=repeat or noise")
    if start == "crops" and shortage != "repeat":
        raise InputError(
            f"shortage is {shortage!r} with start 'crops', which takes more crops of each image; "
            "use shortage=repeat"
        )


def _warn_of_shortage(
    real: ImageSet,
    wanted: Sequence[int],
    per_image: int,
    shortage: str,
    candidates: Sequence[Tensor] | None,
) -> None:
    """Say which classes cannot fill their images; "right" images are those of ``candidates``."""
    have = real.counts if candidates is None else [len(own) for own in candidates]
    short = [c for c, n in enumerate(have) if n < wanted[c] * per_image]
    if short:
        all_qualify = all(have[c] == real.counts[c] for c in short)
        logger.warning(
            "%d of %d classes have fewer than the %d %s that %d stored images start from "
            "(smallest: %d); shortage=%r %s",
            len(short),
            real.num_classes,
            max(wanted[c] for c in short) * per_image,
            "images" if all_qualify else "rightly classified images",
            max(wanted[c] for c in short),
            min(have),
            shortage,
            "stores fewer" if shortage == "keep" else "fills up",
        )


def images_per_class(real: ImageSet, ipc: int, profile: str = "balanced") -> list[int]:
    """Return the stored images of each class: ``ipc`` each, or as uneven as the real set.

    "long_tailed" gives every class one image and shares out the others of ``ipc`` times C in
    proportion to the real counts, what is left of that to the largest; no class gets more than it
    has, so the total is smaller only where the real set is (LAD, figure 7d).

    Raises:
        InputError: an unknown profile.
    """
    check_value("ipc_profile", profile, Profile)
    if profile == "balanced":
        return [ipc] * real.num_classes
    sizes = torch.tensor(real.counts)
    counts = torch.ones_like(sizes)
    left = min(ipc * real.num_classes, int(sizes.sum())) - real.num_classes
    return dealt(left, sizes, counts, sizes).tolist()


def dealt(left: int, weights: Tensor, counts: Tensor, most: Tensor) -> Tensor:
    """Return ``counts`` (C,) with ``left`` more, in proportion to ``weights``, none over ``most``.

    What a full class cannot take goes to the others; less than one each goes to the largest. Where
    no class with room has a weight, all that have room have the same.
    """
    counts = counts.clone()
    left = min(left, int((most - counts).clamp_min(0).sum()))
    while left > 0:
        room = (most - counts).clamp_min(0)
        shares = weights.double() * (room > 0)
        shares = shares if float(shares.sum()) > 0 else (room > 0).double()
        shares *= left / shares.sum()
        whole = torch.minimum(shares.floor().long(), room)
        if not int(whole.sum()):  # less than one image each
            order = shares.argsort(descending=True, stable=True)[:left]
            whole[order] = 1
            whole = torch.minimum(whole, room)
        counts += whole
        left -= int(whole.sum())
    return counts


def start_canvas(
    real: ImageSet,
    ipc: int | Sequence[int],
    generator: Callable[..., torch.Generator],
    *,
    start: str = "real",
    factor: int = 1,
    formation: str = "single",
    shortage: str = "repeat",
    bounded: bool = True,
    candidates: Sequence[Tensor] | None = None,
    crops: Sequence[Tensor] | None = None,
    quiet: bool = False,
) -> Canvas:
    """Return the canvas on which a method begins.

    Args:
        real: the real training set. ipc: stored images per class, at least 1; one number for all
            classes, or one for each.
        generator: ``run.generator``; draws per class from ``generator("start", label)``.
        start: "real" (random images of the class), "tiled" (each stored image is a mosaic of
            factor**2 of them, or twice as many), "noise", "correct" (real ones among
            ``candidates``), or "crops" (mosaics of ``crops``).
        shortage: for classes with fewer images than needed: "repeat" (shifted copies), "noise", or
            "keep" (fewer stored images; not with mosaics).
        candidates: positions in ``real`` per class, in the order in which they are taken; default:
            all of the class, shuffled. A class without any starts from noise.
        crops: images (n, c, h, w) of each class, as many as its mosaics need.
        quiet: do not warn of classes with too few images.
    """
    check_value("start", start, Start)
    check_value("shortage", shortage, Shortage)
    check_start(start, shortage)
    wanted = [ipc] * real.num_classes if isinstance(ipc, int) else list(ipc)
    if len(wanted) != real.num_classes or min(wanted) < 1:
        raise InputError(f"ipc is {ipc}; use at least 1 image per class")
    if (start == "crops") != (crops is not None):
        raise InputError(f"start is {start!r}; crops go with start 'crops', and it needs them")
    spec = canvas_spec(factor, formation)
    per_image = tiles_per_image(spec) if start in ("tiled", "crops") else 1
    if start not in ("noise", "crops") and not quiet:
        _warn_of_shortage(real, wanted, per_image, shortage, candidates)
    stacks = []
    for label, count in enumerate(wanted):
        draw = generator("start", label)
        if start == "noise":
            stacks.append(_noise(count, real.shape, draw))
            continue
        if crops is not None:
            images = crops[label]
        elif candidates is not None:
            images = _class_images(real, candidates[label], count * per_image, shortage, draw)
        else:
            own = real.of_class(label)
            drawn = own[torch.randperm(len(own), generator=draw)]
            images = _class_images(real, drawn, count * per_image, shortage, draw)
        stacks.append(
            mosaic(images.unflatten(0, (-1, per_image)), factor, formation)
            if per_image > 1
            else images
        )
    labels = torch.repeat_interleave(
        torch.arange(len(stacks)), torch.tensor([len(stack) for stack in stacks])
    )
    return Canvas(torch.cat(stacks), labels, real.num_classes, spec, bounded=bounded)
