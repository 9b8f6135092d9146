"""Which column holds the classes, what its cells may be, and class counts that nobody can have."""

from __future__ import annotations

import io
import json
import tracemalloc

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from potstill.data import ImageSet, load, load_pair
from potstill.data.cells import split_rows
from potstill.data.columns import Table
from potstill.run import InputError

datasets = pytest.importorskip("datasets")
N = 12
CLASSES = np.arange(N) % 3
HUGE = 1_000_000_000
COLUMNS = {
    "text": [["nv", "mel", "bkl"][c] for c in CLASSES],
    "whole": CLASSES.tolist(),
    "floats": CLASSES.astype(float).tolist(),
    "truth": (CLASSES > 0).tolist(),
    "fold": [n % 4 for n in range(N)],
    "row": list(range(N)),
    "caption": [f"a picture, number {n}" for n in range(N)],
    "lists": [[c] for c in CLASSES.tolist()],
    "one-hot": np.eye(3, dtype=int)[CLASSES].tolist(),
    "nested": [{"breed": c, "age": 3} for c in CLASSES.tolist()],
}


def png(value, mode="L"):
    stream = io.BytesIO()
    Image.new(mode, (4, 4), value).save(stream, "PNG")
    return stream.getvalue()


def pictures(n=N):
    cells = [{"bytes": png(row), "path": None} for row in range(n)]
    return pa.array(cells, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))


def write(path, columns, n=N, features=None):
    """A Parquet file with pictures and ``columns``; ``features`` as the hub's metadata."""
    table = pa.table({"image": pictures(n), **columns})
    if features is not None:
        facts = json.dumps({"info": {"features": features}})
        table = table.replace_schema_metadata({"huggingface": facts})
    pq.write_table(table, path)
    return path


@pytest.fixture
def made(tmp_path):
    def make(features=None, **columns):
        columns = {
            name: COLUMNS[held] if isinstance(held, str) else held for name, held in columns.items()
        }
        n = len(next(iter(columns.values()))) if columns else N
        return write(tmp_path / "set.parquet", columns, n, features)

    return make


def refused(match, source, **options):
    with pytest.raises(InputError, match=match) as caught:
        load(source, **options)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


def typed(**names):
    return {column: {"_type": "ClassLabel", "names": list(some)} for column, some in names.items()}


@pytest.mark.parametrize("held", ["text", "whole", "floats"])
@pytest.mark.parametrize("name", ["label", "Labels", "target", "class", "category", "y", "dx"])
def test_names_come_before_types(made, name, held):
    source = made(typed(sex=["F", "M"]), fold="fold", sex=[0, 1] * 6, **{name: held})
    real = load(source)
    assert real.classes == (("bkl", "mel", "nv") if held == "text" else ("0", "1", "2"))
    expected = (2 - CLASSES) if held == "text" else CLASSES
    assert real.labels.tolist() == expected.tolist()


def test_a_class_type_does_not_beat_a_truth_called_label(made):
    real = load(made(typed(sex=["F", "M"]), sex=[0, 1] * 6, label="truth"))
    assert real.counts == (4, 8)


def test_the_usual_names_have_an_order(made):
    assert load(made(label="whole", category="fold")).num_classes == 3
    assert load(made(coarse_label="fold", fine_label="whole")).num_classes == 3


@pytest.mark.parametrize(
    ("columns", "found"),
    [
        ({"label": "whole", "labels": "fold"}, r"\(label, labels\)"),
        ({"target": "whole", "dx": "text"}, r"\(target, dx\)"),
        ({"species": "text", "fold": "fold"}, r"\(species, fold\)"),
        ({"malignant": "truth", "site": "text"}, r"\(malignant, site\)"),
    ],
)
def test_two_columns_of_equal_standing_are_named(made, columns, found):
    source = made(**columns)
    refused(rf"several label columns {found}; choose one .*--label-column", source)
    for name in columns:
        assert load(source, labels=name).num_classes > 1


def test_a_class_type_against_text(made):
    refused(r"several .*\(sex, site\)", made(typed(sex=["F", "M"]), sex=[0, 1] * 6, site="text"))


