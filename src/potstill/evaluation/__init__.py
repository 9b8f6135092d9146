"""Evaluation: protocols, students, label tiers and scores."""

from potstill.evaluation.advice import advise_lr
from potstill.evaluation.inheritance import Inheritance, InheritedClassifier, inheritance
from potstill.evaluation.labels import (
    TIERS,
    receiver_bytes,
    soft_labels,
    with_projection,
    with_soft_labels,
    with_view_labels,
)
from potstill.evaluation.linear_bench import LinearBench
from potstill.evaluation.metrics import (
    calibration_error,
    class_accuracy,
    mean_std,
    shot_groups,
    summary,
)
from potstill.evaluation.probe import PROBES, Probe
from potstill.evaluation.protocol import PROTOCOLS, Protocol, find_protocol
from potstill.evaluation.ranking import dd_ranking
from potstill.evaluation.scores import (
    Score,
    evaluate,
    full_name,
    read_scores,
    some_networks,
    write_scores,
)
from potstill.evaluation.student import train_students
from potstill.evaluation.teaching import trained_teachers

__all__ = [
    "PROBES",
    "PROTOCOLS",
    "InheritedClassifier",
    "Inheritance",
    "LinearBench",
    "Probe",
    "Protocol",
    "Score",
    "TIERS",
    "advise_lr",
    "calibration_error",
    "class_accuracy",
    "dd_ranking",
    "evaluate",
    "find_protocol",
    "full_name",
    "inheritance",
    "mean_std",
    "read_scores",
    "receiver_bytes",
    "shot_groups",
    "soft_labels",
    "some_networks",
    "summary",
    "train_students",
    "trained_teachers",
    "with_projection",
    "with_soft_labels",
    "with_view_labels",
    "write_scores",
]
