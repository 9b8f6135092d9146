"""An artifact that is written over: always the old or the new one, and other people's files."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import datasets
import numpy as np
import pytest
import torch
from tests.test_synthetic import make

from potstill.run import replace
from potstill.run.replace import hidden
from potstill.synthetic import SyntheticSet, artifact_folder


class Killed(BaseException):
    """What SIGKILL looks like from inside: nothing is tidied up after it."""


@pytest.fixture
def folder(tmp_path):
    """An artifact with a repository, a note, and a file among ours, all somebody else's."""
    folder = make().save(tmp_path / "artifact")
    (folder / ".git").mkdir()
    (folder / ".git" / "HEAD").write_text("ref: refs/heads/main")
    (folder / "notes.txt").write_text("mine")
    (folder / "images" / "000_zebra" / "mine.png").write_text("mine")
    (folder / "link").symlink_to("notes.txt")
    return folder


def pixels_of(picture):
    return torch.from_numpy(np.array(picture)).flatten(0, 1).long()


def kept(folder):
    """Whether everything that is not ours is still there, in the artifact's folder."""
    among = folder / "kept" / "images" / "000_zebra" / "mine.png"
    return (
        (folder / ".git" / "HEAD").read_text().startswith("ref")
        and (folder / "notes.txt").read_text() == "mine"
        and (folder / "link").is_symlink()
        and among.read_text() == "mine"
    )


@pytest.mark.parametrize("exchange", [True, False])
def test_other_files_move_along(folder, tmp_path, monkeypatch, exchange):
    if not exchange:
        monkeypatch.setattr(replace, "_exchanged", lambda a, b: False)
    make(1).save(folder)
    make(2).save(folder)
    assert SyntheticSet.load(folder).checksum == make(2).checksum and kept(folder)
    assert [path.name for path in tmp_path.iterdir()] == ["artifact"]


def test_other_files_come_among_ours_again_and_again(folder, tmp_path):
    """``kept/`` is there already, its names are taken, and a folder has the name of a file."""
    make(1).save(folder)
    for number in range(3):
        (folder / "images" / "000_zebra" / "mine.png").write_text(str(number))
        make(2 + number).save(folder)
    (folder / "preview.png").unlink()
    (folder / "preview.png").mkdir()
    (folder / "preview.png" / "more").write_text("mine")
    make(5).save(folder)
    assert SyntheticSet.load(folder).checksum == make(5).checksum
    assert (folder / "preview.png").is_file() and (folder / "notes.txt").exists()
    assert (folder / "preview.png.2" / "more").read_text() == "mine"
    found = sorted(path.read_text() for path in folder.rglob("mine.png"))
    assert found == ["0", "1", "2", "mine"]
    assert [path.name for path in tmp_path.iterdir()] == ["artifact"]


def test_the_system_exchanges_folders_in_one_step(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    if not replace._exchanged(tmp_path / "a", tmp_path / "b"):
        pytest.skip("this file system cannot")
    assert (tmp_path / "a" / "b").exists() and (tmp_path / "b" / "a").exists()


MOMENTS = {
    "before": (True, "replace_folder", 0),
    "exchanged": (True, "carry_over", 0),
    "between renames": (False, "rename", 1),
    "renamed": (False, "carry_over", 0),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_at_any_moment_of_a_save(folder, tmp_path, monkeypatch, moment):
    exchange, where, after = MOMENTS[moment]
    seen = []

    def dies(original):
        def call(*arguments):
            seen.append(arguments)
            if len(seen) > after:
                raise Killed
            return original(*arguments)

        return call

    with monkeypatch.context() as patch:
        if not exchange:
            patch.setattr(replace, "_exchanged", lambda a, b: False)
        if where == "rename":
            patch.setattr("pathlib.Path.rename", dies(type(folder).rename))
        else:
            patch.setattr(replace, where, dies(getattr(replace, where)))
            patch.setattr(
                "potstill.synthetic.artifact_folder.replace_folder", replace.replace_folder
            )
        patch.setattr("potstill.synthetic.artifact_folder.remove_owned", lambda *rest: True)
        with pytest.raises(Killed):
            make(1).save(folder)
    assert SyntheticSet.load(folder).checksum in (make().checksum, make(1).checksum)
    make(2).save(folder)
    assert SyntheticSet.load(folder).checksum == make(2).checksum
    assert (folder / ".git" / "HEAD").exists() and (folder / "notes.txt").exists()
    assert (folder / "kept" / "images" / "000_zebra" / "mine.png").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["artifact"]


def test_what_a_killed_save_left_in_the_making_is_taken_away_but_not_other_files(tmp_path):
    part = hidden(tmp_path / "artifact", "part")
    (part / "images" / "000_zebra").mkdir(parents=True)
    (part / "images" / "000_zebra" / "000.png").touch()
    make(1).save(tmp_path / "artifact")
    assert [path.name for path in tmp_path.iterdir()] == ["artifact"]


def test_two_that_save_at_the_same_time_do_so_one_after_the_other(tmp_path, monkeypatch):
    """The first is held up in the middle of its files, where the second would clear them away."""
    entered, both = threading.Event(), []
    fill = artifact_folder._fill

    def slow(part, synthetic, name):
        both.append(part)
        entered.set()
        time.sleep(0.3)
        assert part.is_dir() and len(both) == 1  # nobody else is at work
        fill(part, synthetic, name)
        both.clear()

    monkeypatch.setattr(artifact_folder, "_fill", slow)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(make(1).save, tmp_path / "artifact")
        assert entered.wait(10)
        second = pool.submit(make(2).save, tmp_path / "artifact")
        first.result(), second.result()
    assert SyntheticSet.load(tmp_path / "artifact").checksum == make(2).checksum
    assert [path.name for path in tmp_path.iterdir()] == ["artifact"]


def test_two_artifacts_in_one_cache_of_datasets(tmp_path, monkeypatch):
    """Both folders are called "synthetic", as those of all runs are; then one is made again."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")

    def seen(folder):
        rows = datasets.load_dataset(str(folder), split="train")
        return [pixels_of(row["image"]) for row in rows], rows.features["label"]

    a = make().save(tmp_path / "a" / "synthetic")
    b = make(1, classes=("x", "y", "z")).save(tmp_path / "b" / "synthetic")
    first, names = seen(a)
    second, other = seen(b)
    assert not torch.equal(torch.stack(first), torch.stack(second))
    assert (names.names, other.names) == (list(make().classes), ["x", "y", "z"])
    make(5).save(a)
    again, _ = seen(a)
    assert not torch.equal(torch.stack(again), torch.stack(first))
    stored = (make(5).quantized().images * 255).round().flatten(2).transpose(1, 2).long()
    assert torch.equal(torch.stack(again), stored)


def test_labels_in_any_order_stay_with_their_images(tmp_path):
    labels = torch.tensor([2, 0, 1, 0, 2, 1])
    folder = make(labels=labels).save(tmp_path / "a")
    loaded = SyntheticSet.load(folder)
    assert torch.equal(loaded.labels, labels) and torch.equal(loaded.images, make().images)
    from PIL import Image
    from pyarrow.parquet import read_table

    rows = read_table(folder / "data").to_pylist()
    assert [row["label"] for row in rows] == labels.tolist()
    for row, image in zip(rows, (make().quantized().images * 255).round(), strict=True):
        with Image.open(folder / "images" / row["image"]["path"]) as picture:
            pixels = pixels_of(picture)
        assert torch.equal(pixels, image.flatten(1).T.long())
        assert row["image"]["path"].startswith(f"{row['label']:03d}_")
