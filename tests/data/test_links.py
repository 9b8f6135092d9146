"""A folder source reads itself and nothing else, and never shows pictures of yesterday."""

from __future__ import annotations

import json
import os

import pytest
from PIL import Image

from potstill.app.cli import main
from potstill.app.opening import open_data
from potstill.data import load
from potstill.run import InputError, Run


def paint(path, value, count=1):
    path.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        picture = Image.new("L", (4, 4), value + number)
        picture.putpixel((2, 2), 255)  # one colour alone is worth a word
        picture.save(path / f"{number}.png")
        os.utime(path / f"{number}.png", ns=(1, 1))  # a swap leaves size and time of change alone
    return path


@pytest.fixture
def root(tmp_path):
    paint(tmp_path / "set" / "a", 10, 2)
    paint(tmp_path / "set" / "b", 20, 2)
    return tmp_path / "set"


def values(real):
    return sorted(real.images[:, 0, 0, 0].tolist())


@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.parametrize("kind", ["class folder", "folder in a class", "file"])
@pytest.mark.parametrize("swap", ["link", "target", "content"])
def test_swapped_targets_are_read_again(root, tmp_path, kind, inside, swap):
    store = root / ".store" if inside else tmp_path / "store"
    paint(store / "x", 30)
    paint(store / "y", 40)
    link = {"class folder": root / "c", "folder in a class": root / "b" / "more"}.get(
        kind, root / "b" / "linked.png"
    )
    target = "{}/0.png" if kind == "file" else "{}"
    link.symlink_to(store / target.format("x"))
    options = {} if inside else {"follow_links": True}
    assert values(load(root, **options)) == [10, 11, 20, 21, 30]
    if swap == "link":
        link.unlink()
        link.symlink_to(store / target.format("y"))
    elif swap == "target":
        (store / "x").rename(store / "old")
        (store / "y").rename(store / "x")
    else:
        paint(store / "x", 40)
    assert values(load(root, **options)) == [10, 11, 20, 21, 40]
    if not inside:
        with pytest.raises(InputError, match="use follow_links"):
            load(root)


def test_a_class_that_is_another_one_by_another_name(root):
    (root / "c").symlink_to("a")
    assert load(root).counts == (2, 2, 2)
    (root / "c").unlink()
    (root / "c").symlink_to("b")
    assert values(load(root)) == [10, 11, 20, 20, 21, 21]


def test_an_absolute_link_into_the_source_is_inside(root):
    (root / "b" / "9.png").symlink_to(root / "a" / "0.png")
    assert values(load(root)) == [10, 10, 11, 20, 21]


def test_a_set_made_of_links(root, tmp_path):
    """A long-tailed part of a full tree, as people cut it."""
    for split in ("train", "test"):
        for name in "ab":
            (tmp_path / "cut" / split / name).mkdir(parents=True)
            for path in sorted((root / name).iterdir())[: 2 if split == "train" else 1]:
                (tmp_path / "cut" / split / name / path.name).symlink_to(path)
    with pytest.raises(InputError, match=r"cut/\w+/a/0.png leads to .*use follow_links") as caught:
        load(tmp_path / "cut")
    assert "\n" not in str(caught.value)
    assert load(tmp_path / "cut", follow_links=True).checksum == load(root).checksum


def test_ignored_folders_are_not_entered(root, tmp_path):
    (tmp_path / "both").mkdir()
    root.rename(tmp_path / "both" / "train")
    paint(tmp_path / "both" / "test" / "a", 1)
    paint(tmp_path / "both" / "test" / "b", 2)
    (tmp_path / "both" / "raw").symlink_to("/proc")
    (tmp_path / "both" / "lost").symlink_to("nowhere")
    assert load(tmp_path / "both").counts == (2, 2)


def test_pipes_devices_and_dead_links(root, tmp_path, caplog):
    os.mkfifo(root / "a" / "pipe.png")
    (root / "b" / "gone.png").symlink_to("nowhere")
    (root / "b" / "up").symlink_to("..")
    assert load(root).counts == (2, 2)
    assert [record.message for record in caplog.records] == [
        f"{root}: 3 files are left out, the first is {root}/a/pipe.png (a pipe, socket or device)"
    ]
    (root / "b" / "zero.png").symlink_to("/dev/zero")
    with pytest.raises(InputError, match=r"zero.png leads to /dev/zero, outside"):
        load(root)
    assert load(root, follow_links=True).counts == (2, 2)
    (root / "c").symlink_to("nowhere")
    with pytest.raises(InputError, match="set/c is a link to nowhere, which leads nowhere"):
        load(root)


