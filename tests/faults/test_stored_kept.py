"""What a user keeps is never made again unasked: one sentence says which file, and what to do.

And what version 0.1 kept: heads, backbones and iterates are still read, caches are made again.
"""

from __future__ import annotations

import json
import logging
import shlex
import shutil
from pathlib import Path

import pytest
from safetensors import safe_open
from safetensors.torch import save_file

from potstill.app.cli import main
from potstill.run.checkpoint import load_state

MACHINE = " --device cpu --threads 1 --quiet"
DAMAGES = {
    "a bit": lambda content: content[:-40] + bytes([content[-40] ^ 4]) + content[-39:],
    "the last bit": lambda content: content[:-1] + bytes([content[-1] ^ 4]),
    "truncated": lambda content: content[:-7],
    "empty": lambda content: b"",
    "null": lambda content: b"null",
    "not UTF-8": lambda content: b"\xff\xfe" * 40,
}


CSDM = (
    "distill csdm --data digits --ipc 1 --steps 3 --network mlp-w8 --members 2 --pool-epochs 1"
    " --entries 3 --frequencies 8 --batch-real 8 --out "
)
LAD = (
    "distill lad --data digits --ipc 1 --steps 2 --iterate-every 1 --network mlp-w8 --experts 1"
    " --expert-epochs 2 --classifier-epochs 1 --student-steps 1 --classifier-steps 1 --span 1"
    " --start-min 0 --start-max 1 --start-now 1 --expert-batch 128 --out "
)
TRAIN = "backbone train --data digits --network convnet-d2-w8-bn --epochs 1 --batch 512 --out "


def called(command: str) -> int:
    return main(shlex.split(command + MACHINE))


@pytest.fixture(scope="module")
def kept(tmp_path_factory) -> Path:
    """A run with iterates, a head and scores, and a backbone of its own."""
    root = tmp_path_factory.mktemp("kept")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("POTSTILL_CACHE", str(root / "cache"))
        for command in (f"{LAD}{root}/lad", f"{TRAIN}{root}/backbone", f"{CSDM}{root}/csdm"):
            assert called(command) == 0
    return root


@pytest.fixture
def own(kept, tmp_path, monkeypatch) -> Path:
    """A copy of it all that a test may damage."""
    shutil.copytree(kept, tmp_path / "own")
    monkeypatch.setenv("POTSTILL_CACHE", str(tmp_path / "own" / "cache"))
    return tmp_path / "own"


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("thing", ["iterate", "backbone", "backbone in use"])
def test_what_is_damaged_is_one_sentence_and_stays(own, capsys, thing, damage):
    path = own / "backbone" / "backbone.safetensors"
    command = f"{TRAIN}{own}/backbone"
    if thing == "iterate":
        path = own / "lad" / "iterates" / "step-000001.safetensors"
        command = f"evaluate {own}/lad --network mlp-w8 --protocol lad-published --runs 1"
    elif thing == "backbone in use":
        command = f"distill sfm --data digits --ipc 1 --backbone {own}/backbone --out {own}/sfm"
    content = DAMAGES[damage](path.read_bytes())
    path.write_bytes(content)
    capsys.readouterr()
    assert called(command) == 2
    said = capsys.readouterr().err.strip()
    assert said.startswith("potstill: ") and str(path) in said and "\n" not in said
    assert ("delete it" in said) and path.read_bytes() == content
    assert not (own / "sfm").exists()


def test_an_iterate_of_another_step_or_artifact_is_none(own, capsys):
    place = own / "lad" / "iterates"
    (place / "step-000001.safetensors").rename(place / "step-000007.safetensors")
    assert called(f"evaluate {own}/lad --network mlp-w8 --protocol lad-published --runs 1") == 2
    assert "does not belong to the artifact beside it (it is of step 1)" in capsys.readouterr().err


def make_old(path: Path) -> None:
    """The same state as version 0.1 wrote it: facts, no check."""
    with safe_open(path, framework="pt") as file:
        about = json.loads(file.metadata()["potstill"])
    tensors, _ = load_state(path)
    save_file(dict(tensors), path, metadata={"potstill": json.dumps(about["facts"])})


def test_caches_without_checks_are_made_again_with_a_warning_for_each_folder(own, caplog):
    folders = [*(own / "cache" / "pools").iterdir(), *(own / "cache" / "realside").iterdir()]
    for path in (path for folder in folders for path in folder.glob("*.safetensors")):
        make_old(path)
    with caplog.at_level(logging.WARNING, "potstill"):
        assert called(f"{CSDM}{own}/again") == 0
    assert len(caplog.messages) == 2 == len(folders)
    for folder in folders:
        assert any(said.startswith(f"{folder} holds files of") for said in caplog.messages)
    name = "synthetic/synthetic.safetensors"
    assert (own / "again" / name).read_bytes() == (own / "csdm" / name).read_bytes()


def test_a_backbone_without_a_check_is_known_by_its_key(own, caplog, capsys):
    path = own / "backbone" / "backbone.safetensors"
    make_old(path)
    with caplog.at_level(logging.WARNING, "potstill"):
        assert called(f"{TRAIN}{own}/backbone") == 0  # trained already
        assert main(["backbone", "show", str(own / "backbone")]) == 0
    assert caplog.text.count("has no check of its content") == 1
    content = path.read_bytes()
    path.write_bytes(content[:-40] + bytes([content[-40] ^ 64]) + content[-39:])
    assert called(f"{TRAIN}{own}/backbone") == 2 and str(path) in capsys.readouterr().err


def test_an_index_without_a_check_is_believed_with_the_checks_of_its_rows(own, caplog):
    for path in (own / "cache" / "experts").glob("*/index.json"):
        index = json.loads(path.read_text())
        assert index.pop("check")
        path.write_text(json.dumps(index))
    experts = own / "cache" / "experts"
    before = {path: path.stat().st_mtime_ns for path in experts.rglob("*.safetensors")}
    shutil.rmtree(own / "lad")
    with caplog.at_level(logging.WARNING, "potstill"):
        assert called(LAD + f"{own}/lad") == 0
    assert before == {path: path.stat().st_mtime_ns for path in experts.rglob("*.safetensors")}
    assert "index.json" not in caplog.text and "damaged" not in caplog.text
