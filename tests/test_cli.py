"""The command line refuses in one sentence, early, and leaves everything on disk as it was."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import re
import shlex
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from potstill.app.cli import main
from potstill.app.job import Data
from potstill.evaluation import scores as scores_module
from potstill.methods import CATALOGUE

TINY = shlex.split(
    "--steps 4 --network convnet-d2-w8-in --members 1 --pool-epochs 1 --entries 2"
    " --frequencies 16 --batch-real 8 --device cpu --threads 1 --ipc 1 --quiet"
)
STUDENT = shlex.split("--network convnet-d2-w8-in --protocol quick --runs 1 --device cpu --quiet")


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run words that must be refused; return the one sentence."""

    def check(words: list[str], code: int = 2) -> str:
        assert main(words) == code
        out, said = capsys.readouterr()
        assert out == "" and said.startswith("potstill: ") and said.count("\n") == 1, said
        return said

    return check


def png(color: int, size: int = 8) -> bytes:
    stream = io.BytesIO()
    Image.new("L", (size, size), color).save(stream, format="PNG")
    return stream.getvalue()


def birds(root: Path) -> Path:
    """Two classes of twelve small pictures each."""
    for label, name in enumerate(("crow", "wren")):
        (root / name).mkdir(parents=True)
        for row in range(12):
            (root / name / f"{row:02d}.png").write_bytes(png(100 * label + row))
    return root


def npz(root: Path, **arrays: np.ndarray) -> Path:
    root.mkdir()
    np.savez(root / "set.npz", **arrays)
    return root / "set.npz"


def one_image(root: Path) -> Path:
    (root / "crow").mkdir(parents=True)
    (root / "crow" / "0.png").write_bytes(png(1))
    return root


def spoiled(name: str, content: bytes) -> Callable[[Path], Path]:
    def spoil(root: Path) -> Path:
        (birds(root) / name).write_bytes(content)
        return root

    return spoil


def emptied(root: Path) -> Path:
    (birds(root) / "kite").mkdir()
    return root


PIXELS = np.zeros((6, 8, 8), np.uint8)
SOURCES: dict[str, tuple[Callable[[Path], Path], str]] = {
    "missing folder": (lambda root: root, "there is nothing of that name"),
    "empty folder": (lambda root: root.mkdir() or root, "has no class folders"),
    "empty class": (emptied, "kite holds no images; add images"),
    "one image": (one_image, "1 image(s) in 1 class(es); at least 2 classes are needed"),
    "film among images": (spoiled("crow/a.mp4", b"hello"), "crow/a.mp4 is no image of a kind"),
    "text called png": (spoiled("crow/99.png", b"hello"), "99.png cannot be read as an image"),
    "truncated image": (spoiled("wren/99.png", png(3, 64)[:60]), "99.png cannot be read as an"),
    "mixed sizes": (spoiled("wren/99.png", png(3, 9)), "use --image-size 8"),
    "negative label": (
        lambda root: npz(root, images=PIXELS, labels=np.array([0, 0, 0, 1, 1, -1])),
        "hold -1 (row 5)",
    ),
    "label too large": (
        lambda root: npz(
            root,
            images=PIXELS,
            labels=np.array([0, 0, 0, 1, 1, 2]),
            classes=np.array(["crow", "wren"]),
        ),
        "hold 2 (row 5); 2 classes need labels from 0 to 1",
    ),
    "pickled arrays": (
        lambda root: npz(root, images=np.array([{}], object), labels=np.array([0])),
        "save plain arrays",
    ),
}


@pytest.mark.parametrize("case", SOURCES)
def test_bad_data_is_one_sentence(case, tmp_path, refused):
    make, expected = SOURCES[case]
    source = make(tmp_path / "birds")
    before = snapshot(tmp_path)
    said = refused(["distill", "csdm", "--data", str(source), "--out", f"{tmp_path}/run", *TINY])
    assert expected in said
    assert {k: v for k, v in snapshot(tmp_path).items() if not k.startswith("cache/")} == before
    assert not (tmp_path / "run").exists()


