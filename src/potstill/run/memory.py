"""Memory: one budget and its shares, and what is done where it does not suffice after all."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from potstill.run.errors import InputError
from potstill.run.log import logger

__all__ = [
    "MEMORY_ERRORS",
    "Budget",
    "Portion",
    "bytes_per_image",
    "cuts",
    "out_of_memory",
    "refusing",
    "saved_bytes",
]

MEMORY_ERRORS = (RuntimeError, MemoryError)  # among which `out_of_memory` tells
_WORDS = ("allocate memory", "out of memory", "ALLOC_FAILED")  # CPU, CUDA, its libraries


class _Share:
    """A share of a budget in whole bytes (1e9 to a GB)."""

    def __init__(self, share: float) -> None:
        self.share = share

    def __get__(self, budget: Budget, kind: type) -> int:
        return int(self.share * 1e9 * budget.memory_gb)


@dataclass(frozen=True)
class Budget:
    """``memory_gb`` divided among those who hold much at a time.

    A share says how much of one kind may be there, not that all of it is: weights, the optimiser
    and what libraries hold have no share, and live in what the others leave.
    """

    memory_gb: float

    # real images in memory (decoded rather than mapped, on a GPU rather than beside it)
    images = _Share(1.0)
    # the graph of one step of the canvas, or of the part of it that is computed at a time
    step = _Share(0.5)
    # what stays from step to step: feature banks, snapshots of experts, moved images
    kept = _Share(0.5)
    # graphs of single student steps that wait for their turn in the backward pass
    links = _Share(0.25)
    # the largest bank of features that is read into memory; larger ones are mapped
    mapped = _Share(0.25)
    # one pass of real images through a network, beside what is kept
    real_pass = _Share(0.125)
    # the graphs of networks that are trained together; nothing else goes on meanwhile
    lockstep = _Share(1.0)
    # weights of networks that wait on a CPU while others of their training are at work
    beside = _Share(0.25)
    # decoded pixels between two writes; a picture may take many times as much on its way
    decoding = _Share(0.0625)


def saved_bytes(build: Callable[[], Any]) -> tuple[Any, int]:
    """Return what ``build`` returns and the bytes that the graphs built in it hold, weights too."""
    sizes: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()  # a node that keeps its own output would never be freed

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        built = build()
    return built, sum(sizes.values())


def bytes_per_image(build: Callable[[int], Any]) -> int:
    """Return the bytes that the graphs of ``build(n)`` for n images hold for each of them.

    It is what a third image adds to two, at least 1: what is held once, as weights and their copies
    in half precision are, falls out. (One image has kernels and memory formats of its own.)
    """
    with torch.enable_grad():
        two, three = (saved_bytes(lambda: build(n))[1] for n in (2, 3))  # noqa: B023
    return max(1, three - two)


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

    def __init__(self, what: str, where: str) -> None:
        self.what, self.where, self.most = what, where, sys.maxsize
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

    def over(self, work: Callable[..., Tensor], *things: Tensor) -> Tensor:
        """Return ``work(*things)``, whose rows are those of each, in pieces where needed.

        Raises:
            InputError: one row is too much.
        """
        while True:
            most = max(1, min(self.most, len(things[0])))
            parts = list(zip(*(thing.split(most) for thing in things), strict=True))
            try:
                done = [work(*part) for part in parts]
                return done[0] if len(done) == 1 else torch.cat(done)
            except MEMORY_ERRORS as error:
                if not out_of_memory(error):
                    raise
                self.halve(len(parts[0][0]), error)
