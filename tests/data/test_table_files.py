"""Tables on disk: a source reads only itself, nothing is cached by name, damage is one sentence."""

from __future__ import annotations

import io
import json
import os
import random
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import potstill
from potstill.app.cli import main
from potstill.data import load, load_pair
from potstill.data.files import Place
from potstill.data.tablefiles import read_column
from potstill.data.tables import object_rows
from potstill.run import InputError

datasets = pytest.importorskip("datasets")
CELL = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
LABELS = [0, 1, 1, 0, 1, 0]


def png(value):
    stream = io.BytesIO()
    Image.new("L", (4, 4), value).save(stream, "PNG")
    return stream.getvalue()


def write(path, labels=LABELS, cells=None, **options):
    cells = cells or [{"bytes": png(40 * row), "path": None} for row in range(len(labels))]
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table({"image": pa.array(cells, CELL), "label": labels})
    if path.suffix == ".arrow":
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
            writer.write_table(table)
    else:
        pq.write_table(table, path, **options)
    return path


def naming(name, row=2):
    """Cells of which one names its picture by a path."""
    cells = [{"bytes": png(40 * row), "path": f"{row}.png"} for row in range(len(LABELS))]
    cells[row] = {"bytes": None, "path": str(name)}
    return cells


def refused(match, source, **options):
    with pytest.raises(InputError, match=match) as caught:
        load(source, **options)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


@pytest.fixture
def private(tmp_path):
    path = tmp_path / "private" / "me.png"
    path.parent.mkdir()
    path.write_bytes(png(99))
    return path


@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
@pytest.mark.parametrize("follow_links", [False, True])
def test_a_cell_never_names_a_picture_elsewhere(tmp_path, private, suffix, follow_links):
    root = tmp_path / "set"
    for name in (private, "../private/me.png", "sub/../../private/me.png"):
        path = write(root / f"train{suffix}", cells=naming(name))
        sources = [root, path] if suffix == ".parquet" else [root]
        for source in sources:
            refused(
                "a cell of .* names .*, a file outside of it", source, follow_links=follow_links
            )


def test_a_linked_picture_is_a_file_elsewhere(tmp_path, private):
    root = tmp_path / "set"
    write(root / "train.parquet", cells=naming("pictures/me.png"))
    (root / "pictures").symlink_to(private.parent)
    refused("outside", root)
    assert load(root, follow_links=True).images[2, 0, 0, 0] == 99
    private.write_bytes(png(98))
    assert load(root, follow_links=True).images[2, 0, 0, 0] == 98


@pytest.mark.parametrize("name", ["/dev/zero", "/dev/stdin", "/proc/self/environ"])
def test_a_cell_never_names_a_device(tmp_path, name):
    write(tmp_path / "set" / "train.parquet", cells=naming(name))
    refused("a file outside of it", tmp_path / "set")


def test_pipes_folders_and_hidden_files_are_no_pictures(tmp_path):
    root = tmp_path / "set"
    root.mkdir()
    os.mkfifo(root / "pipe.png")
    (root / "folder.png").mkdir()
    (root / ".hidden.png").write_bytes(png(1))
    for name, match in (
        ("pipe.png", "no regular file"),
        ("folder.png", "no regular file"),
        ("none.png", "is not there"),
        (".hidden.png", "a hidden file"),
        ("train.parquet", "cannot be read as an image"),
        ("a\0b", "null byte"),
    ):
        write(root / "train.parquet", cells=naming(name))
        refused(match, root)


def test_pictures_beside_a_table_are_read_and_belong_to_its_key(tmp_path):
    root = tmp_path / "set"
    write(root / "train.parquet", cells=naming("pictures/me.png"))
    (root / "pictures").mkdir()
    (root / "pictures" / "me.png").write_bytes(png(99))
    assert load(root).images[:, 0, 0, 0].tolist() == [0, 40, 99, 120, 160, 200]
    (root / "pictures" / "me.png").write_bytes(png(98))
    assert load(root).images[2, 0, 0, 0] == 98
    write(root / "train.parquet", cells=naming(root / "pictures" / "me.png"))
    assert load(root).images[2, 0, 0, 0] == 98
    refused("a file outside of it", root / "train.parquet")


