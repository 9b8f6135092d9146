"""The student's step size, which is learned and never zero."""

import pytest
import torch

from potstill.methods.trajectory.step_size import StepSize


@pytest.mark.parametrize("first", [0.02, 1e-4, 3.0])
def test_it_begins_as_said_and_steps_on_it_are_additive_as_published(first):
    size = StepSize(first, "cpu")
    assert size().item() == pytest.approx(first, rel=1e-5)
    assert size.leaf.requires_grad and size.leaf.shape == ()
    before = size().item()
    with torch.no_grad():
        size.leaf.add_(2.5 * first)
    assert size().item() == pytest.approx(before + 2.5 * first, rel=1e-4)


def test_its_slope_is_one_where_it_begins_and_it_never_becomes_zero():
    size = StepSize(0.02, "cpu")
    size().backward()
    assert size.leaf.grad.item() == pytest.approx(1.0, rel=1e-3)
    for down in (0.02, 1.0, 30.0, 1e6):
        with torch.no_grad():
            size.leaf.sub_(down)
        assert size().item() >= 0.02 * 1e-3 * (1 - 1e-6)
