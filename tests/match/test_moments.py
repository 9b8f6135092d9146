"""Distance of means; covariances of channels against loops over images, in float64."""

import pytest
import torch

from potstill.match.mmd import by_class
from potstill.match.moments import (
    channel_products,
    covariance,
    covariance_distance,
    mean_distance,
    scatter_rows,
    shrunken,
)
from potstill.match.spectral import segment_mean


def test_squared_distance_of_each_row():
    a = torch.tensor([[0.0, 0.0], [1.0, 2.0]])
    b = torch.tensor([[3.0, 4.0], [1.0, 2.0]])
    assert mean_distance(a, b).tolist() == [25.0, 0.0]


def test_covariance_of_channels_is_the_mean_over_centred_images():
    draw = torch.Generator().manual_seed(0)
    maps = torch.randn(9, 3, 5, generator=draw, dtype=torch.float64) + 2
    labels = torch.tensor([0, 1, 0, 1, 1, 0, 0, 1, 1])
    means = segment_mean(maps.flatten(1), labels, 2).view(2, 3, 5)
    products = segment_mean(channel_products(maps).flatten(1), labels, 2).view(2, 3, 3)
    found = covariance(means, products)
    for label in range(2):
        own = [image for image, of in zip(maps, labels, strict=True) if of == label]
        mean = sum(own) / len(own)
        expected = sum((image - mean) @ (image - mean).T for image in own) / len(own)
        torch.testing.assert_close(found[label], expected)


@pytest.mark.parametrize("strength", [0.0, 16.0])
def test_few_images_count_less_beside_the_mean_of_all_classes(strength):
    own = torch.arange(12.0, dtype=torch.float64).view(3, 2, 2)
    counts = [2, 16, 1000]
    found = shrunken(own, torch.tensor(counts), strength)
    for covariance_, got, count in zip(own, found, counts, strict=True):
        share = strength / (strength + count)
        torch.testing.assert_close(got, (1 - share) * covariance_ + share * own.mean(0))


@pytest.mark.parametrize("strength", [0.0, 16.0])
def test_distance_of_covariances_is_that_of_the_matrices(strength):
    draw, classes, dim = torch.Generator().manual_seed(1), 3, 7
    counts, few = (6, 1, 4), (2, 5, 1)
    a = [torch.randn(n, dim, generator=draw, dtype=torch.float64) + 3 for n in counts]
    b = [torch.randn(n, dim, generator=draw, dtype=torch.float64) - 1 for n in few]

    def padded(sets):
        labels = torch.tensor([c for c, one in enumerate(sets) for _ in one])
        return scatter_rows(*by_class(torch.cat(sets), labels, classes))

    theirs, ours = ([x.T.cov() if len(x) > 1 else x.new_zeros(dim, dim) for x in s] for s in (a, b))
    rows, mean = padded(a), sum(theirs) / classes
    share = strength / (strength + torch.tensor(counts).double())
    more = (mean, share) if strength else ()
    found = covariance_distance(rows, padded(b), *more)
    for place in range(classes):
        s = share[place]
        aim = (1 - s) * theirs[place] + s * mean
        torch.testing.assert_close(found[place], ((aim - ours[place]) ** 2).sum())