@pytest.mark.parametrize("name", ["species", "malignant", "fold"])
@pytest.mark.parametrize("held", ["text", "truth", "whole"])
def test_a_lone_column_is_the_label(made, name, held):
    assert load(made(**{name: held})).num_classes == (2 if held == "truth" else 3)


@pytest.mark.parametrize(
    "index", ["__index_level_0__", "Unnamed: 0", "id", "idx", "index", "file_name"]
)
def test_columns_that_number_or_describe_rows_are_no_labels(made, index):
    held = "caption" if index == "file_name" else "row"
    assert load(made(**{index: held, "species": "text"})).classes == ("bkl", "mel", "nv")
    refused("no class labels", made(**{index: held}))


def test_nearly_all_different_text_is_no_label(made):
    refused("no class labels", made(caption=[*COLUMNS["caption"][:-1], COLUMNS["caption"][0]]))


@pytest.mark.parametrize("held", ["lists", "one-hot"])
@pytest.mark.parametrize("name", ["label", "labels", "target"])
def test_lists_are_refused_and_not_passed_over(made, name, held):
    refused(f"column '{name}' .* holds lists: several classes", made(fold="fold", **{name: held}))


def test_fixed_lists_and_nested_columns(made):
    fixed = pa.FixedSizeListArray.from_arrays(np.eye(3, dtype=int)[CLASSES].ravel(), 3)
    refused("holds lists", made(labels=fixed))
    refused("column 'label' .* holds 'struct", made(label="nested", fold="fold"))
    refused("column 'facts' .* holds 'struct", made(facts="nested", fold="fold"), labels="facts")
    assert load(made(facts="nested", tags="lists", species="text")).num_classes == 3


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ([0.0, 1.0, 0.5, 1.0], r"holds 0\.5; use whole numbers"),
        ([0.0, 1.0, float("inf"), 1.0], r"holds inf; use whole numbers"),
        ([0, 1, None, 1], r"missing in 1 of 4 rows.* hold -1 \(row 2\)"),
        ([0.0, float("nan"), None, 1.0], r"missing in 2 of 4 rows.*the first is row 1"),
        (["a", "b", "", None], r"missing in 2 of 4 rows.*the first is row 2"),
        ([True, None, False, True], r"missing in 1 of 4 rows.* \(row 1\)"),
        ([1, 2, 3, 1], r"class '0' \(label 0\) .*labels go from 1 to 3; number .* from 0"),
        ([0, 1, 3, 1], r"class '2' \(label 2\) .*labels go from 0 to 3"),
        ([0, -2, 1, 1], r"hold -2 \(row 1\)"),
        ([0, 1, 2**62, 1], r"class '2' .*labels go from 0 to 4611686018427387904"),
        ([0, 1, HUGE, 1], r"class '2' .*labels go from 0 to 1000000000"),
        (pa.array([0, 1, 2**63, 1], pa.uint64()), r"holds no class"),
    ],
)
def test_labels_that_cannot_be_used(made, values, match):
    refused(match, made(label=values))


def test_hidden_labels_are_passed_over_whatever_their_form(tmp_path):
    write(tmp_path / "train.parquet", {"label": COLUMNS["whole"]})
    for hidden in ([-1] * 4, [None] * 4, ["", None, "", None], [float("nan")] * 4, None):
        write(tmp_path / "test.parquet", {} if hidden is None else {"label": hidden}, 4)
        _, test, sentence = load_pair(tmp_path)
        assert test.counts == (1, 1, 1) and "held out" in sentence


@pytest.mark.parametrize("kind", [pa.int8(), pa.uint16(), pa.float16(), pa.float32(), pa.string()])
def test_labels_of_any_width(made, kind):
    text = pa.types.is_string(kind)
    values = [str(c) for c in CLASSES] if text else CLASSES.astype(kind.to_pandas_dtype())
    assert load(made(label=pa.array(values, kind))).labels.tolist() == CLASSES.tolist()


def test_categories_of_pandas_are_text(made):
    held = pa.array(COLUMNS["text"]).dictionary_encode()
    assert load(made(label=held)).classes == ("bkl", "mel", "nv")


