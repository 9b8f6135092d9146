"""Interleaved timing of two ways to do the same thing: A B A B ..., medians, one line of JSON."""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch

from potstill.run.machine import describe, peak_memory_gb


def measure(
    name: str,
    ours: Callable[[], Any],
    plain: Callable[[], Any],
    *,
    repeats: int = 5,
    device: str = "cpu",
    **facts: Any,
) -> dict[str, Any]:
    """Time both sides after one warm-up each; print and return the record.

    ``ratio`` is the median of the paired ratios plain / ours: above 1 means ours is faster.
    """

    def once(call: Callable[[], Any]) -> float:
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        began = time.perf_counter()
        call()
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        return time.perf_counter() - began

    once(ours), once(plain)
    times = [(once(ours), once(plain)) for _ in range(repeats)]
    ratios = [b / a for a, b in times]
    record = {
        "benchmark": name,
        "ratio": round(statistics.median(ratios), 2),
        "ratio_min": round(min(ratios), 2),
        "ratio_max": round(max(ratios), 2),
        "ours_s": round(statistics.median(a for a, _ in times), 4),
        "plain_s": round(statistics.median(b for _, b in times), 4),
        "repeats": repeats,
        "peak_memory_gb": round(peak_memory_gb(device), 2),
        **facts,
        "device": describe(device)["device"],
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    print(json.dumps(record), flush=True)
    return record
