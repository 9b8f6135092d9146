"""The catalogue: one published method per file.

A new method is one import and one entry here (see CONTRIBUTING.md).
"""

from potstill.methods.base import BUDGETS, Matcher, Method, MethodInfo
from potstill.methods.bilevel.at_bptt import ATBPTT
from potstill.methods.bilevel.dd import DD
from potstill.methods.bilevel.rat_bptt import RaTBPTT
from potstill.methods.decoupled.cda import CDA
from potstill.methods.decoupled.edc import EDC
from potstill.methods.decoupled.gvbsm import GVBSM
from potstill.methods.decoupled.rldd import RLDD
from potstill.methods.decoupled.sre2l import SRe2L
from potstill.methods.distribution.cafe import CAFE
from potstill.methods.distribution.csdm import CSDM
from potstill.methods.distribution.dm import DM
from potstill.methods.distribution.dsdm import DSDM
from potstill.methods.distribution.idm import IDM
from potstill.methods.distribution.iid import IID
from potstill.methods.distribution.m3d import M3D
from potstill.methods.distribution.mim4dd import MIM4DD
from potstill.methods.distribution.ncfm import NCFM
from potstill.methods.distribution.sdm import SDM
from potstill.methods.distribution.wmdd import WMDD
from potstill.methods.gradient.dc import DC
from potstill.methods.gradient.dream import DREAM
from potstill.methods.gradient.dsa import DSA
from potstill.methods.gradient.idc import IDC
from potstill.methods.kernel.frepo import FRePo
from potstill.methods.kernel.kip import KIP
from potstill.methods.kernel.rfad import RFAD
from potstill.methods.pretrained.lgm import LGM
from potstill.methods.pretrained.sfm import SFM
from potstill.methods.selection.centroids import Centroids
from potstill.methods.selection.dq import DQ
from potstill.methods.selection.dqas import DQAS
from potstill.methods.selection.graphcut import GraphCut
from potstill.methods.selection.herding import Herding
from potstill.methods.selection.kcenter import KCenter
from potstill.methods.selection.mosaic import Mosaic
from potstill.methods.selection.neighbours import Neighbours
from potstill.methods.selection.random import Random
from potstill.methods.selection.rded import RDED
from potstill.methods.selector import Selector
from potstill.methods.trajectory.datm import DATM
from potstill.methods.trajectory.edf import EDF
from potstill.methods.trajectory.ftd import FTD
from potstill.methods.trajectory.lad import LAD
from potstill.methods.trajectory.mtt import MTT
from potstill.methods.trajectory.tesla import TESLA
from potstill.run import InputError, nearest

CATALOGUE: dict[str, type[Method]] = {
    method.info.name: method
    for method in (
        Random,
        Mosaic,
        Centroids,
        Neighbours,
        Herding,
        KCenter,
        GraphCut,
        DQ,
        DQAS,
        RDED,
        DM,
        CAFE,
        IDM,
        IID,
        DSDM,
        MIM4DD,
        WMDD,
        M3D,
        NCFM,
        SDM,
        CSDM,
        MTT,
        FTD,
        TESLA,
        DATM,
        EDF,
        LAD,
        LGM,
        SFM,
        DC,
        DSA,
        IDC,
        DREAM,
        KIP,
        FRePo,
        RFAD,
        DD,
        RaTBPTT,
        ATBPTT,
        SRe2L,
        CDA,
        GVBSM,
        EDC,
        RLDD,
    )
}
__all__ = ["BUDGETS", "CATALOGUE", "Matcher", "Method", "MethodInfo", "Selector", "find"]
__all__ += [kind.__name__ for kind in CATALOGUE.values()]


def find(name: str) -> type[Method]:
    """Return the method class of a command-line name; an unknown name suggests the nearest."""
    if name.lower() not in CATALOGUE:
        raise InputError(f"method is {name!r}{nearest(name, CATALOGUE)}")
    return CATALOGUE[name.lower()]
