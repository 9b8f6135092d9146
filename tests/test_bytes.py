"""What each method makes of one small set at one seed: the same as when it was last looked at.

``tests/fixtures/bytes/results.json`` holds, for every variant of the contract test, eight random
projections of what was learned and the checksum of the artifact on the machines named there. A
change of the structure must change neither; a change of a method is recorded anew, with its reason
in docs/decisions.md: ``python tests/test_bytes.py [VARIANT ...]`` from the root of the checkout.
"""

from __future__ import annotations

import contextlib
import json
import platform
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch

from blobs import blobs
from potstill.run import Run
from potstill.run.checkpoint import digest, write_json
from potstill.synthetic import SyntheticSet
from test_contract import VARIANTS, build

RESULTS = Path(__file__).parent / "fixtures" / "bytes" / "results.json"
KNOWN: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}


def machine() -> str:
    """What float sums depend on besides the code: the kind of processor and torch."""
    told = {"cpu family", "model", "stepping", "flags"}
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
        about = sorted(line for line in lines if line.partition("\t")[0] in told)
        return f"{digest(about)}, torch {torch.__version__}"
    return f"{platform.processor()}, torch {torch.__version__}"


def made(variant: str, folder: Path) -> SyntheticSet:
    run = Run(seed=3, device="cpu", quiet=True, cache=folder)
    return build(variant)(blobs((24, 12, 6)), 2, run)


def projected(syn: SyntheticSet) -> list[float]:
    """Eight projections of images, soft labels and step size; small when two sets are alike."""
    parts = [syn.images, syn.soft_labels, None if syn.syn_lr is None else torch.tensor(syn.syn_lr)]
    flat = torch.cat([part.double().flatten() for part in parts if part is not None])
    draw = torch.Generator().manual_seed(len(flat))
    axes = torch.randn(8, len(flat), generator=draw, dtype=torch.float64)
    return [round(value, 6) for value in (axes @ flat / len(flat) ** 0.5).tolist()]


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_variant_gives_what_it_gave(variant, tmp_path):
    assert variant in KNOWN, f"record it: python tests/test_bytes.py {variant}"
    syn, known = made(variant, tmp_path), KNOWN[variant]
    assert projected(syn) == pytest.approx(known["projected"], abs=1e-3)
    exact = known["checksums"].get(machine())
    assert exact in (None, syn.checksum), "the same machine has always given the same bytes"


def record(variants: list[str]) -> None:
    torch.set_num_threads(1)
    for variant in variants or VARIANTS:
        with tempfile.TemporaryDirectory() as folder:
            syn = made(variant, Path(folder))
        before = KNOWN.get(variant, {"projected": [], "checksums": {}})
        alike = projected(syn) == pytest.approx(before["projected"], abs=1e-3)
        checksums = before["checksums"] if alike else {}
        KNOWN[variant] = {
            "projected": before["projected"] if alike else projected(syn),
            "checksums": checksums | {machine(): syn.checksum},
        }
        print(variant, syn.checksum, "as before" if alike else "new")
    write_json(RESULTS, {name: KNOWN[name] for name in sorted(KNOWN)})


if __name__ == "__main__":
    record(sys.argv[1:])
