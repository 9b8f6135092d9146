"""The gate through which files of a source are listed and opened."""

from __future__ import annotations

import os
import socket
import subprocess

import pytest

from potstill.data.files import Place
from potstill.run import InputError


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "set"
    for name in ("b/2.png", "b/1.png", "a/deep/x.png", "a/0.png", "z.txt", ".hidden/x", "b/.x"):
        write(folder / name)
    write(folder / "a" / "Thumbs.db")
    write(folder / "__MACOSX" / "a" / "0.png")
    return folder


def write(path, content=b"content"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def names(place, folder=None):
    return [str(path.relative_to(place.root)) for path in place.files(folder)]


def test_files_and_folders_in_order(root):
    place = Place(root)
    assert names(place) == ["z.txt", "a/0.png", "a/deep/x.png", "b/1.png", "b/2.png"]
    assert names(place, root / "a") == ["a/0.png", "a/deep/x.png"]
    assert [path.name for path in place.folders()] == ["a", "b"]
    assert Place(root / "z.txt").files() == [root / "z.txt"]


def test_linked_folders_are_walked_last_and_no_folder_twice(root, caplog):
    (root / "b" / "0").symlink_to(root / "a")
    (root / "b" / "again").symlink_to(root / "a" / "deep")
    (root / "b" / "circle").symlink_to(root)
    place = Place(root)
    assert names(place, root / "b") == ["b/1.png", "b/2.png", "b/0/0.png", "b/0/deep/x.png"]
    assert "2 files are left out, the first is" in caplog.text
    (root / "self").symlink_to(".")
    (root / "c").symlink_to("a")
    assert [path.name for path in place.folders()] == ["a", "b", "c"]
    assert "set/self (a link in a circle)" in caplog.text


def test_what_is_no_file_is_left_out_with_one_warning(root, caplog):
    os.mkfifo(root / "a" / "pipe.png")
    (root / "a" / "gone.png").symlink_to("nowhere.png")
    (root / "a" / "round.png").symlink_to("round.png")
    (root / "a" / "into.png").symlink_to("0.png/x")
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(os.path.relpath(root / "a" / "s.png"))
        place = Place(root)
        for _ in range(2):
            assert names(place, root / "a") == ["a/0.png", "a/deep/x.png"]
    assert len(caplog.records) == 1
    assert "5 files are left out, the first is" in caplog.text
    assert "a/gone.png (a link that leads nowhere)" in caplog.text
    for name in ("pipe.png", "gone.png"):
        with pytest.raises(InputError, match=rf"{name} is (no regular file|a link to nowhere)"):
            place.read(root / "a" / name)


def test_a_lost_folder_is_refused_where_it_is_entered(root):
    (root / "c").symlink_to("nowhere")
    (root / "notes.md").symlink_to("nowhere")
    place = Place(root)
    assert [path.name for path in place.folders()] == ["a", "b", "c"]
    with pytest.raises(InputError, match="set/c is a link to nowhere, which leads nowhere"):
        place.files(root / "c")


@pytest.mark.parametrize("kind", ["folder", "file"])
@pytest.mark.parametrize("absolute", [True, False])
def test_links_that_leave_the_source(root, tmp_path, kind, absolute):
    target = write(tmp_path / "out" / "1.png", b"secret")
    target = target.parent if kind == "folder" else target
    link = root / "b" / ("linked" if kind == "folder" else "linked.png")
    link.symlink_to(target if absolute else os.path.relpath(target, link.parent))
    picture = link / "1.png" if kind == "folder" else link
    place, following = Place(root), Place(root, follow_links=True)
    for refused in (
        place.files,
        place.stamp,
        lambda: place.files(root / "b"),
        lambda: place.read(picture),
        lambda: place.resolve("b/" + picture.relative_to(root / "b").as_posix()),
    ):
        with pytest.raises(InputError, match="use follow_links") as caught:
            refused()
        assert "\n" not in str(caught.value)
    assert picture in following.files(root / "b")
    assert following.read(picture) == b"secret"
    assert following.resolve(picture) == tmp_path / "out" / "1.png"
    assert len(place.folders(root / "b")) == (kind == "folder")


def test_a_neighbour_with_the_same_beginning_is_outside(root, tmp_path):
    write(tmp_path / "set2" / "1.png")
    with pytest.raises(InputError, match="outside of it"):
        Place(root).resolve("../set2/1.png")


def test_the_source_itself_may_be_a_link(root, tmp_path):
    (tmp_path / "alias").symlink_to(root)
    place = Place(tmp_path / "alias")
    assert len(place.files()) == 5
    assert place.read(place.files()[0]) == b"content"
    assert place.resolve("b/1.png") == root / "b" / "1.png"
    assert place.resolve(root / "b" / "1.png") == root / "b" / "1.png"


def test_a_source_that_is_a_file_holds_nothing_else(root):
    place = Place(root / "b" / "1.png")
    assert place.read(place.root) == b"content"
    assert place.resolve("1.png") == place.root
    with pytest.raises(InputError, match="outside of it"):
        place.resolve("2.png")


@pytest.mark.parametrize("name", ["b/9.png", "b/1.png/x", "b", "b\0", "x" * 5000, ""])
def test_names_that_are_no_files(root, name):
    with pytest.raises(InputError, match=r"source .*set names ") as caught:
        Place(root).resolve(name)
    assert len(str(caught.value)) < 400 and "\n" not in str(caught.value)


def test_devices_and_endless_files_are_not_read(root):
    (root / "zero.png").symlink_to("/dev/zero")
    (root / "proc.png").symlink_to("/proc/self/environ")
    place = Place(root, follow_links=True)
    for refused in (place.read, place.resolve):
        with pytest.raises(InputError, match="no regular file"):
            refused(root / "zero.png")
    assert place.read(root / "proc.png") == b""
    with (root / "huge.png").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(InputError, match=r"huge.png has 1099511627776 bytes"):
        place.read(root / "huge.png")
    with pytest.raises(InputError, match="more than the 3 that"):
        place.read(root / "b" / "1.png", limit=3)


@pytest.mark.parametrize("swapped", ["file", "folder", "linked file", "linked folder"])
def test_the_stamp_covers_the_targets_of_links(root, tmp_path, swapped):
    for name in "xy":
        write(tmp_path / name / "1.png")
        os.utime(tmp_path / name / "1.png", ns=(1, 1))
    link = root / "b" / "link"
    paths = {"file": "x/1.png", "linked file": "x/1.png"}
    link.symlink_to(tmp_path / paths.get(swapped, "x"))
    place = Place(root, follow_links=True)
    before = place.stamp()
    assert place.stamp() == before
    if swapped.startswith("linked"):  # what the link leads to becomes another
        (tmp_path / "x").rename(tmp_path / "old")
        (tmp_path / "y").rename(tmp_path / "x")
    else:
        link.unlink()
        link.symlink_to(tmp_path / paths.get(swapped, "x").replace("x", "y"))
    assert place.stamp() != before


def test_the_stamp_covers_what_is_written_over(root):
    place = Place(root)
    before = place.stamp()
    facts = (root / "b" / "1.png").stat()
    (root / "b" / "1.png").write_bytes(b"CONTENT")
    os.utime(root / "b" / "1.png", ns=(facts.st_atime_ns, facts.st_mtime_ns))
    assert place.stamp() != before


def test_names_that_are_not_utf8(root):
    os.mkdir(os.fsencode(root) + b"/caf\xe9")  # noqa: PTH102
    for refused in (Place(root).files, Place(root).folders, Place(root).stamp):
        with pytest.raises(InputError, match=r"the name 'caf\\xe9' in .*set is not UTF-8; rename"):
            refused()


@pytest.mark.parametrize(
    ("patched", "match"), [("scandir", "b may not"), ("open", "1.png may not")]
)
def test_permissions(root, monkeypatch, patched, match):
    def deny(path, *rest):
        raise PermissionError(13, "Permission denied", str(path))

    place = Place(root)
    monkeypatch.setattr(f"potstill.data.files.os.{patched}", deny)
    with pytest.raises(InputError, match=f"{match} be read; change its permissions"):
        place.read(root / "b" / "1.png") if patched == "open" else place.files(root / "b")


def test_many_levels(tmp_path):
    deep = tmp_path / "set"
    deep.mkdir()
    here = os.open(deep, os.O_RDONLY)
    for _ in range(1500):  # deeper than Python's recursion, shorter than a path may be
        os.mkdir("d", dir_fd=here)
        below = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    try:
        assert Place(deep).files() == []
    finally:
        subprocess.run(["rm", "-rf", deep], check=True)  # shutil.rmtree recurses
