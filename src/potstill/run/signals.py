"""Signals that end a process politely: what schedulers and closed terminals send, and Ctrl-C.

SIGTERM and SIGHUP become an exception in the main thread, as Python makes one of SIGINT; whoever
holds state that is worth a file writes it on the way out. A block that must not be torn apart
waits with them.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["ENDED", "Terminated", "ending_signals", "uninterrupted"]

_NUMBERS = (signal.SIGTERM, signal.SIGHUP)


class Terminated(BaseException):
    """The process was asked to end; not an ``Exception``, so that nothing goes on after it."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number

    @property
    def code(self) -> int:
        """Exit code that shells and schedulers expect: 128 + number of the signal."""
        return 128 + self.number


ENDED = (KeyboardInterrupt, Terminated)  # what a polite end looks like to the code


def _raise(number: int, frame: Any) -> None:
    raise Terminated(number)


@contextmanager
def _handled(
    numbers: Iterable[int], where: Callable[[Any], bool], handler: Callable[[int, Any], None]
) -> Iterator[None]:
    """Have ``handler`` called for signals ``where`` their own handler is such a one."""
    before = {}
    if threading.current_thread() is threading.main_thread():
        for number in numbers:
            if where(signal.getsignal(number)):
                before[number] = signal.signal(number, handler)
    try:
        yield
    finally:
        for number, own in before.items():
            signal.signal(number, own)


@contextmanager
def ending_signals() -> Iterator[None]:
    """Let SIGTERM and SIGHUP raise :class:`Terminated` in here; ignored ones stay ignored."""
    # nohup ignores SIGHUP: then it has to stay so
    with _handled(_NUMBERS, lambda own: own is signal.SIG_DFL, _raise):
        yield


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Hold Ctrl-C, SIGTERM and SIGHUP back until the block has ended; for short blocks."""
    caught: list[int] = []
    try:
        # those ignored, left to the system or set outside Python are no callables, and stay
        with _handled((signal.SIGINT, *_NUMBERS), callable, lambda n, _: caught.append(n)):
            yield
    finally:
        if caught:
            signal.raise_signal(caught[0])
