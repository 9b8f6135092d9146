"""Real data: one typed set of images, many sources, long tails, fitted transforms."""

from potstill.data.augment import DSA
from potstill.data.images import ImageSet
from potstill.data.longtail import draw_positions, long_tail_indices, profile_counts
from potstill.data.reading import Reading
from potstill.data.sources import load, load_pair
from potstill.data.transform import ZCA, Normalize, transform_from

__all__ = [
    "DSA",
    "ImageSet",
    "Reading",
    "load",
    "load_pair",
    "draw_positions",
    "long_tail_indices",
    "profile_counts",
    "Normalize",
    "ZCA",
    "transform_from",
]
