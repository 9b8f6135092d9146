"""Shared fixtures: small images, a run in a temporary place, the real data where they are."""

from __future__ import annotations

import importlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

# read once, when the hub's library is imported; later settings would come too late
os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch

from blobs import blobs
from potstill.data import ImageSet
from potstill.run import Run

SHAPES = {"grey": (1, 8, 8), "rgb": (3, 8, 8)}


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test has its own cache and no access to a hub."""
    monkeypatch.setenv("POTSTILL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))


@pytest.fixture(autouse=True)
def _brief_references(monkeypatch: pytest.MonkeyPatch) -> None:
    """All real images are trained on for a moment; a test of the real numbers undoes this."""
    monkeypatch.setattr("potstill.evaluation.references._EPOCHS", 2)
    monkeypatch.setattr("potstill.evaluation.references._STEPS", 4)


@pytest.fixture(scope="session", autouse=True)
def _threads() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _signals() -> None:
    """Ctrl-C and hang-ups arrive, though a shell's background job and nohup ignore them."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture
def make_blobs() -> Callable[..., ImageSet]:
    return blobs


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(device="cpu", cache=tmp_path / "cache", quiet=True, checkpoint_seconds=0.0)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder with cifar10/ and cifar100-lt10/; tests that need it are skipped without."""
    folder = Path(os.environ.get("POTSTILL_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not (folder / "cifar10").is_dir():
        pytest.skip(f"real CIFAR-10 is not at {folder}; set POTSTILL_DATA")
    return folder


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], ModuleType]]:
    """Import a file of benchmarks/ by its name; none stays imported."""
    place, before = str(Path(__file__).parents[1] / "benchmarks"), set(sys.modules)
    monkeypatch.syspath_prepend(place)
    yield importlib.import_module
    for name in set(sys.modules) - before:
        if place in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]
