"""Comments of fields: trailing, continued, above, inherited, absent."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, make_dataclass
from pathlib import Path
from typing import Any, ClassVar

PLACE = Path(__file__).parents[1] / "benchmarks" / "method_tables.py"
SPEC = importlib.util.spec_from_file_location("method_tables", PLACE)
SCRIPT = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(SCRIPT)
comments_of = SCRIPT.comments_of


@dataclass
class Base:
    """A docstring with a # that is no comment."""

    kinds: ClassVar[dict[str, Any]] = {}  # no field
    steps: int = 10  # how many
    # what stands above a field
    # in two lines
    name: str = "#"

    spread: tuple[float, ...] = (
        0.1,  # the first
        0.2,
    )  # and the rest
    bare: int = 1


@dataclass
class Child(Base):
    steps: int = 5
    bare: int = 2  # said here
    # a heading that is followed by no field

    def method(self) -> None:
        """Comments in bodies are not those of fields."""
        inner: int = 3  # not this one
        del inner


@dataclass
class Grandchild(Child):
    name: str = "other"  # said again
    last: float = 0.5
    # below


def test_trailing_comments_go_on_below_unless_they_are_the_next_fields():
    assert comments_of(Base) == {
        "steps": "how many",
        "name": "what stands above a field in two lines",
        "spread": "the first and the rest",
    }


def test_a_blank_line_ends_a_comment():
    @dataclass
    class Local:
        steps: int = 10  # how many
        # in all

        # the name
        name: str = ""
        other: int = 1  # first
        # second
        third: int = 2  # own

    found = {"steps": "how many in all", "name": "the name", "other": "first second"}
    assert comments_of(Local) == found | {"third": "own"}


def test_the_nearest_class_that_writes_one_wins_and_the_order_is_the_fields():
    found = comments_of(Grandchild)
    assert found["steps"] == "how many" and found["bare"].startswith("said here")
    assert found["name"] == "said again" and "last" not in found
    assert list(found) == ["steps", "name", "spread", "bare"]


def test_classes_without_source_have_no_comments():
    assert comments_of(make_dataclass("Made", [("steps", int)])) == {}
