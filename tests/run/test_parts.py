"""Methods as flat tables of their parts: kinds, fields, refusals and the way back."""

import dataclasses
from dataclasses import dataclass
from typing import Annotated

import pytest

from potstill.canvas import MultiFormation, Pixels, Pyramid, Tiled
from potstill.labels import Hard, Soft, TeacherLabels
from potstill.methods import CATALOGUE, CSDM, DATM, DM, LGM, MTT, SDM, Mosaic
from potstill.networks import PoolNets, RandomNets
from potstill.run import InputError
from potstill.run.fields import OneOf, Range
from potstill.run.parts import Part, changed, check_parts, flat, flat_hints, parts_of


@dataclass(frozen=True, kw_only=True)
class Colour(Part, room=True):
    """A room with two kinds."""

    share: Annotated[float, Range(0, 1)] = 0.5


@dataclass(frozen=True, kw_only=True)
class Red(Colour, kind="red"):
    depth: int = 1


@dataclass(frozen=True, kw_only=True)
class Blue(Colour, kind="blue"):
    width: int = 2

    def check(self, method, real=None):
        if method.size == self.width:
            raise InputError(f"width is {self.width}, which is the size; use width=0")


@dataclass(frozen=True, kw_only=True)
class Frame(Part):
    """A part of one kind."""

    edge: int = 3


@dataclass(frozen=True, kw_only=True)
class Picture:
    colour: Colour = Red()
    frame: Frame = Frame()
    size: int = 4


def test_the_table_has_kinds_and_fields_beside_each_other():
    assert flat(Picture()) == {"colour": "red", "share": 0.5, "depth": 1, "edge": 3, "size": 4}
    assert list(flat(Picture())) == ["colour", "share", "depth", "edge", "size"]
    assert [name for name, _ in parts_of(Picture())] == ["colour", "frame"]
    hints = flat_hints(Picture(colour=Blue()))
    assert list(hints) == ["colour", "share", "width", "edge", "size"]
    (bound,) = [mark for mark in hints["colour"].__metadata__ if isinstance(mark, OneOf)]
    assert bound.choices == ("red", "blue")


def test_a_kind_is_changed_and_shared_fields_are_carried_over():
    before = Picture(colour=Red(share=0.25, depth=7))
    after = changed(before, {"colour": "blue"})
    assert after == Picture(colour=Blue(share=0.25, width=2)) and type(after.colour) is Blue
    assert before.colour == Red(share=0.25, depth=7)  # nothing is changed in place
    assert changed(before, {"colour": "red"}).colour is not None
    assert changed(before, {"colour": "red"}) == before  # its own kind: nothing is forgotten
    moved = changed(before, {"width": 9, "colour": "blue", "edge": 1, "size": 2})
    assert moved == Picture(colour=Blue(share=0.25, width=9), frame=Frame(edge=1), size=2)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"colour": "rad"}, "colour is 'rad'; did you mean 'red'?"),
        ({"width": 3}, "Picture has no field 'width' with colour 'red'; use colour=blue"),
        ({"edgy": 3}, "Picture has no field 'edgy'; did you mean 'edge'?"),
        ({"colour": "blue", "depth": 3}, "with colour 'blue'; use colour=red"),
    ],
)
def test_what_there_is_not_is_one_sentence(values, sentence):
    with pytest.raises(InputError) as caught:
        changed(Picture(), values)
    assert sentence in str(caught.value) and "\n" not in str(caught.value)


def test_bad_values_anywhere_are_refused_and_then_what_does_not_go_together():
    check_parts(Picture())
    with pytest.raises(InputError, match="share is 2; use a number from 0 to 1"):
        check_parts(Picture(colour=Red(share=2)))
    with pytest.raises(InputError, match="edge is 'wide'; use a whole number"):
        check_parts(Picture(frame=Frame(edge="wide")))
    with pytest.raises(InputError, match="width is 4, which is the size; use width=0"):
        check_parts(Picture(colour=Blue(width=4)))


