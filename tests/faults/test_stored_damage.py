"""Every stored thing is damaged in several ways; the same command then gives the same bytes.

A cached thing is made again with a warning that names its file (or its folder); nothing damaged is
believed, and nothing ends a run.
"""

from __future__ import annotations

import json
import logging
import re
import shlex
import shutil
from pathlib import Path

import pytest

from potstill.app.cli import main
from potstill.evaluation import PROBES
from potstill.run import ArtifactError
from potstill.run.checkpoint import load_state, save_state
from potstill.synthetic import SyntheticSet

MACHINE = "--device cpu --threads 1 --checkpoint-seconds 0"
NETWORK = "--network convnet-d2-w8-in"
SELF = "--backbone self:convnet-d2-w8-bn --backbone-epochs 1"
JOBS = {
    "csdm": f"distill csdm --ipc 1 --steps 4 {NETWORK} --members 1 --pool-epochs 1 --entries 2"
    " --frequencies 16 --batch-real 8",
    "lad": f"distill lad --ipc 1 --steps 2 {NETWORK} --experts 1 --expert-epochs 3"
    " --classifier-epochs 1 --student-steps 2 --classifier-steps 2 --span 1 --start-min 0"
    " --start-max 1 --start-now 1 --expert-batch 16",
    "lgm": f"distill lgm --ipc 1 --steps 2 {SELF} --augmentations 2 --real-side bank",
}
PROBE = (
    "--network same --protocol probe-noflip --runs 1 --inherit ridge --no-quantized"
    " --device cpu --threads 1"
)
# stored thing -> (job, pattern in the cache); where a pattern finds several files, all are damaged
STORED = {
    "decoded images": ("csdm", "decoded/*/images.npy"),
    "labels and facts": ("csdm", "decoded/*/facts.safetensors"),
    "pool network": ("csdm", "pools/*/network-*.safetensors"),
    "real-side table": ("csdm", "realside/*/*.safetensors"),
    "expert rows": ("lad", "experts/*/experts-*.safetensors"),
    "expert index": ("lad", "experts/*/index.json"),
    "feature statistics": ("lgm", "features/*/stats.safetensors"),
    "feature checks": ("lgm", "features/*/about.safetensors"),
    "feature bank": ("lgm", "features/*/bank.f16"),
    "backbone": ("lgm", "backbones/*/backbone.safetensors"),
}


def flip(path: Path, at: float) -> None:
    """Another bit in the content (of sparse rows: in the first that was written)."""
    content = bytearray(path.read_bytes())
    place = min(len(content) - 1, int(at * len(content)))
    if path.name.startswith("experts-"):
        place = 8 + int.from_bytes(content[:8], "little") + 40
    content[place] ^= 4
    path.write_bytes(content)


def not_a_number(path: Path) -> None:
    """NaN in every float, in a well-formed file whose check was not renewed."""
    content = path.read_bytes()
    if path.suffix != ".safetensors" or path.name.startswith("experts-"):
        flip(path, 0.4)
        return
    tensors, facts = load_state(path)
    for value in tensors.values():
        if value.is_floating_point() and value.numel():
            value.fill_(float("nan"))
    save_state(path, tensors, facts)
    if path.read_bytes() == content:  # it holds no floats
        flip(path, 0.4)
        return
    check = re.compile(rb'\\"check\\": \\"([0-9a-f]{16})\\"')
    old, new = check.search(content), check.search(path.read_bytes())
    assert old and new
    path.write_bytes(path.read_bytes().replace(new[1], old[1]))


DAMAGES = {
    "a bit in the middle": lambda path: flip(path, 0.5),
    "the last bit": lambda path: flip(path, 1.0),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-7]),
    "empty": lambda path: path.write_bytes(b""),
    "null": lambda path: path.write_text("null"),
    "an object": lambda path: path.write_text("{}"),
    "not UTF-8": lambda path: path.write_bytes(b"\xff\xfe" * 40),
    "not a number": not_a_number,
}


def words(job: str, root: Path, out: Path) -> list[str]:
    return [
        *shlex.split(f"{JOBS[job]} {MACHINE}"),
        "--data",
        str(root / "source"),
        "--out",
        str(out),
    ]


