"""Steps on a frozen backbone against the released LGM step, and what they keep in memory.

The plain side is LGM's released step as its description has it: the backbone's weights want
gradients, which nobody uses or clears; real images are seen with a graph, which lives as long as
the step; synthetic images are decoded, repeated and seen at once; both gradients of the random head
are autograd's, the synthetic one differentiated again. Both sides share weights, views, pyramid
(all levels there) and draws, images are noise: time does not depend on them.

"sfm": one SFM step, one view, real side cached, against the released LGM step with ``--views``.

"lgm": our LGM on the same real images and the same views, in one pass and in two passes (as if
memory held ``--chunk`` views), with its real features from images and from the bank. Each line
states the cosine of our gradient with the plain side's (the bank has real views of its own).

"classes": memory of one SFM step with many images against few, at the same chunk of views.

Every measurement is a process of its own, one after the other. "peak_gb" is the most memory in use
during a step, "added_gb" what of it was not there before: weights, images and Adam's state were.

    python benchmarks/backbone.py [--device cpu] [--threads 1] [--repeats 3] [--subject sfm lgm]
                                  [--model timm-random:vit_small_patch16_224] [--canvas 256]
                                  [--classes 4] [--views 10] [--chunk 8] [--drop-real-graph]
                                  [--small-model convnet-w32-in] [--small-canvas 32]
                                  [--few 100x1] [--many 1000x10] [--small-chunk 64]
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
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
import torch.nn.functional as F
from torch import Tensor

from potstill.canvas.pyramid import PyramidCanvas
from potstill.data import ImageSet
from potstill.data.views import Draw
from potstill.methods import LGM, SFM
from potstill.methods.frozen import BackboneMatcher
from potstill.run import Run
from potstill.run.machine import describe, peak_memory_gb, tune_allocator

LR, HEAD_STD = 2e-3, 0.01
ENOUGH_GB = 1000.0  # no step is cut in pieces
OURS = {
    "images, one pass": ("images", False),
    "images, two passes": ("images", True),
    "bank, one pass": ("bank", False),
    "bank, two passes": ("bank", True),
}


def noise_images(classes: int, per_class: int, side: int) -> ImageSet:
    """uint8 noise, class-sorted."""
    draw = torch.Generator().manual_seed(0)
    count = classes * per_class
    images = torch.randint(0, 256, (count, 3, side, side), generator=draw, dtype=torch.uint8)
    labels = torch.arange(classes).repeat_interleave(per_class)
    names = tuple(f"class {label}" for label in range(classes))
    return ImageSet(images, labels, names, "noise", torch.arange(count), f"noise-{count}-{side}")


class Step:
    """Our step: what a method yields is back-propagated, then Adam moves the whole pyramid.

    ``chunk``: views whose graph fits into memory; None = all of them.
    """

    def __init__(
        self, method: BackboneMatcher, real: ImageSet, ipc: int, run: Run, chunk: int | None = None
    ) -> None:
        self.method, self.real, self.number = method, real, 0
        canvas = method.make_canvas(real, ipc, run).to(run.device)
        assert isinstance(canvas, PyramidCanvas)
        canvas.arrange_(10 * method.grow_every)
        fit = ENOUGH_GB if chunk is None else (chunk + 0.5) * method.image_bytes(canvas) / 0.5e9
        self.canvas, self.run = canvas, run.with_(memory_gb=fit)
        method.setup(real, canvas, self.run)
        self.leaves = list(canvas.parameters().values())
        self.optimizer = torch.optim.Adam(self.leaves, lr=LR)
        for leaf in self.leaves:  # so that its state is there
            leaf.grad = torch.zeros_like(leaf)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def gradients(self) -> None:
        for term in self.method.terms(self.number, self.canvas, self.canvas.classes):
            term.values.sum().backward()

    def __call__(self) -> None:
        self.optimizer.zero_grad()
        self.gradients()
        self.optimizer.step()
        self.number += 1

    def gradient(self) -> Tensor:
        """What the last step left in the leaves, flat."""
        return torch.cat([leaf.grad.flatten() for leaf in self.leaves])


class Released(Step):
    """The released LGM step on the draws of our method."""

    def __init__(self, method: LGM, real: ImageSet, run: Run, drop: bool = False) -> None:
        super().__init__(method, real, 1, run)
        self.lgm, self.drop = method, drop
        method.backbone_.body.requires_grad_(True)

    def features(self, images: Tensor, draw: Draw) -> Tensor:
        backbone = self.method.backbone_
        return backbone.features(self.method._views().apply(images, draw, backbone.size))

    def gradients(self) -> None:
        run, step, views = self.run, self.number, self.method._views()
        shape = (self.canvas.classes, self.method.backbone_.dim)
        weight = HEAD_STD * torch.randn(shape, generator=run.generator("head", step))
        weight = weight.to(run.device).requires_grad_(True)
        bias = torch.zeros(len(weight), device=run.device, requires_grad=True)
        rows = self.lgm.positions(step)
        labels = self.real.labels[rows].to(run.device)
        images = self.real.batch(rows, run.device)
        z = self.features(images, views.draw(len(rows), run.generator("real-views", step)))
        loss = F.cross_entropy(F.linear(z, weight, bias), labels)
        goal = torch.cat([g.flatten() for g in torch.autograd.grad(loss, (weight, bias))])
        if self.drop:
            del z, loss
        count, own = self.method.augmentations, self.canvas.labels
        draws = [views.draw(len(own), run.generator("views", step, k)) for k in range(count)]
        draw = {name: torch.cat([part[name] for part in draws]) for name in draws[0]}
        copies = self.canvas.render(self.leaves).repeat(count, 1, 1, 1)
        seen = self.features(copies, draw)
        mean = F.cross_entropy(F.linear(seen, weight, bias), own.repeat(count))
        slopes = torch.autograd.grad(mean, (weight, bias), create_graph=True)
        found = torch.cat([slope.flatten() for slope in slopes])
        (1 - F.cosine_similarity(goal, found, dim=0)).backward()


def make(side: str, options: argparse.Namespace, cache: Path) -> Step:
    """Return the step of a name: "released", "sfm", one of OURS, or CLASSESxIPC for SFM."""
    run = Run(device=options.device, precision=options.precision, cache=cache, quiet=True)
    if side[0].isdigit():
        classes, ipc = (int(word) for word in side.split("x"))
        real = noise_images(classes, 2, options.small_canvas)
        return Step(SFM(backbone=options.small_model), real, ipc, run, options.small_chunk)
    real = noise_images(options.classes, 2 * options.views, options.canvas)
    if side == "sfm":
        return Step(SFM(backbone=options.model), real, 1, run)
    source, pieces = OURS.get(side, ("images", False))
    how = {"backbone": options.model, "augmentations": options.views, "bank_views": 2}
    method = LGM(real_side=source, **how)
    if side == "released":
        return Released(method, real, run, options.drop_real_graph)
    return Step(method, real, 1, run, options.chunk if pieces else None)


def resident_gb(line: str) -> float:
    """A line of Linux's account of this process, such as VmRSS."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(text.split()[1]) for text in lines if text.startswith(line)) * 1024 / 1e9


