"""Kernel or rich, confused or not: what decides it before training, exactly where it is known exactly.

A law of neurons is ``Uniform``, ``Gaussian`` or ``Sphere``.
"""

from sgdsde.networks import DiagonalLinear, MatrixFactorization, Rescaled, ShallowReLU
from sgdsde.networks.shallow import Gaussian, Sphere, Uniform
from sgdsde.regimes.confusion import GradientConfusion, confusion_floor, gradient_confusion
from sgdsde.regimes.confusion_path import ConfusionPath, confusion_path
from sgdsde.regimes.confusion_theorem import ConfusionTheorem, decoupled_loss, decoupled_max_lr
from sgdsde.regimes.diagonal import interpolant, mirror_flow, penalty
from sgdsde.regimes.gradient_products import gradient_gram
from sgdsde.regimes.scale_shift import effective_scale, effective_scale_of
from sgdsde.regimes.scales import ScaleSweep, scale_sweep
from sgdsde.regimes.splines import CurvatureSpline, curvature_spline
from sgdsde.regimes.wide_networks import curvature_density, feature_kernel, smoothing_strength, wide_limit

__all__ = [
    "ConfusionPath",
    "ConfusionTheorem",
    "CurvatureSpline",
    "DiagonalLinear",
    "Gaussian",
    "GradientConfusion",
    "MatrixFactorization",
    "Rescaled",
    "ScaleSweep",
    "ShallowReLU",
    "Sphere",
    "Uniform",
    "confusion_floor",
    "confusion_path",
    "curvature_density",
    "curvature_spline",
    "decoupled_loss",
    "decoupled_max_lr",
    "effective_scale",
    "effective_scale_of",
    "feature_kernel",
    "gradient_confusion",
    "gradient_gram",
    "interpolant",
    "mirror_flow",
    "penalty",
    "scale_sweep",
    "smoothing_strength",
    "wide_limit",
]
