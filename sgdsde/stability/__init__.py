"""Stability limits of SGD on the linearized model, and the learning rates and batch sizes that follow.

batch_size, momentum, dampening, nesterov, weight_decay and sampling mean what they do in ``SGD``.
"""

from sgdsde.stability.along_path import PathLimit, max_lr_along_path
from sgdsde.stability.limits import (
    max_lr,
    max_lr_full_batch,
    max_lr_of,
    mean_square_radius,
    sufficient_lr,
)
from sgdsde.stability.scales import critical_batch_size, fastest_lr, gradient_noise_scale
from sgdsde.stability.subsample import SubsampledLimit, max_lr_from_subsample
from sgdsde.stability.warning import UnstableWarning, warn_if_unstable

__all__ = [
    "PathLimit",
    "SubsampledLimit",
    "UnstableWarning",
    "critical_batch_size",
    "fastest_lr",
    "gradient_noise_scale",
    "max_lr",
    "max_lr_along_path",
    "max_lr_from_subsample",
    "max_lr_full_batch",
    "max_lr_of",
    "mean_square_radius",
    "sufficient_lr",
    "warn_if_unstable",
]
