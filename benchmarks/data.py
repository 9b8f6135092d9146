"""Seconds to open CIFAR-10: decoded once from its image files, then from the decoded cache.

python benchmarks/data.py --data FOLDER_WITH_PARQUET
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import potstill
from potstill.run.machine import describe


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", default="../shared/data/cifar10")
    options = parser.parse_args()
    if not Path(options.data).exists():
        print(json.dumps({"benchmark": "open CIFAR-10", "skipped": f"no data at {options.data}"}))
        return
    potstill.load("digits")  # imports are not part of the measurement
    seconds = []
    with tempfile.TemporaryDirectory() as cache:
        for _ in range(4):
            began = time.perf_counter()
            real = potstill.load(options.data, cache=Path(cache), quiet=True)
            seconds.append(time.perf_counter() - began)
    record = {
        "benchmark": "open CIFAR-10",
        "images": len(real),
        "decode_s": round(seconds[0], 2),
        "cached_s": round(sorted(seconds[1:])[1], 3),
        "ratio": round(seconds[0] / sorted(seconds[1:])[1], 1),
        **{k: v for k, v in describe("cpu").items() if k in ("device", "threads")},
    }
    print(json.dumps(record))


if __name__ == "__main__":
    main()
