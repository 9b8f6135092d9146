"""Soft labels of tiles: stored images stay as they are, each training image has a label."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import potstill
from potstill.canvas import canvas_spec
from potstill.evaluation import PROTOCOLS, evaluate
from potstill.evaluation.examples import synthetic_examples
from potstill.reports.class_lines import label_confidence
from potstill.run import ArtifactError, InputError
from potstill.synthetic import SyntheticSet
from potstill.synthetic import tensors as exact
from potstill.synthetic.iterates import load_iterate, save_iterate
from potstill.synthetic.started import kept, started


@pytest.fixture
def told(syn) -> SyntheticSet:
    soft = torch.randn(4, 4, 2, generator=torch.Generator().manual_seed(3)).softmax(2)
    return replace(syn, soft_labels=soft)


def repeated(told: SyntheticSet) -> SyntheticSet:
    """The same set with the mean of its tiles' labels for each stored image."""
    return replace(told, soft_labels=told.soft_labels.mean(1))


@pytest.mark.parametrize("formation", ["single", "multi"])
def test_they_travel_as_they_are(syn, tmp_path, formation):
    spec = canvas_spec(2, formation)
    v = {"single": 4, "multi": 5}[formation]
    soft = torch.randn(4, v, 2, generator=torch.Generator().manual_seed(3)).softmax(2)
    made = replace(syn, decode=spec, soft_labels=soft)
    again = SyntheticSet.load(made.save(tmp_path / "a"))
    assert again.checksum == made.checksum and again.label_tier == "static"
    assert torch.equal(again.soft_labels, soft)
    images, labels, flat, _ = again.decoded()
    assert torch.equal(flat, soft.reshape(4 * v, 2)) and len(images) == len(labels) == 4 * v
    assert torch.equal(flat[v + 1], soft[1, 1])  # the second tile of the second image


def test_files_of_other_sets_keep_their_format(syn, told):
    versions = [exact.facts_of(s)["version"] for s in (syn, repeated(told), told)]
    assert versions == [1, 1, 4]


def test_everyone_who_decodes_sees_one_label_per_tile(told, tmp_path):
    from datasets import load_dataset

    place = told.save(tmp_path / "a")
    rows = load_dataset(str(place), split="train", cache_dir=str(tmp_path / "hf"))
    assert len(rows) == 16 and rows.features["soft_label"].length == 2
    found = torch.tensor(rows["soft_label"][:])
    assert torch.equal(found, told.soft_labels.flatten(0, 1))
    assert len(potstill.load(place)) == 16 and len([*place.glob("images/*/*.png")]) == 16
    view = told.quantized()
    assert torch.equal(view.soft_labels, found) and view.decode == {"kind": "pixels"}
    assert view.nbytes > 3 * told.nbytes  # what is saved by keeping the stored canvas
    assert torch.equal(synthetic_examples(told).targets, found)


def test_the_cards_lines_run(told, tmp_path):
    place = told.save(tmp_path / "a")
    text = (place / "README.md").read_text()
    assert "static: one stored soft label per training image" in text
    other = repeated(told).save(tmp_path / "b")
    assert "static: one stored soft label per image" in (other / "README.md").read_text()
    (code,) = re.findall(r"```python\n(from potstill import SyntheticSet.*?)```", text, re.S)
    known: dict = {}
    exec(code.replace('load("a")', f"load({str(place)!r})"), known)
    assert torch.equal(known["soft_labels"], told.soft_labels.flatten(0, 1))
    assert known["inputs"].shape == (16, 1, 8, 8)


def test_the_start_and_iterates_know_them(told, tmp_path):
    soft = told.soft_labels.flip(0)
    own = started(told, kept({"images": told.images.flip(0), "soft_labels": soft}))
    again = SyntheticSet.load(own.save(tmp_path / "a"))
    torch.testing.assert_close(again.start.soft_labels, soft, atol=1e-3, rtol=0)
    assert again.start.decoded()[2].shape == (16, 2)
    path = save_iterate(tmp_path, 3, told.images, soft)
    assert torch.equal(load_iterate(path, told).soft_labels, soft)
    with pytest.raises(ArtifactError, match=r"its soft labels are \(4, 4, 2\)"):
        load_iterate(path, repeated(told))


