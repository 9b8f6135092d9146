"""Networks: features, classifier, and training many of them at once."""

from potstill.nets.layers import Network, initialise, predict
from potstill.nets.many import train_many
from potstill.nets.sharpness import Sharpness
from potstill.nets.spec import RESIDUAL, create, create_for, parse
from potstill.nets.training import Examples, Training

__all__ = [
    "RESIDUAL",
    "Examples",
    "Network",
    "Sharpness",
    "Training",
    "create",
    "create_for",
    "initialise",
    "parse",
    "predict",
    "train_many",
]
