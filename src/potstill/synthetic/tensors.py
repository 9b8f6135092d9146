"""The exact tensors of a synthetic set: one safetensors file, checked before it is believed.

The file comes from anybody. Its header is compared with the file's size by safetensors and with our
own expectations here before anything is allocated; nothing in it is ever executed.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor

from potstill.data.transform import Transform, transform_from
from potstill.labels import Projection, ViewLabels
from potstill.labels.per_view import STORED
from potstill.run import ArtifactError, InputError
from potstill.run.records import require_regular
from potstill.synthetic.eight_bit import to_uint8
from potstill.synthetic.soundness import shape_fault

if TYPE_CHECKING:
    from potstill.synthetic.artifact import SyntheticSet

__all__ = ["checksum", "facts_of", "read", "tensors_of", "to_file"]

FORMAT, VERSIONS = "potstill-synthetic", (1, 2, 3, 4, 5)  # see _version
_PREFIX, _VIEWS, _PROJECTION = "transform.", "views.", "projection."
_EXPECTED: dict[str, tuple[str, int | tuple[int, ...]]] = {  # name -> (dtype in the header, rank)
    "images": ("F32", 4),  # U8 where there are 8 bits to a value
    "labels": ("I64", 1),
    "soft_labels": ("F32", (2, 3)),
    "weights": ("F32", 1),
    "regression_targets": ("F32", 2),
    "syn_lr": ("F64", 0),
    "source_indices": ("I64", 1),
    f"{_PROJECTION}weight": ("F32", 2),
    f"{_PROJECTION}bias": ("F32", 1),
    **{_VIEWS + name: kind for name, kind in STORED.items()},
}
_NOT_PER_IMAGE = ("source_indices", _PROJECTION, _VIEWS)


def tensors_of(synthetic: SyntheticSet) -> dict[str, Tensor]:
    """Return every tensor that is stored, by name, on the CPU."""
    named: dict[str, Tensor | None] = {
        "images": synthetic.images if synthetic.bits == 32 else to_uint8(synthetic.images),
        "labels": synthetic.labels,
        "soft_labels": synthetic.soft_labels,
        "weights": synthetic.weights,
        "regression_targets": synthetic.regression_targets,
        "source_indices": synthetic.source_indices,
    }
    if synthetic.syn_lr is not None:
        named["syn_lr"] = torch.tensor(synthetic.syn_lr, dtype=torch.float64)
    named |= {_PREFIX + name: t for name, t in synthetic.transform.to_tensors().items()}
    if synthetic.view_labels is not None:
        named |= {_VIEWS + name: t for name, t in synthetic.view_labels.tensors().items()}
    if synthetic.projection is not None:
        named[f"{_PROJECTION}weight"] = synthetic.projection.weight
        named[f"{_PROJECTION}bias"] = synthetic.projection.bias
    return {n: t.detach().cpu().contiguous() for n, t in named.items() if t is not None}


def facts_of(synthetic: SyntheticSet) -> dict[str, Any]:
    """Return what the tensors alone do not say."""
    facts = {
        "format": FORMAT,
        "version": _version(synthetic),
        "classes": list(synthetic.classes),
        "decode": dict(synthetic.decode),
        "transform": synthetic.transform.kind,
    }
    return facts | ({"projection": synthetic.projection.facts} if synthetic.projection else {})


def _version(synthetic: SyntheticSet) -> int:
    """The first format that could hold the set, so that files keep their bytes as formats grow."""
    if synthetic.bits == 8:
        return 5
    if synthetic.soft_labels is not None and synthetic.soft_labels.ndim == 3:
        return 4
    if synthetic.view_labels is not None or synthetic.projection is not None:
        return 3
    return 1 if synthetic.regression_targets is None else 2


def checksum(tensors: dict[str, Tensor], facts: dict[str, Any]) -> str:
    """16 hexadecimal digits over names, types, shapes and bytes of the tensors, and the facts."""
    total = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        total.update(tensor.reshape(-1).numpy().view("uint8"))  # type: ignore[arg-type]
    return total.hexdigest()[:16]


def to_file(synthetic: SyntheticSet) -> bytes:
    """Return the content of the file; equal sets give equal bytes."""
    tensors, facts = tensors_of(synthetic), facts_of(synthetic)
    facts["checksum"] = checksum(tensors, facts)
    # One metadata key only: safetensors writes several in an order that changes between processes.
    return to_bytes(tensors, metadata={"potstill": json.dumps(facts, sort_keys=True)})


def read(path: Path) -> dict[str, Any]:
    """Read and check a file of :func:`to_file`.

    Returns:
        The constructor arguments of a SyntheticSet without ``provenance``, and ``checksum``.

    Raises:
        ArtifactError: the sentence names the file and what is wrong with it.
    """
    try:
        facts, tensors = _open(path)
        stated = facts.pop("checksum", None)
        found = checksum(tensors, facts)
        if stated != found:
            raise ArtifactError(f"the checksum is {found}, not {stated!r} as its header says")
        in_bytes = tensors["images"].dtype == torch.uint8
        if in_bytes:
            tensors["images"] = tensors["images"].to(torch.float32) / 255
        transform = transform_from(facts["transform"], _within(tensors, _PREFIX))
        if not _fits(transform, tensors["images"][:1]):
            raise ArtifactError("the transform does not fit the shape of the images")
        syn_lr = tensors.get("syn_lr")
        return {
            "images": tensors["images"],
            "bits": 8 if in_bytes else 32,
            "labels": tensors["labels"],
            "classes": tuple(facts["classes"]),
            "transform": transform,
            "decode": facts["decode"],
            "soft_labels": tensors.get("soft_labels"),
            "weights": tensors.get("weights"),
            "regression_targets": tensors.get("regression_targets"),
            "view_labels": _view_labels(_within(tensors, _VIEWS)),
            "projection": _projection(_within(tensors, _PROJECTION), facts),
            "syn_lr": None if syn_lr is None else float(syn_lr),
            "source_indices": tensors.get("source_indices"),
            "checksum": found,
        }
    except InputError as error:
        raise ArtifactError(f"{path}: {error}") from error
    except PermissionError as error:
        raise ArtifactError(
            f"{path} cannot be read ({error.strerror}); make it a readable file"
        ) from error
    except (SafetensorError, ValueError, RecursionError, RuntimeError, OSError) as error:
        raise ArtifactError(
            f"{path} is damaged or not a potstill artifact ({type(error).__name__}); "
            "copy it again from where it came from"
        ) from error


def _within(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}


def _view_labels(own: dict[str, Tensor]) -> ViewLabels | None:
    if not own:
        return None
    for name in ("values", "box", "flip"):
        if name not in own:
            raise ArtifactError(f"the tensor {_VIEWS + name!r} is missing")
    return ViewLabels(**own)


def _projection(own: dict[str, Tensor], facts: dict[str, Any]) -> Projection | None:
    if not own:
        return None
    told = facts.get("projection")
    if not isinstance(told, dict) or {*own} != {"weight", "bias"}:
        raise ArtifactError("the projection is not complete")
    return Projection(**own, backbone=told.get("backbone", ""), key=told.get("key", ""))


def _fits(transform: Transform, image: Tensor) -> bool:
    try:
        return transform(image).shape == image.shape
    except RuntimeError:
        return False


def _open(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Facts and tensors of a file whose header is as it should be."""
    require_regular(path)
    with safe_open(path, framework="pt") as file:
        facts = json.loads((file.metadata() or {}).get("potstill", "null"))
        if not isinstance(facts, dict) or facts.get("format") != FORMAT:
            raise ArtifactError("this safetensors file was not written by SyntheticSet.save")
        if facts.get("version") not in VERSIONS:
            raise ArtifactError(
                f"its format is {str(facts.get('version'))[:20]}, this potstill reads 1 to 5; "
                "install the version that wrote it"
            )
        header = {}
        for name in file.keys():  # noqa: SIM118  (safe_open is no mapping)
            part = file.get_slice(name)
            header[name] = (part.get_dtype(), tuple(part.get_shape()))
        if facts["version"] == 5 and "images" in header and header["images"][0] == "U8":
            header["images"] = ("F32", header["images"][1])
        wrong = _header_fault(header) or _facts_fault(facts)
        if wrong:
            raise ArtifactError(wrong)
        # Copies: a tensor that stays mapped to the file would crash when the file is overwritten.
        return facts, {name: file.get_tensor(name).clone() for name in header}


