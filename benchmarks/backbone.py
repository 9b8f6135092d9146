"""Steps on a frozen backbone against the released LGM step, and what they keep in memory.

The plain side is LGM's released step as its description has it: the backbone's weights want
gradients, which nobody uses or clears; real images are seen with a graph, which lives as long as
the step; synthetic images are decoded, repeated and seen at once; both gradients of the random head
are autograd's, the synthetic one differentiated again. Both sides share weights, views, pyramid
(all levels there) and draws; images are noise, on which time does not depend.

"sfm": one SFM step, one view, real side cached, against the released LGM step of ``--views``.

"lgm": our LGM on the same real images and the same views, in one pass and in two passes (as if
memory held ``--chunk`` views); real features from images or from the bank. With images, it states
how our gradient compares with the plain side's (the bank has real views of its own).

"classes": memory of an SFM step with ``--many`` images against ``--few``, same chunk of views. The
gradient is as large as the result itself and stays; "beyond" is without it, by stage of the step:
while the gradient is "found", "handed" to the leaves, and while Adam has "moved" them.

Every measurement is a process of its own, one after the other. Memory is that of the second step:
"peak_gb" is all of the process (on a CPU with its libraries; Linux only), "added_gb" what was not
there before the step, as weights, images and Adam's state were.

    python benchmarks/backbone.py [--subject sfm lgm classes] [--device cpu] [--threads 1]
                                  [--repeats 3] [--drop-real-graph] and sizes (see DEFAULTS)
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
import torch.nn.functional as F
from torch import Tensor

from potstill.data import ImageSet
from potstill.methods import LGM, SFM, Matcher
from potstill.run import Run
from potstill.run.machine import describe, tune_allocator

LR, HEAD_STD = 2e-3, 0.01
ENOUGH_GB = 1000.0  # no step is cut in pieces
OURS = ("images, one pass", "images, two passes", "bank, one pass", "bank, two passes")
DEFAULTS = {
    "device": "cpu",
    "precision": "auto",  # fp32, bf16; auto = bf16 on a GPU
    "threads": 1,
    "repeats": 3,
    "model": "timm-random:vit_small_patch16_224",
    "canvas": 256,
    "classes": 4,
    "views": 10,
    "chunk": 8,
    "small_model": "convnet-w32-in",
    "small_canvas": 32,
    "small_chunk": 64,
    "few": "100x1",  # classes x images per class
    "many": "1000x10",
    "cache": "",
}
SIZES = ("repeats", "model", "canvas", "classes", "views", "chunk", "drop_real_graph")
Options = argparse.Namespace
Mark = Callable[[str], None]


def noise_images(classes: int, per_class: int, side: int) -> ImageSet:
    """uint8 noise, class-sorted."""
    draw = torch.Generator().manual_seed(0)
    count = classes * per_class
    images = torch.randint(0, 256, (count, 3, side, side), generator=draw, dtype=torch.uint8)
    labels, names = torch.arange(count) // per_class, tuple(map(str, range(classes)))
    return ImageSet(images, labels, names, "noise", torch.arange(count), f"noise-{count}-{side}")


class Step:
    """Our step: what a method yields is back-propagated, then Adam moves the whole pyramid.

    ``chunk``: views whose graph fits into memory; None = all of them.
    """

    def __init__(
        self, method: Matcher, real: ImageSet, ipc: int, run: Run, chunk: int | None = None
    ) -> None:
        self.method, self.real, self.number, self.run = method, real, 0, run
        self.objective: Any = method.begin(real, ipc, run)[0]
        self.canvas = self.objective.canvas
        self.canvas.grow_(10**9)
        self.piece = chunk or self.objective.pieces(run.with_(memory_gb=ENOUGH_GB))
        self.leaves = list(self.canvas.parameters().values())
        self.optimizer = torch.optim.Adam(self.leaves, lr=LR, fused=True)  # as the loop does

    def gradients(self, mark: Mark) -> None:
        for term in self.objective.terms(self.number, self.canvas, self.piece):
            mark("found")
            term.values.sum().backward()
        mark("handed")

    def __call__(self, mark: Mark = lambda stage: None) -> None:
        self.optimizer.zero_grad()
        self.gradients(mark)
        self.optimizer.step()
        mark("moved")
        self.number += 1


class Released(Step):
    """The released LGM step, on the draws of our method."""

    def __init__(self, method: LGM, real: ImageSet, run: Run, drop: bool) -> None:
        super().__init__(method, real, 1, run)
        self.drop = drop
        self.objective.backbone.body.requires_grad_(True)

    def features(self, images: Tensor, draw: dict[str, Tensor]) -> Tensor:
        backbone = self.objective.backbone
        return backbone.features(self.objective.views.apply(images, draw, backbone.size))

    def gradients(self, mark: Mark) -> None:
        run, step, views = self.run, self.number, self.objective.views
        shape = (self.canvas.classes, self.objective.backbone.dim)
        weight = HEAD_STD * torch.randn(shape, generator=run.generator("head", step))
        weight = weight.to(run.device).requires_grad_(True)
        bias = torch.zeros(len(weight), device=run.device, requires_grad=True)
        rows = self.objective.positions(step)
        labels = self.real.labels[rows].to(run.device)
        images = self.real.batch(rows, run.device)
        z = self.features(images, views.draw(len(rows), run.generator("real-views", step)))
        loss = F.cross_entropy(F.linear(z, weight, bias), labels)
        goal = torch.cat([g.flatten() for g in torch.autograd.grad(loss, (weight, bias))])
        if self.drop:
            del z, loss
        count, own = self.objective.count, self.canvas.labels
        draws = [views.draw(len(own), run.generator("views", step, k)) for k in range(count)]
        draw = {name: torch.cat([part[name] for part in draws]) for name in draws[0]}
        copies = self.canvas.render(self.canvas.parameters()).repeat(count, 1, 1, 1)
        seen = self.features(copies, draw)
        mean = F.cross_entropy(F.linear(seen, weight, bias), own.repeat(count))
        slopes = torch.autograd.grad(mean, (weight, bias), create_graph=True)
        found = torch.cat([slope.flatten() for slope in slopes])
        (1 - F.cosine_similarity(goal, found, dim=0)).backward()
        mark("handed")


def make(side: str, options: Options) -> Step:
    """Return the step of a name: "released", "sfm", one of OURS, or SFM's CLASSESxIPC."""
    cache = Path(options.cache)
    run = Run(device=options.device, precision=options.precision, cache=cache, quiet=True)
    if side[0].isdigit():
        classes, ipc = (int(word) for word in side.split("x"))
        real = noise_images(classes, 2, options.small_canvas)
        return Step(
            SFM.budget("paper", backbone=options.small_model), real, ipc, run, options.small_chunk
        )
    real = noise_images(options.classes, 2 * options.views, options.canvas)
    if side == "sfm":
        return Step(SFM.budget("paper", backbone=options.model), real, 1, run)
    source = side.split(",")[0] if side in OURS else "images"
    how: dict[str, Any] = {"backbone": options.model, "augmentations": options.views}
    method = LGM.budget("paper", real_side=source, bank_views=2, **how)
    if side == "released":
        return Released(method, real, run, options.drop_real_graph)
    return Step(method, real, 1, run, options.chunk if "two" in side else None)


