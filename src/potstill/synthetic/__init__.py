"""What a method returns and a receiver trains on: the synthetic set and its folder on disk."""

from potstill.synthetic.artifact import SyntheticSet
from potstill.synthetic.eight_bit import grid
from potstill.synthetic.iterates import list_iterates, load_iterate, save_iterate

__all__ = ["SyntheticSet", "grid", "list_iterates", "load_iterate", "save_iterate"]