@pytest.mark.parametrize("kind", ["pipe", "device", "dead", "circle"])
@pytest.mark.parametrize("name", ["set.npz", "set.parquet", "set"])
def test_a_source_that_is_no_file(tmp_path, kind, name):
    if kind == "pipe":
        os.mkfifo(tmp_path / name)
    else:
        target = {"device": "/dev/zero", "dead": "nowhere", "circle": name}[kind]
        (tmp_path / name).symlink_to(target)
    with pytest.raises(InputError, match=rf"source is .*{name}', (a|which)") as caught:
        load(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_a_file_without_end_behind_a_name(tmp_path):
    (tmp_path / "set.npz").symlink_to("/proc/self/environ")
    with pytest.raises(InputError, match="cannot be read"):
        load(tmp_path / "set.npz")


@pytest.mark.parametrize("source", ["x" * 300, "a/" * 3000, "a\0b", "~nobody/x", "caf\udce9"])
def test_names_that_no_file_can_have(source):
    with pytest.raises(InputError, match="source is ") as caught:
        load(source)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("denied", ["set", "set/a", "set/a/0.png", "set.npz"])
def test_permissions(root, tmp_path, monkeypatch, denied):
    """Root may do everything, so the refusal of the system is made up."""

    def deny(real):
        def call(path, *rest, **options):
            if str(path) == str(tmp_path / denied):
                raise PermissionError(13, "Permission denied", str(path))
            return real(path, *rest, **options)

        return call

    (tmp_path / "set.npz").write_bytes(b"PK")
    for name in ("scandir", "open"):
        monkeypatch.setattr(f"potstill.data.files.os.{name}", deny(getattr(os, name)))
    with pytest.raises(InputError, match=f"{denied} may not be read; change its permissions"):
        load(tmp_path / "set.npz" if denied == "set.npz" else root)


@pytest.mark.parametrize("place", ["class folder", "file", "folder in a class"])
def test_names_that_are_not_utf8_are_refused_before_decoding(root, monkeypatch, place):
    monkeypatch.setattr("potstill.data.sources.blocks", None)
    folder = {"class folder": b"", "file": b"/a", "folder in a class": b"/a"}[place]
    bad = os.fsencode(root) + folder + b"/caf\xe9"
    os.rename(root / "a" / "0.png", bad) if place == "file" else os.mkdir(bad)  # noqa: PTH102, PTH104
    with pytest.raises(InputError, match=r"the name 'caf\\xe9' in .* is not UTF-8; rename it"):
        load(root)


def test_side_files_are_counted_and_left_alone(root, caplog):
    before = load(root)
    for name in ("a/boxes.txt", "a/0.xml", "b/0.JSON", "b/x/list.csv", "b/sum.md5", "9.png"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text("not a picture")
    assert load(root).checksum == before.checksum
    assert "6 file(s) beside the images of the classes are not read, the first is" in caplog.text


@pytest.mark.parametrize("name", ["film.mp4", "raw.cr2", "all.zip", "x.npy"])
def test_what_may_be_a_picture_is_not_left_out(root, name):
    (root / "a" / name).write_bytes(b"x")
    with pytest.raises(InputError, match=f"{name} is no image of a kind .* convert it to PNG"):
        load(root)


def test_the_suffix_is_a_first_filter_and_the_content_decides(root):
    before = load(root)
    for number, suffix in enumerate((".jfif", "")):
        (root / "a" / f"{number}.png").rename(root / "a" / f"{number}{suffix}")
    assert load(root).checksum == before.checksum


def test_one_folder_by_several_names_is_decoded_once(root, tmp_path, monkeypatch):
    (tmp_path / "alias").symlink_to(root)
    first = load(root)
    monkeypatch.setattr("potstill.data.sources.blocks", None)
    monkeypatch.chdir(root)
    for name in (".", "../set", tmp_path / "alias", f"{root}/"):
        assert load(name).checksum == first.checksum


def test_control_characters_in_names_stay_on_one_line(root, tmp_path):
    (root / "b\n\x1b[2J").mkdir()
    with pytest.raises(InputError, match=r"set/b\\n\\x1b\[2J holds no images") as caught:
        load(root)
    assert "\n" not in str(caught.value)


def test_the_flag_and_the_record_of_a_run(root, tmp_path, capsys):
    (tmp_path / "cut").mkdir()
    for name in "ab":
        (tmp_path / "cut" / name).symlink_to(root / name)
    words = ["distill", "random", "--ipc", "1", "--out", f"{tmp_path}/run", "--quiet"]
    assert main([*words, "--data", f"{tmp_path}/cut"]) == 2
    assert "--follow-links" in capsys.readouterr().err
    assert main([*words, "--data", f"{tmp_path}/cut", "--follow-links"]) == 0
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["job"]["data"]["follow_links"] is True
    assert open_data(record, Run(cache=tmp_path / "other"))[0].classes == ("a", "b")