def test_class_names_are_matched_over_train_and_test(tmp_path):
    write(tmp_path / "train.parquet", {"label": ["owl", "cow", "dog", "cow"]}, 4)
    write(tmp_path / "test.parquet", {"label": ["owl", "dog"]}, 2)
    train, test, note = load_pair(tmp_path)
    assert train.classes == test.classes == ("cow", "dog", "owl")
    assert test.labels.tolist() == [2, 1] and "No test images of 1 of 3 classes (cow)" in note
    write(tmp_path / "test.parquet", {"label": ["owl", "elk"]}, 2)
    with pytest.raises(InputError, match=r"have other classes than .*\(elk\)"):
        load_pair(tmp_path)


def test_whole_numbers_as_class_names(made):
    assert load(made(typed(label=[7, 8, 9]), label="whole")).classes == ("7", "8", "9")


@pytest.mark.parametrize(
    ("feature", "match"),
    [
        ({"_type": "ClassLabel", "names": ["a", "b", "a"]}, "two classes called 'a'"),
        ({"_type": "ClassLabel", "names": [str(n) for n in range(1000)]}, r"class '3' \(label 3\)"),
        ({"_type": "ClassLabel", "names": ["a"]}, "1 class"),
    ],
)
def test_class_names_that_do_not_fit(made, feature, match):
    refused(match, made({"label": feature}, label="whole"))


@pytest.mark.parametrize("more", [{"num_classes": 10**12}, {"names_file": "{private}"}, {}])
def test_class_types_open_and_build_nothing(made, tmp_path, more):
    private = tmp_path / "names.txt"
    private.write_text("secret\nwords\nhere\n")
    more = {key: str(private) if key == "names_file" else value for key, value in more.items()}
    source = made({"label": {"_type": "ClassLabel", **more}}, label="whole")
    assert load(source).classes == ("0", "1", "2")


@pytest.mark.parametrize("text", ["[]", "{", "[" * 100_000, '{"info": 3}', '{"info": []}', "\xff"])
def test_metadata_that_are_damaged(tmp_path, text):
    table = pa.table({"image": pictures(), "label": CLASSES})
    raw = text.encode("latin1")
    pq.write_table(table.replace_schema_metadata({"huggingface": raw}), tmp_path / "a.parquet")
    refused("metadata that cannot be read", tmp_path / "a.parquet")


def test_class_names_by_the_hundred_thousand(made):
    names = [str(n) for n in range(200_000)]
    refused(
        r"class '3' \(label 3\)",
        made({"label": {"_type": "ClassLabel", "names": names}}, label="whole"),
    )


class Items(torch.utils.data.Dataset):
    def __init__(self, labels, classes=None):
        self.labels = labels
        if classes:
            self.classes = classes

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, row):
        return np.full((4, 4), row, np.uint8), self.labels[row]


def arrays(labels):
    return np.arange(len(labels) * 16, dtype=np.uint8).reshape(-1, 4, 4), labels


@pytest.mark.parametrize("label", [HUGE, 2**62])
@pytest.mark.parametrize("subset", [None, "0,1"])
@pytest.mark.parametrize("kind", ["arrays", "npz", "torch", "parquet"])
def test_no_label_makes_that_many_classes(tmp_path, kind, subset, label):
    labels = [0, 1, label, 1, 0, 1]
    source = {
        "arrays": lambda: arrays(np.array(labels)),
        "npz": lambda: tmp_path / "set.npz",
        "torch": lambda: Items(labels),
        "parquet": lambda: write(tmp_path / "set.parquet", {"label": labels}, 6),
    }[kind]()
    np.savez(tmp_path / "set.npz", images=arrays(labels)[0], labels=np.array(labels))
    tracemalloc.start()
    refused(f"{label}", source, subset=subset)
    assert tracemalloc.get_traced_memory()[1] < 50 << 20
    tracemalloc.stop()


@pytest.mark.parametrize(
    ("labels", "classes", "match"),
    [
        ([0, 1, 2**70], None, r"hold 1180591620717411303424 \(row 2\); 3 images need"),
        ([0, -(2**70), 1], None, r"\(row 1\)"),
        ([0, 1, 2], ["a", "b"], r"hold 2 \(row 2\); 2 classes need labels from 0 to 1"),
    ],
)
def test_torch_labels_out_of_range(labels, classes, match):
    refused(match, Items(labels, classes))