def _header_fault(header: dict[str, tuple[str, tuple[int, ...]]]) -> str | None:
    for name in ("images", "labels"):
        if name not in header:
            return f"the tensor {name!r} is missing"
    n = header["images"][1][0] if header["images"][1] else 0
    for name, (dtype, shape) in header.items():
        if name.startswith(_PREFIX):
            if dtype not in ("F32", "F64", "I64"):
                return f"{name} has type {dtype}; F32, F64 or I64 is expected"
            continue
        if name not in _EXPECTED:
            return f"the tensor {name[:80]!r} is unknown"
        expected, rank = _EXPECTED[name]
        ranks = (rank,) if isinstance(rank, int) else rank
        if dtype != expected or len(shape) not in ranks:
            return (
                f"{name} has type {dtype} and shape {shape}; {expected} of rank "
                f"{' or '.join(map(str, ranks))} is expected"
            )
        if shape and shape[0] != n and not name.startswith(_NOT_PER_IMAGE):
            return f"{name} has {shape[0]} rows for {n} images"
    return shape_fault(header["images"][1])


def _facts_fault(facts: dict[str, Any]) -> str | None:
    if not isinstance(facts.get("classes"), list):
        return "the list of class names is missing"
    if not isinstance(facts.get("decode"), dict):
        return "the decode spec is missing"
    if not isinstance(facts.get("transform"), str):
        return "the kind of transform is missing"
    return None
