"""Out of memory: known when it is seen, and met with half as much at a time."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from potstill.run.errors import InputError
from potstill.run.log import logger

__all__ = ["MEMORY_ERRORS", "Portion", "cuts", "out_of_memory", "refusing"]

MEMORY_ERRORS = (RuntimeError, MemoryError)  # among which `out_of_memory` tells
_WORDS = ("allocate memory", "out of memory", "ALLOC_FAILED")  # CPU, CUDA, its libraries


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory did not suffice."""
    known = isinstance(error, torch.OutOfMemoryError | MemoryError)
    return known or any(word in str(error) for word in _WORDS)


@contextmanager
def refusing(sentence: str) -> Iterator[None]:
    """Turn out-of-memory into an :class:`InputError` that says ``sentence``."""
    try:
        yield
    except MEMORY_ERRORS as error:
        if not out_of_memory(error):
            raise
        raise InputError(sentence) from error


def cuts(total: int, most: int) -> list[slice]:
    """Cut 0 .. ``total`` into slices of at most ``most``."""
    return [slice(first, min(total, first + most)) for first in range(0, total, most)]


class Portion:
    """How much is done at a time: all, until memory does not suffice, then half of it, for good.

    ``what`` names the things ("images"), ``where`` what is done ("features of the real set").
    """

    def __init__(self, what: str, where: str, most: int = sys.maxsize) -> None:
        self.what, self.where, self.most = what, where, most
        self._told = False

    def halve(self, used: int, error: BaseException) -> None:
        """Take half of the ``used`` that were too many; said once.

        Raises:
            InputError: one was too many.
        """
        if used <= 1:
            raise InputError(
                f"memory does not suffice for {self.where}, one of the {self.what} at a time; use "
                "a smaller image size, a narrower network or a device with more memory"
            ) from error
        self.most = -(-used // 2)
        if not self._told:
            logger.warning(
                "out of memory in %s; going on with %d %s at a time, or fewer",
                self.where, self.most, self.what,
            )  # fmt: skip
        self._told = True

    def over(self, work: Callable[[Tensor], Tensor], things: Tensor) -> Tensor:
        """Return ``work(things)``, whose rows are those of ``things``, in pieces where needed.

        Raises:
            InputError: one row is too much.
        """
        while True:
            parts = things.split(max(1, min(self.most, len(things))))
            try:
                done = [work(part) for part in parts]
                return done[0] if len(done) == 1 else torch.cat(done)
            except MEMORY_ERRORS as error:
                if not out_of_memory(error):
                    raise
                self.halve(len(parts[0]), error)
