"""What a cache holds: believed with its check and key, else one warning that names the file."""

import re

import pytest
import torch
from safetensors.torch import save_file

from potstill.run import ArtifactError
from potstill.run.checkpoint import UncheckedError, load_state, save_state
from potstill.run.recall import recall

STATE = {"table": torch.arange(6.0).view(2, 3)}


def asked(path, key="k"):
    def read(tensors, facts):
        return tensors["table"].view(2, 3), float(facts["seconds"])

    return recall(path, "making it again", read, key=key)


@pytest.fixture
def path(tmp_path):
    save_state(tmp_path / "a.safetensors", STATE, {"key": "k", "seconds": 2})
    return tmp_path / "a.safetensors"


def test_a_sound_file_is_believed_and_a_missing_one_is_no_word(path, caplog):
    table, seconds = asked(path)
    assert torch.equal(table, STATE["table"]) and seconds == 2.0
    assert asked(path.with_name("b.safetensors")) is None and not caplog.text


HARMS = {
    "another bit": lambda p: p.write_bytes(p.read_bytes()[:-1] + b"\xff"),
    "empty": lambda p: p.write_bytes(b""),
    "JSON": lambda p: p.write_text("null"),
    "another key": lambda p: save_state(p, STATE, {"key": "of something else", "seconds": 2}),
    "no key": lambda p: save_state(p, STATE, {"seconds": 2}),
    "a renamed tensor": lambda p: save_state(p, {"t": STATE["table"]}, {"key": "k", "seconds": 2}),
    "another shape": lambda p: save_state(p, {"table": torch.ones(5)}, {"key": "k", "seconds": 2}),
    "text for a number": lambda p: save_state(p, STATE, {"key": "k", "seconds": "long"}),
    "null for a number": lambda p: save_state(p, STATE, {"key": "k", "seconds": None}),
    "a folder": lambda p: (p.unlink(), p.mkdir()),
}


@pytest.mark.parametrize("harm", HARMS)
def test_whatever_is_wrong_is_one_warning_that_names_the_file(path, caplog, harm):
    HARMS[harm](path)
    assert asked(path) is None
    (said,) = caplog.messages
    assert said.startswith(f"{path} ") and said.endswith("; making it again")
    assert said.count(";") == 1 and "\n" not in said


def old(path):
    save_file(STATE, path, metadata={"potstill": '{"key": "k", "seconds": 2}'})


def test_files_without_checks_are_one_warning_for_their_folder(tmp_path, caplog):
    for number in range(5):
        old(tmp_path / f"{number}.safetensors")
        assert asked(tmp_path / f"{number}.safetensors") is None
    (said,) = caplog.messages
    assert said.startswith(f"{tmp_path} holds files of potstill 0.1")


def test_files_without_checks_are_taken_where_they_are_all_there_is(tmp_path, caplog):
    old(tmp_path / "a")
    with pytest.raises(UncheckedError, match=r"a is of potstill 0.1 .*; delete it"):
        load_state(tmp_path / "a")
    for _ in range(3):
        tensors, facts = load_state(tmp_path / "a", unchecked=True)
    assert torch.equal(tensors["table"], STATE["table"]) and facts["seconds"] == 2
    assert len(caplog.messages) == 1


@pytest.mark.parametrize("name", ["check", "facts"])
def test_a_damaged_name_of_the_check_makes_no_file_of_an_older_version(path, name):
    content = path.read_bytes()
    assert content.count(f'\\"{name}\\"'.encode()) == 1
    path.write_bytes(content.replace(name.encode(), b"chexk"))
    with pytest.raises(ArtifactError, match="is damaged or not a potstill state"):
        load_state(path, unchecked=True)


def test_the_fix_is_the_one_asked_for(path):
    path.write_bytes(b"")
    with pytest.raises(ArtifactError, match=re.escape(f"{path} is damaged") + ".*; copy it$"):
        load_state(path, fix="copy it")
