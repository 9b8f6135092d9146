"""What numbers beyond 8 bits mean: where black and white lie, decided over a whole split.

A picture or array of 8 bits means what it says. Deeper integers and floats are read as 0 to the top
of the usual range that the largest value of the split shows:

* integers: 255, 1023, 4095, 16383 or 65535 (8 to 16 bits), the smallest that holds them all;
* floats: 1, or 255 if they reach more than half of it.

Anything else (negative, not finite, integers below 128 or above 65535, floats between) shows no
usual range and is refused; ``value_range=(LOW, HIGH)`` says it instead, holds for 8 bits, too, and
cuts off what lies outside. A test split is read on the scale of its train split.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from threading import Lock

import numpy as np

from potstill.run import InputError, logger

__all__ = ["OtherRange", "Values", "tell_range"]

_INTEGERS = (255, 1023, 4095, 16383, 65535)  # 8 to 16 bits
_OWN = {"integers": 65535, "floats": 1}  # tops that need no word: those of 16 bits and of shares
_ROUNDING = 1e-4  # floats this much above the top, as a share of it, are rounding


class OtherRange(Exception):
    """The split shows other tops than its first pictures did: begin again with these."""

    def __init__(self, tops: Mapping[str, float]) -> None:
        super().__init__(tops)
        self.tops = dict(tops)


class Values:
    """Brings values of any kind to 0-255; learns on the way what range a split shows.

    The first pictures of a kind (integers or floats) set its top. If a later one is above, nothing
    of this pass can be used; it only goes on to find the largest value.
    """

    def __init__(
        self,
        name: str,
        value_range: tuple[float, float] | None = None,
        tops: Mapping[str, float] | None = None,
        train: str | None = None,
    ) -> None:
        self.name, self.range, self.train = name, value_range, train
        self.tops = dict(tops or {})  # by kind; those of the train split if that is named
        self.fixed = frozenset(self.tops if train else ())
        self.seen: dict[str, tuple[float, float]] = {}
        self.exceeded = False
        self._lock = Lock()

    def levels(self, array: np.ndarray, title: str) -> np.ndarray:
        """Return ``array`` (any shape; bool, integers or floats) as uint8 0-255.

        Raises:
            InputError: values that show no usual range, or above the top of the train split.
        """
        if array.dtype.kind not in "buif":
            raise InputError(f"{title} has dtype {array.dtype}; give uint8, or floats from 0 to 1")
        if array.dtype.kind == "b":
            return array * np.uint8(255)
        low, high = array.min().item(), array.max().item()
        if not (math.isfinite(low) and math.isfinite(high)):
            raise _refusal(title, low, high)
        if self.range is not None:
            return _linear(array, *self.range)
        kind = "floats" if array.dtype.kind == "f" else "integers"
        top = self._top(kind, low, high, title)
        if kind == "floats" or top not in _INTEGERS:
            return _linear(array, 0.0, top)
        return (array >> (int(top).bit_length() - 8)).astype(np.uint8)

    def _top(self, kind: str, low: float, high: float, title: str) -> float:
        """The top for values from ``low`` to ``high``, which are taken down."""
        if low < 0:
            raise _refusal(title, low, high)
        with self._lock:
            before = self.seen.get(kind, (low, high))
            self.seen[kind] = min(low, before[0]), max(high, before[1])
            top = self.tops.get(kind)
            if top is None:  # a guess that the rest of the split confirms or corrects
                top = _top_of(kind, high) or 255
                self.tops[kind] = top
            if high > top * (1 + _ROUNDING * (kind == "floats")):
                if kind in self.fixed:
                    raise InputError(
                        f"{title} has values to {high:.5g}, above those of {self.train}, which are "
                        f"read as 0 to {top:g}; say what holds for both with value_range=(0, "
                        f"{_top_of(kind, high) or math.ceil(high):g})"
                    )
                self.exceeded = True
            return top

    def settle(self) -> dict[str, float]:
        """Return the tops of a split that has been read to its end.

        Raises:
            OtherRange: they are not those that it was read with.
            InputError: the values show no usual range.
        """
        tops: dict[str, float] = {}
        for kind, (low, high) in sorted(self.seen.items()):
            top = self.tops[kind] if kind in self.fixed else _top_of(kind, high)
            if top is None:
                raise _refusal(f"source {self.name!r}", low, high)
            tops[kind] = top
        if any(top != self.tops[kind] for kind, top in tops.items()):
            raise OtherRange(tops)
        return tops


def _top_of(kind: str, high: float) -> float | None:
    """The top of the usual range that values reaching ``high`` show, if they show one."""
    if kind == "floats":
        if high <= 1 + _ROUNDING:
            return 1
        return 255 if 127.5 < high <= 255 * (1 + _ROUNDING) else None
    return next((top for top in _INTEGERS if high <= top), None) if high > 127 else None


def _linear(array: np.ndarray, low: float, high: float) -> np.ndarray:
    values = array if array.dtype.kind == "f" else array.astype(np.float64)
    return np.rint((np.clip(values, low, high) - low) * (255 / (high - low))).astype(np.uint8)


def _refusal(title: str, low: float, high: float) -> InputError:
    return InputError(
        f"{title} has values from {low:.5g} to {high:.5g}; give uint8, or floats from 0 to 1 "
        "without normalisation (it is fitted later), or say which values are black and white with "
        "value_range=(LOW, HIGH), --value-range on the command line"
    )


def tell_range(tops: Mapping[str, float], title: str) -> None:
    """Say which tops were taken from the values themselves."""
    guessed = {kind: top for kind, top in tops.items() if top != _OWN[kind]}
    if guessed:
        logger.warning(
            "values of %s are read by the range that they show: %s; value_range "
            "(--value-range LOW HIGH) says otherwise",
            title,
            " and ".join(f"{kind} as 0 to {top:g}" for kind, top in guessed.items()),
        )
