"""Iterates: what a method would have returned at earlier steps, kept beside the final artifact.

Papers that report the best of several looks at the test set look at these. Each is one safetensors
file, ``iterates/step-000500.safetensors``, with images and, where they are learned, soft labels and
the student step size; everything else is the final artifact's.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from potstill.run import ArtifactError, InputError
from potstill.run.checkpoint import load_state, save_state
from potstill.synthetic.artifact import SyntheticSet

__all__ = ["list_iterates", "load_iterate", "save_iterate", "step_of"]

_NAME = re.compile(r"step-(\d+)\.safetensors")


def save_iterate(
    folder: Path,
    step: int,
    images: Tensor,
    soft_labels: Tensor | None = None,
    syn_lr: float | None = None,
) -> Path:
    """Write the set as it stands after ``step`` steps into a run folder; return the file.

    Args:
        folder: of the run. images: float32 (n, c, h, w), RGB.
        soft_labels: float32 (n, K) or (n, v, K). syn_lr: the student's step size.
    """
    tensors = {"images": images.float()}
    if soft_labels is not None:
        tensors["soft_labels"] = soft_labels.float()
    if syn_lr is not None:
        tensors["syn_lr"] = torch.tensor(syn_lr, dtype=torch.float64)
    path = folder / "iterates" / f"step-{step:06d}.safetensors"
    save_state(path, tensors, {"step": step})
    return path


def list_iterates(folder: Path) -> list[Path]:
    """Return the files of a run folder, earliest step first; none is no error."""
    found = [path for path in (folder / "iterates").glob("step-*.safetensors") if _number(path)]
    return sorted(found, key=step_of)


def _number(path: Path) -> re.Match[str] | None:
    return _NAME.fullmatch(path.name)


def step_of(path: Path) -> int:
    """Return the number of steps after which an iterate was kept."""
    match = _number(path)
    if match is None:
        raise InputError(f"{path} is no iterate; give a file such as step-000500.safetensors")
    return int(match[1])


def load_iterate(path: Path, like: SyntheticSet) -> SyntheticSet:
    """Read an iterate as a set with the labels, classes and transform of the final artifact.

    Raises:
        ArtifactError: the file is damaged or does not belong to ``like``.
    """
    fix = "delete it to score without it, or distil again with --force"
    tensors, facts = load_state(path, unchecked=True, fix=fix)
    syn_lr = tensors.get("syn_lr")
    try:
        if facts["step"] != step_of(path):
            raise InputError(f"it is of step {facts['step']}")
        if tensors["images"].shape != like.images.shape:
            raise InputError(f"its images are {tuple(tensors['images'].shape)}")
        for name in ("regression_targets", "view_labels", "projection"):
            if getattr(like, name) is not None:
                raise InputError(f"the artifact has {name}, which an iterate has not")
        for name in ("soft_labels", "syn_lr"):
            if (name in tensors) != (getattr(like, name) is not None):
                raise InputError(f"only one of the two has {name}")
        soft, last = tensors.get("soft_labels"), like.soft_labels
        if soft is not None and last is not None and soft.shape != last.shape:
            raise InputError(f"its soft labels are {tuple(soft.shape)}")
        return replace(
            like,
            images=tensors["images"],
            bits=32,
            soft_labels=soft,
            syn_lr=None if syn_lr is None else float(syn_lr),
        )
    except (InputError, KeyError, RuntimeError) as error:
        raise ArtifactError(
            f"{path} does not belong to the artifact beside it ({error}); {fix}"
        ) from error
