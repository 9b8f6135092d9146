"""One budget: its shares."""

from __future__ import annotations

import pytest

from potstill.run import Run
from potstill.run.memory import Budget


@pytest.mark.parametrize("memory_gb", [4.0, 3.7, 1e-3, 1e-9])
def test_shares_are_what_each_had_by_itself(memory_gb):
    budget = Run(device="cpu", memory_gb=memory_gb).budget
    assert budget == Budget(memory_gb)
    assert budget.images == budget.lockstep == int(1e9 * memory_gb)
    assert budget.step == budget.kept == int(0.5e9 * memory_gb)
    assert budget.links == budget.mapped == budget.beside == int(0.25e9 * memory_gb)
    assert budget.real_pass == int(0.125e9 * memory_gb)
    assert budget.decoding == int(memory_gb * 1e9) // 16
