"""potstill: dataset distillation that works on long-tailed images.

    import potstill
    syn = potstill.distill("csdm", "digits", ipc=10, imbalance_factor=50, out="runs/demo")

Names are loaded on first use, so importing the package costs little beyond torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "load": "potstill.data",
    "load_pair": "potstill.data",
    "ImageSet": "potstill.data",
    "Data": "potstill.app.job",
    "distill": "potstill.app.job",
    "cross_validate": "potstill.app.crossval",
    "evaluate": "potstill.evaluation",
    "import_set": "potstill.synthetic.imported",
    "Protocol": "potstill.evaluation",
    "PROTOCOLS": "potstill.evaluation",
    "report": "potstill.reports",
    "SyntheticSet": "potstill.synthetic",
    "backbone_of": "potstill.nets.own",
    "network_of": "potstill.nets.own",
    "load_distilled": "potstill.synthetic",
    "Run": "potstill.run",
    "PotstillError": "potstill.run",
    "InputError": "potstill.run",
    "CATALOGUE": "potstill.methods",
}
_ROOMS = ("canvas", "data", "experts", "losses", "match", "methods", "nets", "run")
__all__ = ["__version__", *_HOMES]

if TYPE_CHECKING:
    from potstill.app.crossval import cross_validate as cross_validate
    from potstill.app.job import Data as Data
    from potstill.app.job import distill as distill
    from potstill.data import ImageSet as ImageSet
    from potstill.data import load as load
    from potstill.data import load_pair as load_pair
    from potstill.evaluation import PROTOCOLS as PROTOCOLS
    from potstill.evaluation import Protocol as Protocol
    from potstill.evaluation import evaluate as evaluate
    from potstill.methods import CATALOGUE as CATALOGUE
    from potstill.nets.own import backbone_of as backbone_of
    from potstill.nets.own import network_of as network_of
    from potstill.reports import report as report
    from potstill.run import InputError as InputError
    from potstill.run import PotstillError as PotstillError
    from potstill.run import Run as Run
    from potstill.synthetic import SyntheticSet as SyntheticSet
    from potstill.synthetic import load_distilled as load_distilled
    from potstill.synthetic.imported import import_set as import_set


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = getattr(importlib.import_module(_HOMES[name]), name)
        globals()[name] = value
        return value
    if name in _ROOMS:
        return importlib.import_module(f"potstill.{name}")
    raise AttributeError(f"module 'potstill' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, *_ROOMS])
