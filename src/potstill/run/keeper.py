"""The state of a training on disk, and threads in which a training can be left between two steps.

A killed process loses what was done since the state was last written. A process that is asked to
stop (Ctrl-C, SIGTERM) raises an exception in its main thread, at any instruction; therefore
trainings run in threads of their own, end with the step they are in, and write once more.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing, suppress
from pathlib import Path
from queue import SimpleQueue
from threading import Condition, Event, Thread
from typing import Any

import torch
from torch import Tensor

from potstill.run.checkpoint import save_state
from potstill.run.errors import StorageError

__all__ = ["Keeper", "in_threads"]

Work = Generator[None, None, None]
_BRIEF = 1.0  # seconds that writing may take when somebody waits for the process to end


class Keeper:
    """One state file, rewritten when ``every`` seconds have passed.

    On a slow disk up to three times as many pass, so that writing takes a fiftieth of the time.
    ``before`` is called before each writing, for what must not lag behind.
    """

    def __init__(self, path: Path, every: float, before: Callable[[], None] = lambda: None) -> None:
        self.path, self.every, self.before = path, every, before
        self.saved, self.cost = time.monotonic(), 0.0

    @property
    def due(self) -> bool:
        """Whether it is time to save."""
        wait = min(3 * self.every, max(self.every, 50 * self.cost))
        return time.monotonic() - self.saved >= wait

    def save(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Write the state.

        Raises:
            StorageError: the disk is full or not to be written.
        """
        began = time.monotonic()
        self.before()
        save_state(self.path, tensors, facts)
        self.saved = time.monotonic()
        self.cost = self.saved - began

    def leave(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Write the state a last time, unless that takes long here; nobody is there for errors."""
        if self.cost <= _BRIEF:
            with suppress(StorageError):
                self.save(tensors, facts)

    def forget(self) -> None:
        """Remove the file."""
        self.path.unlink(missing_ok=True)


def in_threads(works: Sequence[Callable[[], Work]], workers: int, cores: int | None = None) -> Work:
    """Go through the steps of all ``works``, ``workers`` of them at a time; yield after each step.

    The caller's thread only waits. Where it stops waiting, each work is closed after the step it is
    in: its generator sees ``GeneratorExit`` at the yield.

    Args:
        works: make the iterators, each of which lives in one thread.
        cores: intra-op threads of each worker on a CPU; ``None`` = as they are.
    """
    ticks: SimpleQueue[BaseException | bool] = SimpleQueue()  # True: the end of a work
    turn, waiting, busy, stop = Condition(), [*works], set[int](), Event()

    def work(make: Callable[[], Work]) -> None:
        try:
            with closing(make()) as steps:
                for _ in steps:
                    if stop.is_set():
                        return
                    ticks.put(False)
            ticks.put(True)
        except BaseException as error:
            stop.set()  # no other work begins
            ticks.put(error)

    def go_through(worker: int) -> None:
        if cores is not None:
            torch.set_num_threads(cores)  # counts for the thread that says it
        while True:
            with turn:
                busy.discard(worker)
                turn.notify_all()
                if stop.is_set() or not waiting:
                    return
                busy.add(worker)
                make = waiting.pop(0)
            work(make)

    # no pool: an exception while it begins a thread would have it forget that thread
    try:
        for worker in range(workers):
            Thread(target=go_through, args=(worker,)).start()
        left = len(works)
        while left:
            tick = ticks.get()
            if isinstance(tick, BaseException):
                raise tick
            if tick:
                left -= 1
            else:
                yield
    finally:
        stop.set()
        with turn:
            turn.wait_for(lambda: not busy)
