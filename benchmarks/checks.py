"""What believing nothing without its check costs: when a decoded set is opened, and in a quick run.

CIFAR-10 is opened from the decoded cache, in memory and mapped, and looked through; then a short
csdm run (two networks of the quick budget) is done and repeated from its caches. ``checks_s`` are
the seconds spent in checks of any kind (medians where repeated), a part of those beside them. One
JSON line.

    python benchmarks/checks.py --data FOLDER_WITH_PARQUET [--steps 50]
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import xxhash

import potstill
from potstill.methods import find
from potstill.run import checkpoint
from potstill.run.machine import describe

REPEATS = 7


class Stopwatch:
    """Seconds spent in some functions."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def around(self, work: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*given: Any, **options: Any) -> Any:
            began = time.perf_counter()
            try:
                return work(*given, **options)
            finally:
                self.seconds += time.perf_counter() - began

        return timed


@contextmanager
def watched() -> Iterator[Stopwatch]:
    """Measure the checks of blocks that are read and those of every state."""
    watch = Stopwatch()
    with ExitStack() as stack:
        for place, name in ((xxhash, "xxh3_64_intdigest"), (checkpoint, "content_check")):
            stack.enter_context(patch.object(place, name, watch.around(getattr(place, name))))
        yield watch


def opening(data: str, cache: Path, memory_gb: float) -> dict[str, float]:
    """Seconds to open and look through the cached set, and those that its checks took."""
    seconds, checks = [], []
    for _ in range(REPEATS):
        with watched() as watch:
            began = time.perf_counter()
            real = potstill.load(data, cache=cache, memory_gb=memory_gb, quiet=True)
            size = real.rows().nbytes
            seconds.append(time.perf_counter() - began)
            checks.append(watch.seconds)
    spent = statistics.median(checks)
    return {
        "open_s": round(statistics.median(seconds), 3),
        "checks_s": round(spent, 4),
        "checks_s_per_gb": round(1e9 * spent / size, 3),
    }


def running(data: str, cache: Path, out: Path, steps: int) -> dict[str, float]:
    """Seconds of a run of the command line's defaults, and the share of its checks."""
    run = potstill.Run(device="cpu", cache=cache, quiet=True)
    method = find("csdm").budget("quick")
    method.steps, method.networks, method.pool_epochs = steps, 2, 4
    with watched() as watch:
        began = time.perf_counter()
        potstill.distill(method, data, ipc=1, imbalance_factor=100, run=run, out=out)
        seconds = time.perf_counter() - began
    return {
        "run_s": round(seconds, 1),
        "checks_s": round(watch.seconds, 4),
        "percent": round(100 * watch.seconds / seconds, 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", default="../shared/data/cifar10")
    parser.add_argument("--steps", type=int, default=50)
    options = parser.parse_args()
    if not Path(options.data).exists():
        print(json.dumps({"benchmark": "checks", "skipped": f"no data at {options.data}"}))
        return
    with tempfile.TemporaryDirectory() as place:
        cache = Path(place) / "cache"
        potstill.load(options.data, cache=cache, quiet=True)  # decoded, and imports are paid for
        record = {
            "benchmark": "checks",
            "in_memory": opening(options.data, cache, 4.0),
            "mapped": opening(options.data, cache, 1e-3),
            "first_run": running(options.data, cache, Path(place) / "first", options.steps),
            "cached_run": running(options.data, cache, Path(place) / "second", options.steps),
            **{k: v for k, v in describe("cpu").items() if k in ("device", "threads")},
        }
    print(json.dumps(record))


if __name__ == "__main__":
    main()
