"""What a receiver learns from: labels of images, learned or not, and labels of their views."""

from potstill.labels.calibration import adsa_tau, even_shift
from potstill.labels.parts import Hard, Labels, LabelSpec, Regression, Soft, TeacherLabels
from potstill.labels.per_view import ViewLabels
from potstill.labels.projection import Projection

__all__ = [
    "Hard",
    "LabelSpec",
    "Labels",
    "Projection",
    "Regression",
    "Soft",
    "TeacherLabels",
    "ViewLabels",
    "adsa_tau",
    "even_shift",
]
