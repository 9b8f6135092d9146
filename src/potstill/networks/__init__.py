"""Networks through which both sides are seen: one interface, whatever stands behind it."""

from potstill.networks.evolving import EvolvingNets
from potstill.networks.feature_networks import Networks, PoolNetworks
from potstill.networks.frozen_backbone import BackboneNetworks, FrozenBackbone
from potstill.networks.online_pool import OnlinePoolNets
from potstill.networks.parts import (
    Experts,
    GaussianNets,
    NetworkSpec,
    NoNets,
    PoolNets,
    RandomNets,
)
from potstill.networks.queue import QueueNets, QueueNetworks
from potstill.networks.scorer import HeadedBackbone, Scorer
from potstill.networks.settling import SettlingNets, SettlingNetworks
from potstill.networks.snapshots import SnapshotNets, SnapshotNetworks
from potstill.networks.squeezed import SqueezedNets, SqueezedNetworks

__all__ = [
    "BackboneNetworks",
    "EvolvingNets",
    "Experts",
    "FrozenBackbone",
    "GaussianNets",
    "HeadedBackbone",
    "NetworkSpec",
    "Networks",
    "NoNets",
    "OnlinePoolNets",
    "PoolNetworks",
    "PoolNets",
    "QueueNets",
    "QueueNetworks",
    "RandomNets",
    "Scorer",
    "SettlingNets",
    "SettlingNetworks",
    "SnapshotNets",
    "SnapshotNetworks",
    "SqueezedNets",
    "SqueezedNetworks",
]
