"""Training experts as far as needed: what is missing, from where to go on, how many at once."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from potstill.data import ImageSet
from potstill.data.transform import Transform
from potstill.experts.store import Rows
from potstill.losses import Loss
from potstill.nets import Examples, Network, Training, train_many
from potstill.run import ArtifactError, InputError, Run, logger
from potstill.run.checkpoint import load_state, save_state

__all__ = ["Trainer", "circumstances"]

# Pixels up to which all images are kept as floats, 2 GB with their transforms. Not a share of the
# memory budget: a transform may round for a batch in another way than for all images.
_AS_FLOATS = 250_000_000


def circumstances(training: Training, run: Run) -> dict[str, Any]:
    """What determines experts beside network, data and stage, JSON-like."""
    how = json.loads(json.dumps(training.facts), parse_int=float)  # 0 and 0.0 are one momentum
    if training.schedule == "constant":
        del how["epochs"]
    return {
        "training": how,
        "seed": run.seed,
        "device": run.device.split(":")[0],
        "precision": run.precision if run.on_gpu else "fp32",
        "torch": torch.__version__,
    }


@dataclass(frozen=True)
class _Span:
    """Epochs ``start`` to ``stop`` of one member, and which of them to keep."""

    member: int
    start: int
    stop: int
    keep: frozenset[int]


@dataclass(frozen=True, eq=False)
class Trainer:
    """Trains members until certain epochs of theirs are among the rows.

    ``new(member)`` makes a network as it is before training (parameters that are not among the rows
    stay as they are made); ``kind`` names the draws.
    """

    real: ImageSet
    transform: Transform
    training: Training
    loss: Loss
    run: Run
    rows: Rows
    new: Callable[[int], Network]
    kind: str
    reserve: int = 0  # bytes that a later stage will need on the same disk

    def ensure(self, members: int, epochs: Collection[int]) -> float:
        """Make the rows that are missing; return the seconds that making the others once took.

        Raises:
            InputError: no members, no epochs, or epochs that the training does not have.
        """
        wanted = sorted(set(epochs))
        last = None if self.training.schedule == "constant" else self.training.epochs
        if members < 1:
            raise InputError(f"{self.kind} is {members}; use at least 1")
        if not wanted or wanted[0] < 0 or (last is not None and wanted[-1] > last):
            most = "" if last is None else f" to {last}"
            raise InputError(f"epochs is {wanted}; name at least one, from 0{most}")
        need = [(m, e) for m in range(members) for e in wanted]
        saved = self._seconds(members, wanted[-1])
        if any(place not in self.rows for place in need):
            with self.rows.held():
                saved = self._seconds(members, wanted[-1])
                self._make(members, wanted)
        return saved

    def _seconds(self, members: int, last: int) -> float:
        return sum(
            self.rows.seconds(m, e)
            for m in range(members)
            for e in self.rows.epochs(m)
            if e <= last
        )

    def _make(self, members: int, wanted: list[int]) -> None:
        spans = [span for member in range(members) for span in self._spans(member, wanted)]
        count = sum(len(span.keep) for span in spans)
        what = f"keeping {count} snapshots of {self.kind}"
        self.rows.require_space(
            count, what + " and what follows" * bool(self.reserve), self.reserve
        )

        # Members in lockstep need one span each; on a CPU they run on their own.
        def alike(span: _Span) -> tuple[int, int]:
            return span.stop, span.start if self.run.on_gpu else 0

        for _, group in groupby(sorted(spans, key=alike), key=alike):
            queue = list(group)
            while queue:
                self._train(queue[: self._together])
                queue = queue[self._together :]
        for member in range(members):
            self._resume_path(member).unlink(missing_ok=True)

    def _spans(self, member: int, wanted: list[int]) -> list[_Span]:
        """Plan a member's way from what there is to what is missing."""
        while True:
            missing = [epoch for epoch in wanted if (member, epoch) not in self.rows]
            spans = [*_ways(self._available(member), missing)]
            try:
                for start, _, _ in spans:
                    self._state(member, start)
            except ArtifactError as error:  # that row is forgotten now
                logger.warning("%s", str(error).partition(";")[0] + "; making it again")
                continue
            return [_Span(member, start, stop, frozenset(keep)) for start, stop, keep in spans]

    def _available(self, member: int) -> list[int]:
        """Epochs from which training can go on."""
        if not self.training.memoryless:
            return [0]
        resume = self._resume(member)
        return [0, *self.rows.epochs(member), *([resume[0]] if resume else [])]

    def _state(self, member: int, epoch: int) -> Tensor | None:
        """Row from which to go on; None is the beginning."""
        if epoch == 0:
            return None
        if (member, epoch) in self.rows:
            return self.rows.read(member, epoch)
        resume = self._resume(member)
        assert resume is not None and resume[0] == epoch
        return resume[1]

    def _resume_path(self, member: int) -> Path:
        return self.rows.folder / f"resume-{member:03d}.safetensors"

    def _resume(self, member: int) -> tuple[int, Tensor] | None:
        """Epoch and row at which a killed training stood between two epochs to keep."""
        path = self._resume_path(member)
        if not path.exists():
            return None
        try:
            tensors, facts = load_state(path)
            epoch, row = int(facts["epoch"]), tensors["row"]
            sound = epoch > 0 and row.shape == (self.rows.columns,) and row.dtype == torch.float32
        except (ArtifactError, KeyError, ValueError, TypeError):
            sound = False
        if not sound:
            logger.warning("%s is damaged; training from an earlier epoch", path)
            path.unlink(missing_ok=True)
            return None
        return epoch, row

    @cached_property
    def _together(self) -> int:
        """How many members are trained at a time: what fits the memory budget."""
        budget, network = 1e9 * self.run.memory_gb, self.new(0)
        if not self.run.on_gpu:
            size = sum(p.nbytes for p in network.parameters())
            return max(1, torch.get_num_threads(), int(0.25 * budget / size))
        return max(1, int(budget / (self.training.batch * self._image_bytes(network))))

    def _image_bytes(self, network: Network) -> int:
        """Bytes that a network keeps for the backward pass of one image."""
        total = 0

        def count(tensor: Tensor) -> Tensor:
            nonlocal total
            total += tensor.nbytes if tensor.ndim > 1 and len(tensor) == 1 else 0
            return tensor.detach()

        with torch.autograd.graph.saved_tensors_hooks(count, lambda kept: kept):
            network.requires_grad_(True)(torch.zeros(1, *self.real.shape))
        return max(1, total)

    @cached_property
    def _examples(self) -> Examples:
        images = self.real.rows()
        if images.numel() <= _AS_FLOATS:  # the transform then runs once
            images = images.to(self.run.device).float().div_(255)
        return Examples(images, self.real.labels, self.transform)

    def _train(self, spans: list[_Span]) -> None:
        """Train some members with one ``stop`` together, keeping what they are told to."""
        nets = [self._begin(span) for span in spans]
        self.rows.flush()
        stop, constant = spans[0].stop, self.training.schedule == "constant"

        def draws(purpose: str, k: int, index: int) -> torch.Generator:
            return self.run.generator(f"{self.kind}/{purpose}", spans[k].member, index)

        numbers = sorted(span.member + 1 for span in spans)
        train_many(
            nets,
            self._examples,
            replace(self.training, epochs=stop) if constant else self.training,
            loss=self.loss,
            device=self.run.device,
            precision=self.run.precision if self.run.on_gpu else "fp32",
            channels_last=self.run.on_gpu,
            quiet=self.run.quiet,
            generators=draws,
            on_epoch=_Keeper(self, spans),
            label=f"train {self.kind} {numbers[0]}-{numbers[-1]}",
            start_epoch=[span.start for span in spans],
            stop_epoch=stop,
        )
        self.rows.flush()

    def _begin(self, span: _Span) -> Network:
        network, row = self.new(span.member), self._state(span.member, span.start)
        if row is not None:
            network.load_state_dict({**network.state_dict(), **self.rows.unpack(row)})
        if span.start in span.keep:
            self.rows.write(span.member, span.start, self.rows.pack(network.state_dict()), 0.0)
        return network