def result(run: Path) -> bytes:
    return (run / "synthetic" / "synthetic.safetensors").read_bytes()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A source of pictures, and a cache and a run of each job on it."""
    from PIL import Image
    from sklearn.datasets import load_digits

    root = tmp_path_factory.mktemp("stored")
    digits = load_digits()
    for label, count in enumerate((12, 8, 5)):
        for number, image in enumerate(digits.images[digits.target == label][: count + 4]):
            split = "train" if number < count else "test"
            place = root / "source" / split / f"c{label}" / f"{number:03d}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray((image * 15).astype("uint8")).save(place)
    with pytest.MonkeyPatch.context() as patch:
        for job in JOBS:
            patch.setenv("POTSTILL_CACHE", str(root / f"cache-{job}"))
            assert main(words(job, root, root / job)) == 0
    return root


@pytest.mark.parametrize("stored", STORED)
@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_damaged_is_made_again(made, tmp_path, monkeypatch, caplog, stored, damage):
    job, pattern = STORED[stored]
    cache = tmp_path / "cache"
    shutil.copytree(made / f"cache-{job}", cache)
    monkeypatch.setenv("POTSTILL_CACHE", str(cache))
    paths = sorted(cache.glob(pattern))
    assert paths, f"{stored} is not stored any more"
    for path in paths:
        DAMAGES[damage](path)
    with caplog.at_level(logging.WARNING, "potstill"):
        assert main([*words(job, made, tmp_path / "run"), "--quiet"]) == 0, caplog.text
    assert result(tmp_path / "run") == result(made / job)
    told = [r.getMessage() for r in caplog.records if "damaged" in r.getMessage()]
    told += [r.getMessage() for r in caplog.records if "does not fit" in r.getMessage()]
    named = [path for path in paths if any(str(path) in text for text in told)]
    named += [path for path in paths if any(f"{path.parent} " in text for text in told)]
    assert named, f"nothing said of {paths[0]}: {caplog.text}"


@pytest.mark.parametrize("damage", ["a bit in the middle", "truncated"])
def test_a_damaged_head_and_score_are_made_again(made, tmp_path, monkeypatch, caplog, damage):
    brief = PROBES["probe-noflip"].with_(epochs=50, full_steps=100, stored_views=4)
    monkeypatch.setattr("potstill.evaluation.protocol.PROBES", {"probe-noflip": brief})
    shutil.copytree(made / "cache-lgm", tmp_path / "cache")
    monkeypatch.setenv("POTSTILL_CACHE", str(tmp_path / "cache"))
    run = tmp_path / "run"
    shutil.copytree(made / "lgm", run)
    scores = []
    for turn in range(2):
        with caplog.at_level(logging.WARNING, "potstill"):
            assert main(["evaluate", str(run), *shlex.split(PROBE), "--quiet"]) == 0, caplog.text
        (record,) = json.loads((run / "scores.json").read_text())["scores"]
        scores.append([record[name]["accuracy"] for name in ("random", "inherited")])
        if turn == 0:
            caplog.clear()
            (run / "head.safetensors").unlink()
            (run / "scores.json").unlink()
            cache = tmp_path / "cache"
            stored = [p for kind in ("heads", "scores") for p in cache.glob(f"{kind}/*/*.safe*")]
            assert {path.name for path in stored} == {"head.safetensors", "result.safetensors"}
            for path in stored:
                DAMAGES[damage](path)
    assert scores[0] == scores[1]
    for path in stored:
        assert str(path) in caplog.text


def test_nothing_is_said_of_sound_caches_and_nothing_is_made_again(
    made, tmp_path, monkeypatch, caplog
):
    for job in JOBS:
        shutil.copytree(made / f"cache-{job}", tmp_path / job)
        before = {p: p.stat().st_mtime_ns for p in (tmp_path / job).rglob("*") if p.is_file()}
        monkeypatch.setenv("POTSTILL_CACHE", str(tmp_path / job))
        with caplog.at_level(logging.WARNING, "potstill"):
            assert main([*words(job, made, tmp_path / f"run-{job}"), "--quiet"]) == 0
        after = {p: p.stat().st_mtime_ns for p in (tmp_path / job).rglob("*") if p.is_file()}
        kept = {p for p in before if p.name not in (".lock", "entry.json")}
        assert {p: after.get(p) for p in kept} == {p: before[p] for p in kept}
        assert "damaged" not in caplog.text and "does not fit" not in caplog.text


@pytest.mark.parametrize("kind", DAMAGES)
@pytest.mark.parametrize("name", ["synthetic.safetensors", "provenance.json"])
def test_a_damaged_artifact_is_refused(made, tmp_path, name, kind):
    if name == "provenance.json" and kind in ("an object", "a bit in the middle", "not a number"):
        pytest.skip("its text has no check: {} and another letter say nothing that is wrong")
    folder = tmp_path / "synthetic"
    shutil.copytree(made / "csdm" / "synthetic", folder)
    if kind == "not a number":
        flip(folder / name, 0.9)  # another file than a state: bits among the tensors
    else:
        DAMAGES[kind](folder / name)
    with pytest.raises(ArtifactError, match=re.escape(name)):
        SyntheticSet.load(folder)
