"""From a backbone's name to a frozen backbone, trained on the data at hand if the name says so.

``self:NETWORK`` (or ``self:NETWORK/barlow``) is a network of ours, trained without labels on the
real set that is distilled and kept in the cache; every other name is
:mod:`potstill.nets.backbone`'s.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch

from potstill.data import ImageSet, Normalize
from potstill.experts.selfsupervised import SelfSupervision, recipe, train_backbone
from potstill.nets.backbone import (
    FILE,
    REPAIR,
    Backbone,
    check_name,
    is_own_network,
    open_backbone,
    split_name,
)
from potstill.nets.weights import is_weights_file, split
from potstill.run import InputError, Run
from potstill.run.cache import Cached
from potstill.run.checkpoint import digest, load_state
from potstill.run.recall import tell_damage

__all__ = ["backbone_for", "check_backbone", "identify", "self_training"]

_SELF = "self:"


def check_backbone(name: str, real: ImageSet | None, epochs: int = 30, flip: float = 0.5) -> None:
    """Refuse a name before anything is trained or written; with ``real`` its weights are fetched.

    Raises:
        InputError: unknown, not to be had, or unable to see these images.
    """
    if self_training(name, epochs, flip) is not None:
        return
    check_name(name)
    if real is not None:
        plain = Normalize(torch.full(real.shape[:1], 0.5), torch.full(real.shape[:1], 0.25))
        draw = torch.Generator().manual_seed(0)
        open_backbone(name, real.shape, draw, plain).check(real.shape)


def self_training(name: str, epochs: int = 30, flip: float = 0.5) -> SelfSupervision | None:
    """Return how a ``self:`` backbone is trained; None for other names.

    Raises:
        InputError: what follows is no network of ours or no objective.
    """
    if not name.startswith(_SELF):
        return None
    network, _, objective = name[len(_SELF) :].partition("/")
    if not is_own_network(network):
        raise InputError(
            f"backbone is {name!r}; after self: name one of our networks, such as "
            "'self:convnet-w64-bn'"
        )
    return SelfSupervision(
        network=network, objective=objective or "simclr", flip=flip, epochs=epochs
    )


def identify(name: str, real: ImageSet, run: Run, *, epochs: int = 30, flip: float = 0.5) -> str:
    """Return what a name stands for without loading or training anything, for a job's identity."""
    how = self_training(name, epochs, flip)
    if how is not None:
        return digest(recipe(real, how, run))
    base, size, imagenet = split_name(name)
    folder = Path(base.removeprefix("transformers:")).expanduser()
    if (folder / FILE).is_file():
        _, facts = load_state(folder / FILE, unchecked=True, fix=REPAIR)
        return digest([facts["key"], size, imagenet])
    if is_weights_file(base):
        file = split(base)[1]
        return digest([split(base)[0], _content(file.parent, file.name), size, imagenet])
    if folder.is_dir():
        return digest([_content(folder), size, imagenet])
    return digest([name, run.seed])


def _content(folder: Path, only: str = "*") -> list[tuple[str, str]]:
    """Name and SHA-256 of every file of a folder that another library wrote."""
    found = []
    for path in sorted(p for p in folder.glob(only) if p.is_file()):
        with path.open("rb") as file:
            found.append((path.name, hashlib.file_digest(file, "sha256").hexdigest()))
    return found


def _in_cache(real: ImageSet, how: SelfSupervision, run: Run, entry: Cached) -> Backbone:
    """Return the backbone of a cache entry; it is trained if there is none to be believed."""
    entry.hold()
    path = entry.folder / FILE
    if path.exists():
        try:
            return train_backbone(real, how, run, entry.folder)  # which reads it
        except InputError as error:
            tell_damage(error, "training it again")
            path.unlink()
    found = train_backbone(real, how, run, entry.folder)
    entry.note(found.trained_seconds)
    return found


def backbone_for(
    name: str, real: ImageSet, run: Run, *, epochs: int = 30, flip: float = 0.5
) -> Backbone:
    """Return the backbone of a name for the images of ``real``, on the device of ``run``.

    Args:
        epochs: of the training of a ``self:`` backbone. flip: probability of mirrored views in it.

    Raises:
        InputError: unknown name, weights that cannot be had, or images it cannot be shown.
    """
    how = self_training(name, epochs, flip)
    if how is not None:
        facts = recipe(real, how, run)
        what = f"{how.objective} {facts['how']['network']} on {real.source}"
        found = _in_cache(real, how, run, Cached(run.cache, "backbones", facts, what))
    else:
        draw = run.generator("backbone/weights")
        found = open_backbone(name, real.shape, draw, Normalize.fit(real))
    found.check(real.shape)
    return found.on(run.device, run.precision, run.compile)
