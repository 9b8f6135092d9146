"""What a method is: a dataclass of hyper-parameters that turns real data into a synthetic set.

``method(real, ipc, run) -> SyntheticSet``. The fields are the configuration: the same dataclass is
the command line's flags, a recipe's table, the JSON in the artifact and the identity of a run.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

from torch import Tensor

from potstill.canvas import Canvas
from potstill.data import ImageSet, Normalize
from potstill.data.transform import Transform
from potstill.run import InputError, Run, nearest
from potstill.run.checkpoint import digest
from potstill.run.descent import Course, Optimizer
from potstill.run.fields import Batch, Decay, Positive, Steps, check_fields, check_value
from potstill.run.loop import Descent, Rate, Term, descend
from potstill.run.machine import describe, peak_memory_gb
from potstill.synthetic import SyntheticSet

__all__ = ["BUDGETS", "Matcher", "Method", "MethodInfo", "Selector"]

BUDGETS = ("quick", "standard", "paper")


@dataclass(frozen=True)
class MethodInfo:
    """One row of the catalogue."""

    name: str  # command-line name
    title: str
    paper: str  # authors, venue
    year: int
    arxiv: str
    family: str
    labels: str  # label tier of what it makes
    long_tail: str  # what it does about imbalance
    cost: str  # what a run costs, in words


@dataclass(kw_only=True)
class Method:
    """Anything that turns real data into a small synthetic set."""

    info: ClassVar[MethodInfo]
    sizes: ClassVar[
        dict[str, dict[str, Any]]
    ] = {}  # budget -> fields that differ from the defaults

    @classmethod
    def budget(cls, name: str, **fields: Any) -> Self:
        """Return the method at a named size: "quick", "standard" or "paper" (the defaults).

        ``fields`` override single hyper-parameters.
        """
        if name not in BUDGETS:
            raise InputError(f"budget is {name!r}{nearest(name, BUDGETS)}")
        known = [f.name for f in dataclasses.fields(cls)]
        for field in fields:
            if field not in known:
                raise InputError(f"{cls.info.name} has no field {field!r}{nearest(field, known)}")
        merged: dict[str, Any] = {}
        for base in reversed(cls.__mro__):
            merged |= vars(base).get("sizes", {}).get(name, {})
        return cls(**{k: v for k, v in merged.items() if k in known} | fields)

    def check(self, real: ImageSet | None = None) -> None:
        """Refuse bad hyper-parameters before anything is loaded, trained or written.

        Called without data first, then with the real set that they have to fit.

        Raises:
            InputError: naming the field, its value and what to use.
        """
        check_fields(self)

    def fields(self) -> dict[str, Any]:
        """Return the hyper-parameters as JSON-like values."""
        return dataclasses.asdict(self)

    def shown(self) -> dict[str, Any]:
        """Return the fields as they travel in an artifact: folders without their place."""

        def travels(value: Any) -> Any:
            place = isinstance(value, str) and os.sep in value and Path(value).expanduser().exists()
            return Path(value).name if place else value

        return {name: travels(value) for name, value in self.fields().items()}

    def facts(self) -> dict[str, Any]:
        """JSON-like facts about a finished run that belong into its provenance."""
        return {}

    def seconds_saved(self) -> float:
        """Seconds that caches saved this run; they are part of what the result costs."""
        return 0.0

    def seconds_apart(self) -> float:
        """Seconds of this run that are not the result's, such as training a backbone."""
        return 0.0

    def key(self, real: ImageSet, ipc: int, run: Run) -> str:
        """Identify (method, fields, data, ipc, seed): what determines the result."""
        return digest([self.info.name, self.fields(), real.checksum, ipc, run.seed, run.precision])

    def provenance(self, real: ImageSet, ipc: int, run: Run, seconds: float) -> dict[str, Any]:
        """Return how the result came about, JSON-like."""
        return {
            "method": {
                "name": self.info.name,
                "family": self.info.family,
                "paper": self.info.paper,
                "arxiv": self.info.arxiv,
                "fields": self.shown(),
            },
            "ipc": ipc,
            "seed": run.seed,
            "data": {
                "source": real.source,
                "fingerprint": real.fingerprint,
                "checksum": real.checksum,
                "images": len(real),
                "counts": list(real.counts),
                "classes": list(real.classes),
                "imbalance_factor": real.imbalance_factor,
                "history": list(real.history),
            },
            "seconds": round(seconds, 2),
            "peak_memory_gb": round(peak_memory_gb(run.device), 3),
            "precision": run.precision,
            **describe(run.device),
        }

    def __call__(self, real: ImageSet, ipc: int, run: Run) -> SyntheticSet:
        """Distil ``real`` into ``ipc`` stored images per class."""
        raise NotImplementedError


