"""torchvision's own folders, written here byte by byte as they are published."""

from __future__ import annotations

import os
import pickle
import struct

import numpy as np
import pytest
from scipy.io import savemat

from potstill.data import load, load_pair
from potstill.data.pickled import plain_content
from potstill.run import InputError

DRAW = np.random.Generator(np.random.PCG64(3))


def images(n, size=32):
    return DRAW.integers(0, 256, (n, 3, size, size), dtype=np.uint8)


def text(word):
    return b"U" + bytes([len(word)]) + word


def array2(values):
    """An array of bytes as Python 2 pickled it."""
    n, k = values.shape
    return (
        b"cnumpy.core.multiarray\n_reconstruct\nq\x01cnumpy\nndarray\nq\x02K\x00\x85q\x03U\x01b"
        b"\x87q\x05Rq\x06(K\x01" + b"J" + struct.pack("<i", n) + b"M" + struct.pack("<H", k)
        + b"\x86cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff"
        b"\xffK\x00tb\x89T" + struct.pack("<i", values.size) + values.tobytes() + b"tb"
    )  # fmt: skip


def pickle2(**values):
    parts = b""
    for key, value in values.items():
        if isinstance(value, np.ndarray):
            held = array2(value)
        else:
            whole = isinstance(value[0], int)
            cells = (b"K" + bytes([cell]) if whole else text(cell) for cell in value)
            held = b"](" + b"".join(cells) + b"e"
        parts += text(key.encode()) + held
    return b"\x80\x02}q\x00(" + parts + b"u."


@pytest.fixture
def cifar(tmp_path):
    """Both versions of a small CIFAR-10 with its pictures."""
    x, y = images(12), [n % 2 for n in range(12)]
    python, binary = tmp_path / "cifar-10-batches-py", tmp_path / "bin" / "cifar-10-batches-bin"
    python.mkdir()
    binary.mkdir(parents=True)
    names = [f"data_batch_{k}" for k in range(1, 6)] + ["test_batch"]
    for k, name in enumerate(names):
        rows = slice(2 * k, 2 * k + 2)
        flat = x[rows].reshape(2, -1)
        (python / name).write_bytes(pickle2(labels=y[rows], data=flat, filenames=[b"a", b"b"]))
        records = np.concatenate([np.array(y[rows], np.uint8)[:, None], flat], 1)
        (binary / f"{name}.bin").write_bytes(records.tobytes())
    (python / "batches.meta").write_bytes(pickle2(label_names=[b"airplane", b"automobile"]))
    (binary / "batches.meta.txt").write_text("airplane\nautomobile\n\n")
    return tmp_path, x, y


def test_both_versions_of_cifar_are_the_same(cifar):
    root, x, y = cifar
    content = (root / "cifar-10-batches-py" / "data_batch_1").read_bytes()
    known = pickle.loads(content, encoding="latin1")  # what this reader has to agree with
    assert (plain_content(content, "data")["data"] == known["data"]).all()
    assert plain_content(content, "labels", "nothing") == {"labels": known["labels"]}
    train, test, _ = load_pair(root)
    assert train.classes == ("airplane", "automobile")
    assert (train.images.numpy() == x[:10]).all() and train.labels.tolist() == y[:10]
    assert (test.images.numpy() == x[10:]).all()
    assert load(root / "bin").fingerprint == train.fingerprint
    assert load(root / "cifar-10-batches-py", split="test").fingerprint == test.fingerprint
    (root / "stl10_binary").mkdir()
    for name in ("train_X.bin", "class_names.txt"):
        (root / "stl10_binary" / name).write_bytes(b"")
    with pytest.raises(InputError, match=r"several sets \(cifar-10-batches-py, stl10_binary\)"):
        load(root)


def test_cifar_100(tmp_path):
    x, fine = images(6), [0, 1, 0, 1, 0, 1]
    root = tmp_path / "cifar-100-python"
    root.mkdir()
    for name, rows in (("train", slice(0, 4)), ("test", slice(4, 6))):
        parts = {"coarse_labels": [7] * len(x[rows]), "fine_labels": fine[rows]}
        (root / name).write_bytes(pickle2(data=x[rows].reshape(-1, 3072), **parts))
    (root / "meta").write_bytes(pickle2(coarse_label_names=[b"x"], fine_label_names=[b"a", b"b"]))
    train, test, _ = load_pair(tmp_path)
    assert train.classes == ("a", "b") and train.labels.tolist() == fine[:4] and len(test) == 2
    assert (train.images.numpy() == x[:4]).all()


