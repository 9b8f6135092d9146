"""Distilled sets as other people's code writes them: files and folders become plain tensors.

* ``images_best.pt`` of MTT, TESLA, DATM and LAD: images, with ``labels_best.pt`` and, where it is
  there, ``lr_best.pt`` beside it;
* ``res_DM_..._10ipc.pt`` of DC, DSA and DM: a dictionary whose ``data`` holds a pair of images and
  labels for each experiment;
* ``data_best.pt`` of IDC, DREAM and NCFM: a list of images and labels;
* ``.npz`` and ``.safetensors``: arrays called ``images`` and ``labels``;
* a folder of class folders: pictures, as in any source.

Files ``.pt`` are opened by torch's restricted reader (``weights_only=True``), which builds tensors,
lists, dictionaries and numbers and calls nothing; what it refuses is refused here.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from potstill.data import load
from potstill.data.archives import members
from potstill.data.decode import brief
from potstill.data.files import Place
from potstill.run import InputError, logger
from potstill.run.records import require_regular

__all__ = ["Foreign", "read_foreign"]

_MOST = 4 << 30  # bytes of a file
_LABELS = ("labels", "label", "y", "targets")
_KINDS = "a folder of class folders, .npz, .safetensors or .pt"


@dataclass(frozen=True)
class Foreign:
    """What a file says; the rest has to be told."""

    layout: str
    images: Any  # tensor or array
    labels: Any = None
    lr: float | None = None
    classes: tuple[str, ...] | None = None


def read_foreign(
    path: Path, *, experiment: int | None = None, image_size: int | None = None
) -> Foreign:
    """Read a set; ``experiment`` (from 1) chooses where a file of DC holds several, or the first.

    Raises:
        InputError: it is damaged, is no such set, or holds more than tensors.
    """
    path = path.expanduser()
    if path.is_dir():
        found = sorted(path.glob("images_*.pt")) + sorted(path.glob("data_best.pt"))
        found = [file for file in found if "zca" not in file.name]
        best = [file for file in found if "best" in file.name] or found
        if len(best) > 1:
            names = ", ".join(file.name for file in best[:3])
            raise InputError(f"{path} holds several sets ({names}); name the file of one")
        return _opened(best[0], experiment) if best else _pictures(path, image_size)
    if not path.exists():
        raise InputError(f"file is {path}, which does not exist; give {_KINDS}")
    return _opened(path, experiment)


def _pictures(path: Path, image_size: int | None) -> Foreign:
    real = load(path, image_size=image_size, quiet=True)
    return Foreign("images", real.rows(), real.labels, classes=real.classes)


def _opened(path: Path, experiment: int | None) -> Foreign:
    readers = {".npz": _npz, ".safetensors": _safetensors, ".pt": _pt, ".pth": _pt}
    if path.suffix.lower() not in readers:
        raise InputError(f"file is {path}, of unknown kind; give {_KINDS}")
    require_regular(path)
    if (size := path.stat().st_size) > _MOST:
        raise InputError(f"{path} has {size} bytes, more than {_MOST}; fetch it again")
    content = _read(path, readers[path.suffix.lower()])
    if isinstance(content, Tensor):
        return _beside(path, content)
    if isinstance(content, list | tuple) and len(content) == 2:
        return Foreign("IDC", *content)
    known = content if isinstance(content, Mapping) else {}
    if isinstance(runs := known.get("data"), list) and runs:
        count = len(runs)
        if experiment is None:
            experiment = 1
            if count > 1:
                logger.warning("%s holds %d experiments; the first is read", path, count)
        if not 1 <= experiment <= count:
            raise InputError(f"experiment is {experiment}; {path.name} has 1 to {count}")
        pair = runs[experiment - 1]
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise InputError(
                f"{path} holds no pair of images and labels as experiment {experiment}; write them "
                "as a dictionary with images and labels"
            )
        return Foreign("DC", *pair)
    images = next((known[name] for name in ("images", "x", "data") if name in known), None)
    if images is None:
        told = ", ".join(map(str, known)) or type(content).__name__
        raise InputError(f"{path} holds {told[:200]}; it needs images and labels")
    labels = next((known[name] for name in ("soft_labels", *_LABELS) if name in known), None)
    return Foreign("tensors", images, labels, _number(known.get("lr", known.get("syn_lr"))))


def _read(path: Path, reader: Callable[[Path], Any]) -> Any:
    try:
        return reader(path)
    except InputError:
        raise
    except Exception as error:  # what torch, zipfile and safetensors raise on damaged files
        raise InputError(f"{path} cannot be read ({brief(error)}); fetch it again") from error


def _beside(path: Path, images: Tensor) -> Foreign:
    """Images alone, with the files of labels and step size that trajectory methods write."""
    found: dict[str, Any] = {}
    for part in ("labels", "lr"):
        other = path.with_name(path.name.replace("images", part, 1))
        found[part] = _read(other, _pt) if other != path and other.is_file() else None
    return Foreign("MTT", images, found["labels"], _number(found["lr"]))


def _number(value: Any) -> float | None:
    try:
        return None if value is None else float(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            "the step size in the file is no number; write one there, or none"
        ) from error


def _pt(path: Path) -> Any:
    """Tensors of a file of torch, none of which stands for more than the file holds."""
    size = path.stat().st_size
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if sum(part.file_size for part in archive.infolist()) > size:
                raise ValueError("it is packed, which torch's files are not")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        if "weights" not in str(error).lower():
            raise
        raise InputError(
            f"{path} holds more than tensors, and nothing else is opened; where you trust it, load "
            "it yourself and write images and labels with torch.save or safetensors"
        ) from error
    pending = [content]
    while pending:
        value = pending.pop()
        if isinstance(value, Tensor) and value.numel() * value.element_size() > size:
            raise ValueError("it claims more values than it holds")
        if isinstance(value, Mapping | list | tuple):
            pending += value.values() if isinstance(value, Mapping) else value
    return content


def _safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    return {name: tensor.clone() for name, tensor in load_file(path).items()}


def _npz(path: Path) -> dict[str, Any]:
    known = members(Place(path))
    wanted = ("images", "x", "data", "soft_labels", *_LABELS, "lr", "syn_lr")
    return {name: known[name]().whole() for name in wanted if name in known}
