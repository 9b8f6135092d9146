"""Which parts go together: every pairing that a method names works, every other is refused."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

import pytest
import torch
from tests.test_contract import TINY

from potstill.methods import CATALOGUE, Matcher, find
from potstill.run import InputError

SIZE = 16  # of which tiles of factor 2 and 3 can be cut
MATCHERS = {name: kind for name, kind in CATALOGUE.items() if issubclass(kind, Matcher)}
ROOMS = ("canvas", "labels", "networks")


def kinds_of(kind: type[Matcher], room: str) -> list[str]:
    """The kinds that a method names for one of its parts, as far as they exist."""
    there = getattr(kind(), room).kinds
    return [name for name in kind.pairs[room] if name in there]


def tiny(kind: type[Matcher], **chosen: Any) -> Any:
    """A method of these kinds that takes a second."""
    start = {"start": "real"} if chosen.get("canvas", "pixels") != "pixels" else {}
    weight = {"calibration": 0.0} if chosen.get("networks") == "random" else {}
    weight |= {"network": "convnet-d2-w8-bn"} if kind.info.name == "wmdd" else {}
    wanted = TINY | {"steps": 2, "preprocess": "normalize"} | start | weight | chosen
    known = kind.budget("quick", **chosen).fields()
    return kind.budget("quick", **{k: v for k, v in wanted.items() if k in known})


def pairings() -> Iterator[tuple[str, dict[str, Any]]]:
    """Every method with every canvas and labels it names, tiles with factors 2 and 3."""
    for name, kind in MATCHERS.items():
        for canvas, labels in product(kinds_of(kind, "canvas"), kinds_of(kind, "labels")):
            tiled = "factor" in kind.budget("quick", canvas=canvas).fields()
            divides = (2, 4) if canvas == "subsampled" else (2, 3)
            for factor in divides if tiled else (0,):
                more = {"factor": factor} if factor else {}
                yield name, {"canvas": canvas, "labels": labels, **more}
        for networks in kinds_of(kind, "networks")[1:]:
            moves = name in ("dm", "mim4dd") and networks in ("evolving", "queue")
            fresh = {"real_side": "fresh"} if moves else {}
            yield name, {"networks": networks, **fresh}


def named(value: Any) -> str:
    return value if isinstance(value, str) else "-".join(map(str, value.values()))


@pytest.mark.parametrize(("name", "chosen"), list(pairings()), ids=named)
def test_a_pairing_that_a_method_names_makes_images(name, chosen, make_blobs, run):
    if name == "lad" and chosen.get("labels") == "teacher":
        chosen = chosen | {"matching": "plain"}  # its experts are decoupled otherwise
    real = make_blobs((10, 6, 5), channels=3, size=SIZE)
    method = tiny(CATALOGUE[name], **chosen)
    method.check(real)
    syn = method(real, 1, run)
    assert syn.images.shape == (3, 3, SIZE, SIZE) and torch.isfinite(syn.images).all()
    images, labels, _, _ = syn.decoded()
    assert torch.isfinite(images).all() and len(images) == len(labels)
    per = {
        "tiled": lambda f: f * f,
        "multi-formation": lambda f: sum(k * k for k in range(1, f + 1)),
        "subsampled": lambda f: 2 * f * f,
    }
    views = per.get(chosen.get("canvas", ""), lambda f: 1)(chosen.get("factor", 1))
    if "canvas" in chosen and chosen["canvas"] != "frequency":
        assert len(images) == 3 * views
    if "labels" in chosen:
        assert (syn.soft_labels is not None) == (chosen["labels"] in ("soft", "teacher", "taught"))


def unnamed() -> Iterator[tuple[str, str, str]]:
    """Every kind that exists and that a method does not name."""
    for name, kind in MATCHERS.items():
        for room in ROOMS:
            there = getattr(kind(), room).kinds
            yield from ((name, room, other) for other in there if other not in kind.pairs[room])


@pytest.mark.parametrize(("name", "room", "other"), list(unnamed()))
def test_a_pairing_that_a_method_does_not_name_is_one_sentence(name, room, other, make_blobs, run):
    method, real = CATALOGUE[name].budget("quick", **{room: other}), make_blobs((4, 3))
    for refused in (method.check, lambda: method.check(real), lambda: method(real, 1, run)):
        with pytest.raises(InputError) as caught:
            refused()
        said = str(caught.value)
        assert said.startswith(f"{room} is {other!r}, of which {name} can make nothing; use ")
        assert "\n" not in said and said.count(";") == 1
        assert all(kind in said for kind in CATALOGUE[name].pairs[room])


def test_every_method_names_its_pairings_and_begins_with_the_first_that_fits():
    for kind in MATCHERS.values():
        assert set(kind.pairs) == set(ROOMS)
        for room in ROOMS:
            assert getattr(kind(), room).kind in kind.pairs[room]
    assert len(list(unnamed())) > 3 * len(MATCHERS)


@pytest.mark.parametrize("name", ["dc", "dsa", "kip", "frepo", "idc"])
def test_pixels_that_are_to_stay_in_bounds_do(name, make_blobs, run):
    """Behind a transform 0-1 means nothing, so such a canvas stays in front of it."""
    real = make_blobs((8, 5), channels=3, size=16)
    kind = find(name)
    chosen = {"canvas": "pixels", "bounded": True, "lr_images": 5.0, "preprocess": "normalize"}
    made = tiny(kind, **chosen)(real, 1, run)
    assert made.images.min() >= 0 and made.images.max() <= 1
    free = tiny(kind, **chosen | {"bounded": False})(real, 1, run)
    assert free.images.min() < 0 or free.images.max() > 1


def test_a_learned_matrix_has_no_bounds():
    with pytest.raises(InputError, match="bounded is True with learn_mixing"):
        find("rfad").budget("quick", bounded=True).check()
    find("rfad").budget("quick", bounded=True, learn_mixing=False).check()
