"""Tables of hyper-parameters come from the fields and their comments, and keep what is by hand."""

from __future__ import annotations

import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import pytest

from potstill.methods import CATALOGUE

ROOT = Path(__file__).parents[1]
PAGES = {name: ROOT / "docs" / "methods" / f"{name}.md" for name in CATALOGUE}
OLD = """# A method

## Hyper-parameters

| field | paper | standard | quick | meaning · source |
|---|---|---|---|---|
| `steps` | 1 | 2 | 3 | how many · a paper |
| `rate` | 0.1 | 0.1 | 0.1 | how fast, in pixels · ours \\| theirs |

Without effect unless `steps` is above 0: `left`.

## What is published
"""


@dataclass
class Part:
    rate: float = 0.1  # how fast
    left: int = 0  # not shown


class Composed:
    """What the script asks of a method: budgets, fields, parts."""

    @dataclass
    class Method:
        part: Part
        steps: int  # how many: "all" | none
        steps_own: ClassVar[int] = 1

        def fields(self) -> dict[str, Any]:
            return vars(self.part) | {"steps": self.steps}

    @classmethod
    def budgets(cls) -> tuple[str, ...]:
        return "quick", "standard", "paper"

    @classmethod
    def budget(cls, name: str) -> Method:
        return cls.Method(Part(), {"paper": 100, "standard": 10, "quick": 0}[name])


@pytest.fixture(scope="module")
def script() -> ModuleType:
    place = ROOT / "benchmarks" / "method_tables.py"
    spec = importlib.util.spec_from_file_location("method_tables", place)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def composed(script, monkeypatch):
    monkeypatch.setitem(script.CATALOGUE, "composed", Composed)
    return script


def test_a_table_shows_the_fields_of_parts_and_keeps_the_written_column(composed):
    new = composed.renewed("composed", OLD)
    rows = [line for line in new.splitlines() if line.startswith("| `")]
    assert rows == [
        "| `rate` | 0.1 | 0.1 | 0.1 | how fast | how fast, in pixels · ours \\| theirs |",
        "| `steps` | 100 | 10 | 0 | how many: `all` \\| none | a paper |",
    ]
    assert new.endswith("<!-- /fields -->\n" + OLD.partition("theirs |\n")[2])
    assert composed.renewed("composed", new) == new
    assert composed.more("composed", new) == composed.more("composed", OLD) != []


def test_a_description_goes_when_the_comment_says_as_much(composed, monkeypatch):
    new = composed.renewed("composed", OLD)
    monkeypatch.setattr(composed, "comments", lambda method: {"rate": "in pixels, how fast"})
    again = composed.renewed("composed", new)
    assert "| in pixels, how fast | ours \\| theirs |" in again
    assert composed.more("composed", again) == []


def test_a_row_of_before_that_names_no_source_keeps_what_is_more_than_the_comment(composed):
    less, more = OLD.replace(" · a paper", ""), OLD.replace("how many · a paper", "unlike MTT")
    assert "`all` \\| none |  |" in composed.renewed("composed", less)
    assert "`all` \\| none | unlike MTT |" in composed.renewed("composed", more)


def test_a_stale_table_is_found_and_a_page_without_marks_is_one(
    composed, monkeypatch, tmp_path, capsys
):
    folder = tmp_path / "docs" / "methods"
    folder.mkdir(parents=True)
    page = folder / "composed.md"
    monkeypatch.setattr(composed, "ROOT", tmp_path)

    def script(*words: str) -> int:
        monkeypatch.setattr("sys.argv", ["method_tables.py", "composed", *words])
        return composed.main()

    page.write_text(OLD)
    assert script("--check") == 1
    assert script() == 0 and script("--check") == 0
    page.write_text(re.sub(r"\| 100 \|", "| 101 |", page.read_text()))
    assert script("--check") == 1 and "composed.md is stale" in capsys.readouterr().out
    page.write_text(page.read_text().replace("<!-- /fields", "| `gone` | 1 | told |\n<!-- /fields"))
    assert script() == 0 and "composed.gone has no row any more: told" in capsys.readouterr().out


@pytest.mark.parametrize("name", CATALOGUE)
def test_every_field_of_every_method_is_explained(script, name):
    silent = [field for field in script.fields_of(name) if not script.comment_of(name, field)]
    assert silent == []


@pytest.mark.parametrize("name", CATALOGUE)
def test_tables_are_as_the_code_has_them(script, name):
    text = PAGES[name].read_text("utf-8")
    if "<!-- fields -->" in text:
        assert script.renewed(name, text) == text
    else:  # a table of before can be turned into a new one without losing a row
        new = script.renewed(name, text)
        assert script.by_hand(new).keys() == script.by_hand(text).keys() != set()