def added_by(step: Step, options: argparse.Namespace) -> dict[str, float]:
    """Peak memory in GB of one step, and what of it was not there before."""
    gc.collect()
    if options.device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats(options.device)
        before = torch.cuda.memory_allocated(options.device) / 1e9
        step()
        peak = peak_memory_gb(options.device)
    else:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # the peak is what is there now
        before = resident_gb("VmRSS")
        step()
        peak = resident_gb("VmHWM")
    gradient = sum(leaf.nbytes for leaf in step.leaves) / 1e9
    count = step.method.augmentations * len(step.canvas.labels)
    features = 4 * count * step.method.backbone_.dim / 1e9
    return {"peak": peak, "added": peak - before, "gradient": gradient, "features": features}


def timed(sides: dict[str, Step], options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of all steps in turn, and cosines of their first gradients with the plain side's."""
    alone = options.threads == 1 and options.device == "cpu"
    clock = time.process_time if alone else time.perf_counter

    def seconds(step: Step) -> float:
        began = clock()
        step()
        if options.device.startswith("cuda"):
            torch.cuda.synchronize()
        return clock() - began

    def first(step: Step) -> Tensor:
        step()
        return step.gradient()

    gradients = {side: first(step) for side, step in sides.items()}
    cosines = {
        side: float(torch.cosine_similarity(found, gradients["released"], dim=0))
        for side, found in gradients.items()
    }
    rounds = [{s: seconds(step) for s, step in sides.items()} for _ in range(options.repeats)]
    return {"rounds": rounds, "cosines": cosines, "clock": "cpu" if alone else "wall"}


def child(kind: str, sides: list[str], options: argparse.Namespace) -> None:
    """Measure in this process and print what was found."""
    steps = {side: make(side, options, Path(options.cache)) for side in sides}
    found = timed(steps, options) if kind == "time" else added_by(steps[sides[0]], options)
    print(json.dumps(found))


def ask(kind: str, sides: list[str], cache: str) -> Any:
    """Measure in a process of its own."""
    words = [sys.executable, __file__, *sys.argv[1:], "--cache", cache, "--child", kind, *sides]
    done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


def circumstances(options: argparse.Namespace) -> dict[str, Any]:
    return {
        "precision": Run(device=options.device, precision=options.precision).precision,
        "device": describe(options.device)["device"],
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def against_released(name: str, ours: list[str], options: argparse.Namespace, cache: str) -> None:
    """One line of time and memory for each of our sides."""
    memory = {side: ask("memory", [side], cache) for side in ["released", *ours]}
    found = ask("time", [*ours, "released"], cache)
    for side in ours:
        ratios = [times["released"] / times[side] for times in found["rounds"]]
        usual = {
            s: statistics.median(times[s] for times in found["rounds"]) for s in (side, "released")
        }
        own, plain = memory[side], memory["released"]
        record = {
            "benchmark": f"{name}: {side}",
            "ratio": round(statistics.median(ratios), 2),
            "ratio_min": round(min(ratios), 2),
            "ratio_max": round(max(ratios), 2),
            "ours_s": round(usual[side], 3),
            "plain_s": round(usual["released"], 3),
            "clock": found["clock"],
            "repeats": options.repeats,
            "memory_ratio": round(plain["peak"] / own["peak"], 2),
            "memory_ratio_added": round(plain["added"] / own["added"], 2),
            "peak_gb": [round(m["peak"], 3) for m in (own, plain)],
            "added_gb": [round(m["added"], 3) for m in (own, plain)],
            "cosine_of_gradients": round(found["cosines"][side], 6),
            "model": options.model,
            "classes": options.classes,
            "views_plain": options.views,
            "chunk": options.chunk if "two" in side else None,
            "plain_real_graph": "dropped" if options.drop_real_graph else "kept",
            **circumstances(options),
        }
        print(json.dumps(record), flush=True)


def sfm(options: argparse.Namespace, cache: str) -> None:
    against_released("SFM step against the released LGM step", ["sfm"], options, cache)


def lgm(options: argparse.Namespace, cache: str) -> None:
    against_released("LGM step against the released one", list(OURS), options, cache)


def classes(options: argparse.Namespace, cache: str) -> None:
    """Memory with many images against few; the gradient is as large as the result itself."""
    sizes = (options.few, options.many)
    few, many = (ask("memory", [size], cache) for size in sizes)
    beyond = [m["added"] - m["gradient"] for m in (few, many)]
    record = {
        "benchmark": "memory of an SFM step by classes and images",
        "classes_x_ipc": sizes,
        "ratio_beyond_gradient": round(beyond[1] / beyond[0], 2),
        "peak_gb": [round(m["peak"], 3) for m in (few, many)],
        "added_gb": [round(m["added"], 3) for m in (few, many)],
        "gradient_gb": [round(m["gradient"], 4) for m in (few, many)],
        "beyond_gradient_gb": [round(size, 3) for size in beyond],
        "features_gb": [round(m["features"], 4) for m in (few, many)],
        "model": options.small_model,
        "canvas": options.small_canvas,
        "chunk": options.small_chunk,
        **circumstances(options),
    }
    print(json.dumps(record), flush=True)


SUBJECTS = {"sfm": sfm, "lgm": lgm, "classes": classes}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="auto", help="fp32, bf16; auto = bf16 on a GPU")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--subject", nargs="+", choices=SUBJECTS, default=list(SUBJECTS))
    parser.add_argument("--model", default="timm-random:vit_small_patch16_224")
    parser.add_argument("--canvas", type=int, default=256)
    parser.add_argument("--classes", type=int, default=4)
    parser.add_argument("--views", type=int, default=10, help="of an image in an LGM step")
    parser.add_argument("--chunk", type=int, default=8, help="views in memory, two passes")
    parser.add_argument("--drop-real-graph", action="store_true", help="at once, plain side")
    parser.add_argument("--small-model", default="convnet-w32-in")
    parser.add_argument("--small-canvas", type=int, default=32)
    parser.add_argument("--small-chunk", type=int, default=64)
    parser.add_argument("--few", default="100x1", help="classes x images per class")
    parser.add_argument("--many", default="1000x10")
    parser.add_argument("--cache", help=argparse.SUPPRESS)
    parser.add_argument("--child", nargs="+", metavar="SIDE", help=argparse.SUPPRESS)
    options = parser.parse_args()
    tune_allocator()
    torch.set_num_threads(options.threads)
    if options.child:
        child(options.child[0], options.child[1:], options)
        return
    with tempfile.TemporaryDirectory() as cache:
        for name in options.subject:
            SUBJECTS[name](options, cache)


if __name__ == "__main__":
    main()
