"""Optimal transport to few centres against every assignment there is."""

from itertools import permutations

import pytest
import torch

from potstill.match.transport import barycentre, transport_plan


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def cost(plan, points, centres):
    return float((plan / len(centres) * torch.cdist(centres, points).square()).sum())


@pytest.mark.parametrize("k", [1, 2, 3, 6])
def test_a_plan_is_the_best_of_all_even_assignments(k):
    points, centres = draw(6, 2), 2 * draw(k, 2, seed=1)
    plan = transport_plan(points, centres)
    assert plan.sum(1) == pytest.approx([1] * k) and plan.sum(0) == pytest.approx([k / 6] * 6)
    seats = [c for c in range(k) for _ in range(6 // k)]
    each = [
        sum(
            float((points[p] - centres[c]).square().sum())
            for p, c in zip(order, seats, strict=True)
        )
        / 6
        for order in permutations(range(6))
    ]
    assert cost(plan, points, centres) == pytest.approx(min(each))


def test_a_point_is_divided_where_centres_cannot_have_equally_many():
    points, centres = torch.tensor([[0.0], [1.0], [5.0]]), torch.tensor([[0.0], [5.0]])
    plan = transport_plan(points, centres)
    expected = torch.tensor([[2 / 3, 1 / 3, 0], [0, 1 / 3, 2 / 3]], dtype=torch.float64)
    torch.testing.assert_close(plan, expected)


def test_a_barycentre_rests_and_is_no_worse_than_its_start():
    points, start = draw(30, 3), draw(4, 3, seed=2)
    plan = barycentre(points, start)
    centres = plan @ points
    again = transport_plan(points, centres) @ points
    torch.testing.assert_close(again, centres, atol=1e-3, rtol=0)
    assert cost(plan, points, centres) < cost(transport_plan(points, start), points, start)
    assert not torch.allclose(barycentre(points, start, rounds=1) @ points, centres)
    equal = barycentre(torch.ones(5, 2), draw(3, 2))
    torch.testing.assert_close(equal @ torch.ones(5, 2).double(), torch.ones(3, 2).double())
