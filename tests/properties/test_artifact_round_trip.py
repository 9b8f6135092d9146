"""Any set comes back as it was saved; a damaged header is an ArtifactError and nothing else."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load

from potstill.canvas import canvas_spec, views_per_image
from potstill.data import ZCA, Normalize
from potstill.run import ArtifactError
from potstill.synthetic import SyntheticSet
from potstill.synthetic.tensors import checksum, to_file

NAME = st.text(
    st.characters(exclude_categories=("Cs",)), min_size=1, max_size=12
)  # Cs: halves of surrogate pairs are no text
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda part: st.lists(part, max_size=3) | st.dictionaries(st.text(max_size=9), part),
    max_leaves=6,
)
FIELDS = ("images", "labels", "soft_labels", "weights", "source_indices")


@st.composite
def sets(draw: Any) -> SyntheticSet:
    """Sets of every form that a method may give."""
    seed = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))
    n, k = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    shape = (draw(st.sampled_from((1, 3))), draw(st.integers(2, 5)), draw(st.integers(2, 5)))
    size = math.prod(shape)
    zca = ZCA(torch.rand(size), torch.eye(size) * 2, torch.eye(size) / 2, shape)
    normalize = Normalize(torch.rand(shape[0], generator=seed), torch.ones(shape[0]) / 2)
    decode = canvas_spec(draw(st.integers(1, 2)), draw(st.sampled_from(("single", "multi"))))
    soft = torch.rand(n, k, generator=seed).softmax(1)
    tiles = torch.rand(n, views_per_image(decode), k, generator=seed).softmax(2)
    return SyntheticSet(
        images=torch.randn(n, *shape, generator=seed),
        labels=torch.randint(0, k, (n,), generator=seed),
        classes=tuple(draw(st.lists(NAME, min_size=k, max_size=k))),
        transform=draw(st.sampled_from((zca, normalize))),
        decode=decode,
        soft_labels=draw(st.sampled_from((None, soft, tiles))),
        weights=draw(st.sampled_from((None, torch.rand(n, generator=seed)))),
        syn_lr=draw(st.none() | st.floats(1e-30, 1e30)),
        source_indices=draw(st.none() | st.just(torch.arange(draw(st.integers(0, 5))))),
    )


def same(a: SyntheticSet, b: SyntheticSet) -> bool:
    """Every field, not only the checksum that both sides compute alike."""
    pairs = [(getattr(a, name), getattr(b, name)) for name in FIELDS]
    alike = all(x is y or (x is not None and torch.equal(x, y)) for x, y in pairs)
    facts = [(s.classes, s.decode, s.syn_lr, s.transform.kind, s.checksum) for s in (a, b)]
    return alike and facts[0] == facts[1]


def loaded(content: bytes, folder: Path) -> SyntheticSet:
    (folder / "synthetic.safetensors").write_bytes(content)
    return SyntheticSet.load(folder)


def with_header(content: bytes, header: Any) -> bytes:
    """The same tensors under another header."""
    length = int.from_bytes(content[:8], "little")
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + content[8 + length :]


def header_of(content: bytes) -> dict[str, Any]:
    return json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])


@given(made=sets())
@settings(max_examples=30)
def test_a_set_comes_back_as_it_was(made, tmp_path):
    assert same(loaded(to_file(made), tmp_path), made)


@given(made=sets())
@settings(max_examples=8)
def test_a_folder_comes_back_as_it_was(made, tmp_path):
    assert same(SyntheticSet.load(made.save(tmp_path / "set")), made)


@given(made=sets(), data=st.data())
def test_other_bytes_in_the_header_are_refused_or_mean_the_same(made, data, tmp_path):
    content = bytearray(to_file(made))
    length = int.from_bytes(content[:8], "little")
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, 7 + length))
        content[place] = data.draw(st.integers(0, 255))
    try:
        assert same(loaded(bytes(content), tmp_path), made)
    except ArtifactError as error:
        assert "synthetic.safetensors" in str(error) and "\n" not in str(error)


@given(made=sets(), data=st.data())
def test_other_values_in_the_header_are_refused_or_mean_the_same(made, data, tmp_path):
    content = to_file(made)
    header = header_of(content)
    entry = data.draw(st.sampled_from(sorted(header)))
    inner = data.draw(st.sampled_from(("whole", *header[entry])))
    value = data.draw(JSON)
    if inner == "whole":
        header[entry] = value
    else:
        header[entry][inner] = value
    try:
        assert same(loaded(with_header(content, header), tmp_path), made)
    except ArtifactError as error:
        assert "synthetic.safetensors" in str(error)


@given(made=sets(), data=st.data())
@pytest.mark.parametrize("fact", ["classes", "decode", "transform", "format", "version", "more"])
@settings(max_examples=20)
def test_facts_of_anybody_with_a_fitting_check_are_refused_or_a_set(fact, made, data, tmp_path):
    """Somebody who writes a file on purpose computes the check, too."""
    content = to_file(made)
    header = header_of(content)
    facts = json.loads(header["__metadata__"]["potstill"])
    del facts["checksum"]
    if fact == "decode":
        facts["decode"] |= {data.draw(st.sampled_from(("kind", "factor"))): data.draw(JSON)}
    else:
        facts[fact] = data.draw(JSON | st.lists(JSON, max_size=4))
    facts["checksum"] = checksum(load(content), json.loads(json.dumps(facts)))
    header["__metadata__"]["potstill"] = json.dumps(facts)
    try:
        assert len(loaded(with_header(content, header), tmp_path).decoded()[0]) > 0
    except ArtifactError as error:
        assert "synthetic.safetensors" in str(error)
