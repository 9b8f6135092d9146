"""The law of the rows, and what orthogonal adds to it."""

import pytest
import torch
from scipy import stats

from potstill.match.frequencies import gaussian_rows, to_cauchy, to_laplace


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_blocks_are_orthogonal_and_the_last_may_be_short():
    rows = gaussian_rows(19, 8, seeded(), orthogonal=True)
    assert rows.shape == (19, 8)
    for block in rows.double().split(8):
        gram = block @ block.T
        off = gram - torch.diag(gram.diagonal())
        assert off.abs().max() < 1e-5 and gram.diagonal().min() > 0
    across = rows[:8] @ rows[8:16].T
    assert across.abs().max() > 0.5  # blocks are independent of each other


@pytest.mark.parametrize("orthogonal", [False, True])
def test_each_row_is_standard_normal(orthogonal):
    blocks, dim = 2000, 3
    rows = gaussian_rows(blocks * dim, dim, seeded(1), orthogonal)
    # By place within a block: QR without its sign correction would bias the diagonal here.
    by_place = rows.view(blocks, dim, dim)
    assert by_place.mean(0).abs().max() < 4.5 / blocks**0.5
    for row in range(dim):
        assert stats.kstest(by_place[:, row].norm(dim=1).numpy(), "chi", args=(dim,)).pvalue > 1e-3
        assert stats.kstest(by_place[:, row, row].numpy(), "norm").pvalue > 1e-3


def test_quantile_maps_are_exact_in_both_tails():
    z = torch.tensor([-5.0, -3.0, -0.5, 0.5, 3.0, 5.0], dtype=torch.float64)
    for mapped, law in ((to_cauchy(z), stats.cauchy), (to_laplace(z), stats.laplace)):
        upper = law.isf(stats.norm.sf(z.abs().numpy()))
        expected = torch.from_numpy(upper) * z.sign()
        torch.testing.assert_close(mapped, expected, rtol=1e-9, atol=0)
    assert torch.isfinite(to_cauchy(torch.tensor([0.0, 5.5]))).all()