def test_students_learn_them(told, real, make_blobs, run):
    """A tile's own label teaches something else than the mean of its image's tiles."""
    test = make_blobs((6, 6), seed=1)
    protocol = PROTOCOLS["quick"].with_(epochs=4, batch=8, augment="color_crop")
    how = {"protocol": protocol, "network": "mlp-w8", "runs": 1, "run": run}
    (own,) = evaluate(told, real, test, **how)
    assert own.label_tier == "static" and own.receiver_bytes == told.nbytes
    flat = replace(
        told, images=told.decoded()[0], labels=told.decoded()[1], decode=canvas_spec(),
        soft_labels=told.soft_labels.flatten(0, 1),
    )  # fmt: skip
    (same,) = evaluate(flat, real, test, **how, baseline=False, quantized=False)
    assert own.accuracy == same.accuracy and same.receiver_bytes > 3 * own.receiver_bytes


def test_confidence_is_of_all_tiles_of_a_class(told):
    counts, names = [5, 4], ["a", "b"]
    flat = label_confidence(
        told.soft_labels.flatten(0, 1), told.labels.repeat_interleave(4), counts, names
    )
    assert label_confidence(told.soft_labels, told.labels, counts, names) == flat


@pytest.mark.parametrize(
    ("soft", "match"),
    [
        (torch.full((4, 3, 2), 0.5), r"\(4, 3, 2\); float32 \(4, 2\) or, .* \(4, 4, 2\)"),
        (torch.full((4, 4, 3), 1 / 3), "soft_labels has type"),
        (torch.full((4, 4, 2), 0.4), "not probabilities"),
        (torch.full((4, 4, 2), 0.5).index_fill_(1, torch.tensor([3]), -0.5), "not probabilities"),
        (
            torch.tensor([0.25, 0.75]).repeat(4, 2, 1).repeat_interleave(2, 2).reshape(4, 4, 2),
            "not probabilities",
        ),  # tiles that sum to 0.5 and to 1.5
        (torch.full((4, 0, 2), 0.5), "soft_labels has type"),
    ],
)
def test_labels_that_do_not_fit_are_refused(told, tmp_path, soft, match):
    """In Python, and with a right checksum in a file: somebody has written it so."""
    from safetensors.torch import save

    with pytest.raises(InputError, match=match):
        replace(told, soft_labels=soft)
    place = told.save(tmp_path / "a")
    tensors = exact.tensors_of(told) | {"soft_labels": soft.contiguous()}
    facts = exact.facts_of(told)
    facts["checksum"] = exact.checksum(tensors, facts)
    Path(place / "synthetic.safetensors").write_bytes(
        save(tensors, metadata={"potstill": json.dumps(facts, sort_keys=True)})
    )
    with pytest.raises(ArtifactError, match=r"synthetic\.safetensors: .*" + match):
        SyntheticSet.load(place)


def test_a_header_of_another_rank_is_refused_before_it_is_read(told, tmp_path):
    from safetensors.torch import save

    place = told.save(tmp_path / "a")
    tensors = exact.tensors_of(told)
    tensors["soft_labels"] = tensors["soft_labels"][None]
    facts = exact.facts_of(told)
    facts["checksum"] = exact.checksum(tensors, facts)
    Path(place / "synthetic.safetensors").write_bytes(
        save(tensors, metadata={"potstill": json.dumps(facts, sort_keys=True)})
    )
    with pytest.raises(ArtifactError, match="F32 of rank 2 or 3 is expected"):
        SyntheticSet.load(place)


def test_a_pixel_set_has_no_tiles(told):
    with pytest.raises(InputError, match=r"\(4, 1, 2\) is expected"):
        replace(told, decode=canvas_spec())
