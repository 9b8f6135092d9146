"""Distances of a synthetic set: spectral, kernel and mean to a real one, or along a trajectory."""

from potstill.match.classifier_path import classifier_distance
from potstill.match.parameter_distance import trajectory_distance
from potstill.match.rollout import StudentStep

__all__ = ["StudentStep", "classifier_distance", "trajectory_distance"]
