"""Sets that come with the package, their way into it, and the way of a set to the hub."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch

import potstill
from potstill.app.cli import main
from potstill.app.recipe import read_recipe
from potstill.data import load_pair
from potstill.evaluation import PROTOCOLS, evaluate
from potstill.run import ArtifactError, InputError, Run
from potstill.synthetic import SyntheticSet, distilled_names, load_distilled

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("name", distilled_names())
def test_a_ready_made_set_is_that_of_its_recipe(name):
    syn = load_distilled(name)
    shipped = syn.provenance["shipped"]
    recipe = read_recipe(ROOT / shipped["recipe"])
    rows = [row for row in recipe["measured"] if row.get("artifact") == shipped["from"]]
    assert rows and name.startswith(recipe["distill"]["method"] + "-") and syn.bits == 8
    assert len(syn) == recipe["distill"]["ipc"] * syn.num_classes
    assert abs(rows[-1]["accuracy"] - shipped["accuracy"]["mean"]) < 2  # of the float set
    assert torch.equal(syn.images, (syn.images * 255).round() / 255)
    assert (ROOT / "docs" / "distilled" / f"{name}.png").is_file()
    files = {path.name for path in (ROOT / "src/potstill/distilled" / name).iterdir()}
    assert files == {"synthetic.safetensors", "provenance.json"}


def test_there_is_one_and_an_unknown_name_is_one_sentence():
    assert "csdm-digits-lt50-ipc10" in distilled_names()
    with pytest.raises(InputError, match="did you mean 'csdm-digits-lt50-ipc10'"):
        potstill.load_distilled("csdm-digits-lt50-ipc1")
    with pytest.raises(InputError, match="choose one of"):
        potstill.load_distilled("../methods")


def test_a_ready_made_set_reaches_what_is_recorded(tmp_path):
    syn = load_distilled("csdm-digits-lt50-ipc10")
    train, test, _ = load_pair("digits")
    run = Run(device="cpu", cache=tmp_path, quiet=True)
    how: dict[str, Any] = {"baseline": False, "quantized": False, "runs": 3}
    facts = syn.provenance["shipped"]
    protocol = PROTOCOLS[facts["protocol"]["name"]]
    assert protocol.hash == facts["protocol"]["hash"]
    long = train.long_tailed(50)
    (score,) = evaluate(
        syn, long, test, network=facts["network"], protocol=protocol, run=run, **how
    )
    assert abs(score.accuracy["mean"] - facts["accuracy"]["mean"]) < 2.5


@pytest.fixture
def made(tmp_path: Path) -> Path:
    return load_distilled("csdm-digits-lt50-ipc10").save(tmp_path / "set")


class Hub:
    """What :func:`push` calls of huggingface_hub."""

    def __init__(self, fault: Exception | None = None) -> None:
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.fault = fault

    def HfApi(self) -> Hub:
        return self

    def create_repo(self, **facts: Any) -> None:
        if self.fault:
            raise self.fault
        self.calls.append(("create", facts))

    def upload_folder(self, **facts: Any) -> None:
        names = sorted(path.name for path in Path(facts["folder_path"]).iterdir())
        self.calls.append(("upload", facts | {"names": names}))


class NoToken(Exception):
    pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    stub = Hub()
    errors = types.SimpleNamespace(LocalTokenNotFoundError=NoToken)
    monkeypatch.setitem(sys.modules, "huggingface_hub", stub)
    monkeypatch.setitem(sys.modules, "huggingface_hub.errors", errors)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    return stub


def test_a_set_is_pushed_with_its_card(made, hub, capsys):
    assert main(["push", str(made), "someone/csdm", "--private"]) == 0
    assert capsys.readouterr().out.strip() == "https://huggingface.co/datasets/someone/csdm"
    (first, asked), (second, sent) = hub.calls
    assert (first, second) == ("create", "upload")
    assert asked["repo_type"] == sent["repo_type"] == "dataset" and asked["private"]
    assert asked["repo_id"] == sent["repo_id"] == "someone/csdm"
    assert {"README.md", "synthetic.safetensors", "data", "images"} <= set(sent["names"])


@pytest.mark.parametrize(
    ("name", "fault", "code", "said"),
    [
        ("csdm", None, 2, "name is 'csdm'; use OWNER/NAME"),
        ("a/../b", None, 2, "use OWNER/NAME"),
        ("a/b", NoToken("none"), 2, "run hf auth login first"),
        ("a/b", ConnectionError("no route\nto host"), 4, "did not take a/b: no route; check the"),
    ],
)
def test_what_the_hub_cannot_do_is_one_sentence(name, fault, code, said, made, hub, capsys):
    hub.fault = fault
    assert main(["push", str(made), name]) == code
    out, text = capsys.readouterr()
    assert said in text and text.count("\n") == 1 and out == "" and not hub.calls


def test_push_is_refused_offline_and_for_a_damaged_set(made, hub, monkeypatch, capsys):
    from potstill.app.push_command import push

    content = (made / "synthetic.safetensors").read_bytes()
    (made / "synthetic.safetensors").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(ArtifactError):
        push(made, "a/b")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(InputError, match="HF_HUB_OFFLINE is set"):
        push(made, "a/b")
    assert not hub.calls


def test_only_a_measured_run_is_shipped(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import ship

    folder = tmp_path / "run"
    syn = load_distilled("csdm-digits-lt50-ipc10")
    assert isinstance(syn, SyntheticSet)
    syn.save(folder / "synthetic")
    with pytest.raises(InputError, match=f"has artifact {syn.checksum}, which .* has not measured"):
        ship.ship(folder, ROOT / "recipes/csdm/digits-lt50-ipc10.toml", tmp_path)
