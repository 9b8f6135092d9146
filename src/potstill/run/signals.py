"""Signals that end a process politely: what schedulers and closed terminals send, and Ctrl-C.

SIGTERM and SIGHUP become an exception in the main thread, as Python makes one of SIGINT; whoever
holds state that is worth a file writes it on the way out. A block that must not be torn apart
waits with them.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["ENDED", "Terminated", "ending_signals", "uninterrupted"]

_NAMES = ("SIGTERM", "SIGHUP")  # SIGHUP is unknown on some systems


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
def ending_signals() -> Iterator[None]:
    """Let SIGTERM and SIGHUP raise :class:`Terminated` in here; ignored ones stay ignored."""
    numbers = [getattr(signal, name) for name in _NAMES if hasattr(signal, name)]
    before = {}
    if threading.current_thread() is threading.main_thread():
        for number in numbers:  # nohup ignores SIGHUP: then it has to stay so
            if signal.getsignal(number) is signal.SIG_DFL:
                before[number] = signal.signal(number, _raise)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Hold Ctrl-C, SIGTERM and SIGHUP back until the block has ended; for short blocks."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    caught: list[int] = []
    before = {}
    for number in [getattr(signal, n) for n in ("SIGINT", *_NAMES) if hasattr(signal, n)]:
        handler = signal.getsignal(number)
        if callable(handler):  # ignored, left to the system or set outside Python: as it is
            before[number] = handler
            signal.signal(number, lambda number, frame: caught.append(number))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if caught:
            signal.raise_signal(caught[0])
