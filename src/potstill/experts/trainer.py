"""Training experts as far as needed: what is missing, from where to go on, how many at once."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property, partial
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from potstill.data import ImageSet
from potstill.data.transform import Transform
from potstill.experts.rows import Rows
from potstill.losses import Loss, Scheduled, cross_entropy
from potstill.nets import Examples, Network, Training, train_many
from potstill.nets.places import Place, Places
from potstill.run import ArtifactError, InputError, Run, logger
from potstill.run.checkpoint import digest
from potstill.run.memory import bytes_per_image

__all__ = ["Trainer", "training_facts"]

# Pixels up to which all images are kept as floats, 2 GB with their transforms. Not a share of the
# memory budget: a transform may round for a batch in another way than for all images.
_AS_FLOATS = 250_000_000


def training_facts(training: Training, loss: Loss | Scheduled = cross_entropy) -> dict[str, Any]:
    """What a training is in the key of experts, JSON-like."""
    how = json.loads(json.dumps(training.facts), parse_int=float)  # 0 and 0.0 are one momentum
    if _open_ended(training, loss):
        del how["epochs"]
    return how


def _open_ended(training: Training, loss: Loss | Scheduled) -> bool:
    """Whether an epoch is the same however many follow it."""
    constant = training.schedule == "constant" and not training.warmup
    return constant and training.sampling != "progressive" and not isinstance(loss, Scheduled)


@dataclass(frozen=True)
class _Span:
    """Epochs ``start`` to ``stop`` of one member, and which of them to keep."""

    member: int
    start: int | Fraction  # a fraction where a killed training stood within an epoch
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
    loss: Loss | Scheduled
    run: Run
    rows: Rows
    new: Callable[[int], Network]
    kind: str
    reserve: int = 0  # bytes that a later stage will need on the same disk

    def ensure(self, members: int, epochs: Collection[int]) -> float:
        """Make the rows that are missing; return the seconds that making the others once took.

        From then on a row that is found damaged is made again when it is read.

        Raises:
            InputError: no members, no epochs, or epochs that the training does not have.
        """
        wanted = sorted(set(epochs))
        last = None if _open_ended(self.training, self.loss) else self.training.epochs
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
        anew = replace(self)  # without the images that this one holds
        self.rows.repair = lambda member, epoch: replace(anew).ensure(member + 1, [epoch])
        return saved

    def _seconds(self, members: int, last: int) -> float:
        return sum(
            self.rows.seconds(m, e)
            for m in range(members)
            for e in self.rows.epochs(m)
            if e <= last
        )

    @cached_property
    def _places(self) -> Places:
        key = digest(self.rows.facts)
        return Places(self.rows.folder, key, self.run.checkpoint_seconds, self.rows.flush)

    def _make(self, members: int, wanted: list[int]) -> None:
        self._places.find(self.new(0))
        spans = [span for member in range(members) for span in self._spans(member, wanted)]
        count = sum(len(span.keep) for span in spans)
        what = f"keeping {count} snapshots of {self.kind}"
        self.rows.require_space(
            count, what + " and what follows" * bool(self.reserve), self.reserve
        )

        # Members in lockstep need one span each; on a CPU they run on their own.
        def alike(span: _Span) -> tuple[int, int | Fraction]:
            return span.stop, span.start if self.run.on_gpu else 0

        for _, group in groupby(sorted(spans, key=alike), key=alike):
            queue = list(group)
            while queue:
                self._train(queue[: self._together])
                queue = queue[self._together :]
        for member in range(members):
            self._places.forget(member)

    def _spans(self, member: int, wanted: list[int]) -> list[_Span]:
        """Plan a member's way from what there is to what is missing."""
        while True:
            missing = [epoch for epoch in wanted if (member, epoch) not in self.rows]
            spans = _planned(member, self._available(member), missing)
            try:
                for span in spans:
                    self._state(member, span.start)
            except ArtifactError as error:  # that row is forgotten now
                logger.warning("%s", str(error).partition(";")[0] + "; making it again")
                continue
            return spans

    def _available(self, member: int) -> list[int | Fraction]:
        """Epochs from which training can go on."""
        place = self._places.waiting.get(member)
        rows = self.rows.epochs(member) if self.training.memoryless else []
        return [0, *rows, *([place.epoch] if place else [])]

    def _state(self, member: int, epoch: int | Fraction) -> Tensor | Place | None:
        """Row or place from which to go on; None is the beginning."""
        place = self._places.waiting.get(member)
        if place is not None and place.epoch == epoch:
            return place
        return self.rows.read(member, int(epoch)) if epoch else None

    @cached_property
    def _together(self) -> int:
        """How many members are trained at a time: what fits the memory budget."""
        budget, network = self.run.budget, self.new(0)
        if not self.run.on_gpu:
            size = sum(p.nbytes for p in network.parameters())
            return max(1, torch.get_num_threads(), budget.beside // size)
        return max(1, budget.lockstep // (self.training.batch * self._image_bytes(network)))

    def _image_bytes(self, network: Network) -> int:
        """Bytes that a network keeps for the backward pass of one image."""
        network.requires_grad_(True)
        return bytes_per_image(lambda n: network(torch.zeros(n, *self.real.shape)))

    @cached_property
    def _examples(self) -> Examples:
        images = self.real.rows()
        if images.numel() <= _AS_FLOATS:  # the transform then runs once
            images = images.to(self.run.device).float().div_(255)
        return Examples(images, self.real.labels, self.transform)

    def _train(self, spans: list[_Span]) -> None:
        """Train some members with one ``stop`` together, keeping what they are told to."""
        nets, starts = zip(*map(self._begin, spans), strict=True)
        self.rows.flush()
        stop, endless = spans[0].stop, _open_ended(self.training, self.loss)

        def draws(purpose: str, k: int, index: int) -> torch.Generator:
            return self.run.generator(f"{self.kind}/{purpose}", spans[k].member, index)

        numbers = sorted(span.member + 1 for span in spans)
        train_many(
            nets,
            self._examples,
            replace(self.training, epochs=stop) if endless else self.training,
            loss=self.loss,
            device=self.run.device,
            precision=self.run.precision if self.run.on_gpu else "fp32",
            channels_last=self.run.on_gpu,
            quiet=self.run.quiet,
            generators=draws,
            on_epoch=partial(self._keep, spans),
            label=f"train {self.kind} {numbers[0]}-{numbers[-1]}",
            start_epoch=starts,
            stop_epoch=stop,
            kept=self._places.of([span.member for span in spans]),
        )
        self.rows.flush()

    def _begin(self, span: _Span) -> tuple[Network, int | Place]:
        """Return a network as it is at the start, and from where ``train_many`` is to go on."""
        network, state = self.new(span.member), self._state(span.member, span.start)
        tensors = state.network if isinstance(state, Place) else {}
        if isinstance(state, Tensor):
            tensors = self.rows.unpack(state)
        network.load_state_dict({**network.state_dict(), **tensors})
        if span.start in span.keep:
            row = self.rows.pack(network.state_dict())
            self.rows.write(span.member, int(span.start), row, 0.0)
        if isinstance(state, Place):
            return network, self._places.take(span.member) or 0
        return network, int(span.start)

    def _keep(self, spans: list[_Span], k: int, epoch: int, network: Network) -> None:
        """Write down what a member is after an epoch, if that is one to keep."""
        span, done, rows = spans[k], epoch + 1, self.rows
        if done in span.keep:
            seconds = self._places.lap(span.member)
            rows.write(span.member, done, rows.pack(network.state_dict()), seconds)
            rows.flush(0.0 if done == span.stop else self.run.checkpoint_seconds)
        if done == span.stop:
            self._places.forget(span.member)


def _planned(member: int, available: list[int | Fraction], missing: list[int]) -> list[_Span]:
    """Ways from what there is to what is ``missing``, ascending, that train no epoch needlessly."""
    spans: list[_Span] = []
    for epoch in missing:
        start = max(e for e in available if e <= epoch)
        if spans and start <= spans[-1].stop:
            spans[-1] = replace(spans[-1], stop=epoch, keep=spans[-1].keep | {epoch})
        else:
            spans.append(_Span(member, start, epoch, frozenset({epoch})))
    return spans
