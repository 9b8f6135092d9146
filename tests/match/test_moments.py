"""Distance of means."""

import torch

from potstill.match.moments import mean_distance


def test_squared_distance_of_each_row():
    a = torch.tensor([[0.0, 0.0], [1.0, 2.0]])
    b = torch.tensor([[3.0, 4.0], [1.0, 2.0]])
    assert mean_distance(a, b).tolist() == [25.0, 0.0]