def test_pictures_of_an_open_data_set_are_those_of_its_maker(tmp_path, private):
    cells = [private if row == 2 else None for row in range(3)]
    for row in (0, 1):
        cells[row] = tmp_path / f"{row}.png"
        cells[row].write_bytes(png(row))
    columns = {"image": [str(cell) for cell in cells], "label": [0, 1, 1]}
    opened = datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image())
    assert load(opened).images[:, 0, 0, 0].tolist() == [0, 1, 99]
    private.unlink()
    os.mkfifo(private)
    refused("no regular file", opened)


def test_cells_of_a_hub_set_name_only_what_came_with_it(tmp_path, private, monkeypatch):
    cached = tmp_path / "hub" / "datasets" / "downloads" / "0.png"
    cached.parent.mkdir(parents=True)
    cached.write_bytes(png(7))
    other = cached.with_name("1.png")
    other.write_bytes(png(9))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hub" / "datasets")
    for path in (cached, private):
        columns = {"image": [str(path), str(other)], "label": [1, 0]}
        opened = datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image())
        answer = datasets.DatasetDict(train=opened)
        monkeypatch.setattr("datasets.load_dataset", lambda *_, answer=answer: answer)
        if path == cached:
            assert load("some/animals").images[0, 0, 0, 0] == 7
        else:
            refused("no picture that was downloaded with it", "some/animals")


def test_a_card_names_no_file_elsewhere(tmp_path):
    write(tmp_path / "other" / "train.parquet")
    root = tmp_path / "set"
    write(root / "train.parquet")
    for pattern in ("../other/*.parquet", str(tmp_path / "other" / "train.parquet")):
        (root / "README.md").write_text(f"---\nconfigs:\n- data_files: '{pattern}'\n---\n")
        refused("may lie outside of it", root)
    (root / "README.md").write_text("---\nconfigs:\n- data_files: linked.parquet\n---\n")
    (root / "linked.parquet").symlink_to(tmp_path / "other" / "train.parquet")
    refused("outside", root)
    assert len(load(root, follow_links=True)) == len(LABELS)


def test_saved_data_sets_name_no_file_elsewhere(tmp_path):
    write(tmp_path / "data.arrow")
    root = tmp_path / "set"
    write(root / "data.arrow")
    (root / "cache-0123.arrow").write_bytes(b"left by a map")
    for name, good in (
        ("data.arrow", True),
        ("../data.arrow", False),
        (str(tmp_path / "data.arrow"), False),
    ):
        (root / "state.json").write_text(json.dumps({"_data_files": [{"filename": name}]}))
        if good:
            assert load(root).counts == (3, 3)
        else:
            refused("which is no file of the folder", root)


@pytest.mark.parametrize(
    ("file", "text", "match"),
    [
        ("state.json", "{", "is damaged"),
        ("state.json", "[]", "holds no fields"),
        ("state.json", "null", "holds no fields"),
        ("state.json", "[" * 100_000, "is damaged"),
        ("state.json", "{}", "names no files of all rows"),
        ("state.json", '{"_data_files": 3}', "names no files of all rows"),
        ("state.json", '{"_data_files": [3, {"filename": null}]}', "no file of the folder"),
        ("dataset_dict.json", '{"splits": [3]}', "names no splits"),
        ("dataset_dict.json", '{"splits": ["train"]}', "lacks train/state.json"),
        ("dataset_dict.json", '{"splits": []}', "names no splits"),
    ],
)
def test_damaged_states_of_saved_data_sets(tmp_path, file, text, match):
    write(tmp_path / "data.arrow")
    (tmp_path / file).write_text(text)
    refused(match, tmp_path)


def test_a_split_of_a_saved_data_set_lies_in_its_folder(tmp_path):
    write(tmp_path / "one" / "data.arrow")
    (tmp_path / "one" / "state.json").write_text('{"_data_files": [{"filename": "data.arrow"}]}')
    (tmp_path / "two").mkdir()
    (tmp_path / "two" / "dataset_dict.json").write_text('{"splits": ["../one"]}')
    refused("lacks ../one/state.json", place_of_tables(tmp_path / "two"), split="../one")


def place_of_tables(folder):
    """A folder that is seen as one of tables."""
    write(folder / "other.arrow")
    return folder


