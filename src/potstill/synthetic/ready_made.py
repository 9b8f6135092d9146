"""Sets that come with the package: 8-bit tensors and provenance in ``potstill/distilled/NAME``.

They are package data, so they are there wherever potstill was installed from, without a network.
``benchmarks/ship.py`` puts them there, from runs that a recipe has measured.
"""

from __future__ import annotations

from pathlib import Path

from potstill.run import InputError, nearest
from potstill.synthetic.artifact import SyntheticSet
from potstill.synthetic.artifact_folder import TENSORS

__all__ = ["distilled_names", "load_distilled"]

_PLACE = Path(__file__).parents[1] / "distilled"


def distilled_names() -> list[str]:
    """Return the names that :func:`load_distilled` takes."""
    return sorted(path.parent.name for path in _PLACE.glob(f"*/{TENSORS}"))


def load_distilled(name: str) -> SyntheticSet:
    """Return a set that comes with potstill; its ``provenance["shipped"]`` says what it reached.

    Args:
        name: METHOD-DATA-ltFACTOR-ipcN, one of :func:`distilled_names`.

    Raises:
        InputError: there is no such set. ArtifactError: its files are damaged.

    Example:
        >>> syn = potstill.load_distilled("csdm-digits-lt50-ipc10")
        >>> len(syn), syn.bits
        (100, 8)
    """
    known = distilled_names()
    if name not in known:
        raise InputError(f"name is {name!r}{nearest(name, known)}")
    return SyntheticSet.load(_PLACE / name)
