"""Recipes: every one that is shipped is sound; a tiny one runs from data to page, once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from potstill.app import scoring
from potstill.app.cli import main
from potstill.app.job import Data
from potstill.app.recipe import method_of, read_recipe, run_recipe
from potstill.evaluation import PROTOCOLS, Protocol, find_protocol
from potstill.evaluation import scores as scores_module
from potstill.nets import parse
from potstill.nets.backbone import split_name
from potstill.run import InputError, Run

FOLDER = Path(__file__).parents[1] / "recipes"
TINY = """
[data]
data = "digits"
imbalance_factor = 20

[distill]
method = "csdm"
ipc = 1

[method]
steps = 6
network = "convnet-d2-w8-in"
members = 1
pool_epochs = 1
entries = 2
frequencies = 16
batch_real = 8

[evaluate]
network = ["convnet-d2-w8-in", "mlp-w16"]
protocol = "quick-noflip"
runs = 2
full = true
"""


@pytest.mark.parametrize("path", sorted(FOLDER.rglob("*.toml")), ids=lambda path: path.stem)
def test_every_recipe_is_sound(path):
    recipe = read_recipe(path)
    method = method_of(recipe)
    method.check()
    assert path.parent.name == method.info.name
    described = Data(**recipe["data"])
    assert described.imbalance_factor >= 1
    options = recipe["evaluate"]
    protocols, names = options["protocol"], options["network"]
    for protocol in [protocols] if isinstance(protocols, str) else protocols:
        read = parse if isinstance(find_protocol(protocol), Protocol) else split_name
        assert [read(name) for name in ([names] if isinstance(names, str) else names)]
    assert options["runs"] >= 1
    assert recipe["about"]["title"]


def test_recipes_are_found():
    assert (FOLDER / "csdm" / "digits-lt50-ipc10.toml").is_file()


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    quick = PROTOCOLS["quick-noflip"]
    monkeypatch.setitem(PROTOCOLS, "quick-noflip", quick.with_(epochs=2, name="quick-noflip"))
    path = tmp_path / "tiny.toml"
    path.write_text(TINY)
    return path


def start(path: Path, **changes: object) -> tuple[Path, list[object]]:
    def make(seed: int) -> Run:
        return Run(seed=seed, device="cpu", quiet=True)

    return run_recipe(path, make, out=path.parent / "run", **changes)


def test_a_recipe_makes_artifact_scores_and_page_and_repeats_none(tiny, monkeypatch):
    folder, records = start(tiny)
    assert (folder / "synthetic" / "synthetic.safetensors").is_file()
    scores = json.loads((folder / "scores.json").read_text())["scores"]
    assert [s["network"] for s in scores] == ["convnet-d2-w8-in", "mlp-w16"]
    assert [r.network for r in records] == ["convnet-d2-w8-in", "mlp-w16"]
    assert scores[0]["test"]["sentence"] == "Test images: the 'test' split of digits (500 images)."
    assert scores[0]["full"]["accuracy"]["mean"] > 0 and scores[0]["runs"] == 2
    assert "mlp-w16" in (folder / "report.html").read_text()

    def expensive(*_: object, **__: object) -> None:
        raise AssertionError("done already")

    monkeypatch.setattr("potstill.networks.parts.train_pool", expensive)
    monkeypatch.setattr(scores_module, "Bench", expensive)
    _, again = start(tiny)
    assert [r.accuracy for r in again] == [r.accuracy for r in records]


def test_several_protocols_give_scores_under_each(tiny, monkeypatch):
    dc = PROTOCOLS["dc"].with_(epochs=3, name="dc")
    monkeypatch.setitem(PROTOCOLS, "dc", dc)
    both = 'protocol = ["quick-noflip", "dc"]'
    text = TINY.replace('protocol = "quick-noflip"', both).replace("full = true", "")
    tiny.write_text(text.replace('["convnet-d2-w8-in", "mlp-w16"]', '"mlp-w16"'))
    folder, records = start(tiny)
    assert [r.protocol["name"] for r in records] == ["quick-noflip", "dc"]
    assert [r.updates for r in records] == [2, 3]  # 40 training images: one and one step an epoch
    assert {
        s["protocol"]["name"] for s in json.loads((folder / "scores.json").read_text())["scores"]
    } == {"quick-noflip", "dc"}


def test_a_card_that_a_kill_kept_from_the_scores_is_written_again(tiny):
    folder, _ = start(tiny)
    record, card = folder / "synthetic" / "provenance.json", folder / "synthetic" / "README.md"
    known = json.loads(record.read_text())
    record.write_text(json.dumps({k: v for k, v in known.items() if k != "scores"}))
    card.write_text("of before the evaluation")
    start(tiny)
    assert json.loads(record.read_text()) == known and "mlp-w16" in card.read_text()
    before = record.stat().st_mtime_ns
    start(tiny)
    assert record.stat().st_mtime_ns == before


def test_only_what_is_missing_is_scored(tiny, monkeypatch):
    folder, _ = start(tiny)
    content = json.loads((folder / "scores.json").read_text())
    (folder / "scores.json").write_text(json.dumps({"scores": content["scores"][:1]}))
    asked: list[str] = []
    evaluate_run = scoring.evaluate_run

    def watched(folder: Path, run: Run, **options: object) -> list[object]:
        asked.extend(options["network"])
        return evaluate_run(folder, run, **options)

    monkeypatch.setattr(scoring, "evaluate_run", watched)
    _, records = start(tiny)
    assert asked == ["mlp-w16"]
    assert [r.network for r in records] == ["convnet-d2-w8-in", "mlp-w16"]


def test_an_interrupted_recipe_goes_on(tiny, monkeypatch):
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(scores_module, "Bench", interrupted)
        words = ["recipe", str(tiny), "--out", f"{tiny.parent}/run", "--device", "cpu", "--quiet"]
        assert main(words) == 130
    monkeypatch.setattr("potstill.networks.parts.train_pool", interrupted)  # distilled already
    assert main(words) == 0


CHANGES = {
    "[evaluate]|[evalute]": "did you mean 'evaluate'?",
    "imbalance_factor|imbalance": "did you mean 'imbalance_factor'?",
    "ipc = 1|ipcs = 1": "did you mean 'ipc'?",
    "ipc = 1|ipc = '1'": "use a whole number",
    "ipc = 1|ipc = true": "use a whole number",
    'method = "csdm"|method = "csmd"': "did you mean 'csdm'?",
    'method = "csdm"|seed = 1': "names no method",
    "steps = 6|setps = 6": "did you mean 'steps'?",
    "steps = 6|steps = 6.5": "use a whole number",
    "entries = 2|alpha_head = 1.5": "toml is 1.5; use a number above 0 and below 1",
    'data = "digits"|data = 3': "use a text",
    'data = "digits"|profile = "flat"': "exponential",
    "quick-noflip|quik-noflip": "did you mean 'quick-noflip'?",
    "mlp-w16|mlb-w16": "did you mean 'mlp-w128'?",
    "runs = 2|runs = 0": "use a whole number from 1",
    'network = ["convnet-d2-w8-in", "mlp-w16"]|network = []': "name at least one network",
    'protocol = "quick-noflip"|protocol = []': "name at least one protocol",
    "full = true|full = -1": "full in [evaluate]",
    "entries = 2|info = 'x'": "has 'info' in [method]",
    "entries = 2|sizes = 1": "has 'sizes' in [method]",
    "entries = 2|check = true": "has 'check' in [method]",
    "entries = 2|lr_images = nan": "lr_images in [method]",
    "steps = 6|steps = 99999999999999999999": "steps in [method]",
    "[data]|data = 'digits'\n[about]": "make it a table [data]",
    "[data]|[data": "is not valid TOML",
}


@pytest.mark.parametrize("change", CHANGES)
def test_mistakes_are_found_before_anything_begins(change, tiny, monkeypatch):
    def opened(*_: object, **__: object) -> None:
        raise AssertionError("data were opened")

    monkeypatch.setattr("potstill.app.opening.load_pair", opened)
    old, new = change.split("|")
    assert old in TINY
    tiny.write_text(TINY.replace(old, new, 1))
    with pytest.raises(InputError) as caught:
        start(tiny)
    assert CHANGES[change] in str(caught.value)
    assert str(caught.value).count("\n") == 0
    assert not (tiny.parent / "run").exists()


@pytest.mark.parametrize("key", ["train_checksum", "test_checksum"])
def test_a_score_on_other_data_is_not_the_recipes(tiny, key):
    folder, records = start(tiny)
    content = json.loads((folder / "scores.json").read_text())
    content["scores"][1][key] = "0" * 16
    (folder / "scores.json").write_text(json.dumps(content))
    _, again = start(tiny)
    networks = [s["network"] for s in json.loads((folder / "scores.json").read_text())["scores"]]
    assert networks == ["convnet-d2-w8-in", "mlp-w16", "mlp-w16"]
    assert [r.accuracy for r in again] == [r.accuracy for r in records]


def test_recipes_on_cifar10_name_its_fingerprint():
    """Images that are decoded at another size have another."""
    known = {None: "ea6fd5ec41b1ed32", 64: "777a5684bae29194"}
    for path in FOLDER.rglob("cifar10-*.toml"):
        recipe = read_recipe(path)
        assert recipe["about"]["fingerprint"] == known[recipe["data"].get("image_size")]
