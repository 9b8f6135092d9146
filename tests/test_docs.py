"""What the documents say about the code is true, their links lead somewhere, recipes can be run."""

from __future__ import annotations

import re
from itertools import product
from pathlib import Path

import pytest

from potstill.app.recipe import method_of, read_recipe
from potstill.data.subsets import SUBSETS
from potstill.evaluation import PROBES, PROTOCOLS, Protocol, find_protocol
from potstill.experts.backbones import check_backbone
from potstill.methods import CATALOGUE
from potstill.nets import parse
from potstill.run.parts import parts_of

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "recipes/README.md"])
RECIPES = sorted((ROOT / "recipes").rglob("*.toml"))
ROW = re.compile(r"^\| `(\w+)` \| (.+) \|$", re.MULTILINE)


def shown(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str):
        return f"`{value}`"
    return f"{value:g}" if isinstance(value, float) else str(value)


def anchors(page: Path) -> set[str]:
    heads = re.findall(r"^#+ (.+)$", page.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("name", CATALOGUE)
def test_a_method_page_lists_every_hyper_parameter_with_its_value_at_each_budget(name):
    text = (ROOT / "docs" / "methods" / f"{name}.md").read_text("utf-8")
    block = re.search("<!-- fields -->(.*?)<!-- /fields -->", text, re.DOTALL)
    table = {row[1]: row[2].split(" | ") for row in ROW.finditer(block[1])}
    inert = re.search(r"^Without effect unless .*? is above 0: (.*)\.$", text, re.MULTILINE)
    named = set(re.findall(r"`(\w+)`", inert[1])) if inert else set()
    method = CATALOGUE[name]
    budgets = [method.budget(budget).fields() for budget in reversed(method.budgets())]
    fields = {field for budget in budgets for field in budget}
    assert table.keys() | named == fields and not table.keys() & named
    for field, values in table.items():
        sizes = [shown(budget[field]) if field in budget else "–" for budget in budgets]
        assert values[: len(sizes)] == sizes


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text("utf-8")):
        if target.startswith("http"):
            continue
        path, _, anchor = target.partition("#")
        place = page.parent / path if path else page
        assert place.exists(), target
        assert not anchor or anchor in anchors(place), target


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem + "-" + path.parent.name)
def test_a_recipe_can_be_run_as_it_stands(path):
    recipe = read_recipe(path)
    assert recipe["distill"]["method"] == path.parent.name
    method = method_of(recipe)
    protocols, networks = recipe["evaluate"]["protocol"], recipe["evaluate"]["network"]
    for name, network in product(
        [protocols] if isinstance(protocols, str) else protocols,
        [networks] if isinstance(networks, str) else networks,
    ):
        protocol = find_protocol(name)
        assert protocol.labels != "soft" or method.fields().get("labels") != "hard"
        if isinstance(protocol, Protocol):
            parse(network)
        else:  # a probe's network is a backbone; "same" is the one that distilled
            backbone = method.fields()["backbone"] if network == "same" else network
            check_backbone(backbone, None)
    data = recipe["data"]
    assert "subset" not in data or data["subset"] in SUBSETS
    assert not re.search(r"^[./~]|\\", data["data"]), "a recipe names no place on a disk"
    tail = f"-lt{data['imbalance_factor']}" if "imbalance_factor" in data else ""
    name = rf"[a-z\d]+(-[a-z]+)*{tail}-ipc{recipe['distill']['ipc']}"
    assert re.fullmatch(name + r"(-quick)?(-[a-z][a-z\d]*){0,2}", path.stem)
    assert ("quick" in path.stem) <= (recipe["distill"]["budget"] == "quick")
    changed = recipe.get("method", {})
    kinds = {name: method.fields()[name] for name, part in parts_of(method) if name in changed}
    plain = type(method).budget(recipe["distill"]["budget"]).fields()
    chosen = type(method).budget(recipe["distill"]["budget"], **kinds).fields()
    asked = {name: plain[name] if name in kinds else chosen[name] for name in changed}
    assert not [name for name in changed if changed[name] == asked[name]], "as the budget"


def test_neighbours_are_those_of_a_recipe():
    for path in (ROOT / "recipes" / "neighbours").glob("*.toml"):
        recipe = read_recipe(path)
        of = read_recipe(ROOT / "recipes" / "lgm" / f"{Path(recipe['method'].pop('of')).name}.toml")
        assert (of["data"], of["distill"]["ipc"]) == (recipe["data"], recipe["distill"]["ipc"])
        assert method_of(of).networks == method_of(recipe).networks


def test_no_two_recipes_are_the_same():
    seen = {}
    for path in RECIPES:
        recipe = read_recipe(path)
        parts = [recipe.get(name, {}) for name in ("data", "distill", "method", "evaluate")]
        assert repr(parts) not in seen, f"{path} repeats {seen.get(repr(parts))}"
        seen[repr(parts)] = path


def test_every_method_stands_in_the_readme():
    text = (ROOT / "README.md").read_text("utf-8")
    for name in CATALOGUE:
        assert f"](docs/methods/{name}.md)" in text


def test_every_protocol_stands_in_the_guide():
    text = (ROOT / "docs" / "guide.md").read_text("utf-8")
    for name in (*PROTOCOLS, *PROBES):
        assert f"`{name}`" in text, name


def test_examples_are_short():
    for path in (ROOT / "examples").glob("*.py"):
        assert len(path.read_text("utf-8").splitlines()) < 60, path.name