class Meter:
    """Peak memory in GB of the stages of a step, and what was there before."""

    def __init__(self, device: str) -> None:
        self.on_gpu, self.peaks = device.startswith("cuda"), {}
        gc.collect()
        if not self.on_gpu:
            ctypes.CDLL("libc.so.6").malloc_trim(0)
        self._peak()
        self.before = self._peak()

    def __call__(self, stage: str) -> None:
        self.peaks[stage] = self._peak()

    def _peak(self) -> float:
        """Peak since the last call."""
        if self.on_gpu:
            peak = torch.cuda.max_memory_allocated() / 1e9
            torch.cuda.reset_peak_memory_stats()
            return peak
        lines = Path("/proc/self/status").read_text().splitlines()
        peak = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024 / 1e9
        Path("/proc/self/clear_refs").write_text("5")  # Linux: forget it
        return peak


def weighed(step: Step, options: Options) -> dict[str, Any]:
    """Memory in GB of the second step, in which no library is loaded and no state is made."""
    step()
    step.optimizer.zero_grad()
    meter = Meter(options.device)
    step(meter)
    count = step.objective.count * len(step.canvas.labels)
    return {
        "before": meter.before,
        "peak": max(meter.peaks.values()),
        "stages": meter.peaks,
        "gradient": sum(leaf.nbytes for leaf in step.leaves) / 1e9,
        "features": 4 * count * step.objective.backbone.dim / 1e9,
    }


