"""Kernel or rich, confused or not: what decides it before training, exactly where it is known exactly."""

from sgdsde.regimes.confusion import GradientConfusion, confusion_floor, gradient_confusion
from sgdsde.regimes.confusion_path import ConfusionPath, confusion_path
from sgdsde.regimes.confusion_theorem import ConfusionTheorem, decoupled_loss, decoupled_max_lr
from sgdsde.regimes.gradient_products import gradient_gram

__all__ = [
    "ConfusionPath",
    "ConfusionTheorem",
    "GradientConfusion",
    "confusion_floor",
    "confusion_path",
    "decoupled_loss",
    "decoupled_max_lr",
    "gradient_confusion",
    "gradient_gram",
]
