"""What a receiver learns from: hard, soft and regression labels, learned with the images or not."""

from potstill.labels.parts import Hard, Labels, LabelSpec, Regression, Soft, TeacherLabels

__all__ = ["Hard", "LabelSpec", "Labels", "Regression", "Soft", "TeacherLabels"]
