"""README's blocks come from the catalogue and the recipes, and are up to date."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path
from types import ModuleType

import pytest

from potstill.methods import CATALOGUE

ROOT = Path(__file__).parents[1]


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import readme_tables

    yield readme_tables
    sys.modules.pop("readme_tables")
    sys.modules.pop("results_table")


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """README, list of methods and the recipes of one setting."""
    for name in ("README.md", "docs/methods.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    for method in ("random", "dm", "csdm"):
        (tmp_path / "recipes" / method).mkdir(parents=True)
        recipe = f"recipes/{method}/cifar10-lt200-ipc10-quick.toml"
        shutil.copy(ROOT / recipe, tmp_path / recipe)
    return tmp_path


def test_the_blocks_are_not_stale(tables):
    assert tables.main(["--check"]) == 0


def test_every_method_has_a_row_from_its_catalogue_entry(tables):
    rows = tables.methods("methods/").splitlines()[2:]
    assert len(rows) == len(CATALOGUE)
    for row, (name, method) in zip(rows, CATALOGUE.items(), strict=True):
        assert row.startswith(f"| [`{name}`](methods/{name}.md) | {method.info.title} | ")
        assert method.info.long_tail in row
    text = tables.families("docs/methods/")
    assert all(f"[`{name}`](docs/methods/{name}.md)" in text for name in CATALOGUE)


def test_the_small_table_is_one_setting_of_ten_methods_or_fewer(tables, copy):
    assert tables.main(["--check"], copy) == 1  # other methods are not measured there
    assert tables.main([], copy) == 0 and tables.main(["--check"], copy) == 0
    text = (copy / "README.md").read_text().split("<!-- small -->")[1].split("<!-- /small")[0]
    rows = [row.split(" | ")[0] for row in text.splitlines() if row.startswith("| [")]
    assert [row.split("`")[1] for row in rows] == ["random", "dm", "csdm"]  # by accuracy
    assert "| [`csdm`](docs/methods/csdm.md) | 50.6 ± 0.5 | 58.0 | 44.5 | 51.4 | 42.5 ± 0.6" in text
    assert "all real images, debiased | 67.7" in text
    assert len(tables.SMALL) <= 10 and (copy / "docs" / "by-group.png").stat().st_size > 5000


def test_a_changed_recipe_makes_the_readme_stale(tables, copy):
    tables.main([], copy)
    path = copy / "recipes/dm/cifar10-lt200-ipc10-quick.toml"
    path.write_text(path.read_text().replace("accuracy = 39.", "accuracy = 44."))
    assert tables.main(["--check"], copy) == 1


def test_nothing_of_the_results_stands_outside_a_block() -> None:
    """Such a line is never renewed."""
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))):
        text = path.read_text("utf-8")
        blocks = re.sub(r"<!-- results\b.*?<!-- /results", "", text, flags=re.DOTALL)
        assert "Written but not measured yet" not in blocks, path
