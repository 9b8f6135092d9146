"""What a method is: a frozen dataclass of parts that turns real data into a synthetic set.

``method(real, ipc, run) -> SyntheticSet``. The fields are the configuration: the same dataclass is
the command line's flags, a recipe's table, the JSON in the artifact and the identity of a run. What
a run computes lives in the objective that ``prepare`` returns, never in the method.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

from torch import Tensor

from potstill.canvas import Canvas, CanvasSpec, Pixels
from potstill.data import ImageSet
from potstill.labels import Hard, LabelSpec
from potstill.methods.stages import Stages, in_stages
from potstill.networks import Networks, NetworkSpec, NoNets
from potstill.run import InputError, Run, nearest
from potstill.run.checkpoint import digest
from potstill.run.descent import Descent
from potstill.run.fields import Batch, OneOf, check_value
from potstill.run.loop import descend
from potstill.run.machine import describe, peak_memory_gb
from potstill.run.objective import Objective as Steps
from potstill.run.parts import Part, changed, check_parts, flat
from potstill.synthetic import SyntheticSet
from potstill.synthetic.started import kept, started

__all__ = ["BUDGETS", "Matcher", "Method", "MethodInfo", "Objective"]

Bits = Annotated[int, OneOf(8, 32)]
_LATER = {  # fields that came later: at these values, jobs keep the keys that they had before
    "bits": 32, "views_per_step": 1, "augment_per": "view", "tail_images": 0, "tail_flip": 0.5,
    "floor": "none", "layers": "all", "batch_syn": 0, "recluster": 0, "real_cutmix": 0.0,
    "real_prior": "plain", "outer_loss": "squared_error", "lr_platt": 0.01, "colours": "full",
    "drop_share": 0.0, "area_every": 0, "area_gain": 1.0, "area_above": 0.0,
    "kernel_network": "dense", "stages": 1, "stage_epochs": 20,
}  # fmt: skip
BUDGETS = ("quick", "overnight", "standard", "paper")


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


@dataclass(frozen=True, kw_only=True)
class Method:
    """Anything that turns real data into a small synthetic set."""

    info: ClassVar[MethodInfo]
    # budget -> fields that differ from the defaults
    sizes: ClassVar[dict[str, dict[str, Any]]] = {}
    # kinds of parts that make sense together, by the name of the part; see the guide's table
    pairs: ClassVar[Mapping[str, tuple[str, ...]]] = {}

    bits: Bits = 32  # of a stored value of images: 32 (float) or 8 (clipped to 0-1 and rounded)

    @classmethod
    def budgets(cls) -> tuple[str, ...]:
        """Return the names of the sizes that there are; only some methods have "overnight"."""
        return tuple(name for name in BUDGETS if name != "overnight" or name in cls.sizes)

    @classmethod
    def budget(cls, name: str, **fields: Any) -> Self:
        """Return the method at a named size: one of :meth:`budgets`; "paper" is the defaults.

        ``fields`` override single entries of the flat table, kinds of parts among them. What a
        budget says of a part of another kind is left out.

        Raises:
            InputError: there is no such budget, field or kind.
        """
        if name not in cls.budgets():
            told = nearest(name, cls.budgets())
            raise InputError(f"budget is {name!r} with method {cls.info.name!r}{told}")
        own = cls()
        kinds = {k: v for k, v in fields.items() if isinstance(getattr(own, k, None), Part)}
        own = changed(own, kinds, cls.info.name)
        known, size = flat(own), cls.sizes.get(name, {})
        sized = changed(own, {k: v for k, v in size.items() if k in known})
        return changed(sized, fields, cls.info.name)

    def with_(self, **fields: Any) -> Self:
        """Return a copy with some entries of the flat table replaced."""
        return changed(self, fields, self.info.name)

    def check(self, real: ImageSet | None = None) -> None:
        """Refuse bad hyper-parameters before anything is loaded, trained or written.

        Called without data first, then with the real set that they have to fit.

        Raises:
            InputError: naming the field, its value and what to use.
        """
        for room in self.pairs:
            self.check_kind(room, getattr(self, room).kind)
        check_parts(self, real)

    @classmethod
    def check_kind(cls, room: str, kind: str) -> None:
        """Refuse a kind of part that makes no sense here; see ``pairs``."""
        fitting = cls.pairs.get(room, (kind,))
        if kind not in fitting:
            raise InputError(
                f"{room} is {kind!r}, of which {cls.info.name} can make nothing; use "
                f"{' or '.join(fitting)}"
            )

    def fields(self) -> dict[str, Any]:
        """Return the hyper-parameters and kinds of parts, flat, as JSON-like values."""
        return flat(self)

    def shown(self) -> dict[str, Any]:
        """Return the fields as they travel in an artifact: folders without their place."""

        def travels(value: Any) -> Any:
            place = isinstance(value, str) and os.sep in value and Path(value).expanduser().exists()
            return Path(value).name if place else value

        table = {name: travels(value) for name, value in self.fields().items()}
        networks: NetworkSpec | None = getattr(self, "networks", None)
        return table | dict(networks.travelling if networks else {})

    def key(self, real: ImageSet, ipc: int, run: Run) -> str:
        """Identify (method, fields, data, ipc, seed): what determines the result."""
        own = {name: value for name, value in self.fields().items() if _LATER.get(name) != value}
        facts = [self.info.name, own, real.checksum, ipc, run.seed, run.precision]
        networks: NetworkSpec | None = getattr(self, "networks", None)
        meaning = "" if networks is None else networks.meaning(real, run)
        return digest([*facts, meaning] if meaning else facts)

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
            "data": real.facts(),
            "seconds": round(seconds, 2),
            "peak_memory_gb": round(peak_memory_gb(run.device), 3),
            "precision": run.precision,
            **describe(run.device),
        }

    def stored(self, syn: SyntheticSet) -> SyntheticSet:
        """Return the set as ``bits`` says."""
        return syn.in_bytes() if self.bits == 8 else syn

    def __call__(self, real: ImageSet, ipc: int, run: Run) -> SyntheticSet:
        """Distil ``real`` into ``ipc`` stored images per class."""
        raise NotImplementedError


class Objective(Steps):
    """The objective of a method on a canvas; see :class:`potstill.run.objective.Objective`.

    Attributes:
        canvas: what the loop descends on, on the run's device.
        networks: through what it is seen; where they move, they are its state.
        bits: of a stored value of the method's images.
        seconds_saved: what making that which was read from a cache once took, networks apart.
    """

    canvas: Canvas
    networks: Any = Networks()
    bits: int = 32
    seconds_saved: float = 0.0

    def state(self) -> dict[str, Tensor]:
        """Return what changes from step to step besides canvas and leaves: networks that move."""
        return self.networks.state()

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Put back what :meth:`state` returned."""
        self.networks.load_state(tensors)

    def pieces(self, run: Run) -> int:
        """Return how many units :meth:`terms` may take at once within the memory budget.

        The unit is the class here, and half of the budget is for activations.
        """
        fit = run.budget.step // max(1, self.image_bytes() * self.canvas.most)
        return max(1, min(self.canvas.classes, fit))

    def image_bytes(self) -> int:
        """Return the bytes that one decoded image keeps alive for the backward pass."""
        raise NotImplementedError

    def outcome(self, canvas: Canvas) -> dict[str, Any]:
        """Return what was learned, as arguments of :class:`SyntheticSet`: images at least."""
        return {"images": canvas.pictures().float().cpu()}

    def facts(self) -> dict[str, Any]:
        """JSON-like facts about a finished run that belong into its provenance."""
        return {}


