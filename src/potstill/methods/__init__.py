"""The catalogue: one published method per file.

A new method is one import and one entry here (see CONTRIBUTING.md).
"""

from potstill.methods.base import BUDGETS, Matcher, Method, MethodInfo, Selector
from potstill.methods.centroids import Centroids
from potstill.methods.csdm import CSDM
from potstill.methods.datm import DATM
from potstill.methods.distribution import DistributionMatcher
from potstill.methods.dm import DM
from potstill.methods.frozen import BackboneMatcher
from potstill.methods.ftd import FTD
from potstill.methods.lad import LAD
from potstill.methods.lgm import LGM
from potstill.methods.m3d import M3D
from potstill.methods.mosaic import Mosaic
from potstill.methods.mtt import MTT
from potstill.methods.ncfm import NCFM
from potstill.methods.neighbours import Neighbours
from potstill.methods.random import Random
from potstill.methods.sdm import SDM
from potstill.methods.sfm import SFM
from potstill.methods.tesla import TESLA
from potstill.methods.trajectory import TrajectoryMatcher
from potstill.run import InputError, nearest

__all__ = [
    "BUDGETS",
    "CATALOGUE",
    "CSDM",
    "DATM",
    "DM",
    "FTD",
    "LAD",
    "LGM",
    "M3D",
    "MTT",
    "NCFM",
    "SDM",
    "SFM",
    "TESLA",
    "BackboneMatcher",
    "Centroids",
    "DistributionMatcher",
    "Matcher",
    "Method",
    "MethodInfo",
    "Mosaic",
    "Neighbours",
    "Random",
    "Selector",
    "TrajectoryMatcher",
    "find",
]

CATALOGUE: dict[str, type[Method]] = {
    method.info.name: method
    for method in (
        Random,
        Mosaic,
        Centroids,
        Neighbours,
        DM,
        M3D,
        NCFM,
        SDM,
        CSDM,
        MTT,
        FTD,
        TESLA,
        DATM,
        LAD,
        LGM,
        SFM,
    )
}


def find(name: str) -> type[Method]:
    """Return the method class of a command-line name; an unknown name suggests the nearest."""
    if name.lower() not in CATALOGUE:
        raise InputError(f"method is {name!r}{nearest(name, CATALOGUE)}")
    return CATALOGUE[name.lower()]