def test_a_set_with_more_class_names_than_images():
    labels = torch.tensor([0, 1, 2])
    images = torch.zeros(3, 1, 4, 4, dtype=torch.uint8)
    names = tuple(map(str, range(100_000)))
    with pytest.raises(InputError, match=r"class '3' \(label 3\) of source 'toy' has no images"):
        ImageSet(images, labels, names, "toy", torch.arange(3), "0" * 16)


def test_unsigned_labels_beyond_64_bits_are_refused():
    with pytest.raises(InputError, match="labels of arrays are uint64"):
        load(arrays(np.array([0, 1, 2**63 + 5], np.uint64)))


@pytest.mark.parametrize("present", [0, 2, 3])
def test_more_labels_than_pictures(present):
    """As in a damaged file, whose columns do not have to agree."""
    parts = {"image": pictures(present), "label": pa.array([0, 1, 0, 1])}
    schema = pa.schema({name: part.type for name, part in parts.items()})
    table = Table("toy", {"a": schema}, lambda column, _: iter([parts[column]]), None, {})
    rows = split_rows(table, None)
    with pytest.raises(InputError, match=f"no picture in row {present}"):
        list(rows.pairs())


@pytest.mark.parametrize("columns", [["image", "label", "label"], ["image", "image", "label"]])
def test_columns_of_one_name(tmp_path, columns):
    arrays = [pictures() if name == "image" else pa.array(CLASSES) for name in columns]
    pq.write_table(pa.Table.from_arrays(arrays, columns), tmp_path / "a.parquet")
    refused(r"has 2 columns called '(label|image)'", tmp_path / "a.parquet")


@pytest.mark.parametrize(
    ("columns", "match"),
    [
        ({"left": "pictures", "right": "pictures"}, r"several image columns \(left, right\)"),
        ({"image": "paths"}, r"\('image' holds text: a path is no picture\)"),
        ({"words": "paths"}, r"columns words, label, none of which holds images"),
        ({"image": "numbers"}, "none of which holds images"),
        ({"image": "twice"}, "none of which holds images"),
    ],
)
def test_image_columns_that_cannot_be_read(tmp_path, columns, match):
    twice = pa.StructArray.from_arrays(
        [pa.array([b"a"] * N), pa.array(["b"] * N), pa.array(["c"] * N)], ["bytes", "path", "path"]
    )
    kinds = {
        "pictures": pictures(),
        "paths": pa.array([f"{n}.png" for n in range(N)]),
        "numbers": pa.array([{"bytes": 10**12}] * N),
        "twice": twice,
    }
    table = pa.table({name: kinds[kind] for name, kind in columns.items()} | {"label": CLASSES})
    pq.write_table(table, tmp_path / "a.parquet")
    refused(match, tmp_path / "a.parquet")


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary()])
def test_pictures_as_plain_bytes(tmp_path, kind):
    cells = pa.array([png(row) for row in range(N)], kind)
    table = pa.table({"mask": pictures(), "image": cells, "label": CLASSES})
    pq.write_table(table.select(["image", "label"]), tmp_path / "a.parquet")
    assert load(tmp_path / "a.parquet").images[:, 0, 0, 0].tolist() == list(range(N))


@pytest.mark.parametrize(
    "cell", [None, {"bytes": None, "path": None}, {"bytes": b"", "path": "a.png"}]
)
def test_empty_cells_are_named(tmp_path, cell):
    cells = pictures().to_pylist()
    cells[5] = cell
    table = pa.table({"image": pa.array(cells, pictures().type), "label": CLASSES})
    pq.write_table(table, tmp_path / "a.parquet")
    refused(r"image 5 of .*a\.parquet is empty \(column 'image'\)", tmp_path / "a.parquet")
    (tmp_path / "a.parquet").unlink()
    objects = datasets.Dataset.from_dict({"image": cells, "label": CLASSES.tolist()})
    refused("image 5 of Dataset is empty", objects.cast_column("image", datasets.Image()))
