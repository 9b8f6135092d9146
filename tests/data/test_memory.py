"""Memory while a source is decoded for the first time: at most twice the budget."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

COUNT, SIZE, BUDGET = 800, 256, 0.05  # 157 MB decoded, read with 50 MB

MEASURE = """
import sys, pathlib
from potstill.data import load

def status(name):
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) * 1024

small, large, cache = sys.argv[1:]
load(small, cache=cache, quiet=True)  # imports what it takes
pathlib.Path("/proc/self/clear_refs").write_text("5")  # the peak begins here
before = status("VmRSS")
images = load(large, cache=cache, quiet=True, memory_gb=BUDGET).images
print(len(images), status("VmHWM") - before)
"""


def pictures(count):
    rng = np.random.Generator(np.random.PCG64(0))
    made = np.repeat(np.arange(count, dtype=np.uint8), SIZE * SIZE * 3)
    made = made.reshape(count, SIZE, SIZE, 3)
    made[:, :4] = rng.integers(0, 256, (count, 4, SIZE, 3), dtype=np.uint8)
    return made


def npz(path, made):
    np.savez(path.with_suffix(".npz"), images=made, labels=np.arange(len(made)) % 2)
    return path.with_suffix(".npz")


def zipped(path, made):
    np.savez_compressed(path.with_suffix(".npz"), images=made, labels=np.arange(len(made)) % 2)
    return path.with_suffix(".npz")


def parquet(path, made):
    """Small groups: a page of a file, here a group, is held whole, and so are its copies."""
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")

    def encoded(picture):
        stream = io.BytesIO()
        Image.fromarray(picture).save(stream, "BMP")
        return {"bytes": stream.getvalue(), "path": None}

    cells = pa.array([encoded(picture) for picture in made])
    table = pa.table({"image": cells, "label": np.arange(len(made)) % 2})
    options = {"compression": "none", "use_dictionary": False, "row_group_size": 20}
    pq.write_table(table, path.with_suffix(".parquet"), **options)
    return path.with_suffix(".parquet")


def folder(path, made):
    for row, picture in enumerate(made):
        place = path / "ab"[row % 2] / f"{row}.bmp"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(place)
    return path


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads Linux's peak memory")
@pytest.mark.parametrize("write", [npz, zipped, folder, parquet])
def test_a_set_above_the_budget_is_decoded_within_twice_the_budget(tmp_path, write):
    small = write(tmp_path / "small", pictures(4))
    large = write(tmp_path / "large", pictures(COUNT))
    code = MEASURE.replace("BUDGET", str(BUDGET))
    words = [sys.executable, "-c", code, *map(str, (small, large, tmp_path / "cache"))]
    answer = subprocess.run(words, capture_output=True, text=True, check=True).stdout.split()
    assert int(answer[0]) == COUNT
    assert int(answer[1]) < 2e9 * BUDGET, f"{int(answer[1]) / 1e6:.0f} MB"
