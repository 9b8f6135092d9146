"""What a method returns and a receiver trains on: the synthetic set and its folder on disk."""

from potstill.synthetic.artifact import SyntheticSet
from potstill.synthetic.pictures import grid

__all__ = ["SyntheticSet", "grid"]
