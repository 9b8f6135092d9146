"""A distillation as a process: killed, resumed, repeated, refused, out of space, diverging."""

from __future__ import annotations

import errno
import json
import logging
import multiprocessing
import os
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

import potstill
from potstill.app.cli import main
from potstill.methods.distribution.class_matching import ClassMatching
from potstill.run import Run, loop
from potstill.run.folder import claimed

TINY = shlex.split(
    "distill csdm --data digits --imbalance-factor 20 --ipc 1 --steps 150"
    " --network convnet-d2-w8-in --members 2 --pool-epochs 8 --entries 4 --frequencies 16"
    " --batch-real 8 --device cpu --threads 1 --checkpoint-seconds 0"
)

SHORT = [*TINY, "--steps", "16", "--members", "1", "--pool-epochs", "1"]  # the last word counts


def snapshot(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Time of change and content of every file, hidden ones aside."""
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes())
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith(".")
    }


def artifact(folder: Path) -> bytes:
    return (folder / "synthetic" / "synthetic.safetensors").read_bytes()


def status(folder: Path) -> str:
    return json.loads((folder / "run.json").read_text())["status"]


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A run that nothing disturbed, with its cache beside it."""
    root = tmp_path_factory.mktemp("short")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("POTSTILL_CACHE", str(root / "cache"))
        torch.set_num_threads(1)
        assert main([*SHORT, "--out", str(root / "run")]) == 0
    yield root / "run"


@pytest.fixture
def finished(short: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that run to do things to; the pool is read from its cache."""
    monkeypatch.setenv("POTSTILL_CACHE", str(short.parent / "cache"))
    shutil.copytree(short, tmp_path / "run")
    return tmp_path / "run"


class Process:
    """``potstill`` with the given words: forked from here or, ``fresh``, in its own interpreter."""

    def __init__(self, words: list[str], folder: Path, fresh: bool = False) -> None:
        self.folder, self.said = folder, folder.parent / "said"
        words = [*words, "--out", str(folder)]
        kind = multiprocessing.get_context("fork").Process
        self.process = kind(target=self._interpreter if fresh else self._begin, args=(words,))
        self.process.start()

    def _redirected(self) -> None:
        os.dup2(os.open(self.said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        # a shell's background job ignores interruptions, and would pass that on
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    def _interpreter(self, words: list[str]) -> None:
        self._redirected()
        os.environ |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
        os.execv(sys.executable, [sys.executable, "-m", "potstill.app.cli", *words])

    def _begin(self, words: list[str]) -> None:
        self._redirected()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w", buffering=1)
        logging.getLogger().handlers.clear()
        sys.exit(main(words))

    def stop(self, when: Callable[[], bool], how: signal.Signals) -> str:
        """Send a signal as soon as ``when()`` holds; return what the process said until then."""
        patience = time.monotonic() + 120
        while not when():
            assert self.process.is_alive(), self.said.read_text()
            assert time.monotonic() < patience
            time.sleep(0.002)
        assert self.process.pid is not None
        os.kill(self.process.pid, how)
        self.process.join(60)
        said = self.said.read_text()
        polite = how != signal.SIGKILL  # 130, 143 and 129, as shells and schedulers expect
        assert self.process.exitcode == (128 + how if polite else -how), said
        if polite:
            assert "the same command goes on where this one was" in said, said
            assert "Traceback" not in said and not list(self.folder.rglob(".*.part"))
        assert status(self.folder) == "running"
        return said


def test_killed_at_any_moment_and_started_again_ends_with_the_same_bytes(
    short, tmp_path, monkeypatch
):
    folder, cache = tmp_path / "run", Path(os.environ["POTSTILL_CACHE"])

    def files(pattern: str) -> list[Path]:
        return list(cache.glob(pattern))

    def steps(count: int) -> Callable[[], bool]:
        path = folder / "metrics.jsonl"
        return lambda: path.exists() and path.read_bytes().count(b"\n") >= count

    Process(TINY, folder).stop(lambda: bool(files("pools/*/*.safetensors")), signal.SIGKILL)
    assert len(files("pools/*/*.safetensors")) == 1  # of two networks
    Process(TINY, folder).stop(lambda: bool(files("realside/*/*.safetensors")), signal.SIGKILL)
    (folder / ".checkpoint.safetensors.abc_1234.part").touch()  # a kill within a write leaves this
    Process(TINY, folder).stop(steps(12), signal.SIGKILL)
    said = Process(TINY, folder, fresh=True).stop(steps(30), signal.SIGINT)
    assert "resuming at step" in said and "interrupted" in said and "Traceback" not in said
    Process(TINY, folder, fresh=True).stop(steps(60), signal.SIGTERM)
    Process(TINY, folder).stop(steps(90), signal.SIGHUP)
    saving = folder / ".synthetic.part" / "images"
    Process(TINY, folder).stop(saving.exists, signal.SIGTERM)
    Process(TINY, folder).stop(saving.exists, signal.SIGKILL)

    assert main([*TINY, "--out", str(folder)]) == 0
    assert status(folder) == "finished"
    monkeypatch.setenv("POTSTILL_CACHE", str(tmp_path / "another cache"))
    assert main([*TINY, "--out", str(tmp_path / "undisturbed")]) == 0
    assert artifact(folder) == artifact(tmp_path / "undisturbed")
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(150))
    assert not list(folder.glob(".*.part"))


def test_what_a_killed_first_write_left_is_taken_away_and_nothing_else(tmp_path):
    ours, other = tmp_path / ".run.json.abc_1234.part", tmp_path / ".run.json.mine"
    for path in (ours, other):
        path.touch()
    with claimed(tmp_path, "key", force=False) as finished:
        assert not finished
    assert other.exists() and not ours.exists()


def test_two_fresh_runs_are_equal_and_another_seed_is_not(short, tmp_path):
    assert Path(os.environ["POTSTILL_CACHE"]) != short.parent / "cache"
    assert main([*SHORT, "--out", str(tmp_path / "again")]) == 0
    assert artifact(tmp_path / "again") == artifact(short)
    assert main([*SHORT, "--seed", "1", "--out", str(tmp_path / "other")]) == 0
    assert artifact(tmp_path / "other") != artifact(short)


def test_a_finished_run_is_left_alone(finished, caplog):
    before = snapshot(finished)
    assert main([*SHORT, "--out", str(finished)]) == 0
    assert snapshot(finished) == before
    assert "already finished" in caplog.text


def test_another_job_is_refused_without_force(finished, capsys):
    before = snapshot(finished)
    assert main([*SHORT, "--ipc", "2", "--out", str(finished)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "finished run of another job (csdm, ipc 1)" in said
    assert "--force" in said
    assert snapshot(finished) == before


def test_force_replaces_another_job_and_its_scores(finished):
    (finished / "scores.json").write_text('{"scores": []}')
    assert main([*SHORT, "--alpha-head", "0.6", "--force", "--out", str(finished)]) == 0
    record = json.loads((finished / "run.json").read_text())
    assert record["status"] == "finished" and record["job"]["fields"]["alpha_head"] == 0.6
    provenance = json.loads((finished / "synthetic" / "provenance.json").read_text())
    assert provenance["method"]["fields"]["alpha_head"] == 0.6
    assert not (finished / "scores.json").exists()


def test_force_runs_a_finished_job_again_and_resumes_its_own_unfinished_one(
    finished, monkeypatch, caplog
):
    def dies(self, step, chunk, detailed, whole_step=loop._Step.run):
        if step == 9:
            raise KeyboardInterrupt
        whole_step(self, step, chunk, detailed)

    reference, words = artifact(finished), [*SHORT, "--force", "--out", str(finished)]
    with monkeypatch.context() as patch:
        patch.setattr(loop._Step, "run", dies)
        assert main(words) == 130
    assert status(finished) == "running"
    assert main(words) == 0
    assert "resuming at step 9 of 16" in caplog.text
    assert artifact(finished) == reference


@pytest.mark.parametrize("damage", ["{", '{"status": "finished"}', "[]"])
def test_damaged_record_is_refused_and_forced(finished, capsys, damage):
    (finished / "run.json").write_text(damage)
    assert main([*SHORT, "--out", str(finished)]) == 2
    said = capsys.readouterr().err
    assert "run.json is damaged (" in said and said.endswith("); distil again with --force\n")
    assert main([*SHORT, "--force", "--out", str(finished)]) == 0
    assert status(finished) == "finished"


@pytest.mark.parametrize("name", ["thesis.tex", "pictures/cat.png", "report.html"])
def test_folder_with_other_files_is_refused_and_untouched(tmp_path, capsys, name):
    folder = tmp_path / "home"
    (folder / name).parent.mkdir(parents=True)
    (folder / name).write_text("mine")
    for more in ([], ["--force"]):
        assert main([*SHORT, *more, "--out", str(folder)]) == 2
        assert "holds other files" in capsys.readouterr().err
    assert [p for p in folder.rglob("*") if p.is_file()] == [folder / name]


def test_two_processes_do_not_share_a_folder(finished, capsys):
    from filelock import FileLock

    before = snapshot(finished)
    with FileLock(finished / ".lock"):
        assert main([*SHORT, "--force", "--out", str(finished)]) == 2
    assert "another potstill process is at work" in capsys.readouterr().err
    assert snapshot(finished) == before


@pytest.mark.parametrize(
    "bad",
    [
        ["--alpha-head", "1.5"],
        ["--network", "convnet-d6-w8-in"],  # five poolings are too many for 8 x 8 pixels
        ["--ipc", "0"],
        ["--imbalance-factor", "0.05"],
    ],
)
def test_bad_values_with_force_lose_nothing(finished, capsys, bad):
    before = snapshot(finished)
    assert main([*SHORT, "--force", *bad, "--out", str(finished)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert snapshot(finished) == before


def full_disk(monkeypatch: pytest.MonkeyPatch, name: str, after: int = 0) -> None:
    """Writing a file of that name fails from the given time on."""
    write, seen = Path.write_bytes, []

    def failing(self: Path, content: bytes) -> int:
        if name in self.name:
            seen.append(self)
            if len(seen) > after:
                raise OSError(errno.ENOSPC, "No space left on device")
        return write(self, content)

    monkeypatch.setattr(Path, "write_bytes", failing)


@pytest.mark.parametrize("name", ["synthetic.safetensors", "preview.png", "step-000001.png"])
def test_full_disk_while_saving_keeps_the_earlier_artifact(finished, monkeypatch, capsys, name):
    earlier = snapshot(finished / "synthetic")
    words = [*SHORT, "--alpha-head", "0.6", "--force", "--out", str(finished)]
    with monkeypatch.context() as patch:
        full_disk(patch, name)
        assert main(words) == 4
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "No space left on device" in said
    assert snapshot(finished / "synthetic") == earlier
    assert not list(finished.glob(".*.part"))
    assert main(words) == 0
    assert snapshot(finished / "synthetic") != earlier


def test_full_disk_at_a_checkpoint_keeps_the_one_before(finished, monkeypatch, caplog):
    shutil.rmtree(finished)
    words = [*SHORT, "--out", str(finished)]
    with monkeypatch.context() as patch:
        full_disk(patch, "checkpoint", after=10)
        assert main(words) == 4
    assert main(words) == 0
    assert "resuming at step 10 of 16" in caplog.text


def test_full_disk_for_the_metrics_is_one_sentence(finished, monkeypatch, capsys):
    shutil.rmtree(finished)
    opened = Path.open

    def failing(self: Path, mode: str = "r", *rest: object, **options: object):
        if self.name == "metrics.jsonl" and mode == "a":
            raise OSError(errno.ENOSPC, "No space left on device")
        return opened(self, mode, *rest, **options)

    monkeypatch.setattr(Path, "open", failing)
    assert main([*SHORT, "--out", str(finished)]) == 4
    assert capsys.readouterr().err.count("\n") == 1


def test_divergence_has_its_own_exit_code_and_keeps_the_checkpoint(
    finished, short, monkeypatch, capsys
):
    shutil.rmtree(finished)
    words, terms = [*SHORT, "--out", str(finished)], ClassMatching.terms

    def poisoned(self, step, canvas, chunk):
        for term in terms(self, step, canvas, chunk):
            if step == 12 and term.name == "calibration":
                term.values = term.values * torch.tensor([1.0] * 3 + [float("nan")] + [1.0] * 6)
            yield term

    with monkeypatch.context() as patch:
        patch.setattr(ClassMatching, "terms", poisoned)
        assert main(words) == 3
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "calibration of class 3 (3) is not finite at step 12" in said
    assert main(words) == 0
    assert artifact(finished) == artifact(short)


def test_an_image_set_from_a_named_source_is_scored_from_the_folder(tmp_path, capsys):
    real = potstill.load_pair("digits")[0]
    train = real.long_tailed(20, profile="step", draw="seeded", seed=3)
    words = shlex.split("--network mlp-w8 --protocol quick --runs 1 --device cpu --quiet")
    words += ["--no-baseline", "--no-quantized"]
    run = Run(device="cpu", quiet=True)
    potstill.distill("random", train, ipc=1, out=tmp_path / "run", run=run)
    assert main(["evaluate", str(tmp_path / "run"), *words]) == 0
    (score,) = json.loads((tmp_path / "run" / "scores.json").read_text())["scores"]
    assert score["train_counts"] == list(train.counts)
    assert score["train_checksum"] == train.checksum

    positions = torch.arange(1, len(train))  # a selection that nothing tells of
    potstill.distill("random", train.select(positions), ipc=1, out=tmp_path / "cut", run=run)
    capsys.readouterr()
    assert main(["evaluate", str(tmp_path / "cut"), *words]) == 2
    assert "call potstill.evaluate with the same arrays" in capsys.readouterr().err
    assert main(["evaluate", str(tmp_path / "cut"), "--data", "digits", *words]) == 2
    said = capsys.readouterr().err
    assert train.select(positions).checksum in said and train.checksum in said


def test_a_fold_in_memory_is_scored_from_the_folder_on_its_own_images(tmp_path):
    train, test, _ = potstill.load_pair("digits", fold="2/5")
    potstill.distill("random", train, ipc=1, imbalance_factor=5, out=tmp_path / "run")
    job = json.loads((tmp_path / "run" / "run.json").read_text())["job"]
    assert (job["data"]["fold"], job["data"]["fold_seed"]) == ("2/5", 0)
    quick = "--network mlp-w8 --protocol quick --runs 1 --no-baseline --no-quantized"
    assert main(["evaluate", str(tmp_path / "run"), *quick.split(), "--device", "cpu"]) == 0
    (score,) = json.loads((tmp_path / "run" / "scores.json").read_text())["scores"]
    assert score["test_checksum"] == test.checksum
    assert "fold 2 of 5" in score["test"]["sentence"]


def test_a_set_that_is_not_cut_has_no_profile_and_keeps_its_key(tmp_path):
    potstill.distill("random", "digits", ipc=10, out=tmp_path / "run")
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    made = json.loads((tmp_path / "run" / "synthetic" / "provenance.json").read_text())
    assert "profile" not in record["job"]["data"] and "profile" not in made["data_options"]
    assert record["key"] == "5783651ce713d6e1"  # as when run.json named one all the same


def test_an_artifact_that_the_run_did_not_make_is_not_scored(finished, short, capsys):
    record = json.loads((finished / "run.json").read_text())
    (finished / "run.json").write_text(json.dumps(record | {"artifact": "0" * 16}))
    words = ["evaluate", str(finished), "--network", "mlp-w8", "--runs", "1", "--device", "cpu"]
    assert main(words) == 2
    assert "that its run did not make (0000000000000000)" in capsys.readouterr().err
