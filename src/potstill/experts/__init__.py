"""Everything learned or measured on the real data before matching begins."""

from potstill.experts.pool import Pool, train_pool
from potstill.experts.realside import Entry, Eye, RealSide

__all__ = ["Entry", "Eye", "Pool", "RealSide", "train_pool"]
