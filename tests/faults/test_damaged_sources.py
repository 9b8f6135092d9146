"""Sources from anybody: damaged pictures, tables and archives, and what is no file of the source.

Loading gives a sound set or one sentence, within limits of time and memory, and never a picture
that lies outside.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import shutil
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ground
import mutate
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from cases import Case, Fault, draw_for, trials
from numpy.lib import format as npy
from PIL import Image
from scipy.io import savemat

from potstill.data import load
from potstill.run import InputError

FORMATS = {
    "png": {}, "jpeg": {}, "gif": {}, "bmp": {}, "tiff": {"compression": "tiff_lzw"}, "webp": {},
    "ppm": {}, "jp2": {},
}  # fmt: skip
LISTS = ("metadata", "jsonl", "cifar", "svhn")
SECRET = 201  # value of the private picture's pixels, which no other has
NAMES = ("cat", "dog", "elk")
CELL = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
DEVICES = ("/dev/zero", "/dev/random", "/dev/full", "/dev/tty", "/proc/self/environ")


def _pixels(number: int, mode: str = "RGB") -> Image.Image:
    draw = np.random.Generator(np.random.PCG64(number))
    shape = (6, 6, 3) if mode == "RGB" else (6, 6)
    return Image.fromarray(draw.integers(0, 180, shape, dtype=np.uint8))


def _encoded(number: int, kind: str = "png") -> bytes:
    stream = io.BytesIO()
    name = {"jp2": "JPEG2000"}.get(kind, kind.upper())
    _pixels(number).save(stream, name, **FORMATS[kind])
    return stream.getvalue()


def sources(root: Path) -> dict[str, Path]:
    """A small sound source of each kind, and a private picture beside them."""
    private = root / "private" / "me.png"
    private.parent.mkdir(parents=True)
    Image.new("RGB", (6, 6), (SECRET,) * 3).save(private)
    labels, count = [number % 3 for number in range(9)], 9
    for kind in FORMATS:
        for number in range(count):
            place = root / kind / NAMES[labels[number]] / f"{number}.{kind}"
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(_encoded(number, kind))
    cells = [{"bytes": _encoded(number), "path": f"{number}.png"} for number in range(count)]
    table = pa.table({"image": pa.array(cells, CELL), "label": labels})
    for name in ("parquet", "arrow", "saved", "npz"):
        (root / name).mkdir()
    pq.write_table(table, root / "parquet" / "train.parquet")
    card = {"configs": [{"config_name": "x", "data_files": "train.parquet"}]}
    (root / "parquet" / "README.md").write_text(f"---\n{json.dumps(card)}\n---\n")
    state = {"_data_files": [{"filename": "data.arrow"}], "_indices_data_files": None}
    (root / "saved" / "state.json").write_text(json.dumps(state))
    (root / "saved" / "dataset_info.json").write_text("{}")
    for path in (root / "arrow" / "train.arrow", root / "saved" / "data.arrow"):
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
            writer.write_table(table)
    images = np.stack([np.asarray(_pixels(number)) for number in range(count)])
    np.savez(root / "npz" / "set.npz", images=images, labels=np.array(labels))
    (root / "npz" / "set.npz").rename(root / "set.npz")
    shutil.rmtree(root / "npz")
    lists(root, labels)
    found = {name: root / name for name in (*FORMATS, "parquet", "arrow", "saved", *LISTS)}
    return found | {"npz": root / "set.npz"}


def lists(root: Path, labels: list[int]) -> None:
    """Pictures that lists name, and the folders of torchvision."""
    rows = [(f"pictures/{number}.png", NAMES[label]) for number, label in enumerate(labels)]
    for kind in ("metadata", "jsonl"):
        (root / kind / "pictures").mkdir(parents=True)
        for number in range(len(rows)):
            (root / kind / "pictures" / f"{number}.png").write_bytes(_encoded(number))
    text = "".join(f"{name},{label}\n" for name, label in rows)
    (root / "metadata" / "metadata.csv").write_text(f"file_name,label\n{text}")
    lines = [json.dumps({"file_name": name, "label": label}) for name, label in rows]
    (root / "jsonl" / "metadata.jsonl").write_text("\n".join(lines))
    images = np.random.Generator(np.random.PCG64(1)).integers(0, 180, (10, 3072), dtype=np.uint8)
    (root / "cifar").mkdir()
    for name in [f"data_batch_{k}" for k in range(1, 6)] + ["test_batch"]:
        content = {"data": images[:9], "labels": labels}
        (root / "cifar" / name).write_bytes(pickle.dumps(content, 4))
    (root / "cifar" / "batches.meta").write_bytes(pickle.dumps({"label_names": list(NAMES)}, 4))
    (root / "svhn").mkdir()
    held = {"X": images.reshape(10, 32, 32, 3).transpose(1, 2, 3, 0), "y": np.arange(1, 11)}
    savemat(root / "svhn" / "train_32x32.mat", held, do_compression=True)


def judge(source: Path, **options: Any) -> str:
    """Load a source; whatever comes is sound, or one sentence says why not."""
    try:
        found = load(source, quiet=True, memory_gb=0.5, **options)
    except InputError as error:
        said = str(error)
        if "\n" in said or len(said) > 2000 or not said.isprintable():
            raise Fault(f"no sentence: {said[:300]!r}") from None
        return "refused"
    rows = len(found.labels)
    if not 0 < rows < 200 or len(found.images) != rows or str(found.images.dtype) != "torch.uint8":
        raise Fault(f"{rows} labels, images {tuple(found.images.shape)} {found.images.dtype}")
    if len(found.classes) > rows or not 0 <= int(found.labels.min()) <= int(found.labels.max()):
        raise Fault(f"{len(found.classes)} classes for {rows} images")
    if int(found.labels.max()) >= len(found.classes):
        raise Fault("a label without a class")
    if bool((found.images == SECRET).flatten(1).all(1).any()):
        raise Fault("a private picture is in the set")
    return "read"


def damage(source: Path, draw: random.Random) -> str:
    """Bytes of one file."""
    files = sorted(p for p in ([source] if source.is_file() else source.rglob("*")) if p.is_file())
    path = draw.choice(files)
    if path.suffix == ".json" and draw.random() < 0.7:
        text = mutate.altered(json.loads(path.read_text()), draw)[1]
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
    else:
        others = [other.read_bytes() for other in files if other != path]
        path.write_bytes(mutate.damaged(path.read_bytes(), draw, others)[1])
    return "damaged"


def _entry(source: Path, draw: random.Random) -> Path:
    """A place in a folder of pictures, taken or new."""
    folder = draw.choice([source, *sorted(p for p in source.iterdir() if p.is_dir())])
    place = folder / draw.choice(("0.png", "new.png", "new", "elk", "train", "README.md"))
    if place.is_dir() and not place.is_symlink():
        shutil.rmtree(place)
    place.unlink(missing_ok=True)
    return place


def strange(source: Path, draw: random.Random) -> str:
    """A pipe, a device, a link that goes in a circle, nowhere or outside."""
    place = _entry(source, draw)
    how = draw.choice(("fifo", "device", "loop", "circle", "dangling", "outside", "outside folder"))
    targets = {
        "device": draw.choice(DEVICES), "loop": place.name, "circle": "..", "dangling": "nowhere",
        "outside": str(source.parent / "private" / "me.png"),
        "outside folder": str(source.parent / "private"),
    }  # fmt: skip
    if how == "fifo":
        os.mkfifo(place)
    else:
        place.symlink_to(targets[how])
    return how


def named(source: Path, draw: random.Random) -> str:
    """Tables, cards and states that name files elsewhere."""
    private = source.parent / "private" / "me.png"
    names = (str(private), "../private/me.png", "x/../../private/me.png", *DEVICES, "", ".", "\0")
    name = draw.choice((*names, "link.png", "fifo.png", "a" * 5000, "\ud800", f"file://{private}"))
    (source / "link.png").symlink_to(private)
    os.mkfifo(source / "fifo.png")
    for path in (*source.glob("*.csv"), *source.glob("*.jsonl")):
        text = name.encode("utf-8", "replace").decode()
        csv = path.suffix == ".csv"
        row = f"{text},elk" if csv else json.dumps({"file_name": text, "label": "elk"})
        path.write_text(f"{path.read_text().rstrip()}\n{row}\n")
        return "row"
    what = draw.choice(("cell", "card", "state") if source.name == "saved" else ("cell", "card"))
    if what == "state":
        state = {"_data_files": [{"filename": name}]}
        (source / "state.json").write_text(json.dumps(state))
    elif what == "card":
        card = {"configs": [{"config_name": "x", "data_files": name}]}
        (source / "README.md").write_text(f"---\n{json.dumps(card)}\n---\n")
    else:
        cells = [{"bytes": _encoded(number), "path": None} for number in range(9)]
        cells[3] = {"bytes": None, "path": name.encode("utf-8", "replace").decode()}
        table = pa.table({"image": pa.array(cells, CELL), "label": [n % 3 for n in range(9)]})
        for path in source.glob("*.parquet"):
            pq.write_table(table, path)
        for path in source.glob("*.arrow"):
            with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as out:
                out.write_table(table)
    return what


def labelled(source: Path, draw: random.Random) -> str:
    """Labels of any size and kind."""
    values = (-1, 0, 3, 10**6, 10**9, 2**31, 2**62, -(2**63), None, "x", "", 1.5, float("nan"))
    kind = draw.choice(("whole", "text", "real"))
    fits = {"whole": int, "text": str, "real": float}[kind]
    chosen = [v for v in values if v is None or type(v) is fits]
    plain = {
        "whole": lambda n: n % 3,
        "text": lambda n: NAMES[n % 3],
        "real": lambda n: n % 3 + 0.0,
    }
    labels = [plain[kind](number) for number in range(9)]
    for _ in range(draw.choice((1, 1, 3, 9))):
        labels[draw.randrange(9)] = draw.choice(chosen)
    rows = 9 if draw.random() < 0.9 else 0
    cells = [{"bytes": _encoded(number), "path": None} for number in range(rows)]
    columns = {"image": pa.array(cells, CELL), draw.choice(("label", "y", "fold")): labels[:rows]}
    pq.write_table(pa.table(columns), source / "train.parquet")
    return f"{kind} labels"


def declared(source: Path, draw: random.Random) -> str:
    """An archive whose headers say what is not there, or what should not be."""
    shapes = ((9, 6, 6, 3), (10**9, 6, 6, 3), (2**40, 2**40), (9,), (), (0, 6, 6, 3), (9, 0, 6, 3),
              (-1, 6, 6, 3), (9, 6, 6, 3, 1), (9, 1, 1), (9, 10**6, 1, 3))  # fmt: skip
    kinds = ("|u1", "<i8", "<f4", "|O", "<U9", "<c8", "|S4", ">u2", "<M8[s]", "|V4", "|b1", "<f2")
    with zipfile.ZipFile(source, "w", draw.choice((0, zipfile.ZIP_DEFLATED))) as archive:
        for name in draw.choice((("images", "labels"), ("x_train", "y_train"), ("images",))):
            stream = io.BytesIO()
            sound = draw.random() < 0.4
            shape = ((9, 6, 6, 3) if name[0] in "ix" else (9,)) if sound else draw.choice(shapes)
            kind = "|u1" if sound else draw.choice(kinds)
            header = {"descr": kind, "fortran_order": draw.random() < 0.2, "shape": shape}
            npy.write_array_header_1_0(stream, header)
            size = int(np.prod(shape, dtype=object)) * np.dtype(kind).itemsize
            enough = bytes(size) if 0 <= size < 30_000_000 else bytes(1000)
            content = draw.choice((enough, enough, enough[:-1], bytes(3), draw.randbytes(500)))
            archive.writestr(f"{name}.npy", stream.getvalue() + content)
    return "declared"


def room(kind: str, draw: random.Random) -> Callable[[Path, random.Random], str]:
    """What may be done to a source of a kind."""
    if kind in FORMATS:
        return draw.choice((damage, damage, strange))
    if kind == "npz":
        return draw.choice((damage, declared))
    if kind in LISTS:
        return damage if kind in ("cifar", "svhn") else draw.choice((damage, named, named))
    return draw.choice((damage, damage, named, labelled) if kind == "parquet" else (damage, named))


def cases(root: Path, seed: int, numbers: range) -> Iterator[Case]:
    made = sources(root / "made")
    place = root / "spoilt"
    for number in numbers:
        draw = draw_for("sources", seed, number)
        kind = draw.choice(sorted(made))
        spoil = room(kind, draw)

        def run(
            kind: str = kind,
            spoil: Callable[[Path, random.Random], str] = spoil,
            draw: random.Random = draw,
        ) -> str:
            shutil.rmtree(place, ignore_errors=True)
            shutil.copytree(root / "made" / "private", place / "private")
            spoilt = place / made[kind].name
            copy: Any = shutil.copy if made[kind].is_file() else shutil.copytree
            copy(made[kind], spoilt)
            what = spoil(spoilt, draw)
            return f"{what} {judge(spoilt)}"

        yield Case(number, f"{spoil.__name__} {kind}", run, 10, 700)


def test_the_sound_sources_are_read(tmp_path):
    with ground.environment(tmp_path):
        for source in sources(tmp_path / "made").values():
            assert judge(source) == "read"


def test_a_private_picture_would_be_noticed(tmp_path):
    with ground.environment(tmp_path):
        source = sources(tmp_path / "made")["png"]
        (source / "elk" / "link.png").symlink_to(tmp_path / "made" / "private" / "me.png")
        assert judge(source) == "refused"
        try:
            judge(source, follow_links=True)
        except Fault as fault:
            assert "private" in str(fault)
        else:
            raise AssertionError("the private picture was read and not noticed")


def test_spoilt_sources_are_a_sentence_or_a_sound_set(tmp_path):
    with ground.environment(tmp_path):
        tally = trials(cases(tmp_path, 0, range(200)))
    assert not tally.failures, "\n".join(tally.failures)
    assert sum(n for kind, n in tally.outcomes.items() if kind.endswith("refused")) > 60
