"""Small real things to damage: a source of pictures, finished and scored runs, saved artifacts."""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from potstill.data.transform import ZCA, Normalize
from potstill.labels import Projection, ViewLabels
from potstill.synthetic import SyntheticSet

CLASSES = ("nought", "one", "two")
MACHINE = "--device cpu --threads 1 --checkpoint-seconds 0 --quiet"
NETWORK = "--network convnet-d2-w8-in"
JOBS = {  # each is done in a second
    "csdm": f"distill csdm --ipc 1 --steps 4 {NETWORK} --members 1 --pool-epochs 1 --entries 2"
    f" --frequencies 16 --batch-real 8 {MACHINE}",
    "lad": f"distill lad --ipc 1 --steps 3 {NETWORK} --experts 1 --expert-epochs 3"
    " --classifier-epochs 1 --student-steps 2 --classifier-steps 2 --span 1 --start-min 0"
    f" --start-max 1 --start-now 1 --expert-batch 16 {MACHINE}",
    "lgm": "distill lgm --ipc 1 --steps 4 --backbone convnet-d2-w8-in --augmentations 2"
    f" --grow-every 2 {MACHINE}",
    "random": "distill random --ipc 1 --device cpu --threads 1 --quiet",
}
STUDENT = "--network mlp-w8 --protocol quick --runs 1 --device cpu --threads 1 --quiet"
RECIPE = """[about]
title = "digits"
paper = "none"
paper_accuracy = 50.0
note = "for trials"

[data]
data = "{source}"
imbalance_factor = 2.0

[distill]
method = "csdm"
ipc = 1
budget = "quick"
seed = 0

[method]
steps = 2
network = "convnet-d2-w8-in"
members = 1
pool_epochs = 1
entries = 2
frequencies = 16
batch_real = 8

[evaluate]
network = "mlp-w8"
protocol = "quick"
runs = 1

[[measured]]
date = 2025-01-01
device = "x"
accuracy = 50.0
"""


def words(job: str, source: Path, out: Path) -> list[str]:
    """The command line of a job of :data:`JOBS` on a source."""
    return [*shlex.split(JOBS[job]), "--data", str(source), "--out", str(out)]


@contextmanager
def environment(root: Path) -> Iterator[None]:
    """A cache of its own, no hub, one thread."""
    before = dict(os.environ)
    torch.set_num_threads(1)
    os.environ |= {
        "POTSTILL_CACHE": str(root / "cache"), "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1",
        "HF_HOME": str(root / "hub"),
    }  # fmt: skip
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def warm() -> None:
    """Import what commands import late, so that no forked child has to."""
    import datasets  # noqa: F401
    import matplotlib.pyplot  # noqa: F401
    import PIL.GifImagePlugin  # noqa: F401
    import pyarrow.parquet  # noqa: F401
    import sklearn.datasets  # noqa: F401
    import timm  # noqa: F401
    import torchvision  # noqa: F401

    import potstill.app.backbone_command
    import potstill.app.cli
    import potstill.app.job
    import potstill.app.recipe
    import potstill.experts.selfsupervised
    import potstill.methods
    import potstill.reports  # noqa: F401


def pictures(root: Path, train: tuple[int, ...] = (12, 8, 5), test: int = 4) -> Path:
    """A folder of digits as PNG files, with a test split."""
    from PIL import Image
    from sklearn.datasets import load_digits

    digits = load_digits()
    for label, name in enumerate(CLASSES):
        rows = digits.images[digits.target == label]
        for number, image in enumerate(rows[: train[label] + test]):
            split = "train" if number < train[label] else "test"
            place = root / split / name / f"{number:03d}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray((image * 15).astype("uint8")).save(place)
    return root


def artifacts(root: Path) -> dict[str, Path]:
    """Saved sets of each kind: hard and soft labels, weights, tiles, whitening."""
    draw = torch.Generator().manual_seed(0)
    plain: dict[str, Any] = {
        "images": torch.rand(3, 1, 6, 6, generator=draw),
        "labels": torch.arange(3),
        "classes": CLASSES,
        "transform": Normalize(torch.tensor([0.4]), torch.tensor([0.2])),
        "provenance": {"method": {"name": "x", "fields": {"steps": 3}}, "seconds": 1.0},
    }
    soft = {
        "images": torch.rand(3, 3, 5, 5, generator=draw),
        "transform": Normalize(torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.2, 0.2, 0.3])),
        "soft_labels": torch.softmax(torch.randn(3, 3, generator=draw), 1),
        "weights": torch.rand(3, generator=draw),
        "syn_lr": 0.01,
        "source_indices": torch.arange(25),
    }
    tiled = {
        "images": torch.rand(3, 1, 8, 8, generator=draw),
        "decode": {"kind": "tiled", "factor": 2, "formation": "multi"},
    }
    labelled = tiled | {"soft_labels": torch.softmax(torch.randn(3, 5, 3, generator=draw), 2)}
    whitened = {"transform": _zca(draw)}
    learned = {"regression_targets": torch.randn(3, 3, generator=draw)}
    views = ViewLabels.of(
        torch.rand(3, 1, 6, 6, generator=draw),
        lambda x: x.flatten(1)[:, :3],
        2,
        lambda *at: draw,
        cutmix=0.5,
        top=2,
    )
    projection = Projection(torch.randn(3, 4, generator=draw), torch.zeros(3), "mlp-w8", "0" * 16)
    viewed = {"view_labels": views, "projection": projection}
    made = {
        "hard": {}, "soft": soft, "tiled": tiled, "whitened": whitened, "learned": learned,
        "viewed": viewed, "labelled": labelled,
    }  # fmt: skip
    return {name: SyntheticSet(**plain | more).save(root / name) for name, more in made.items()}


def _zca(draw: torch.Generator) -> ZCA:
    from potstill.data import ImageSet

    images = (torch.rand(40, 1, 6, 6, generator=draw) * 255).to(torch.uint8)
    rows = torch.arange(40)
    return ZCA.fit(ImageSet(images, rows % 2, ("a", "b"), "x", rows, "x"))


def finished(root: Path, job: str = "csdm", scored: bool = True) -> Path:
    """A run folder on ``root/source`` that is finished, scored and has its page."""
    from cases import cli

    source = root / "source"
    if not source.exists():
        pictures(source)
    out = root / job
    steps = [words(job, source, out)]
    if scored:
        steps += [["evaluate", str(out), *shlex.split(STUDENT)], ["report", str(out)]]
    for step in steps:
        ended = cli(step)
        assert ended.code == 0, ended
    return out


def fresh(template: Path, place: Path) -> Path:
    """A copy of a folder to spoil, in the place of the last one."""
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(template, place, symlinks=True)
    return place