def test_equal_parts_are_equal_values():
    assert Red(depth=2) == Red(depth=2) != Red(depth=3)
    assert Red() != Blue() and hash(Red()) == hash(Red())
    with pytest.raises(dataclasses.FrozenInstanceError):
        Red().depth = 4


@pytest.mark.parametrize(
    ("name", "size"), [(n, size) for n, kind in CATALOGUE.items() for size in kind.budgets()]
)
def test_a_method_comes_back_from_its_flat_table(name, size):
    method = CATALOGUE[name].budget(size)
    assert CATALOGUE[name].budget("paper", **method.fields()) == method
    assert CATALOGUE[name].budget("quick", **method.fields()) == method
    assert all(isinstance(v, int | float | str | bool) for v in method.fields().values())
    for room, kinds in getattr(method, "pairs", {}).items():
        for kind in kinds:
            if kind in getattr(method, room).kinds:
                other = method.with_(**{room: kind})
                assert getattr(other, room).kind == kind
                assert CATALOGUE[name].budget("paper", **other.fields()) == other


def test_kinds_of_real_methods_carry_over_what_they_share():
    method = CSDM.budget("paper", factor=3, bounded=False, shortage="noise")
    multi = method.with_(canvas="multi-formation")
    assert multi.canvas == MultiFormation(factor=3, bounded=False, shortage="noise")
    plain = multi.with_(canvas="pixels", start="real")
    assert plain.canvas == Pixels(start="real", bounded=False, shortage="noise")
    assert "factor" not in plain.fields()
    assert SDM.budget("paper", network="mlp-w8", networks="random").networks == RandomNets(
        network="mlp-w8"
    )
    assert DM.budget("paper", networks="pool").networks == PoolNets()
    assert MTT.budget("paper", labels="soft", lr_labels=3.0).labels == Soft(lr_labels=3.0)
    assert DATM.budget("paper", labels="hard").labels == Hard()
    assert MTT.budget("paper", labels="teacher").labels == TeacherLabels()
    assert LGM.budget("paper", canvas="tiled", factor=2).canvas == Tiled(factor=2)
    assert LGM.budget("quick").canvas == Pyramid(grow_every=40)


def test_what_a_budget_says_of_another_kind_is_left_out():
    quick = LGM.budget("quick", canvas="pixels")  # grow_every is a pyramid's
    assert quick.canvas == Pixels() and quick.descent.steps == 500
    assert DM.budget("quick", networks="pool").networks.network == "convnet-w32-in"
    random = SDM.budget("quick", networks="random", calibration=0.0)
    assert random.networks == RandomNets(network="convnet-w32-in")


@pytest.mark.parametrize(
    ("kind", "fields", "sentence"),
    [
        (CSDM, {"canvas": "tilde"}, "canvas is 'tilde'; did you mean 'tiled'?"),
        (DM, {"factor": 2}, "dm has no field 'factor' with canvas 'pixels'; use canvas=tiled"),
        (DM, {"members": 2}, "dm has no field 'members' with networks 'random'; use networks=pool"),
        (MTT, {"lr_labels": 1.0}, "with labels 'hard'; use labels=soft"),
        (CSDM, {"alpha_heat": 0.3}, "csdm has no field 'alpha_heat'; did you mean 'alpha_head'?"),
        (Mosaic, {"canvas": "tiled"}, "mosaic has no field 'canvas'"),
    ],
)
def test_a_method_names_what_it_has_not(kind, fields, sentence):
    with pytest.raises(InputError) as caught:
        kind.budget("paper", **fields)
    assert sentence in str(caught.value)
    with pytest.raises(InputError) as caught:
        kind().with_(**fields)
    assert sentence in str(caught.value)


@pytest.mark.parametrize("name", CATALOGUE)
def test_a_budget_names_fields_that_some_kind_of_part_has(name):
    """What a budget says of a part of another kind is left out, so a slip would be, too."""
    method = CATALOGUE[name]()
    known = set(method.fields())
    for _, part in parts_of(method):
        for other in part.kinds.values():
            known |= {field.name for field in dataclasses.fields(other)}
    assert {field for size in method.sizes.values() for field in size} <= known
