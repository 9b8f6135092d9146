"""What ``gpu.py`` runs, in order, at the sizes of a GPU ("full") and of two CPU cores ("small")."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from in_parts import Part

HERE = Path(__file__).parent
# modules that are not in Python, by what they are for
EVERYWHERE = ("torch", "numpy", "safetensors", "xxhash", "tqdm")
IMAGES = ("sklearn", "pyarrow", "PIL", "filelock", "threadpoolctl")
TESTS = ("pytest", *IMAGES)
ALL = tuple(dict.fromkeys((*EVERYWHERE, *TESTS, "timm")))

Words = Mapping[str, Any]  # flag without dashes -> value
Score = tuple[str, str, Words]  # student, protocol, changes of the protocol
# part -> script, share of the time left, modules beyond EVERYWHERE, flags at both sizes
MEASURED: dict[str, tuple[str, float, tuple[str, ...], dict[str, Words]]] = {
    "step-csdm": (
        "step.py", 0.1, (),
        {"full": {"method": "csdm"},
         "small": {"method": "csdm", "real": 8, "width": 16, "frequencies": 64, "repeats": 1}},
    ),
    "step-ncfm": (
        "step.py", 0.1, (),
        {"full": {"method": "ncfm", "frequencies": 4096},
         "small": {"method": "ncfm", "real": 8, "width": 16, "frequencies": 64, "repeats": 1}},
    ),
    "step-lad": (
        "trajectory.py", 0.15, (),
        {"full": {"only": "lad-iteration", "width": 128, "repeats": 3},
         "small": {"only": "lad-iteration", "width": 8, "steps": 2, "repeats": 1}},
    ),
    "step-sfm": (
        "backbone.py", 0.15, ("timm",),
        {"full": {"subject": "sfm"},
         "small": {"subject": "sfm", "model": "convnet-w8-in", "canvas": 32, "classes": 2,
                   "views": 2, "chunk": 2, "repeats": 1}},
    ),
    "students": (
        "students.py", 0.1, (),
        {"full": {}, "small": {"epochs": 5, "width": 8, "repeats": 1}},
    ),
    "experts": (
        "experts.py", 0.1, (),
        {"full": {}, "small": {"experts": 2, "images": 200, "width": 8, "repeats": 1}},
    ),
}  # fmt: skip
OWN: Score = ("convnet-w32-in", "quick", {})  # as most rows in docs/results.md
WIDE: Score = ("convnet-w128-in", "default", {})
SMALL_POOL: Words = {"network": "convnet-w8-in", "members": 1, "pool_epochs": 1, "entries": 2,
                     "batch_real": 32, "frequencies": 64, "steps": 10}  # fmt: skip
SMALL_EXPERTS: Words = {
    "network": "convnet-w8-in", "experts": 1, "expert_epochs": 1, "span": 1, "start_max": 1,
    "student_steps": 4, "classifier_epochs": 1, "classifier_images": 256, "classifier_steps": 4,
    "steps": 3, "preprocess": "normalize",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A method's rows of the table: what differs from its budget, and how it is scored."""

    method: str
    share: float  # of the time left, of each of its rows
    small: Words  # what differs from "quick"
    full: Words = field(default_factory=dict)  # what differs from "standard"
    scores: Sequence[Score] = (OWN, WIDE)


CELLS = (
    Cell(method="csdm", share=0.6, small=SMALL_POOL),
    Cell(method="sdm", share=0.5, small=SMALL_POOL),
    Cell(method="ncfm", share=0.5, small=SMALL_POOL),
    Cell(method="lad", share=0.6, small=SMALL_EXPERTS),
    Cell(
        method="sfm",
        share=0.7,
        full={"backbone": "self:convnet-w64-bn"},  # as its recipes; trained on the images at hand
        small={"backbone": "convnet-w8-in", "steps": 5},
        scores=(("same", "probe", {}),),
    ),
)
FACTORS = {"cifar": (200, 10), "digits": (50, 10)}  # digits' classes are too small for 200


def flags(words: Words) -> tuple[str, ...]:
    """Command-line words of a table of flags."""
    pairs = ((f"--{name.replace('_', '-')}", str(value)) for name, value in words.items())
    return tuple(word for pair in pairs for word in pair)


def small_score(score: Score) -> Score:
    """The same protocol with next to no training."""
    network, protocol, changes = score
    if protocol == "probe":
        return network, protocol, {**changes, "epochs": 3, "stored_views": 2, "full_steps": 5}
    return "convnet-w8-in", "quick", {**changes, "epochs": 2}


def cells(size: str, device: str, data: Path | None, folder: Path) -> Iterator[Part]:
    """Rows of the table, the factors of a method one after the other."""
    source = str(data) if data else "digits"
    for cell in CELLS:
        scores = list(map(small_score, cell.scores[:1])) if size == "small" else list(cell.scores)
        for factor in FACTORS["cifar" if data else "digits"]:
            name = f"{cell.method}-lt{factor}"
            asked = {
                "method": cell.method, "factor": factor, "ipc": 10, "data": source,
                "budget": "quick" if size == "small" else "standard",
                "fields": json.dumps(cell.small if size == "small" else cell.full),
                "scores": json.dumps(scores), "runs": 1 if size == "small" else 5,
                "folder": folder / name, "device": device,
            }  # fmt: skip
            yield Part(
                name=name, share=cell.share, words=(str(HERE / "cell.py"), *flags(asked)),
                settings={"size": size, "to_resume": f"{name}/checkpoint*.safetensors"},
            )  # fmt: skip


def plan(
    size: str, device: str, data: Path | None, folder: Path, missing: Collection[str] = ()
) -> list[Part]:
    """All parts, each with the reason why it cannot run here, if there is one."""

    def lacking(needs: Sequence[str]) -> str:
        gone = [name for name in dict.fromkeys((*EVERYWHERE, *needs)) if name in missing]
        verb = "is" if len(gone) == 1 else "are"
        return f"{', '.join(gone)} {verb} missing; install {', '.join(gone)}" if gone else ""

    def part(name: str, script: str, share: float, needs: Sequence[str], words: Words) -> Part:
        return Part(
            name=name, share=share, words=(str(HERE / script), *flags(words)),
            refusal=lacking(needs), settings={"size": size},
        )  # fmt: skip

    on_gpu = device.startswith("cuda")
    tests = part("tests", "gpu_tests.py", 0.15, TESTS, {})
    if not on_gpu:
        tests = Part(name=tests.name, share=tests.share, words=tests.words, refusal="no GPU")
    width = {"width": 8, "real": 16} if size == "small" else {}
    parts = [tests, part("cpu", "against_cpu.py", 0.15, IMAGES, {"device": device, **width})]
    for name, (script, share, needs, sizes) in MEASURED.items():
        words = {**sizes[size], "device": device}
        if on_gpu and name in ("students", "experts"):
            words["backend"] = "stacked"
        wanted = () if size == "small" else needs
        parts.append(part(name, script, share, wanted, words))
    refusal = lacking(IMAGES)
    for row in cells(size, device, data, folder):
        parts.append(Part(**{**vars(row), "refusal": refusal}))
    return parts