VALUES = {
    "--alpha-head 1.5": "use a number above 0 and below 1",
    "--alpha-schedule loglinear": "use one of log_linear",
    "--network convnat-w8": "did you mean 'convnet'?",
    "--augment color_crup": "did you mean 'crop'?",
    "--augment-rule idk": "use one of dc, idc",
    "--kernel rbv": "did you mean 'rbf'?",
    "--kernel laplace-l1 --estimator exact --power 2": "no distance determines",
    "--estimator exakt": "use one of frequencies, exact",
    "--frequencies 0": "frequencies is 0",
    "--power 3": "power is 3",
    "--scale nan": "scale is nan",
    "--real-side rollin": "use one of rolling, fixed, features, fresh",
    "--entries 0": "entries is 0",
    "--batch-real -1": "--batch-real is -1",
    "--members -1": "members is -1",
    "--members 0": "members is 0",
    "--networks random": "use --calibration 0",
    "--networks rndom": "--networks is 'rndom'; did you mean 'random'?",
    "--networks experts": "--networks is 'experts', of which csdm can make nothing",
    "--canvas pyramid": "--canvas is 'pyramid', of which csdm can make nothing; use pixels or",
    "--canvas=tield": "--canvas is 'tield'; did you mean 'tiled'?",
    "--labels soft": "--labels is 'soft', of which csdm can make nothing; use hard",
    "--factor 2 --canvas pixels": "flag of --canvas tiled, not of --canvas pixels; use --canvas",
    "--calibration nan": "calibration is nan",
    "--calibration-prior ajusted": "use one of adjusted, none",
    "--pool-prior plane": "use one of plain",
    "--pool-cutmix 2": "cutmix is 2.0",
    "--steps -1": "steps is -1",
    "--lr-images 0": "--lr-images is 0",
    "--optimizer lion": "use one of adam, mean_adam, sgd",
    "--momentum 1": "momentum is 1",
    "--schedule warm": "schedule is 'warm'",
    "--start rael": "start is 'rael'",
    "--shortage keep": "shortage is 'keep' with start 'tiled'",
    "--shortage noise --start crops": "shortage is 'noise' with start 'crops'",
    "--floor stop --kernel linear": "floor is 'stop' with kernel 'linear'",
    "--floor shrink --estimator exact --power 2": "floor is 'shrink' with estimator 'exact'",
    "--factor 9": "use a whole number from 0 to 8",
    "--budget quik": "did you mean 'quick'?",
    "--threads -1": "threads is -1",
    "--seed -1": "seed is -1",
    "--device toaster": "device is 'toaster'",
    "--memory-gb 0": "--memory-gb is 0",
    "--checkpoint-seconds nan": "--checkpoint-seconds is nan",
    "--ipc ten": "--ipc is 'ten'; use a whole number from 1",
    "--ipcc 10": "did you mean '--ipc'?",
    "--profile stepp": "'exponential', 'step', 'pareto'",
    "--steps": "'--steps'",
}


@pytest.mark.parametrize("flags", VALUES)
def test_bad_values_are_refused_before_data_are_even_opened(flags, tmp_path, refused, monkeypatch):
    def opened(*_: object, **__: object) -> None:
        raise AssertionError("data were opened")

    monkeypatch.setattr("potstill.app.opening.load_pair", opened)
    words = list(TINY)
    if flags.startswith("--networks"):  # without the flags of a pool
        del words[words.index("--members") : words.index("--entries")]
    method = "sdm" if "--estimator" in flags else "csdm"
    said = refused(["distill", method, *words, "--out", f"{tmp_path}/run", *flags.split()])
    assert VALUES[flags] in said and flags.split()[0].partition("=")[0] in said
    assert not (tmp_path / "run").exists()


FITS = {
    "--network convnet-d6-w8-in": "whose maps vanish on images of 8x8",
    "--ipc 0": "use a whole number from 1",
    "--ipc 100000": "smaller than the real one",
    "--imbalance-factor 0.02": "use 50",
    "--imbalance-factor 1000000": "which leaves a class without images",
    "--imbalance-factor nan": "use a number from 1",
    "--resize crob": "crob",
    "--channels 2": "channels is 2",
    "--image-size 0": "--image-size is 0",
    "--test digit": "did you mean 'digits'?",
    "--label-column digit": "has no columns",
}


