"""Labels of a canvas: hard, soft, set by a teacher, regression targets."""

import pytest
import torch

from potstill.canvas import Canvas, canvas_spec
from potstill.labels import Hard, Regression, Soft, TeacherLabels
from potstill.methods import DATM, MTT
from potstill.run import InputError
from potstill.run.descent import Rate

RIGHT = torch.tensor([[1.0, 0], [1, 0], [0, 1], [0, 1]])


def canvas(factor=1):
    images = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    return Canvas(images, torch.tensor([0, 0, 1, 1]), 2, canvas_spec(factor))


def certain(own, start):
    """Networks with an opinion that names how it was asked for."""
    return torch.full((4, 2), {"right": 0.0, "one": 1.0}[start])


def test_hard_labels_are_the_classes_and_nothing_is_learned():
    labels = Hard().make(canvas(), certain)
    assert torch.equal(labels.targets(), RIGHT) and labels.targets().dtype == torch.float32
    assert labels.leaves() == {} and labels.outcome() == {} and not Hard().rates
    assert not Hard().judged


def test_soft_labels_are_probabilities_of_logits_that_are_learned():
    logits = torch.randn(4, 2, generator=torch.Generator().manual_seed(1))
    labels = Soft().make(canvas(), lambda own, start: logits)
    assert torch.allclose(labels.targets(), logits.exp() / logits.exp().sum(1, keepdim=True))
    assert set(labels.leaves()) == {"logits"} and labels.leaves()["logits"].requires_grad
    labels.targets()[:, 0].sum().backward()
    p = logits.softmax(1)
    slopes = torch.stack([p[:, 0] * p[:, 1], -p[:, 0] * p[:, 1]], 1)
    torch.testing.assert_close(labels.leaves()["logits"].grad, slopes)
    with torch.no_grad():
        labels.leaves()["logits"].zero_()
    assert torch.equal(labels.targets(), torch.full((4, 2), 0.5))
    assert not torch.equal(logits, torch.zeros(4, 2))  # what was given is not touched
    (name,) = labels.outcome()
    assert name == "soft_labels" and not labels.outcome()[name].requires_grad
    rates = Soft(lr_labels=3.0, momentum_labels=0.25).rates
    assert rates == {"logits": Rate("lr_labels", 3.0, 0.25)}


@pytest.mark.parametrize(("start", "value"), [("right", 0.0), ("one", 1.0)])
def test_soft_labels_begin_as_networks_have_them(start, value):
    assert Soft(label_start=start).judged
    labels = Soft(label_start=start).make(canvas(), certain)
    assert torch.equal(labels.leaves()["logits"], torch.full((4, 2), value))


@pytest.mark.parametrize(("start", "asked"), [("hard", certain), ("right", None)])
def test_soft_labels_begin_as_the_class_where_nobody_is_asked(start, asked):
    labels = Soft(label_start=start).make(canvas(), asked)
    assert torch.equal(labels.targets().argmax(1), RIGHT.argmax(1))
    assert 0.9 < float(labels.targets().max()) < 1 and labels.leaves()["logits"].requires_grad
    assert not Soft(label_start="hard").judged


def test_labels_of_a_teacher_are_set_and_not_learned():
    labels = TeacherLabels().make(canvas(), certain)
    assert not labels.leaves()["logits"].requires_grad and not TeacherLabels().rates
    opinion = torch.randn(4, 2, generator=torch.Generator().manual_seed(2))
    labels.set_(opinion)
    assert torch.equal(labels.leaves()["logits"], opinion)
    assert torch.equal(labels.targets(), opinion.softmax(1))
    assert torch.equal(labels.outcome()["soft_labels"], opinion.softmax(1))


def test_tiles_share_the_label_of_their_image():
    labels = TeacherLabels().make(canvas(factor=2))
    assert labels.stored().shape == (4, 2) and labels.targets().shape == (16, 2)
    opinion = torch.randn(16, 2, generator=torch.Generator().manual_seed(3))
    labels.set_(opinion)
    for image in range(4):
        own = opinion[4 * image : 4 * image + 4]
        torch.testing.assert_close(labels.leaves()["logits"][image], own.mean(0))
        expected = own.mean(0).softmax(0).expand(4, 2)
        torch.testing.assert_close(labels.targets()[4 * image : 4 * image + 4], expected)
    assert len(labels.outcome()["soft_labels"]) == 4
    hard = Hard().make(canvas(factor=2)).targets()
    assert torch.equal(hard, RIGHT.repeat_interleave(4, dim=0))


def test_regression_targets_are_centred_one_hot_rows():
    fixed, learned = Regression().make(canvas()), Regression(learn_labels=True).make(canvas())
    assert torch.equal(fixed.targets(), torch.tensor([[0.5, -0.5]] * 2 + [[-0.5, 0.5]] * 2))
    assert torch.equal(fixed.targets(), RIGHT - 1 / 2)
    assert not fixed.leaves()["targets"].requires_grad
    learned.targets().square().sum().backward()
    assert torch.equal(learned.leaves()["targets"].grad, 2 * (RIGHT - 1 / 2))
    assert set(learned.outcome()) == {"regression_targets"}
    assert Regression(lr_targets=0.5).rates == {"targets": Rate("lr_targets", 0.5)}


@pytest.mark.parametrize(
    ("kind", "fields", "sentence"),
    [
        (DATM, {"label_start": "left"}, "label_start is 'left'"),
        (DATM, {"lr_labels": 0.0}, "lr_labels is 0.0"),
        (DATM, {"momentum_labels": 1.0}, "momentum_labels is 1.0"),
        (MTT, {"labels": "softer"}, "labels is 'softer'; did you mean 'soft'"),
    ],
)
def test_bad_labels_are_named(kind, fields, sentence):
    with pytest.raises(InputError, match=sentence):
        kind.budget("quick", **fields).check()
