"""Every ``>>>`` in the code and in the documents does what stands below it."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path
from typing import Any

import pytest
import torch

import potstill
from potstill.app.job import distill
from potstill.data import load
from potstill.evaluation import PROTOCOLS
from potstill.methods import CSDM, Random
from potstill.run import Run

ROOT = Path(__file__).parents[1]
HOW = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
FILES = [*(ROOT / "src").rglob("*.py"), *(ROOT / "docs").rglob("*.md"), *ROOT.glob("*.md")]
SHOWN = [path for path in sorted(FILES) if ">>> " in path.read_text("utf-8")]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What examples take as given: two runs and a folder of pictures."""
    from PIL import Image

    root = tmp_path_factory.mktemp("examples")
    run = Run(device="cpu", cache=root / "cache", quiet=True)
    for name in ("first", "demo"):
        distill(Random(), "digits", ipc=1, imbalance_factor=50, out=root / "runs" / name, run=run)
    for label in ("owl", "wren"):
        place = root / "data" / "birds" / "train" / label
        place.mkdir(parents=True)
        Image.new("RGB", (80, 70), "brown" if label == "wren" else "white").save(place / "0.png")
    return root


@pytest.fixture
def here(made, monkeypatch) -> dict[str, Any]:
    """Names that examples use; methods and students are the real ones, but train briefly."""
    monkeypatch.chdir(made)
    monkeypatch.setitem(PROTOCOLS, "quick", PROTOCOLS["quick"].with_(epochs=2))
    brief = CSDM.budget("quick", steps=4, pool_epochs=1, entries=2)
    monkeypatch.setattr(CSDM, "budget", lambda name: brief)
    return {"potstill": potstill, "torch": torch, "train": load("digits").long_tailed(50)}


@pytest.mark.parametrize("path", SHOWN, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_what_an_example_shows_comes_out(path, here):
    if path.suffix == ".py":
        parts = path.relative_to(ROOT / "src").with_suffix("").parts
        module = importlib.import_module(".".join(parts).removesuffix(".__init__"))
        found = doctest.testmod(module, extraglobs=here, optionflags=HOW)
    else:
        found = doctest.testfile(str(path), module_relative=False, globs=here, optionflags=HOW)
    assert found.attempted and not found.failed