@dataclass(kw_only=True)
class Selector(Method):
    """Methods that choose real images."""

    def select(self, real: ImageSet, ipc: int, run: Run) -> Tensor:
        """Return positions (n,) in ``real``, class-sorted."""
        raise NotImplementedError

    def __call__(self, real: ImageSet, ipc: int, run: Run) -> SyntheticSet:
        """Return the chosen images; their positions in the source stand in the provenance."""
        check_value("ipc", ipc, Batch)
        self.check(real)
        began = time.monotonic()
        positions = self.select(real, ipc, run)
        seconds = time.monotonic() - began + self.seconds_saved() - self.seconds_apart()
        provenance = self.provenance(real, ipc, run, seconds)
        provenance["indices"] = real.indices[positions].tolist()
        provenance |= self.facts()
        return SyntheticSet(
            images=real.batch(positions),
            labels=real.labels[positions].clone(),
            classes=real.classes,
            transform=Normalize.fit(real),
            decode={"kind": "pixels"},
            source_indices=real.indices if real.history else None,
            provenance=provenance,
        )


@dataclass(kw_only=True)
class Matcher(Method):
    """Methods that descend on a canvas. Fields are hyper-parameters; state ends in ``_``."""

    steps: Steps = 20_000  # optimisation steps, all classes together in each
    lr_images: Positive = 1e-3  # step size of the images
    optimizer: Optimizer = "adam"  # "adam" or "sgd"
    momentum: Decay = 0.5  # of SGD
    schedule: Course = "constant"  # step size over time: "constant", "cosine" or "plateau"

    def check(self, real: ImageSet | None = None) -> None:
        """Check the descent."""
        super().check(real)
        self._descent(self.lr_images)

    def rates(self) -> dict[str, Rate]:
        """Step sizes of leaves besides the images."""
        return {}

    def _descent(self, lr: float) -> Descent:
        return Descent(
            steps=self.steps,
            lr=lr,
            optimizer=self.optimizer,
            momentum=self.momentum,
            schedule=self.schedule,
            rates=self.rates(),
        )

    def make_canvas(self, real: ImageSet, ipc: int, run: Run) -> Canvas:
        """Return the canvas before step 0, on the CPU."""
        raise NotImplementedError

    def transform(self, real: ImageSet) -> Transform:
        """Fit what a receiver puts between RGB 0-1 and networks."""
        raise NotImplementedError

    def setup(self, real: ImageSet, canvas: Canvas, run: Run) -> None:
        """Make what must exist before step 0; runs again, with the same result, on resume."""
        raise NotImplementedError

    def terms(self, step: int, canvas: Canvas, chunk: int) -> Iterator[Term]:
        """Yield the losses of one step, at most ``chunk`` classes each."""
        raise NotImplementedError

    def after(self, step: int, canvas: Canvas) -> None:
        """Hear that ``step`` is done and the canvas has moved."""

    def state(self) -> dict[str, Tensor]:
        """Return what changes from step to step besides the canvas; most methods: nothing."""
        return {}

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Put back what :meth:`state` returned."""

    def step_size(self, classes: int) -> float:
        """Step size of one step of all classes together."""
        return self.lr_images

    def image_bytes(self, canvas: Canvas) -> int:
        """Bytes that one decoded image keeps alive for the backward pass."""
        raise NotImplementedError

    def __call__(self, real: ImageSet, ipc: int, run: Run) -> SyntheticSet:
        """Distil ``real`` into ``ipc`` stored images per class; resumes from the run's folder."""
        began = time.monotonic()
        self.check(real)
        canvas = self.make_canvas(real, ipc, run).to(run.device)
        self.setup(real, canvas, run)
        prepared = time.monotonic() - began
        outcome = descend(
            self,
            canvas,
            run,
            self._descent(self.step_size(real.num_classes)),
            classes=real.classes,
            chunk=self._chunk(canvas, run),
            key=self.key(real, ipc, run),
            label=self.info.name,
        )
        saved = self.seconds_saved()
        seconds = prepared + outcome["seconds"] + saved - self.seconds_apart()
        provenance = self.provenance(real, ipc, run, seconds)
        provenance["seconds_from_cache"] = round(saved, 2)
        return SyntheticSet(
            labels=canvas.labels.cpu(),
            classes=real.classes,
            transform=self.transform(real),
            decode=canvas.spec,
            source_indices=real.indices if real.history else None,
            provenance=provenance | self.facts(),
            **self.outcome(canvas),
        )

    def outcome(self, canvas: Canvas) -> dict[str, Any]:
        """Return what was learned, as arguments of :class:`SyntheticSet`: images at least."""
        return {"images": canvas.pictures().float().cpu()}

    def _chunk(self, canvas: Canvas, run: Run) -> int:
        """Classes per term that fit half the memory budget; weights and buffers get the rest."""
        most = (
            max(b - a for a, b in zip(canvas.starts, canvas.starts[1:], strict=False))
            * canvas.views
        )
        fit = run.budget.step // max(1, self.image_bytes(canvas) * most)
        return max(1, min(canvas.classes, fit))


def chunks(classes: int, size: int) -> Iterator[tuple[int, int]]:
    """Yield (first, last) class ranges of at most ``size`` classes."""
    for first in range(0, classes, size):
        yield first, min(classes, first + size)
