"""Distances of a synthetic set: spectral, kernel and mean to a real one, or along a trajectory."""

from potstill.match.amplitude import (
    amplitude_weights,
    coupled_alpha_head,
    median_distance,
    noise_laws,
    reliability_weights,
)
from potstill.match.classifier_path import classifier_distance
from potstill.match.kernels import Kernel, kernel, mixture
from potstill.match.mmd import by_class, class_mmd2, mmd2, multi_bandwidth
from potstill.match.moments import mean_distance
from potstill.match.parameter_distance import GRADIENTS, trajectory_distance
from potstill.match.rollout import Forward, Params, StudentStep
from potstill.match.spectral import (
    SegmentMean,
    amplitude_share,
    characteristic,
    noise_floor,
    segment_mean,
    spectral_distance,
    spectral_mean,
    split,
    unbiased_amplitude,
)

__all__ = [
    "GRADIENTS",
    "Forward",
    "Kernel",
    "Params",
    "SegmentMean",
    "StudentStep",
    "amplitude_share",
    "amplitude_weights",
    "by_class",
    "characteristic",
    "class_mmd2",
    "classifier_distance",
    "coupled_alpha_head",
    "kernel",
    "mean_distance",
    "median_distance",
    "mixture",
    "mmd2",
    "multi_bandwidth",
    "noise_floor",
    "noise_laws",
    "reliability_weights",
    "segment_mean",
    "spectral_distance",
    "spectral_mean",
    "split",
    "trajectory_distance",
    "unbiased_amplitude",
]
