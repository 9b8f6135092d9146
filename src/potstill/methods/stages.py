"""PDD: images made in stages, of which earlier ones stand still (Chen et al., arXiv 2310.06982).

Vodka, or progressive dataset distillation: P stages, each of which adds IPC / P images to a class.
Stage p descends on its own images alone, but the images S_1 .. S_{p-1} of the stages before stay
among them, and it starts from networks that have learned S_1 .. S_{p-1}. So later images teach what
a network still lacks that knows the earlier ones.

It goes with any matcher: the canvas of a stage holds the images so far, and a gradient of frozen
rows is zero. Networks of a number (random ones, pools, snapshots) are trained on the stages before,
``stage_epochs`` each time that a number comes up first; of trajectories, students of later stages
start later on the experts' way. Networks that move learn from the canvas in any case.

Deviations (released code: MTT and IDC): experts are not trained again from networks that know the
stages before, but matched further on, in P stretches of the start epochs; networks learn the union
of the stages before at once, not one after another; a receiver trains on all images from the
beginning, not stage by stage; each stage takes all ``steps``, as published.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Any

import torch
from torch import Tensor

from potstill.nets import Examples, Training, train_many
from potstill.networks import Networks
from potstill.networks.extractor import FeatureExtractor
from potstill.run import InputError, Run
from potstill.run.checkpoint import content_check, digest
from potstill.run.fields import Epoch, Range
from potstill.run.parts import Part

__all__ = ["Primed", "Stages", "in_stages"]

_CANVASES = (
    "pixels",
    "tiled",
    "multi-formation",
    "subsampled",
    "frequency",
)  # of which an image is a row
_PRIMED = ("random", "gaussian", "pool", "snapshots")  # networks that a number stands for
_ROWS = ("logits", "targets")  # leaves beside the canvas with a row for each image


@dataclass(frozen=True, kw_only=True)
class Stages(Part):
    """In how many stages a canvas is made."""

    # in which images are made, those of earlier ones frozen (PDD)
    stages: Annotated[int, Range(1, 1000)] = 1
    stage_epochs: Epoch = 20  # on earlier stages, of the networks of a later one (SGD, 0.01)

    def check(self, method: Any, real: Any = None) -> None:
        """Refuse a canvas whose images cannot be frozen one by one."""
        if self.stages == 1:
            return
        if method.canvas.kind not in _CANVASES or not method.canvas.even:
            raise InputError(
                f"stages is {self.stages} with canvas {method.canvas.kind!r}"
                f"{'' if method.canvas.even else ' and uneven classes'}, of which no images can be "
                "frozen; use stages=1, or a balanced canvas of pixels or tiles"
            )
        if hasattr(method.descent, "shard_order"):
            raise InputError(
                f"stages is {self.stages} with a canvas that is worked through in shards; use 1"
            )
        if getattr(method, "learn_mixing", False):
            raise InputError(
                f"stages is {self.stages} with learn_mixing, which moves all images at once; use "
                "learn_mixing=False"
            )

    def fits(self, ipc: int) -> None:
        """Refuse more stages than images of a class."""
        if ipc < self.stages:
            raise InputError(f"stages is {self.stages} with ipc {ipc}; use at most {ipc}")

    def of(self, method: Any, stage: int) -> Any:
        """Return the method of a stage (from 1): of trajectories, its part of the start epochs."""
        how = getattr(method, "trajectory", None)
        if how is None:
            return method
        length, first = how.start_max - how.start_min, how.start_min
        low = first + length * (stage - 1) // self.stages
        high = max(low + 1, first + length * stage // self.stages)
        return method.with_(start_min=low, start_max=high, start_grow=0)


class Primed(Networks):
    """Networks that have learned the images of earlier stages before they see others."""

    def __init__(
        self, networks: Any, images: Tensor, labels: Tensor, epochs: int, stage: int, run: Run
    ) -> None:
        self.networks, self.run, self.purpose = networks, run, f"stage-{stage}"
        self.examples = Examples(images, labels, networks.transform)
        known = content_check({"images": images.cpu(), "labels": labels.cpu()}, epochs)
        self.key = digest([networks.key, known, stage, run.seed])
        self.members, self.dim, self.transform = networks.members, networks.dim, networks.transform
        self.seconds_saved, self.seconds_apart = networks.seconds_saved, networks.seconds_apart
        self.how = Training(epochs=epochs, batch=256, lr=0.01, momentum=0.9)
        self._eye: FeatureExtractor | None = None
        self._known: dict[int, Mapping[str, Tensor]] = {}
        self._loaded: int | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.networks, name)

    def at(self, number: int) -> FeatureExtractor:
        """Return the network of a number after it has learned."""
        if self._eye is None:
            like = deepcopy(self.networks.at(number).net)
            self._eye = FeatureExtractor(like, self.transform, self.run)
        if self._loaded != number:
            if number not in self._known:
                self._known[number] = self._learned(number)
            self._eye.load(self._known[number])
            self._loaded = number
        return self._eye

    def _learned(self, number: int) -> Mapping[str, Tensor]:
        """Train the network of a number; the oldest are forgotten where memory does not suffice."""
        net = deepcopy(self.networks.at(number).net).requires_grad_(True).train()
        train_many(
            [net],
            self.examples,
            self.how,
            generators=lambda what, _, index: self.run.generator(
                f"{self.purpose}/{what}", number, index
            ),
            device=self.run.device,
            backend="sequential",
            quiet=True,
        )
        state = {name: value.detach() for name, value in net.state_dict().items()}
        size = sum(value.nbytes for value in state.values())
        while self._known and size * (len(self._known) + 1) > self.run.budget.kept:
            del self._known[next(iter(self._known))]
        return state

    def middle(self) -> FeatureExtractor:
        """As before: lengths are those of the networks that know nothing of stages."""
        return self.networks.middle()

    def trained_at(self, number: int) -> FeatureExtractor:
        """Return the trained network behind a number, which has learned from real images alone."""
        return self.networks.trained_at(number)

    def judged(self, *args: Any) -> Tensor:
        """What finished networks say, see :meth:`Networks.judged`."""
        return self.networks.judged(*args)


def in_stages(
    method: Any, real: Any, ipc: int, networks: Any, run: Run, descend: Callable[..., Any]
) -> tuple[Any, float]:
    """Go through all stages but the last; return the objective of that and the seconds of these.

    Args:
        method: a matcher with ``staging``. networks: opened. run: stages are kept in ``stages/`` of
            its folder, where a killed run finds them.
        descend: takes (objective, run, key) through its steps.
    """
    how, before, seconds = method.staging, None, 0.0
    for stage in range(1, how.stages + 1):
        canvas = method.start(real, -(-ipc * stage // how.stages), networks, run).to(run.device)
        kept, seen, own = None, networks, run
        if before is not None:
            kept = _rows_of(before.canvas, canvas)
            _copy(_pictured(before.canvas), canvas.parameters(), kept)
            own = run.with_(seed=run.generator("stage", stage).initial_seed())
            if method.networks.kind in _PRIMED and how.stage_epochs:
                images, labels = (part.detach() for part in before.canvas.decode())
                seen = Primed(networks, images, labels, how.stage_epochs, stage, run)
        objective = how.of(method, stage).prepare(real, canvas, seen, own)
        objective.bits = method.bits
        if before is not None and kept is not None:
            _freeze(before, objective, kept)
        if stage == how.stages:
            return objective, seconds
        place = run.folder and run.folder / "stages" / str(stage)
        key = digest([method.key(real, ipc, run), "stage", stage])
        seconds += descend(objective, own.with_(folder=place, watch=None), key)["seconds"]
        before = objective
    raise AssertionError("there is a last stage")


def _rows_of(before: Any, canvas: Any) -> Tensor:
    """Where the images of earlier stages stand in a canvas: first in their class, (n before,)."""
    lengths = [b - a for a, b in pairwise(before.starts)]
    return torch.cat([
        torch.arange(first, first + length)
        for first, length in zip(canvas.starts, lengths, strict=False)
    ])  # fmt: skip


def _pictured(canvas: Any) -> dict[str, Tensor]:
    """The leaves of a canvas as they were before it was moved behind a transform."""
    return canvas.parameters() if canvas.behind is None else {canvas.leaf: canvas.pictures()}


@torch.no_grad()
def _copy(values: Mapping[str, Tensor], to: Mapping[str, Tensor], rows: Tensor) -> None:
    for name, leaf in to.items():
        leaf[rows] = values[name].to(leaf)


def _freeze(before: Any, objective: Any, rows: Tensor) -> None:
    """Give rows what they were, and no gradient; a student's step size goes on as it was."""
    old, new = before.leaves(), objective.leaves()
    told = {name: new[name] for name in _ROWS if name in new}
    _copy(before.canvas.parameters(), objective.canvas.parameters(), rows)
    _copy(old, told, rows)
    with torch.no_grad():
        for name in new.keys() - told.keys():
            new[name].copy_(old[name])
    for leaf in (*objective.canvas.pixel_parameters(), *told.values()):
        if leaf.requires_grad:
            leaf.register_hook(lambda slope: slope.index_fill(0, rows.to(slope.device), 0.0))
