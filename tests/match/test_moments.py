"""Distance of means; covariances of channels against loops over images, in float64."""

import pytest
import torch

from potstill.match.moments import channel_products, covariance, mean_distance, shrunken
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