@dataclass(frozen=True, kw_only=True)
class Matcher(Method):
    """Methods that descend on a canvas."""

    canvas: CanvasSpec = Pixels()  # what is stored and optimised
    labels: LabelSpec = Hard()  # what a receiver learns from
    networks: NetworkSpec = NoNets()  # through what both sides are seen
    descent: Descent = Descent()  # how the canvas moves
    staging: Stages = Stages()  # whether it is made in stages

    def open(self, real: ImageSet, run: Run) -> Networks:
        """Make the networks or read them from the cache."""
        return self.networks.open(real, run)

    def start(self, real: ImageSet, ipc: int, networks: Any, run: Run) -> Canvas:
        """Return the canvas before step 0, on the CPU."""
        judge = partial(networks.judged, counts=real.counts, prior=self.networks.prior)
        return self.canvas.make(real, ipc, run, judge=judge)

    def prepare(self, real: ImageSet, canvas: Canvas, networks: Any, run: Run) -> Objective:
        """Make what must exist before step 0; runs again, with the same result, on resume.

        The objective's canvas is the one that moves; it may be another form of ``canvas``.
        """
        raise NotImplementedError

    def begin(self, real: ImageSet, ipc: int, run: Run) -> tuple[Objective, Networks]:
        """Return everything before step 0."""
        networks = self.open(real, run)
        canvas = self.start(real, ipc, networks, run).to(run.device)
        objective = self.prepare(real, canvas, networks, run)
        objective.bits = self.bits
        return objective, networks

    def __call__(self, real: ImageSet, ipc: int, run: Run) -> SyntheticSet:
        """Distil ``real`` into ``ipc`` stored images per class; resumes from the run's folder."""
        check_value("ipc", ipc, Batch)
        began = time.monotonic()
        self.check(real)
        self.staging.fits(ipc)
        objective, networks = self.begin(real, ipc, run)
        prepared = time.monotonic() - began
        first = kept(objective.outcome(objective.canvas))  # copies: the canvas moves

        def moved(objective: Objective, run: Run, key: str) -> dict[str, Any]:
            return descend(
                objective,
                objective.canvas,
                run,
                self.descent,
                classes=real.classes,
                chunk=objective.pieces(run),
                key=key,
                label=self.info.name,
            )

        if self.staging.stages > 1:
            objective, spent = in_stages(self, real, ipc, networks, run, moved)
            prepared += spent
        canvas, outcome = objective.canvas, moved(objective, run, self.key(real, ipc, run))
        saved = networks.seconds_saved + objective.seconds_saved
        seconds = prepared + outcome["seconds"] + saved - networks.seconds_apart
        provenance = self.provenance(real, ipc, run, seconds)
        provenance["seconds_from_cache"] = round(saved, 2)
        found = SyntheticSet(
            labels=canvas.labels.cpu(),
            classes=real.classes,
            transform=networks.transform,
            decode=canvas.spec,
            source_indices=real.indices if real.history else None,
            provenance=provenance | networks.facts() | objective.facts(),
            **objective.outcome(canvas),
        )
        return started(self.stored(found), first)