@pytest.mark.parametrize("flags", FITS)
def test_what_does_not_fit_the_data_is_refused_before_anything_is_trained(
    flags, tmp_path, refused, monkeypatch
):
    def trained(*_: object, **__: object) -> None:
        raise AssertionError("a network was trained")

    monkeypatch.setattr("potstill.networks.parts.train_pool", trained)
    said = refused(["distill", "csdm", *TINY, "--out", f"{tmp_path}/run", *flags.split()])
    assert FITS[flags] in said
    assert flags.split()[0] in said or flags.startswith("--test")  # that is the source
    assert not (tmp_path / "run").exists()


def test_a_label_column_is_named_by_the_flag_that_was_typed(tmp_path, refused):
    for flag in ("--labels", "--label-column"):
        said = refused(
            ["distill", "random", "--ipc", "1", "--out", f"{tmp_path}/run", flag, "digit"]
        )
        assert f"{flag} is 'digit'" in said and "has no columns" in said
    words = ["distill", "csdm", *TINY, "--out", f"{tmp_path}/run", "--labels", "digit"]
    assert "--labels is 'digit'; choose one of hard" in refused(words)


def test_min_max_form_names_what_it_needs(tmp_path, refused):
    words = ["distill", "ncfm", *TINY, "--out", f"{tmp_path}/run", "--sampling-network"]
    assert "use --real-side features" in refused(words)
    words += ["--real-side", "features", "--kernel", "linear"]
    assert "compares frequencies" in refused(words)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("distil", "did you mean 'distill'?"),
        ("distill csmd", "did you mean 'csdm'?"),
        ("distill csdm", "--out"),
        ("evaluate", "PATH"),
        ("evaluate nowhere", "nowhere, which does not exist"),
        ("report nowhere", "nowhere does not exist"),
        ("recipe nowhere.toml", "nowhere.toml, which does not exist"),
        ("methods --all", "takes --wide alone"),
        ("compare --out page.html", "no run to compare"),
        ("compare nowhere --out page.html", "only nowhere to compare; give two or more"),
        ("compare nowhere elsewhere --out page.html", "nowhere does not exist"),
        ("compare nowhere elsewhere", "--out"),
    ],
)
def test_bad_commands(words, expected, refused):
    assert expected in refused(words.split())


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A finished run on digits, as files."""
    root = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("POTSTILL_CACHE", str(root / "cache"))
        torch.set_num_threads(1)
        words = ["distill", "csdm", *TINY, "--imbalance-factor", "20", "--out", f"{root}/run"]
        assert main(words) == 0
    yield root / "run"


@pytest.fixture
def run_folder(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path / "run")
    return tmp_path / "run"


def huge(content: bytes) -> bytes:
    """The same file whose header claims images of a terabyte."""
    size = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + size])
    header["images"]["shape"] = [250_000_000_000, 1, 1, 1]
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + content[8 + size :]


def flipped(content: bytes) -> bytes:
    return content[:-1] + bytes([content[-1] ^ 1])


DAMAGE: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "truncated": ("synthetic/synthetic.safetensors", lambda content: content[:-9]),
    "one bit": ("synthetic/synthetic.safetensors", flipped),
    "pickle": ("synthetic/synthetic.safetensors", lambda _: b"\x80\x04cos\nsystem\n."),
    "terabyte": ("synthetic/synthetic.safetensors", huge),
    "provenance": ("synthetic/provenance.json", lambda content: content[:-9]),
    "record": ("run.json", lambda content: content[:-9]),
    "record of lists": ("run.json", lambda _: b'{"status": "finished", "job": []}'),
    "strange options": ("run.json", lambda content: content.replace(b'"resize"', b'"rm -rf"')),
    "scores": ("scores.json", lambda _: b"{"),
    "a score of another type": ("scores.json", lambda _: b'{"scores": [{"network": 1e999}]}'),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damaged_artifacts_are_refused(case, run_folder, refused, monkeypatch):
    def trained(*_: object, **__: object) -> None:
        raise AssertionError("students were trained")

    name, spoil = DAMAGE[case]
    path = run_folder / name
    path.write_bytes(spoil(path.read_bytes() if path.exists() else b""))
    before = snapshot(run_folder)
    monkeypatch.setattr(scores_module, "Bench", trained)
    refused(["evaluate", str(run_folder), *STUDENT])
    if case in ("provenance", "record") or name == "scores.json":  # what a page is made from
        refused(["report", str(run_folder)])
    assert snapshot(run_folder) == before


def test_runs_without_scores_are_not_compared(run_folder, refused):
    page = str(run_folder / "page.html")
    said = refused(["compare", str(run_folder), str(run_folder / "other"), "--out", page])
    assert f"{run_folder} has no scores; evaluate it first: potstill evaluate {run_folder}" in said
    assert not (run_folder / "page.html").exists()


def test_two_runs_are_compared(run_folder, tmp_path, capsys):
    assert main(["evaluate", str(run_folder), *STUDENT]) == 0
    shutil.copytree(run_folder, tmp_path / "again")
    capsys.readouterr()
    page = tmp_path / "page.html"
    words = ["compare", str(run_folder), str(tmp_path / "again"), "--out", str(page)]
    assert main(words) == 0
    assert capsys.readouterr().out.strip() == str(page)
    assert "csdm (run)" in page.read_text() and "csdm (again)" in page.read_text()


def test_unfinished_run_is_not_evaluated(run_folder, refused):
    record = json.loads((run_folder / "run.json").read_text())
    (run_folder / "run.json").write_text(json.dumps(record | {"status": "running"}))
    assert "unfinished run" in refused(["evaluate", str(run_folder), *STUDENT])
    shutil.rmtree(run_folder / "synthetic")  # as after a kill
    assert "run the same command again" in refused(
        ["evaluate", str(run_folder), "--data", "digits", *STUDENT]
    )


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("--network resnet19-in", "did you mean 'resnet18-in'?"),
        ("--network convnet-d2-w8-in convnet-d6-w8-in", "whose maps vanish"),
        ("--protocol defualt", "did you mean 'default'?"),
        ("--prior even", "--prior is 'even'; use one of plain, balanced"),
        ("--network", "give at least one"),
        ("--runs 0", "runs is 0"),
        ("--data nowhere", "nothing of that name"),
    ],
)
def test_bad_evaluations(flags, expected, run_folder, refused, monkeypatch):
    def trained(*_: object, **__: object) -> None:
        raise AssertionError("students were trained")

    monkeypatch.setattr(scores_module, "Bench", trained)
    before = snapshot(run_folder)
    assert expected in refused(["evaluate", str(run_folder), *STUDENT, *flags.split()])
    assert snapshot(run_folder) == before


@pytest.mark.parametrize("quiet", [True, False])
def test_quiet_shows_no_bar_and_no_text(quiet, tmp_path, capsys, monkeypatch):
    import potstill.run.log as log

    bars: list[bool] = []
    original = log.tqdm

    def watched(*items: object, disable: bool, **options: object):
        bars.append(not disable)
        return original(*items, disable=disable, **options)

    monkeypatch.setattr(log, "tqdm", watched)
    words = [word for word in TINY if word != "--quiet" or quiet]
    source = str(birds(tmp_path / "birds"))  # decoding has a bar as well
    assert main(["distill", "csdm", *words, "--data", source, "--out", f"{tmp_path}/run"]) == 0
    out = capsys.readouterr().out
    assert len(bars) >= 3
    assert not any(bars) if quiet else all(bars)
    assert out == "" if quiet else f"{tmp_path}/run" in out


@pytest.mark.parametrize("words", ["", "--help", "distill --help", "distill dm --help", "methods"])
def test_help_succeeds(words, capsys):
    assert main(words.split()) == 0
    assert "potstill" in (out := capsys.readouterr().out) or "csdm" in out


@pytest.mark.parametrize(  # the pipe breaks at the end, or at once
    ("words", "unbuffered"), [("methods", ""), ("distill csdm --help", "1")]
)
def test_a_reader_that_goes_away_is_no_traceback(words, unbuffered):
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "potstill.app.cli", *words.split()],
        env=os.environ | {"PYTHONUNBUFFERED": unbuffered},
        stdout=write, stderr=subprocess.PIPE, text=True, check=False,
    )  # fmt: skip
    os.close(write)
    assert done.stderr == "" and done.returncode == 141


def test_other_libraries_do_not_speak_beside_the_sentence(tmp_path):
    (tmp_path / "damaged.parquet").write_bytes(b"PAR1")
    words = ["distill", "csdm", "--data", f"{tmp_path}/damaged.parquet", "--out", f"{tmp_path}/run"]
    done = subprocess.run(
        [sys.executable, "-m", "potstill.app.cli", *words],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("potstill: source") and done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("gpu", "expected"),
    [(False, ("convnet-w32-in", "quick")), (True, ("convnet-w128-in", "default"))],
)
def test_students_suit_the_machine(gpu, expected, monkeypatch, tmp_path, capsys):
    seen = {}

    def scored(folder: Path, run: object, **options: object) -> list[object]:
        seen.update(options)
        return []

    monkeypatch.setattr("potstill.app.scoring.evaluate_run", scored)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    assert main(["evaluate", str(tmp_path), "--device", "cpu"]) == 0
    assert (seen["network"], seen["protocol"].name) == ([expected[0]], expected[1])
    capsys.readouterr()
    words = ["--ipc", "1", "--device", "cpu", "--out", f"{tmp_path}/r"]
    assert main(["distill", "random", *words]) == 0
    hint = "potstill evaluate {0}/r --network {1} --protocol {2} && potstill report {0}/r"
    assert hint.format(tmp_path, *expected) in capsys.readouterr().out
    assert main(["evaluate", "--help"]) == 0
    assert "default: quick without a GPU" in " ".join(capsys.readouterr().out.split())


def test_methods_name_their_years(capsys):
    assert main(["methods"]) == 0
    lines = capsys.readouterr().out.splitlines()
    column = slice(lines[0].index("year"), lines[0].index("year") + 4)
    years = {line.split()[0]: line[column].strip() for line in lines[2:] if line}
    assert years["dm"] == "2023" and years["csdm"] == "2026"
    assert years["random"] == years["mosaic"] == ""


@pytest.mark.parametrize("name", CATALOGUE)
def test_every_method_has_a_flag_for_each_field_and_for_the_data(name, capsys, monkeypatch):
    """Also where a method and the data have fields of one name."""
    seen = {}
    monkeypatch.setattr(
        "potstill.app.job.distill", lambda method, data, **_: seen.update(m=method, d=data)
    )
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["distill", name, "--help"]) == 0
    text = capsys.readouterr().out
    table = CATALOGUE[name].budget("quick").fields()
    for field in table:
        assert re.search(rf"--{field.replace('_', '-')}[ ,]", text), field
    assert "resize to this many pixels" in text
    words = [
        "--out",
        "x",
        "--label-column",
        "fine",
        "--image-size",
        "9",
        "--device",
        "cpu",
        "--quiet",
    ]
    own = "labels" in table
    assert main(["distill", name, *words, *(["--labels", table["labels"]] if own else [])]) == 0
    assert dataclasses.asdict(seen["d"]) == dataclasses.asdict(Data(labels="fine", image_size=9))
    assert isinstance(seen["d"], Data) and type(seen["m"]) is CATALOGUE[name]
    assert not own or seen["m"].labels.kind == table["labels"]


def test_what_comes_next_suits_sets_with_a_learned_step_size(monkeypatch):
    from potstill.app.suiting import default_student

    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert default_student() == ("convnet-w32-in", "quick")
    assert default_student(learned_lr=True) == ("convnet-w32-in", "lad-quick")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert default_student(learned_lr=True) == ("convnet-w128-in", "lad")
