"""The catalogue: one published method per file.

A new method is one import and one entry here (see CONTRIBUTING.md).
"""

from potstill.methods.base import BUDGETS, Matcher, Method, MethodInfo, Selector
from potstill.methods.csdm import CSDM
from potstill.methods.distribution import DistributionMatcher
from potstill.methods.dm import DM
from potstill.methods.m3d import M3D
from potstill.methods.mosaic import Mosaic
from potstill.methods.ncfm import NCFM
from potstill.methods.random import Random
from potstill.methods.sdm import SDM
from potstill.run import InputError, nearest

__all__ = [
    "BUDGETS",
    "CATALOGUE",
    "CSDM",
    "DM",
    "M3D",
    "NCFM",
    "SDM",
    "DistributionMatcher",
    "Matcher",
    "Method",
    "MethodInfo",
    "Mosaic",
    "Random",
    "Selector",
    "find",
]

CATALOGUE: dict[str, type[Method]] = {
    method.info.name: method for method in (Random, Mosaic, DM, M3D, NCFM, SDM, CSDM)
}


def find(name: str) -> type[Method]:
    """Return the method class of a command-line name; an unknown name suggests the nearest."""
    if name.lower() not in CATALOGUE:
        raise InputError(f"method is {name!r}{nearest(name, CATALOGUE)}")
    return CATALOGUE[name.lower()]
