"""Time and peak memory of selectors on random features; prints one JSON line.

Each method chooses in a process of its own; the features lie in a file as a pass leaves them, and
the head is random. Networks are not part of it.

    python benchmarks/selection.py [METHOD ...] [--images 100000] [--features 512] [--classes 100]
                                   [--ipc 50] [--imbalance-factor 1] [--threads 2]
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line sets it

import torch

from potstill.data.longtail import profile_counts
from potstill.experts.feature_stats import StoredFeatures
from potstill.experts.heads import Head
from potstill.methods import CATALOGUE
from potstill.methods.selection.class_by_class import ClassByClass
from potstill.run import Run

METHODS = [name for name, kind in CATALOGUE.items() if issubclass(kind, ClassByClass)]


def stored(options: Any, path: Path) -> StoredFeatures:
    """Random features of classes that lie apart, mapped from ``path``; written where not there."""
    most = options.images // options.classes
    counts = torch.tensor(
        profile_counts(most, options.classes, options.imbalance_factor, "exponential")
    )
    shape, draw = (1, int(counts.sum()), options.features), torch.Generator().manual_seed(0)
    labels = torch.repeat_interleave(torch.arange(options.classes), counts)
    if not path.exists():
        with path.open("wb") as file:
            for count in counts.tolist():
                centre = torch.randn(options.features, generator=draw)
                z = centre + torch.randn(count, options.features, generator=draw)
                file.write(z.half().numpy().tobytes())
    size = shape[1] * shape[2]
    bank = torch.from_file(str(path), shared=False, size=size, dtype=torch.float16).view(shape)
    sums = torch.zeros(options.classes, options.features, dtype=torch.float64)
    return StoredFeatures(
        counts=counts, sums=sums, views=1, facts={}, key="", bank=bank, labels=labels
    )


def measured(name: str, options: Any, path: Path) -> dict[str, float]:
    """What one method takes, its process included in the memory."""
    torch.set_num_threads(options.threads)
    stats, draw = stored(options, path), torch.Generator().manual_seed(1)
    names = tuple(map(str, range(options.classes)))
    weight = torch.randn(options.classes, options.features, generator=draw) / 10
    head = Head(weight, torch.zeros(options.classes), names, "", {})
    began, busy = time.perf_counter(), time.process_time()
    chosen = CATALOGUE[name]().choose(
        SimpleNamespace(classes=names), stats, head, options.ipc, Run(device="cpu", quiet=True)
    )
    seconds, busy = time.perf_counter() - began, time.process_time() - busy
    assert chosen.positions.unique().numel() == len(chosen.positions)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "seconds": round(seconds, 2),
        "cpu_seconds": round(busy, 2),  # of all threads; what a busy machine does not change
        "peak_gb": round(peak / 1e9, 3),
    }


parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
parser.add_argument("methods", nargs="*", default=METHODS, metavar="METHOD")
for flag, default in (
    ("images", 100_000), ("features", 512), ("classes", 100), ("ipc", 50), ("threads", 2),
):  # fmt: skip
    parser.add_argument(f"--{flag}", type=int, default=default)
parser.add_argument("--imbalance-factor", type=float, default=1.0)
parser.add_argument("--bank", type=Path, help=argparse.SUPPRESS)

if __name__ == "__main__":
    given = parser.parse_args()
    if given.bank:  # one method, in a process of its own
        print(json.dumps(measured(given.methods[0], given, given.bank)))
        sys.exit()
    about = {k: v for k, v in vars(given).items() if k not in ("methods", "bank")}
    with tempfile.TemporaryDirectory() as folder:
        bank, found = Path(folder) / "bank.f16", {}
        stored(given, bank)
        flags = [f"--{k.replace('_', '-')}={v}" for k, v in about.items()]
        for name in given.methods:
            words = [sys.executable, __file__, name, *flags, f"--bank={bank}"]
            told = subprocess.run(words, capture_output=True, text=True, check=True).stdout
            found[name] = json.loads(told.splitlines()[-1])
    print(json.dumps(about | {"methods": found}))