class Attack:
    def __reduce__(self):
        return os.system, ("touch /tmp/never",)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (pickle.dumps(Attack(), 2), "wants to call"),
        (pickle.dumps(Attack(), 4), "wants to call"),
        (pickle.dumps({"data": np.zeros(3), "labels": [0]}, 4), "it wants to build"),
        (pickle.dumps({"data": np.zeros(3, object), "labels": [0]}, 4), "it wants to build"),
        (pickle.dumps({"data": {"x": 1}, "labels": [0]}, 2), "holds a dict"),
        (pickle.dumps({1: 2}, 2), "data"),
        (pickle.dumps([1], 2), "damaged"),
        (b"\x80\x02}(U\x04data(lp0\n", "ends too early|pickle exhausted"),
        (b"", "pickle exhausted|ends"),
        (b"not a pickle", "opcode"),
        (b"\x80\x02cnumpy\nndarray\n)\x81.", "the instruction NEWOBJ"),
        (b"\x80\x02U\x01xU\x01yb.", "sets the state of something"),
        (b"\x80\x02h\x09.", "damaged"),
    ],
)
def test_other_pickles_are_never_executed(cifar, content, why):
    root = cifar[0] / "cifar-10-batches-py"
    (root / "data_batch_3").write_bytes(content)
    with pytest.raises(InputError, match=rf"data_batch_3 is no batch of CIFAR .*({why})"):
        load(root)


def test_stl_svhn_and_mnist(tmp_path):
    stl = tmp_path / "stl10_binary"
    stl.mkdir()
    for split in ("train", "test"):
        x = images(4, 96)
        (stl / f"{split}_X.bin").write_bytes(x.transpose(0, 1, 3, 2).tobytes())  # by column
        (stl / f"{split}_y.bin").write_bytes(bytes([1, 2, 1, 2]))
    (stl / "class_names.txt").write_text("airplane\nbird\n")
    test = load(tmp_path, split="test")
    assert (test.images.numpy() == x).all() and test.classes == ("airplane", "bird")
    x, y = images(20), np.array([*range(1, 11)] * 2)
    for split in ("train", "test"):
        held = {"X": x.transpose(2, 3, 1, 0), "y": y[:, None].astype(np.uint8)}
        savemat(tmp_path / f"{split}_32x32.mat", held, do_compression=True)
    with pytest.raises(InputError, match="several sets"):
        load(tmp_path)
    (tmp_path / "svhn").mkdir()
    for split in ("train", "test"):
        (tmp_path / f"{split}_32x32.mat").rename(tmp_path / "svhn" / f"{split}_32x32.mat")
    svhn = load(tmp_path / "svhn")
    assert (svhn.images.numpy() == x).all() and svhn.labels.tolist() == (y % 10).tolist()
    raw = tmp_path / "root" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    grey = images(20, 28)[:, 0]
    for word in ("train", "t10k"):
        head = struct.pack(">iiii", 0x803, 20, 28, 28)
        (raw / f"{word}-images-idx3-ubyte").write_bytes(head + grey.tobytes())
        content = struct.pack(">ii", 0x801, 20) + y.astype(np.uint8).tobytes()
        (raw / f"{word}-labels-idx1-ubyte").write_bytes(content.replace(b"\n", b"\0"))
    mnist = load(tmp_path / "root")
    assert (mnist.images[:, 0].numpy() == grey).all() and mnist.labels.tolist() == (y % 10).tolist()


def test_damaged_files_are_one_sentence(tmp_path):
    savemat(tmp_path / "train_32x32.mat", {"X": np.zeros((32, 32, 3, 4)), "y": [1, 2, 1, 2]})
    with pytest.raises(InputError, match=r"cannot be read .*; fetch it again"):
        load(tmp_path)
    savemat(tmp_path / "train_32x32.mat", {"Z": np.zeros(4)})
    with pytest.raises(InputError, match=r"cannot be read .*; fetch it again"):
        load(tmp_path)
    (tmp_path / "train_32x32.mat").write_bytes(b"MATLAB 7.3 MAT-file" + b"\0" * 200)
    with pytest.raises(InputError, match=r"cannot be read .*; fetch it again"):
        load(tmp_path)
