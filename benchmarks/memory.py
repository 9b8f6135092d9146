"""Peak memory of matching steps against the number of real images, each in its own process.

Cached steps (after the real side is built) and uncached steps are both measured; images are
memory-resident uint8, whose own size is subtracted.

    python benchmarks/memory.py [--few 2000] [--many 20000] [--width 32]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path


def child(count: int, width: int, policy: str) -> None:
    """Run five steps on ``count`` real images and print the peak beyond the images themselves."""
    import torch
    from step import fake_cifar

    from potstill.methods import CSDM
    from potstill.run import Run
    from potstill.run.machine import peak_memory_gb

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as cache:
        run = Run(device="cpu", cache=Path(cache), quiet=True)
        real = fake_cifar(count // 10)
        method = CSDM.budget(
            "paper",
            network=f"convnet-d3-w{width}-in",
            members=1,
            pool_epochs=0,
            real_side=policy,
            entries=2,
            frequencies=512,
        )
        objective, _ = method.begin(real, 10, run)
        for step in range(5):
            for term in objective.terms(step, objective.canvas, 10):
                term.values.sum().backward()
        print(peak_memory_gb("cpu") - real.images.nbytes / 1e9)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--few", type=int, default=2000)
    parser.add_argument("--many", type=int, default=20000)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--child", nargs=2, metavar=("COUNT", "POLICY"))
    options = parser.parse_args()
    if options.child:
        child(int(options.child[0]), options.width, options.child[1])
        return
    for policy in ("fixed", "fresh"):
        peaks = []
        for count in (options.few, options.many):
            words = [sys.executable, __file__, "--width", str(options.width)]
            words += ["--child", str(count), policy]
            done = subprocess.run(words, capture_output=True, text=True, check=True)
            peaks.append(float(done.stdout))
        record = {
            "benchmark": f"peak memory of a CSDM step, real side {policy}",
            "real_images": [options.few, options.many],
            "peak_gb": [round(peak, 3) for peak in peaks],
            "ratio": round(peaks[1] / peaks[0], 3),
            "width": options.width,
        }
        print(json.dumps(record), flush=True)


if __name__ == "__main__":
    main()
