"""The start: a set as it stood before step 0, kept beside what the steps made of it.

Matching is worth what it adds to the images and labels that it begins with, so those travel with
every distilled set: 8-bit images and half-precision labels in ``start.safetensors``.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from potstill.run import ArtifactError, InputError
from potstill.run.checkpoint import load_state, save_state
from potstill.synthetic.eight_bit import rounded, to_uint8

if TYPE_CHECKING:
    from potstill.synthetic.artifact import SyntheticSet

__all__ = ["START", "kept", "read_start", "started", "write_start"]

START = "start.safetensors"
_LABELS = ("soft_labels", "regression_targets")


def kept(outcome: dict[str, Any]) -> dict[str, Tensor]:
    """Return what is kept of a method's outcome before step 0: copies, in eight bits and half."""
    labels = {name: outcome[name].half() for name in _LABELS if outcome.get(name) is not None}
    return {"images": to_uint8(outcome["images"]), **labels}


def started(syn: SyntheticSet, tensors: dict[str, Tensor]) -> SyntheticSet:
    """Return ``syn`` with its start, of which ``tensors`` were :func:`kept`.

    The start has the same learned step size as the set: gains are those of images and labels.
    """
    return replace(syn, start=_as_set(syn, tensors))


def _as_set(syn: SyntheticSet, tensors: dict[str, Tensor]) -> SyntheticSet:
    """A set like ``syn`` of stored tensors."""
    parts: dict[str, Any] = {name: tensors[name].float() for name in _LABELS if name in tensors}
    absent: dict[str, Any] = dict.fromkeys((*_LABELS, "start", "view_labels", "projection"))
    return replace(syn, **(absent | parts), images=rounded(tensors["images"]))


def write_start(folder: Path, syn: SyntheticSet) -> None:
    """Write the start of ``syn`` into the folder of an artifact, if it has one."""
    first = syn.start
    if first is None:
        return
    tensors = kept({name: getattr(first, name) for name in ("images", *_LABELS)})
    save_state(folder / START, tensors, {"kind": "potstill-start", "artifact": syn.checksum})


def read_start(folder: Path, syn: SyntheticSet) -> SyntheticSet:
    """Return ``syn`` with the start that stands in its folder, if one does.

    Raises:
        ArtifactError: the file is damaged or of another artifact.
    """
    path, fix = folder / START, "delete it to load the set without its start"
    if not os.path.lexists(path):  # a pipe or a folder of this name is refused when it is read
        return syn
    tensors, facts = load_state(path, fix=fix)
    try:
        if facts["kind"] != "potstill-start" or facts["artifact"] != syn.checksum:
            raise InputError("it is of another artifact")
        if tensors["images"].dtype != torch.uint8:
            raise InputError(f"its images are {tensors['images'].dtype}, not 8-bit")
        if wrong := {*tensors} - {"images", *_LABELS}:
            raise InputError(f"the tensor {min(wrong)[:80]!r} is unknown")
        for name in _LABELS:
            if (name in tensors) != (getattr(syn, name) is not None):
                raise InputError(f"only one of the two has {name}")
        return replace(syn, start=_as_set(syn, dict(tensors)))
    except (InputError, KeyError, RuntimeError) as error:
        raise ArtifactError(f"{path} does not fit the artifact ({error}); {fix}") from error
