"""One iteration of trajectory matching against the published loop, and its memory.

Sizes of CIFAR-10 at IPC 10: 100 synthetic images of 32x32, 10 classes; images and experts are
random numbers, on which time does not depend.

"lad-iteration": both phases of LAD, ours (exact gradient, and TESLA's) against the published loop
written plainly: a second-order graph in every step of both phases although the first pass throws it
away, the whole network in the second phase although its backbone is frozen, ``nn.AvgPool2d``. Both
sides share one implementation of augmentation and the same draws, which favours the plain side.

"exact-vs-tesla": the gradient of all parameters' distance, ours (exact, and TESLA's) against
TESLA's two passes with torch's own second derivatives.

Each line states the cosine of our image gradient with the plain side's, which is TESLA's.

"memory": peak of fresh processes, of which ``beyond`` is what the process had not used before.

    python benchmarks/trajectory.py [--device cpu] [--width 32] [--threads 1] [--steps 80]
                                    [--repeats 2] [--only lad-iteration exact-vs-tesla memory]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from rollouts import OnePhase, Ours, PlainTesla, PublishedLAD, Scene, Work
from torch import Tensor

from potstill.run.machine import describe, peak_memory_gb, tune_allocator


def cosine(a: Tensor, b: Tensor) -> float:
    return round(float(torch.cosine_similarity(a.flatten(), b.flatten(), dim=0)), 6)


def compare(
    name: str, ours: dict[str, Work], plain: Work, options: argparse.Namespace, **facts: object
) -> None:
    """Time all sides in turn, after one warm-up each; one line for each of ours.

    CPU seconds of the process with one thread, which other programs disturb less, else wall.
    """
    alone = options.threads == 1 and options.device == "cpu"

    def seconds(work: Work) -> float:
        began = time.process_time() if alone else time.perf_counter()
        work()
        if options.device.startswith("cuda"):
            torch.cuda.synchronize()
        return (time.process_time() if alone else time.perf_counter()) - began

    sides = {**ours, "plain": plain}
    images = {side: work().clone() for side, work in sides.items()}
    rounds = [{s: seconds(work) for s, work in sides.items()} for _ in range(options.repeats)]
    for side in ours:
        ratios = [times["plain"] / times[side] for times in rounds]
        record = {
            "benchmark": f"{name}: {side}",
            "ratio": round(statistics.median(ratios), 2),
            "ratio_min": round(min(ratios), 2),
            "ratio_max": round(max(ratios), 2),
            "ours_s": round(statistics.median(times[side] for times in rounds), 4),
            "plain_s": round(statistics.median(times["plain"] for times in rounds), 4),
            "clock": "cpu" if alone else "wall",
            "repeats": options.repeats,
            "cosine_of_image_gradients": cosine(images[side], images["plain"]),
            "width": options.width,
            **facts,
            "device": describe(options.device)["device"],
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
        }
        print(json.dumps(record), flush=True)


def lad_iteration(options: argparse.Namespace) -> None:
    scene = Scene(options.width, options.steps, options.device)
    keep = int(0.25e9 * options.memory_gb)  # as the methods do
    ours: dict[str, Work] = {side: Ours(scene, side, keep) for side in ("exact", "tesla")}
    plain = PublishedLAD(Scene(options.width, options.steps, options.device, True), graph=True)
    facts = {"student_steps": [options.steps, options.steps], "memory_gb": options.memory_gb}
    compare("LAD iteration against the published loop", ours, plain, options, **facts)


def exact_vs_tesla(options: argparse.Namespace) -> None:
    scene = Scene(options.width, 10, options.device)
    ours: dict[str, Work] = {side: OnePhase(scene, side) for side in ("exact", "tesla")}
    name = "20 student steps against TESLA's two passes by torch"
    compare(name, ours, PlainTesla(scene), options)


def peak_gb(device: str) -> float:
    """Peak of this program alone; ``ru_maxrss`` would start at its parent's."""
    if device.startswith("cuda") or not sys.platform.startswith("linux"):
        return peak_memory_gb(device)
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024 / 1e9


def child(gradient: str, count: int, options: argparse.Namespace) -> None:
    """Print peak memory in GB, and what of it the derivative has added."""
    scene = Scene(options.width, count // 2, options.device)
    before = peak_gb(options.device)
    OnePhase(scene, gradient)()
    peak = peak_gb(options.device)
    print(json.dumps({"peak": peak, "beyond": peak - before}))


def memory(options: argparse.Namespace) -> None:
    peaks: dict[str, dict[str, float]] = {}
    for case in ("exact 10", "exact 20", "exact 80", "tesla 20", "unroll 20"):
        words = [sys.executable, __file__, "--child", *case.split()]
        words += ["--device", options.device, "--width", str(options.width)]
        words += ["--threads", str(options.threads)]
        done = subprocess.run(words, capture_output=True, text=True, check=True)
        peaks[case] = json.loads(done.stdout)
    ratios = {
        f"{a} / {b}": [round(peaks[a][kind] / peaks[b][kind], 3) for kind in ("peak", "beyond")]
        for a, b in (("exact 20", "unroll 20"), ("exact 80", "exact 10"), ("exact 20", "tesla 20"))
    }
    record = {
        "benchmark": "peak memory of a trajectory's gradient, by gradient and student steps",
        "ratios_of_peak_and_beyond": ratios,
        "peak_gb": {case: round(value["peak"], 3) for case, value in peaks.items()},
        "beyond_gb": {case: round(value["beyond"], 3) for case, value in peaks.items()},
        "width": options.width,
        "device": options.device,
    }
    print(json.dumps(record), flush=True)


SUBJECTS = {"lad-iteration": lad_iteration, "exact-vs-tesla": exact_vs_tesla, "memory": memory}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=80, help="student steps of each LAD phase")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--memory-gb", type=float, default=4.0)
    parser.add_argument("--only", nargs="+", choices=SUBJECTS, default=list(SUBJECTS))
    parser.add_argument("--child", nargs=2, metavar=("GRADIENT", "STEPS"))
    options = parser.parse_args()
    tune_allocator()
    torch.set_num_threads(options.threads)
    if options.child:
        child(options.child[0], int(options.child[1]), options)
        return
    for name in options.only:
        SUBJECTS[name](options)


if __name__ == "__main__":
    main()
