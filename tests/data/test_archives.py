"""Archives of arrays: read a piece at a time, and believed only where sizes agree."""

from __future__ import annotations

import io
import zipfile

import numpy as np
import pytest

from potstill.data import archives as module
from potstill.data import load
from potstill.run import InputError

LABELS = np.arange(9) % 3


def images(n=9, shape=(5, 4, 3)):
    rng = np.random.Generator(np.random.PCG64(0))
    return rng.integers(0, 256, (n, *shape), dtype=np.uint8)


@pytest.fixture
def small_pieces(monkeypatch):
    monkeypatch.setattr(module, "_PIECE", 130)  # two images and a bit


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.usefixtures("small_pieces")
def test_pieces_make_the_whole(tmp_path, save):
    path, made = tmp_path / "set.npz", images()
    save(path, images=made, labels=LABELS)
    expected = load((made, LABELS))
    assert load(path).checksum == expected.checksum
    some = load(path, subset="2,0")
    assert some.indices.tolist() == [0, 2, 3, 5, 6, 8]
    assert (some.images == expected.images[some.indices]).all()
    first = made.transpose(0, 3, 1, 2)
    save(path, images=first, labels=LABELS)
    assert load(path).checksum == expected.checksum
    save(path, images=np.asfortranarray(made), labels=LABELS)
    assert load(path).checksum == expected.checksum


def test_numbers_of_other_byte_order(tmp_path):
    np.savez(tmp_path / "set.npz", images=images().astype(">u2"), labels=LABELS.astype(">i8"))
    assert load(tmp_path / "set.npz").checksum == load((images(), LABELS)).checksum


def header(shape, dtype="|u1", fortran=False):
    stream = io.BytesIO()
    facts = {"descr": dtype, "fortran_order": fortran, "shape": shape}
    np.lib.format.write_array_header_1_0(stream, facts)
    return stream.getvalue()


def archive(path, **content):
    labels = io.BytesIO()
    np.save(labels, LABELS)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, values in {"labels": labels.getvalue(), **content}.items():
            file.writestr(f"{name}.npy", values)
    return path


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"images": header((10**12, 32, 32, 3)) + bytes(100)}, "bytes for an array of shape"),
        ({"images": header((9, 5, 4, 3)) + bytes(100)}, "bytes for an array of shape"),
        ({"images": header((9, 5, 4, 3)) + bytes(10_000)}, "bytes for an array of shape"),
        ({"images": header((9, 10**6, 10**6, 10**6)) + bytes(100)}, "bytes for an array of shape"),
        ({"images": b"no array"}, "cannot be read"),
        ({"images": b""}, "cannot be read"),
        ({"images": header((9, 0, 4, 3))}, r"have shape \(9, 0, 4, 3\)"),
        ({"images": header((9,), "|O") + bytes(72)}, "Python objects"),
        ({"images": header((9, 5, 4, 2)) + bytes(360)}, "must be the channel"),
        ({"images": b"\x93NUMPY\x01\x00\xff\xff" + b"(" * 70_000}, "cannot be read"),
    ],
)
def test_what_an_archive_declares_is_checked(tmp_path, content, words):
    path = archive(tmp_path / "set.npz", **content)
    with pytest.raises(InputError, match=words) as caught:
        load(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["labels", "classes", "images"])
def test_what_is_read_as_a_whole_is_limited(tmp_path, monkeypatch, name):
    """Labels of a trap would fill memory; so would images that only come as a whole."""
    monkeypatch.setattr(module, "_WHOLE", 100)
    content = {"images": header((9, 5, 4, 3), fortran=name == "images") + bytes(540)}
    if name != "images":
        content[name] = header((14,), "<i8") + bytes(112)
    with pytest.raises(InputError, match=rf"{name}.npy of source .* has \d+ bytes, more than 100"):
        load(archive(tmp_path / "set.npz", **content))


def test_damage_is_found(tmp_path):
    path = tmp_path / "set.npz"
    np.savez(path, images=images(), labels=LABELS)
    whole = path.read_bytes()
    at = whole.index(images().tobytes()[:40])
    for hurt in (
        whole[:at] + b"\xff" * 20 + whole[at + 20 :],  # only the zip's checksum knows
        whole[: len(whole) // 2],
        whole[:-30],
        b"",
    ):
        path.write_bytes(hurt)
        with pytest.raises(InputError, match="cannot be read") as caught:
            load(path)
        assert "\n" not in str(caught.value)


def test_a_trap_that_would_fill_the_disk(tmp_path, monkeypatch, caplog):
    from potstill.run import StorageError

    path = tmp_path / "set.npz"
    np.savez_compressed(path, images=images(), labels=LABELS)
    usage = type("Usage", (), {"free": 500})
    monkeypatch.setattr("shutil.disk_usage", lambda folder: usage)
    with pytest.raises(StorageError, match="No space left on device"):
        load(path, memory_gb=1e-9)
    assert not list((tmp_path / "cache" / "decoded").iterdir())
    assert len(load(path)) == 9 and "not cached" in caplog.text  # fits in memory