class _Keeper:
    """Writes down what members are after an epoch, and their place between epochs to keep."""

    def __init__(self, trainer: Trainer, spans: list[_Span]) -> None:
        self.trainer, self.spans = trainer, spans
        self.last = time.monotonic()
        self.spent = [0.0] * len(spans)  # seconds since the last row of each
        self.safe = [self.last] * len(spans)

    def __call__(self, k: int, epoch: int, network: Network) -> None:
        span, rows, now, done = self.spans[k], self.trainer.rows, time.monotonic(), epoch + 1
        often = self.trainer.run.checkpoint_seconds
        self.spent[k] += now - self.last
        self.last = now
        if done in span.keep:
            rows.write(span.member, done, rows.pack(network.state_dict()), self.spent[k])
            rows.flush(often)
            self.spent[k], self.safe[k] = 0.0, now
        elif self.trainer.training.memoryless and now - self.safe[k] >= often:
            row, path = rows.pack(network.state_dict()), self.trainer._resume_path(span.member)
            save_state(path, {"row": row}, {"epoch": done})
            self.safe[k] = now


def _ways(available: Iterable[int], missing: Iterable[int]) -> Iterator[tuple[int, int, list[int]]]:
    """Yield (start, stop, epochs to keep) so that no epoch is trained without need."""
    there, way = set(available), None
    for epoch in sorted(missing):
        start = max(e for e in there if e <= epoch)
        if way is not None and start <= way[1]:
            way = (way[0], epoch, [*way[2], epoch])
            continue
        if way is not None:
            yield way
        way = (start, epoch, [epoch])
    if way is not None:
        yield way
