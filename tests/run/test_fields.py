"""What fields admit: types, bounds and choices, as they stand in annotations."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal, get_args, get_origin

import pytest

from potstill.app.backbone_command import _Shown, _Train
from potstill.app.cli import Distill, Evaluate, Recipe
from potstill.app.crossval import _CrossVal
from potstill.app.flags import Machine
from potstill.app.job import Data
from potstill.evaluation import PROBES, PROTOCOLS, Probe, Protocol
from potstill.experts.selfsupervised import SelfSupervision
from potstill.methods import CATALOGUE
from potstill.nets.head_training import HeadTraining
from potstill.nets.sharpness import Sharpness
from potstill.nets.training import Training
from potstill.run import InputError, Run
from potstill.run.descent import Descent, Rate
from potstill.run.fields import OneOf, Range, admits, check_fields, check_value, fields_of, wanted

OWNERS = [
    *CATALOGUE.values(),
    *(Data, Descent, Distill, Evaluate, HeadTraining, Machine, Probe, Protocol, Rate, Recipe),
    *(Run, SelfSupervision, Sharpness, Training, type(PROBES["probe"].views)),
    *(_CrossVal, _Shown, _Train),
]
SIGNED = {"tau", "noise_mean"}  # the only fields that may lie below zero


@dataclass
class Base:
    info: ClassVar[str] = "no field"

    steps: Annotated[int, Range(0, 10)] = 3
    share: Annotated[float, Range(0, 1, above=True)] = 0.5
    kind: Annotated[str, OneOf("a", "b")] = "a"
    size: Annotated[int, Range(1, 9)] | None = None
    ends: tuple[Annotated[float, Range(0, 1, below=True)], ...] = ()
    pairs: tuple[tuple[int, int], ...] = ()
    names: list[str] | None = None
    on: bool = False
    form: Literal["x", 2] = "x"
    free: float = 0.0
    place: Path | None = None


@dataclass
class Child(Base):
    steps: int = 4  # another default, the same bounds
    share: Annotated[float, Range(0, 9)] = 9
    kind: str = "b"


@pytest.mark.parametrize("kind", [Base, Child])
@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("steps", [0, 10], [-1, 11, 1.0, True, "3", None, math.nan, 10**30]),
        ("kind", ["a", "b"], ["c", "", 1, None, ["a"]]),
        ("size", [None, 1, 9], [0, 10, "1", 2.0]),
        ("ends", [(), (0, 0.5), [0.9]], [(1.0,), (math.nan,), 0.5, "0", (True,)]),
        ("pairs", [((1, 2), (3, 4)), [[1, 2]]], [(1, 2), ((1,),), ((1, 2.5),)]),
        ("names", [None, [], ["a"]], ["a", [1]]),
        ("on", [True, False], [0, 1, "yes", None]),
        ("form", ["x", 2], ["y", 2.0, True]),
        ("free", [1, -3.5, 1e300], [math.nan, math.inf, -math.inf, 10**400, "1", True]),
        ("place", [None, "a", Path("a")], [3]),
    ],
)
def test_values_of_a_field(kind, name, good, bad):
    for value in good:
        check_fields(kind(**{name: value}))
    for value in bad:
        with pytest.raises(InputError, match=rf"^{name} is .*; use [^\n]*$"):
            check_fields(kind(**{name: value}))


def test_a_child_may_have_other_bounds():
    check_fields(Child(share=9))
    for owner in (Base(share=9), Base(share=0), Child(share=10)):
        with pytest.raises(InputError, match="share is"):
            check_fields(owner)


def test_what_is_no_field_has_no_annotation():
    assert "info" not in fields_of(Base) and "info" not in fields_of(CATALOGUE["csdm"])


@pytest.mark.parametrize(
    ("hint", "words"),
    [
        (Annotated[int, Range(1, 9)], "a whole number from 1 to 9"),
        (Annotated[float, Range(0, 1, above=True)], "a number above 0, at most 1"),
        (Annotated[float, Range(0, 1, below=True)], "a number from 0 to below 1"),
        (Annotated[float, Range(0, 1, above=True, below=True)], "a number above 0 and below 1"),
        (Annotated[str, OneOf("a", "b")] | None, "one of a, b or leave it out"),
        (bool | int, "True or False or a whole number"),
        (tuple[Annotated[int, Range(1, 9)], ...], "a list of a whole number from 1 to 9"),
    ],
)
def test_sentences_say_what_to_use(hint, words):
    with pytest.raises(InputError) as caught:
        check_value("x", "?", hint)
    assert str(caught.value) == f"x is '?'; use {words}"


def test_long_values_are_cut_short():
    for value in ("x" * 10**6, 10**5000, -(10**5000), 2**63):
        with pytest.raises(InputError) as caught:
            check_value("x", value, int)
        assert len(str(caught.value)) < 150


def unbounded(hint: object) -> bool:
    """Whether some number in an annotation has no bounds."""
    if any(isinstance(mark, Range | OneOf) for mark in getattr(hint, "__metadata__", ())):
        return False
    parts = () if get_origin(hint) is Callable else get_args(hint)
    return hint in (int, float) or any(map(unbounded, parts))


@pytest.mark.parametrize("owner", OWNERS, ids=lambda owner: owner.__name__)
def test_every_number_has_bounds_that_exclude_what_is_absurd(owner):
    hints = fields_of(owner)
    assert not [name for name, hint in hints.items() if unbounded(hint)]
    for name, hint in hints.items():
        if "number" in wanted(hint):
            absurd = (math.nan, math.inf, -math.inf, 1e30, 2**63, -(2**63), "three", "", [3])
            absurd += () if name.endswith("seed") else (10**12, 1e12)
            absurd += () if name in SIGNED else (-1, -1.0)
            assert not [value for value in absurd if admits(hint, value)], name


@pytest.mark.parametrize("protocol", [*PROTOCOLS.values(), *PROBES.values()], ids=lambda p: p.name)
def test_protocols_are_within_their_bounds(protocol):
    check_fields(protocol)
    check_fields(protocol.training)


@pytest.mark.parametrize("name", CATALOGUE)
@pytest.mark.parametrize("budget", ["quick", "standard", "paper"])
def test_defaults_are_within_their_bounds(name, budget):
    check_fields(CATALOGUE[name].budget(budget))
