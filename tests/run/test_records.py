import json
import os

import pytest

from potstill.run import ArtifactError
from potstill.run.records import fits, parse_json, parse_toml, read_json, type_fault


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"\xff\xfe{}",
        b"{",
        b"[" * 100_000 + b"]" * 100_000,
        b"[" * 40 + b"]" * 40,
        b'{"a": ' + b"9" * 5000 + b"}",
        b'{"a": ' + b"9" * 20 + b"}",
        b'"\\ud800"',
    ],
)
def test_what_is_no_json_or_beyond_the_bounds_is_a_value_error(text):
    with pytest.raises(ValueError):
        parse_json(text)


def test_json_within_the_bounds_is_read():
    value = {"a": [1, 2.5, None, True, "ü\U0001f431"], "n": 2**63 - 1, "deep": [[[[[[]]]]]]}
    assert parse_json(json.dumps(value)) == value
    assert parse_json(json.dumps(value, ensure_ascii=False).encode()) == value
    assert parse_json("[" * 33 + "]" * 33)  # the deepest that is read


def test_toml_is_bounded_alike():
    assert parse_toml('a = 1\n[b]\nc = "x"') == {"a": 1, "b": {"c": "x"}}
    for text in (
        "a = " + "[" * 50_000 + "]" * 50_000,
        "a = " + "[" * 40 + "]" * 40,
        "a =",
        b"\xff",
    ):
        with pytest.raises(ValueError):
            parse_toml(text)


@pytest.mark.parametrize("content", [b"", b"null", b"[]", b"3", b"\x80", b'{"a": 1'])
def test_a_file_that_holds_no_object_is_named_with_the_fix(tmp_path, content):
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(ArtifactError, match=r"x\.json .*; mend it$"):
        read_json(tmp_path / "x.json", "mend it")


def test_a_missing_file_a_folder_and_a_fifo_are_said_at_once(tmp_path):
    assert read_json(tmp_path / "none.json", "mend it", missing={}) == {}
    with pytest.raises(ArtifactError, match="does not exist; mend it"):
        read_json(tmp_path / "none.json", "mend it")
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(ArtifactError, match="Is a directory"):
        read_json(tmp_path / "folder.json", "mend it")
    os.mkfifo(tmp_path / "fifo.json")
    with pytest.raises(ArtifactError, match="no regular file"):
        read_json(tmp_path / "fifo.json", "mend it")
    with pytest.raises(ArtifactError, match="no regular file"):
        read_json_link(tmp_path)


def read_json_link(folder):
    (folder / "zero.json").symlink_to("/dev/zero")
    return read_json(folder / "zero.json", "mend it")


def test_types_of_values():
    assert fits(3, float) and fits(3, int) and not fits(True, int) and not fits(3.5, int)
    assert fits(None, int | None) and fits("a", str | list[str]) and not fits([1], list[str])
    assert not fits("x", int | None) and fits({}, dict[str, int])


def test_a_record_is_compared_with_its_dataclass():
    from potstill.app.opening import Data

    assert type_fault({"data": "digits", "image_size": 8}, Data) is None
    assert type_fault([], Data) == "a list stands where an object is expected"
    assert type_fault({"image_size": "8"}, Data) == 'image_size is "8"'
    assert type_fault({"sise": 8}, Data) == "field 'sise' is unknown"
