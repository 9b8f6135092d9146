"""What the documentation site is made of; mkdocs itself is not needed."""

from __future__ import annotations

import json
import re
import sys
import types
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    for name in ("mkdocs", "mkdocs.structure", "mkdocs.structure.files"):
        monkeypatch.setitem(sys.modules, name, types.SimpleNamespace(File=None))
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import docs_site

    yield docs_site
    sys.modules.pop("docs_site")


def test_the_explorer_holds_every_measurement(site):
    page = site.explorer()
    stored = re.search(r'id="rows">(.*?)</script>', page, re.DOTALL)
    table = json.loads(stored[1].replace("<\\/", "</"))
    written = sum(
        len(re.findall(r"^\[\[measured\]\]", path.read_text(), re.MULTILINE))
        for path in (ROOT / "recipes").rglob("*.toml")
    )
    assert len(table) == written > 50
    found = [r for r in table if r["recipe"] == "csdm/cifar10-lt200-ipc10-quick"]
    assert found[0]["accuracy"] == 50.62 and found[0]["start"] == 42.52
    assert all(f'data-key="{key}"' in page for key in site.FILTERS)


@pytest.mark.parametrize(
    ("at", "text", "expected"),
    [
        ("README.md", "[a](docs/guide.md#b)", "[a](guide.md#b)"),
        ("README.md", "![a](docs/methods/csdm.png)", "![a](methods/csdm.png)"),
        ("README.md", "[a](LICENSE) [b](https://x.org)", "a [b](https://x.org)"),
        ("docs/methods/dm.md", "[r](../../recipes/README.md)", "[r](../recipes.md)"),
        ("docs/methods/dm.md", "[g](../guide.md#distil)", "[g](../guide.md#distil)"),
        ("docs/guide.md", "[c](../CONTRIBUTING.md) [h](#x)", "[c](contributing.md) [h](#x)"),
        ("recipes/README.md", "[g](../docs/guide.md)", "[g](guide.md)"),
    ],
)
def test_links_lead_from_where_a_page_stands_on_the_site(at, text, expected, site):
    assert site.moved(text, at) == expected


def test_the_public_names_of_the_api_page_exist(site):
    import importlib

    for name in [name for names in site.API.values() for name in names]:
        room, _, last = f"potstill.{name}".rpartition(".")
        try:
            importlib.import_module(f"potstill.{name}")
        except ImportError:
            assert hasattr(importlib.import_module(room), last), name


def test_the_gallery_shows_every_ready_made_set(site):
    from potstill.synthetic import distilled_names

    page = site.gallery()
    assert all(f"](distilled/{name}.png)" in page for name in distilled_names())