def test_reading_passes_through_no_cache_that_others_share(tmp_path, monkeypatch):
    """As after ``load_dataset`` of another folder of the same name."""

    def forbidden(*_, **__):
        raise AssertionError("the datasets library was asked")

    for name in ("load_dataset", "load_from_disk", "load_dataset_builder"):
        monkeypatch.setattr(f"datasets.{name}", forbidden)
    for run, names in (("x", ["cat", "dog"]), ("y", ["owl", "cow"])):
        root = tmp_path / run / "synthetic"
        features = {"label": {"_type": "ClassLabel", "names": names}}
        path = write(root / "data" / "train-00000-of-00001.parquet")
        table = pq.read_table(path).replace_schema_metadata(
            {"huggingface": json.dumps({"info": {"features": features}})}
        )
        pq.write_table(table, path)
        assert load(root).classes == tuple(names)
    assert not (tmp_path / "hub").exists()


def test_own_artifacts_can_be_loaded(tmp_path):
    syn = potstill.distill("random", "digits", ipc=2)
    syn.save(tmp_path / "synthetic")
    again = load(tmp_path / "synthetic")
    assert again.classes == syn.classes and again.counts == (2,) * 10
    assert (again.images == syn.quantized().images.mul(255).round().byte()).all()


def test_class_names_of_the_card(tmp_path):
    write(tmp_path / "train.parquet")
    (tmp_path / "README.md").write_text(
        "---\ndataset_info:\n  features:\n  - name: label\n    dtype:\n      class_label:\n"
        "        names:\n          '0': cat\n          '1': dog\n---\n"
    )
    assert load(tmp_path).classes == ("cat", "dog")


def test_shards_are_one_split_in_order(tmp_path):
    for shard in range(3):
        cells = [{"bytes": png(10 * shard + row), "path": None} for row in range(2)]
        write(tmp_path / f"train-{shard:05d}-of-00003.parquet", [0, 1], cells)
    real = load(tmp_path)
    assert real.images[:, 0, 0, 0].tolist() == [0, 1, 10, 11, 20, 21]
    assert load(tmp_path, subset="1,0").indices.tolist() == list(range(6))


def test_shards_that_differ(tmp_path):
    first = write(tmp_path / "train-00000-of-00002.parquet")
    second = tmp_path / "train-00001-of-00002.parquet"
    table = pq.read_table(first)
    names = {"label": {"_type": "ClassLabel", "names": ["b", "a"]}}
    facts = {"huggingface": json.dumps({"info": {"features": names}})}
    for other in (
        table.rename_columns(["image", "kind"]),
        table.set_column(1, "label", pa.array(["a", "b", "b", "a", "b", "a"])),
        table.replace_schema_metadata(facts),
    ):
        pq.write_table(other, second)
        refused("train-00001.* has no column 'label', or not in the form", tmp_path)


def test_listed_files_of_one_name_in_two_folders(tmp_path):
    write(tmp_path / "one" / "0.parquet")
    write(tmp_path / "two" / "0.parquet", [1] * len(LABELS))
    (tmp_path / "README.md").write_text("---\nconfigs:\n- data_files: '*/0.parquet'\n---\n")
    assert load(tmp_path).counts == (3, 9)
    write(tmp_path / "one" / "0.parquet", ["a", "b"] * 3)
    refused("two/0.parquet of .* not in the form that it has in one/0.parquet", tmp_path)


def test_two_test_files_are_named(tmp_path):
    write(tmp_path / "train.parquet")
    for name in ("test_a", "test_b"):
        write(tmp_path / f"{name}.parquet")
    with pytest.raises(InputError, match=r"\(test_a.parquet, test_b.parquet\); give one"):
        load_pair(tmp_path)
    assert len(load(tmp_path)) == 6
    _, test, sentence = load_pair(tmp_path, test=tmp_path / "test_a.parquet")
    assert len(test) == 6 and "test_a.parquet" in sentence


def test_several_configurations_are_named_by_the_command(tmp_path, capsys):
    for name in ("plain", "blurred"):
        write(tmp_path / "set" / name / "train.parquet")
    configs = "".join(f"- config_name: {n}\n  data_files: {n}/*\n" for n in ("plain", "blurred"))
    (tmp_path / "set" / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")
    out = str(tmp_path / "run")
    words = ["distill", "random", "--data", str(tmp_path / "set"), "--ipc", "1", "--out", out]
    assert main(words) == 2
    said = capsys.readouterr().err
    assert "several configurations (plain, blurred)" in said and "Traceback" not in said
    assert main([*words, "--data", str(tmp_path / "set" / "plain"), "--quiet"]) == 0


def test_only_hidden_or_dead_tables_are_none(tmp_path):
    write(tmp_path / ".left.parquet")
    (tmp_path / "gone.parquet").symlink_to(tmp_path / "nowhere")
    refused("has no class folders", tmp_path)


def test_a_single_arrow_file(tmp_path):
    assert load(write(tmp_path / "mine.arrow")).labels.tolist() == LABELS
    with pa.OSFile(str(tmp_path / "whole.arrow"), "wb") as file:
        table = pq.read_table(write(tmp_path / "a.parquet"))
        with pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table)
    assert load(tmp_path / "whole.arrow").labels.tolist() == LABELS


