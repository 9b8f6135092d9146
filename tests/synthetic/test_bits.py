"""Images stored in a byte per value: exact, a quarter of the bytes, with whatever labels them."""

from dataclasses import replace

import pytest
import torch
from tests.test_contract import build

from potstill.evaluation import receiver_bytes
from potstill.evaluation.examples import synthetic_examples
from potstill.methods import CATALOGUE
from potstill.run import ArtifactError, InputError
from potstill.synthetic import SyntheticSet
from potstill.synthetic import tensors as exact
from potstill.synthetic.iterates import load_iterate, save_iterate
from test_contract import VARIANTS


def test_they_travel_exactly_in_a_quarter_of_the_bytes(syn, tmp_path):
    small = syn.in_bytes()
    assert small.bits == 8 and syn.bits == 32 and small.decode == syn.decode
    assert (small.images - syn.images.clamp(0, 1)).abs().max() <= 0.5 / 255 + 1e-6
    assert syn.nbytes - small.nbytes == 3 * syn.images.numel()
    assert syn.nbytes - small.nbytes == receiver_bytes(syn, "hard") - receiver_bytes(small, "hard")
    again = SyntheticSet.load(small.save(tmp_path / "a"))
    assert again.bits == 8 and torch.equal(again.images, small.images)
    assert again.checksum == small.checksum != replace(small, bits=32).checksum
    assert torch.equal(again.in_bytes().images, small.images)
    assert torch.equal(small.decoded()[0], small.images if small.decode["kind"] == "pixels"
                       else replace(small, bits=32).decoded()[0])  # fmt: skip
    assert exact.facts_of(small)["version"] == 5 and exact.facts_of(syn)["version"] < 5
    soft = torch.full((len(syn), 2), 0.5)
    tiles = replace(small, soft_labels=soft)
    assert SyntheticSet.load(tiles.save(tmp_path / "b")).checksum == tiles.checksum
    seen = synthetic_examples(again).images
    assert torch.equal(seen, synthetic_examples(small).images)


def test_pixels_between_two_bytes_are_refused(syn):
    with pytest.raises(InputError, match="bits is 8, but images has values that are not n / 255"):
        replace(syn, images=torch.full_like(syn.images, 0.5), bits=8)
    with pytest.raises(InputError, match="bits is 7; 8 or 32 is expected"):
        replace(syn, bits=7)


def test_bytes_in_a_file_of_another_format_are_refused(syn, tmp_path, monkeypatch):
    small = syn.in_bytes()
    monkeypatch.setattr(exact, "_version", lambda synthetic: 1)
    place = small.save(tmp_path / "a")
    monkeypatch.undo()
    with pytest.raises(ArtifactError, match="images has type U8"):
        SyntheticSet.load(place)


def test_iterates_of_a_set_in_bytes_are_floats(syn, tmp_path):
    small = replace(syn.in_bytes(), start=None)
    images = small.images + 0.001
    save_iterate(tmp_path, 7, images=images, soft_labels=None, syn_lr=small.syn_lr)
    (path,) = tmp_path.rglob("*.safetensors")
    assert load_iterate(path, small).bits == 32


@pytest.mark.parametrize("name", [n for n in VARIANTS if n in CATALOGUE])
def test_every_method_can_store_them(name, make_blobs, run):
    real = make_blobs((12, 6, 4))
    made = build(name, bits=8, steps=1)(real, 1, run)
    assert (made.bits == 8 and made.start is None) or made.start.bits == 8
    assert (made.images * 255 - (made.images * 255).round()).abs().max() < 1e-4
    assert name != "random" or torch.equal(made.images, build(name)(real, 1, run).images)