def timed(sides: dict[str, Step], options: Options) -> dict[str, Any]:
    """Seconds of all steps in turn; how their first gradients compare with the plain side's."""
    alone = options.threads == 1 and options.device == "cpu"
    clock = time.process_time if alone else time.perf_counter

    def seconds(step: Step) -> float:
        began = clock()
        step()
        if options.device.startswith("cuda"):
            torch.cuda.synchronize()
        return clock() - began

    gradients = {}
    for side, step in sides.items():
        step()
        gradients[side] = torch.cat([leaf.grad.flatten() for leaf in step.leaves]).double()
    plain = gradients["released"]
    alike = {
        side: {
            "cosine": float(F.cosine_similarity(found, plain, dim=0)),
            "relative_difference": float((found - plain).norm() / plain.norm()),
        }
        for side, found in gradients.items()
    }
    rounds = [{s: seconds(step) for s, step in sides.items()} for _ in range(options.repeats)]
    return {"rounds": rounds, "alike": alike, "clock": "cpu" if alone else "wall"}


def ask(kind: str, sides: tuple[str, ...], options: Options) -> Any:
    """Measure in a process of its own."""
    words = [sys.executable, __file__, *sys.argv[1:], "--cache", options.cache, "--child", kind]
    done = subprocess.run([*words, *sides], stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


def tell(options: Options, **facts: Any) -> None:
    """Print one line."""
    facts["precision"] = Run(device=options.device, precision=options.precision).precision
    facts["device"], facts["threads"] = describe(options.device)["device"], options.threads
    rounded = json.loads(json.dumps(facts), parse_float=lambda text: float(f"{float(text):.4g}"))
    print(json.dumps(rounded | {"torch": torch.__version__}), flush=True)


def against_released(name: str, ours: tuple[str, ...], options: Options) -> None:
    """One line of time and memory for each of our sides."""
    memory = {side: ask("memory", (side,), options) for side in ("released", *ours)}
    found = ask("time", (*ours, "released"), options)
    rounds = found["rounds"]
    for side in ours:
        ratios = [times["released"] / times[side] for times in rounds]
        peaks = [memory[s]["peak"] for s in (side, "released")]
        added = [memory[s]["peak"] - memory[s]["before"] for s in (side, "released")]
        tell(
            options,
            benchmark=f"{name}: {side}",
            ratio=statistics.median(ratios),
            ratio_min=min(ratios),
            ratio_max=max(ratios),
            ours_s=statistics.median(times[side] for times in rounds),
            plain_s=statistics.median(times["released"] for times in rounds),
            clock=found["clock"],
            memory_ratio=peaks[1] / peaks[0],
            memory_ratio_added=added[1] / added[0],
            peak_gb=peaks,
            added_gb=added,
            gradients=found["alike"][side] if "images" in side else None,
            **{name: getattr(options, name) for name in SIZES},
        )


def classes(options: Options) -> None:
    """One line: memory with many images against few."""
    sizes = (options.few, options.many)
    both = [ask("memory", (size,), options) for size in sizes]
    beyond = {
        stage: [m["stages"][stage] - m["before"] - m["gradient"] for m in both]
        for stage in both[0]["stages"]
    }
    few, many = (max(pair[place] for pair in beyond.values()) for place in (0, 1))
    tell(
        options,
        benchmark="memory of an SFM step by classes and images",
        classes_x_ipc=sizes,
        ratio=many / few,
        ratio_by_stage={stage: pair[1] / few for stage, pair in beyond.items()},
        peak_gb=[m["peak"] for m in both],
        added_gb=[m["peak"] - m["before"] for m in both],
        gradient_gb=[m["gradient"] for m in both],
        beyond_gb=beyond,
        features_gb=[m["features"] for m in both],
        **{name: getattr(options, name) for name in ("small_model", "small_canvas", "small_chunk")},
    )


SUBJECTS = {
    "sfm": partial(against_released, "SFM step against the released LGM step", ("sfm",)),
    "lgm": partial(against_released, "LGM step against the released one", OURS),
    "classes": classes,
}


def main() -> None:
    parser = argparse.ArgumentParser()
    for name, value in DEFAULTS.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    parser.add_argument("--subject", nargs="+", choices=SUBJECTS, default=list(SUBJECTS))
    parser.add_argument("--drop-real-graph", action="store_true", help="at once, plain side")
    parser.add_argument("--child", nargs="+", metavar="SIDE", help=argparse.SUPPRESS)
    options = parser.parse_args()
    tune_allocator()
    torch.set_num_threads(options.threads)
    if options.child:
        kind, *sides = options.child
        steps = {side: make(side, options) for side in sides}
        found = timed(steps, options) if kind == "time" else weighed(steps[sides[0]], options)
        print(json.dumps(found))
        return
    with tempfile.TemporaryDirectory() as options.cache:
        for name in options.subject:
            SUBJECTS[name](options)


if __name__ == "__main__":
    main()
