"""Refusals that every method needs: a field that is not one of its choices, or too small."""

from __future__ import annotations

from collections.abc import Sequence

from potstill.run import InputError, nearest

__all__ = ["at_least", "one_of", "positive"]


def one_of(owner: object, **choices: Sequence[str]) -> None:
    """Refuse a field whose value is not among its choices.

    Raises:
        InputError: names the field, its value and the nearest choice.
    """
    for name, options in choices.items():
        value = getattr(owner, name)
        if value not in options:
            raise InputError(f"{name} is {value!r}{nearest(str(value), options)}")


def at_least(owner: object, **bounds: float) -> None:
    """Refuse a field that is smaller than its bound, or not a number.

    Raises:
        InputError: names the field, its value and the bound.
    """
    for name, least in bounds.items():
        if not getattr(owner, name) >= least:
            raise InputError(f"{name} is {getattr(owner, name)}; use at least {least}")


def positive(owner: object, *names: str) -> None:
    """Refuse fields that are not positive, finite numbers.

    Raises:
        InputError: names the field and its value.
    """
    for name in names:
        if not 0 < getattr(owner, name) < float("inf"):
            raise InputError(f"{name} is {getattr(owner, name)}; use a positive number")