@pytest.mark.parametrize("name", ["train.parquet", "train.arrow"])
def test_tables_without_rows(tmp_path, name):
    write(tmp_path / name, [], [])
    refused("holds no images", tmp_path)
    (tmp_path / name).write_bytes(b"")
    refused("cannot be read as a data set", tmp_path)


def test_more_rows_than_bytes_are_refused(tmp_path):
    rows = 2_000_000
    labels = pa.array([0, 1]).take(pa.array([0, 1] * (rows // 2)))
    cells = pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), pa.array([png(1)]))
    path = tmp_path / "train.parquet"
    pq.write_table(pa.table({"image": cells, "label": labels.sort()}), path)
    assert path.stat().st_size < rows
    refused("claims more rows than it has bytes", path)


@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
def test_damage_anywhere_is_a_sentence(tmp_path, suffix):
    """Every byte that is not noticed leaves shape and class count as they were."""
    path = write(tmp_path / f"train{suffix}")
    good, draw, refusals = path.read_bytes(), random.Random(0), 0
    for trial in range(90):
        content = bytearray(good)
        if trial % 3 == 0:
            content = content[: draw.randrange(len(content))]
        for _ in range(draw.choice([1, 4])):
            if content:
                content[draw.randrange(len(content))] = draw.randrange(256)
        path.write_bytes(content)
        try:
            real = load(tmp_path, quiet=True, cache=tmp_path / "cache")
            assert real.shape in ((1, 4, 4), (3, 4, 4)) and real.num_classes == 2
        except InputError as error:
            refusals += 1
            assert "\n" not in str(error) and str(tmp_path) in str(error)
    assert refusals > 45


def test_pages_with_a_checksum_are_checked(tmp_path):
    path = write(
        tmp_path / "train.parquet",
        write_page_checksum=True,
        compression="none",
        use_dictionary=False,
    )
    content = path.read_bytes()
    at = content.index(bytes([0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]))  # labels 0 and 1
    path.write_bytes(content[:at] + b"\1" + content[at + 1 :])
    refused("cannot be read as a data set", path)


def test_columns_with_dots_in_their_names(tmp_path):
    path = write(tmp_path / "train.parquet")
    table = pq.read_table(path).rename_columns(["image", "a.b"])
    table = table.append_column("a", pa.array([{"b": 5}] * len(LABELS)))
    pq.write_table(table.select(["a", "image", "a.b"]), path)
    assert load(path, labels="a.b").labels.tolist() == LABELS


def test_rows_are_read_in_batches_whatever_the_row_groups(tmp_path):
    """A row group of 32 MB is never in memory at once."""
    cells = [{"bytes": png(row % 256) + os.urandom(4000), "path": None} for row in range(8192)]
    path = write(tmp_path / "train.parquet", [0, 1] * 4096, cells, compression="none")
    assert pq.ParquetFile(path).num_row_groups == 1
    before, most = pa.total_allocated_bytes(), 0
    for batch in read_column(Place(path), path, "image"):
        most = max(most, pa.total_allocated_bytes() - before)
        assert len(batch) <= 256
    assert most < 20 << 20


def test_a_copied_folder_is_another_source(tmp_path):
    write(tmp_path / "one" / "train.parquet")
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    write(tmp_path / "two" / "train.parquet", [0, 0, 1, 1, 0, 1])
    assert load(tmp_path / "one").labels.tolist() != load(tmp_path / "two").labels.tolist()


def test_an_open_data_set_without_columns():
    def rows():
        yield {"image": png(1), "label": 0}

    opened = datasets.IterableDataset.from_generator(rows)
    with pytest.raises(InputError, match="does not tell its columns"):
        object_rows(opened, "rows", None)
