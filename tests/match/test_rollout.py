"""Graphs that are measured are freed like any other."""

import weakref

import torch

from potstill.match.rollout import saved_bytes


def measured():
    x = torch.randn(1000, requires_grad=True)
    built, held = saved_bytes(lambda: x.sigmoid())  # its node keeps its own output
    assert held == 4000
    slope = torch.autograd.grad(built.sum(), x, create_graph=True)[0]
    torch.testing.assert_close(slope, built * (1 - built))
    return weakref.ref(x)


def test_a_measured_graph_is_freed_with_its_result():
    assert measured()() is None
