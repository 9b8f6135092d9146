"""The two files from which a killed descent goes on: the newest state and the one before it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from potstill.run.checkpoint import load_state, save_state, under
from potstill.run.descent import Schedule, pack, unpack
from potstill.run.errors import ArtifactError, InputError
from potstill.run.log import logger
from potstill.run.objective import Objective, Surface

__all__ = ["CHECKPOINTS", "Checkpoint"]

# Written in turn, so that a damaged one leaves the other, and no write endangers both.
Build = Callable[[dict[str, Tensor]], torch.optim.Optimizer]  # of these leaves
CHECKPOINTS = ("checkpoint.safetensors", "checkpoint-other.safetensors")


class Checkpoint:
    """State of a descent on disk; without a folder nothing is kept.

    Objective, surface and schedule are those of the descent, which loading brings to where it was.
    ``step`` is the one to be taken next, ``chunk`` the pieces of a killed part (sums in other
    pieces round differently), ``last`` its newest metrics record.
    """

    def __init__(
        self, folder: Path | None, key: str, objective: Objective, surface: Surface, how: Schedule
    ) -> None:
        self.objective, self.surface, self.schedule = objective, surface, how
        self.paths = [folder / name for name in CHECKPOINTS] if folder else []
        self.key, self.step, self.spent = key, 0, 0.0
        self.chunk: int | None = None
        self.last: dict[str, Any] = {}
        self.began = self.saved = time.monotonic()
        self._next = 0  # which of the two is written next
        self._written = 0  # step of the newest

    @property
    def seconds(self) -> float:
        """Seconds spent, those of earlier, killed parts included."""
        return self.spent + time.monotonic() - self.began

    def load(self, build: Build) -> torch.optim.Optimizer:
        """Put everything back as the newest sound file has it; return the optimiser.

        A damaged file is passed over with a warning that says what is lost.

        Raises:
            InputError: the files belong to another job. ArtifactError: to another version.
        """
        found, damaged = {}, []
        for index, path in enumerate(self.paths):
            if not path.exists():
                continue
            try:
                tensors, facts = load_state(path, unchecked=True)
                found[index] = (int(facts["step"]), tensors, facts)
            except ArtifactError as error:
                damaged.append(str(error).partition(";")[0])
                continue
            if facts["key"] != self.key:
                raise InputError(
                    f"{path.parent} holds a checkpoint of another job; choose another --out or "
                    "--force"
                )
        if not found:
            for sentence in damaged[:1]:
                logger.warning("%s, and there is no other; beginning again at step 0", sentence)
            return build(self.surface.parameters())
        newest = max(found, key=lambda index: found[index][0])
        for sentence in damaged:
            logger.warning("%s; going on from the one of step %d", sentence, found[newest][0])
        self._next = 1 - newest
        try:
            return self._restore(*found[newest], build)
        except ArtifactError:
            raise
        except (KeyError, RuntimeError, TypeError, ValueError) as error:
            raise ArtifactError(
                f"{self.paths[newest]} does not fit this version of the method "
                f"({str(error).splitlines()[0][:120]}); begin again with --force"
            ) from error

    def _restore(
        self, step: int, tensors: dict[str, Tensor], facts: Mapping[str, Any], build: Build
    ) -> torch.optim.Optimizer:
        self.surface.grow_(step - 1)
        leaves = self.surface.parameters()
        optimizer = build(leaves)
        with torch.no_grad():
            for name, leaf in leaves.items():
                leaf.copy_(tensors[f"surface.{name}"])
        unpack(optimizer, tensors)
        self.objective.load_state(under("problem.", tensors))
        self.schedule.load_state(facts["schedule"])
        self.step = self._written = step
        self.spent, self.last = facts["seconds"], facts["last"]
        self.chunk = facts.get("chunk")
        return optimizer

    def save(
        self, step: int, state: Mapping[str, Tensor], optimizer: torch.optim.Optimizer
    ) -> None:
        """Write what there is before ``step``; ``state`` is the objective's own."""
        self.saved = time.monotonic()
        if not self.paths or step == self._written:
            return
        tensors = {f"surface.{n}": leaf for n, leaf in self.surface.parameters().items()}
        tensors |= pack(optimizer) | {f"problem.{n}": t for n, t in state.items()}
        facts = {"key": self.key, "step": step, "seconds": self.seconds, "last": self.last}
        facts |= {"chunk": self.chunk, "schedule": self.schedule.state()}
        save_state(self.paths[self._next], tensors, facts)
        self._next, self._written = 1 - self._next, step
