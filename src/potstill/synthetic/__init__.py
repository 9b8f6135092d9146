"""What a method returns and a receiver trains on: the synthetic set and its folder on disk."""

from potstill.synthetic.artifact import SyntheticSet
from potstill.synthetic.eight_bit import grid
from potstill.synthetic.iterates import list_iterates, load_iterate, save_iterate
from potstill.synthetic.ready_made import distilled_names, load_distilled

__all__ = [
    "SyntheticSet",
    "distilled_names",
    "grid",
    "list_iterates",
    "load_distilled",
    "load_iterate",
    "save_iterate",
]
