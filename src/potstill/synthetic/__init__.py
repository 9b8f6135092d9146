"""What a method returns and a receiver trains on: the synthetic set and its folder on disk."""

from potstill.synthetic.artifact import SyntheticSet
from potstill.synthetic.iterates import list_iterates, load_iterate, save_iterate
from potstill.synthetic.pictures import grid

__all__ = ["SyntheticSet", "grid", "list_iterates", "load_iterate", "save_iterate"]
